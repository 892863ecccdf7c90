"""E-mail domains: whose they are, and where people with such addresses log in."""
