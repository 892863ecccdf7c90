"""Storage budgets of devices and organisations."""
