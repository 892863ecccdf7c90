"""Tests that need programs of others, which `make test-servers` installs from Debian."""
