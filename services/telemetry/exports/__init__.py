"""Files of devices and events."""
