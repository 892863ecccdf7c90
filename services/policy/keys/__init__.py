"""The keys that sign policies, and what they sign."""
