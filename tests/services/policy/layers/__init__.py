"""Layers: what several policies make together."""
