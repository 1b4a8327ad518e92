"""Training of the devices' policies, and the folders that runs leave."""
