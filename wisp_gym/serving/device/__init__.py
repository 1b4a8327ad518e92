"""The speculation controller of a device and what it is told."""
