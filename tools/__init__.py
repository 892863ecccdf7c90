"""Development tools: nothing here runs in a deployment."""
