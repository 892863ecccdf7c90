"""What reports ask of users and credentials."""
