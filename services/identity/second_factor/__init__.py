"""Second factors: codes of an authenticator app, recovery codes, and who has to have one."""
