"""Variables and secrets that policies name."""
