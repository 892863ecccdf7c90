"""What reports ask of policies."""
