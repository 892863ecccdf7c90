"""Mails to people of a tenant, which wait with what they tell of until identity has them."""
