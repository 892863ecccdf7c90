"""Upgrades: what a release must keep for the one before it, tried with that release's own code."""
