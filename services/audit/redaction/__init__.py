"""Takes the content out of entries of the log: the operator's work, on the server alone."""
