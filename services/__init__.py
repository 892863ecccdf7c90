"""The six services, one package per bounded context."""

import servicekit  # noqa: F401 - before anything else: it begins FIPS mode
