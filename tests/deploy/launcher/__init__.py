"""Tests of `deploy.launcher`."""
