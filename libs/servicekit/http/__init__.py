"""The HTTP side: device calls in the released agent's JSON, and plain routes."""
