"""Trimming rules: how many of its drafted tokens the server verifies for each member of a batch that it launches.

Token j of request i survives with the probability S_ij that its device reported. S falls along a request, so the n
most likely tokens of a batch are a prefix of each request's draft. The compiled rules are in `wisp_gym.engine.trim`.
"""

NONE, DSPARK, TETRIS, ADASERVE = range(4)
