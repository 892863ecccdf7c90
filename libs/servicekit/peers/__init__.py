"""What a service knows of others: tenants and sessions, locked-out devices."""
