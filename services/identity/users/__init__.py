"""Users, their roles and invitations."""
