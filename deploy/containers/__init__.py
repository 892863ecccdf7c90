"""The product in containers: what is where, and the files that each container gets."""
