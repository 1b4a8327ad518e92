"""Figures that WISP published (arXiv 2601.11652, abstract and tables), for comparison. Nothing here is ours."""

SLO_TOKENS_PER_S = (2, 4, 6, 8)
SYSTEMS = ("wisp", "centralized", "sled")

# Largest number of devices within the tolerated violations, Qwen3-32B on one A100-80GB.
CAPACITY = {"wisp": (164, 142, 103, 86), "centralized": (97, 80, 54, 41), "sled": (83, 42, 27, 21)}

# System goodput, tokens/s delivered within SLO, by target.
GOODPUT = {
    "qwen3-32b": {"wisp": 631.86, "centralized": 326.12, "sled": 170.82},
    "qwen3-14b": {"wisp": 1044.92, "centralized": 552.34, "sled": 276.38},
}

# Ratios: (WISP / centralized, WISP / SLED).
CAPACITY_RATIOS = {"qwen3-32b": (2.1, 4.1)}
GOODPUT_RATIOS = {"qwen3-32b": (1.94, 3.70), "qwen3-14b": (1.89, 3.78)}
