"""Directories (LDAP, Active Directory): whose people log in here, and what their groups may do."""
