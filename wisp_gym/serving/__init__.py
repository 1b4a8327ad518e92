"""What a server or a device imports to run an exported policy."""
