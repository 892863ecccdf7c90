"""Stand-ins for what is outside: the released agent, a gateway."""
