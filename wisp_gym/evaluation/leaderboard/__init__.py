"""A board of controllers that anyone can check: a frozen suite of worlds, a line of figures for each controller.

A line says all that its figures depend on: the suite by its digest, the controller with the digests of its policies and code,
the versions of what ran it. `wisp-gym leaderboard verify` runs it again and compares the line byte for byte.
"""
