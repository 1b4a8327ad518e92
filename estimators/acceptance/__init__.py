"""The acceptance process fitted to published figures and recorded traces."""
