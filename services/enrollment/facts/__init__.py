"""What reports ask of the registry."""
