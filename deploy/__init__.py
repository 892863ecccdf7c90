"""How the product is run: the launcher behind `make run`, and what configures the servers around it."""
