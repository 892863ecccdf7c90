"""The product in containers: its own Dockerfile and compose file, on stand-ins of public images."""
