"""SCIM 2.0: identity providers that send people and groups by themselves (RFC 7643, RFC 7644)."""
