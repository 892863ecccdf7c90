"""The `evergreen` command."""

import servicekit  # noqa: F401 - before anything else: it begins FIPS mode
