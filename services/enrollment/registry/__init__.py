"""The device registry: its life cycle, and who is locked out."""
