"""What devices report: states and events, read, bounded and stored."""
