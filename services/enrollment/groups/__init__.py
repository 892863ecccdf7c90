"""Groups of devices: listed by serial number, or by a filter over what the registry knows."""
