"""The gateway, on a real Envoy."""
