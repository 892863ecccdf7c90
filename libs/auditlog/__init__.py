"""The audit log's format and its offline verifier, which need nothing else of the product."""
