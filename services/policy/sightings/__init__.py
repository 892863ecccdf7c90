"""What is seen of devices while something is rolled out to them."""
