"""Connections to servers of others, whose addresses somebody typed: guarded and bounded."""
