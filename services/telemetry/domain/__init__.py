"""Pure types and rules: what devices report, and what it says about them."""
