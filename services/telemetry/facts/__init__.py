"""What reports ask of devices."""
