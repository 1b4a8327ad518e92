"""Branches of running worlds: how fast and how certain they are, and what a controller reaches that looks ahead with them."""
