"""A controller as the engine takes it: which rules decide, with their numbers. Names are resolved in `wisp_gym.controllers`.

The engine's compiled rules index by these numbers, so whoever makes a controller, by name or by hand, is checked here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from wisp_gym.arrays import numbers
from wisp_gym.contract import device, ladders, request, server
from wisp_gym.contract.actions import PLAIN_TOKEN_ACTIONS, TOKEN_ACTIONS, WAYS
from wisp_gym.contract.decisions import OF_SERVERS
from wisp_gym.errors import InputError, of_kind, shown
from wisp_gym.rules import batching, mlp, scorer, speculation, trimming
from wisp_gym.rules.catalogue import BATCHING, BUDGET, CENTRALIZED, CHUNK, PACE, SPECULATION, Setting
from wisp_gym.rules.who_drafts import MOST_TOKENS, NO_DRAFTING, Drafting, check_rule
from wisp_gym.values import between, whole

NO_POLICY = np.zeros(0, dtype=np.float32)  # (0,) weights, where nothing is learned
MOST_GROUPS = 4096  # of a plan

# Kind of a rule → its numbers, in the order in which the engine reads them.
Settings = Mapping[int, tuple[Setting, ...]]
SPECULATION_SETTINGS: Settings = {
    speculation.POLICY: (),
    speculation.POLICY_LENGTH: (),
    **{rule.kind: rule.settings for rule in SPECULATION.values()},
}
OF_THE_PLAN = (Setting("cycle_s", 0.0, 0.0, math.inf), Setting("n_groups", 1, 1, MOST_GROUPS, whole=True))
BATCHING_SETTINGS: Settings = {
    batching.LEARNED: (),
    **{rule.kind: rule.settings for rule in (BATCHING | CENTRALIZED).values()},
    batching.PIPELINED: (*BATCHING["pipelined"].settings, *OF_THE_PLAN),
}
SCORERS = [
    scorer.Shape(request.SIZE, server.SIZE, 1, 1, 1, decision.launches, len(ladders.CHUNK_TOKENS), decision.lengths)
    for decision in OF_SERVERS.values()
]  # of any widths
PLAIN = {speculation.POLICY: (PLAIN_TOKEN_ACTIONS,) * 2, speculation.POLICY_LENGTH: (2, MOST_TOKENS + 1)}
WITH_WAYS = {
    speculation.POLICY: (len(TOKEN_ACTIONS),) * 2,
    speculation.POLICY_LENGTH: (2 * len(WAYS), (MOST_TOKENS + 1) * len(WAYS)),
}  # fewest and most outputs


@dataclass(frozen=True)
class Plan:
    """Who drafts how many tokens, in which group, where that is fixed before the run.

    Attributes:
        groups: (n,) group of each device, 0 to n_groups − 1. lengths: (n,) tokens that each drafts.
        n_groups: batches in a cycle. cycle_s: predicted time of a cycle. tokens_per_s: predicted rate.

    Raises:
        InputError: groups or lengths that cannot be.
    """

    groups: tuple[int, ...]
    lengths: tuple[int, ...]
    n_groups: int
    cycle_s: float
    tokens_per_s: float

    def __post_init__(self) -> None:
        whole(1, MOST_GROUPS).checked("plan: n_groups", self.n_groups)
        between(0.0, math.inf).checked("plan: cycle_s", self.cycle_s)
        numbers("plan: groups", self.groups, np.int64, (None,), low=0, high=self.n_groups - 1)
        numbers("plan: lengths", self.lengths, np.int64, (len(self.groups),), low=0, high=MOST_TOKENS)


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
        pace: the numbers of `pace` in the catalogue; empty where the batching rule orders what waits.
        drafting: who drafts besides a device before it sends. chooses_way: the policy says of each round how it ends.
        policy, scorer: float32 weights of `rules.mlp` and `rules.scorer`, empty where nothing is learned.

    Raises:
        InputError: an id, a number or weights that no rule can work with.
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
    pace: tuple[float, ...] = ()
    drafting: Drafting = NO_DRAFTING
    chooses_way: bool = False
    policy: np.ndarray = field(default_factory=lambda: NO_POLICY, compare=False)
    scorer: np.ndarray = field(default_factory=lambda: NO_POLICY, compare=False)

    def __post_init__(self) -> None:
        of_kind("controller: name", self.name, str)
        place = f"controller '{self.name}'"
        check_rule(f"{place}: speculation", self.speculation, self.speculation_parameters, SPECULATION_SETTINGS)
        check_rule(f"{place}: batching", self.batching, self.batching_parameters, BATCHING_SETTINGS)
        whole(trimming.NONE, trimming.ADASERVE).checked(f"{place}: trim", self.trim)
        whole(0, int(BUDGET.high)).checked(f"{place}: trim_tokens", self.trim_tokens)
        if self.chunk_tokens is not None:
            whole(0, int(CHUNK["chunk"].settings[0].high)).checked(f"{place}: chunk_tokens", self.chunk_tokens)
        between(0.0, 1.0).checked(f"{place}: chunk_share", self.chunk_share)
        between(0.0, 1.0).checked(f"{place}: admit_share", self.admit_share)
        if self.pace != ():
            self.check_pace(place)
        self.check_drafting(place)
        self.check_plan(place)
        self.check_weights(place)

    @property
    def chooses_hosting(self) -> bool:
        """Whether the batching policy says for whom the server drafts, and how long, in place of the rules of `drafting`."""
        return self.batching == batching.LEARNED and scorer.shape_of(self.scorer).lengths > 0

    def check_drafting(self, place: str) -> None:
        """A server alone has no devices that draft, and drafts for nobody else where it is never chosen."""
        drafting = of_kind(f"{place}: drafting", self.drafting, Drafting)
        if self.centralized and (drafting.mixes or drafting.overlap_tokens):
            raise InputError(f"{place}: drafting given devices that draft, allowed where the server is not alone")
        if drafting.hosted and not (self.centralized or drafting.mixes):
            raise InputError(f"{place}: drafting given a draft at the server, allowed with a rule of who drafts")

    def check_pace(self, place: str) -> None:
        """Pacing takes the order from a rule that neither learns it nor keeps requests out by it."""
        check_rule(f"{place}: pace", 0, self.pace, {0: PACE["pace"].settings})
        if not batching.takes_pace(self.batching):
            raise InputError(
                f"{place}: pace given {self.pace}, allowed is none beside rules that protect deadlines by their order"
            )

    def check_plan(self, place: str) -> None:
        """Rules that follow a plan need one."""
        follows = self.speculation == speculation.SUGGESTED_LENGTH or self.batching == batching.PIPELINED
        if not isinstance(self.plan, Plan | None) or (follows and self.plan is None):
            raise InputError(f"{place}: plan given {shown(self.plan)}, allowed is a Plan")

    def check_weights(self, place: str) -> None:
        """Weights are there where they are needed, and of the sizes that compiled code reads from them."""
        of_kind(f"{place}: chooses_way", self.chooses_way, bool)
        outputs = (WITH_WAYS if self.chooses_way else PLAIN).get(self.speculation)
        if self.chooses_way and not outputs:
            raise InputError(f"{place}: chooses_way given True, allowed with a policy of devices")
        if outputs or len(self.policy):
            checked = mlp.check(f"{place}: policy", self.policy, device.SIZE, outputs or (2, MOST_TOKENS + 1))
            object.__setattr__(self, "policy", checked)
        if self.batching == batching.LEARNED or len(self.scorer):
            checked = scorer.check(f"{place}: scorer", self.scorer, SCORERS)
            object.__setattr__(self, "scorer", checked)
