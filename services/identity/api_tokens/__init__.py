"""API tokens of users and of service accounts."""
