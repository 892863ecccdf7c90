"""What reports ask of verdicts."""
