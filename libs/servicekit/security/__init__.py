"""Cryptography, one module per primitive, and TLS between services.

Nothing else of the product imports `nacl`, and few modules import `cryptography` or `hashlib`:
import-linter has the list. The suite of each primitive has a name in `suites`.
"""
