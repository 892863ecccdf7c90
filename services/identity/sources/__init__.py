"""Sources of accounts: what directories, single sign-on and SCIM have in common."""
