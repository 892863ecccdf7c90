"""Passwords, and what slows guessing down."""
