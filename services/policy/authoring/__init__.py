"""Policies as administrators write them."""
