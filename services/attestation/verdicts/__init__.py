"""Verdicts: lists, files, the history of a device."""
