"""The inventory: every device with its state, as lists and details show it."""
