"""The batch scheduler of a server and what it sees of its queue."""
