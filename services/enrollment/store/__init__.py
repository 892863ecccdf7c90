"""All of enrollment's SQL."""
