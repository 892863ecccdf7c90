"""Change feeds between services."""
