"""Figures that WISP published (arXiv 2601.11652, abstract and tables), for comparison. Nothing here is ours."""

SLO_TOKENS_PER_S = (2, 4, 6, 8)
SYSTEMS = ("wisp", "centralized", "sled")

# Largest number of devices within the tolerated violations, Qwen3-32B on one A100-80GB.
CAPACITY = {"wisp": (164, 142, 103, 86), "centralized": (97, 80, 54, 41), "sled": (83, 42, 27, 21)}

# System goodput, tokens/s delivered within SLO, Qwen3-32B.
GOODPUT = {"wisp": 631.86, "centralized": 326.12, "sled": 170.82}

# Ratios of the abstract: (WISP / centralized, WISP / SLED).
CAPACITY_RATIOS = (2.1, 4.1)
GOODPUT_RATIOS = (1.94, 3.70)
