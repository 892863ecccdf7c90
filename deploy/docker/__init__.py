"""The image: what is installed in it, and its bill of materials."""
