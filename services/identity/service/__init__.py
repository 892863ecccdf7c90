"""Identity's use cases, one transaction each."""
