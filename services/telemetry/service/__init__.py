"""The use cases of telemetry, one transaction each."""
