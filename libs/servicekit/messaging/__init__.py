"""Events: the outbox, and NATS JetStream."""
