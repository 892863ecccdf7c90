"""What policies say field by field."""
