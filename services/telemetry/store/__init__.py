"""All the SQL of telemetry."""
