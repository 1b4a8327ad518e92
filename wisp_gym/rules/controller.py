"""A controller as the engine takes it: which rules decide, with their numbers. Names are resolved in `wisp_gym.controllers`."""

from dataclasses import dataclass, field

import numpy as np

from wisp_gym.rules import trimming

NO_POLICY = np.zeros(0, dtype=np.float32)  # (0,) weights, where nothing is learned


@dataclass(frozen=True)
class Plan:
    """Who drafts how many tokens, in which group, where that is fixed before the run.

    Attributes:
        groups: (n,) group of each device, 0 to n_groups − 1. lengths: (n,) tokens that each drafts.
        n_groups: batches in a cycle. cycle_s: predicted time of a cycle. tokens_per_s: predicted rate.
    """

    groups: tuple[int, ...]
    lengths: tuple[int, ...]
    n_groups: int
    cycle_s: float
    tokens_per_s: float


@dataclass(frozen=True)
class Controller:
    """A controller with its numbers, ready for the engine.

    Attributes:
        speculation, batching, trim: ids of `rules.speculation`, `rules.batching` and `rules.trimming`.
        speculation_parameters, batching_parameters: at most eight numbers each, in the order of the rule's docstring.
        uses_predictor: drafting costs the rejection predictor's time as well.
        sees_statistics, sees_observation: what the device works out for the rule after each token.
        centralized: the server decodes alone. learns: the rule learns from replies. suggests: the server sends lengths.
        trim_tokens: drafted tokens of a batch that are verified at most, where the rule has a budget.
        chunk_tokens: prompt tokens of a batch at most; None takes the scenario's. chunk_share: of the prompt tokens that
            wait, where that is more.
        admit_share: share of KV memory that may be spoken for when a prompt begins; 0 sets no limit.
        policy, scorer: float32 weights of `rules.mlp` and `rules.scorer`, empty where nothing is learned.
    """

    name: str
    speculation: int
    speculation_parameters: tuple[float, ...]
    batching: int
    batching_parameters: tuple[float, ...]
    uses_predictor: bool = False
    sees_statistics: bool = False
    sees_observation: bool = False
    centralized: bool = False
    learns: bool = False
    suggests: bool = False
    plan: Plan | None = None
    trim: int = trimming.NONE
    trim_tokens: int = 0
    chunk_tokens: int | None = None
    chunk_share: float = 0.0
    admit_share: float = 0.0
    policy: np.ndarray = field(default_factory=lambda: NO_POLICY, compare=False)
    scorer: np.ndarray = field(default_factory=lambda: NO_POLICY, compare=False)
