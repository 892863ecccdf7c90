"""Sessions: logging in, staying logged in, logging out."""
