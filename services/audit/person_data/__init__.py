"""What the six services hold about one person, as a file for who has to answer."""
