"""The honest comparison: every controller tuned with one budget, tested in the same unseen worlds."""
