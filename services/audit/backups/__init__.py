"""How old the last good backup is, for metrics; `evergreen backup` notes what it did."""
