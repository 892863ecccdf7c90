"""The tenant tree."""
