"""Links by which people set a new password in place of one that they forgot."""
