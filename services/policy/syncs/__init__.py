"""Devices that an administrator wants to apply their policy again."""
