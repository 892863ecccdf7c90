"""The audit log: recorded, read, exported, and sealed by checkpoints."""
