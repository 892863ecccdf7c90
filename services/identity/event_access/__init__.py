"""Integrators' access to events: credentials, and the gatekeeper at NATS."""
