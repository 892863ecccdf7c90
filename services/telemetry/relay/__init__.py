"""Device events on their way to NATS."""
