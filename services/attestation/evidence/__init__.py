"""Boot evidence of devices."""
