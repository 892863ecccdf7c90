"""By what TPMs are known: roots of their makers, and keys that organisations list."""
