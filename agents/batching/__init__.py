"""Training of the server's policies: cloning, MaskablePPO, evolution strategies."""
