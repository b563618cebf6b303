"""One small trainer per stage over one loop with its checkpoints and logs."""
