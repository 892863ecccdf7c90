"""Events: lists, and what people see of them."""
