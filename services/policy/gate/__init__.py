"""What an organisation asks of its devices' boots, and which devices fall short of it."""
