"""For how long the log is kept: rules and legal holds; archives; what is pruned."""
