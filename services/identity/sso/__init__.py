"""Single sign-on: providers (OpenID Connect) whose people log in here."""
