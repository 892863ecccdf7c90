"""What the devices of an organisation are to have of all policies that are in force for them."""
