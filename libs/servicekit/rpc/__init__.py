"""Calls: the chain that every call passes, and the gRPC side."""
