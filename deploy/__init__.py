"""How the product is run: the launcher behind `make run`, and the servers' configurations."""

import servicekit  # noqa: F401 - before anything else: it begins FIPS mode
