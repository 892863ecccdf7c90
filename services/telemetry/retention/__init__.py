"""How long events are kept."""
