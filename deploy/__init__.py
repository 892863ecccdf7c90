"""How the product is run: the launcher behind `make run`, and the servers' configurations."""
