"""The tree over the entries of all tenants: grown behind the commit, signed, proved from."""
