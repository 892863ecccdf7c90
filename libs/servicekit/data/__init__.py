"""PostgreSQL: transactions, migrations, and writes that share a statement."""
