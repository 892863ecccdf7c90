"""What PostgreSQL is for the product: its settings, the database and the roles."""
