"""Tests of `evergreen doctor`, which finds what is planted, names it, and says what to do."""
