"""The key ring: which key of a purpose signs now, which verify, and how one replaces another."""
