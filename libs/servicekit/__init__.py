"""The runtime that all services share.

Every process and command imports this package first of all, so here begins what has to come before
any cryptography (`servicekit.security.fips`). Without the two settings, it is one look.
"""

import os

if "EVERGREEN_FIPS" in os.environ or "EVERGREEN_SUITES" in os.environ:
    from servicekit.security import fips

    fips.begin()
