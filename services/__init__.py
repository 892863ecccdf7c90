"""The six services, one package per bounded context."""
