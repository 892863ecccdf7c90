"""What a publish or a withdrawal would change, and for how many devices."""
