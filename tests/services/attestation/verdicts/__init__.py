"""Tests of lists of verdicts."""
