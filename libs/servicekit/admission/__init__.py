"""Fair shares of bounded places between tenants."""
