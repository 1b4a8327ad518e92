"""A small case solved exactly: identical devices, one server, times on a lattice, draft lengths chosen at each reply.

    toy = Toy(devices=2, draft_ticks=1, link_ticks=1, batch_ticks=4, token_ticks=1, acceptance=0.75, max_draft_tokens=4)
    solution = solve(toy)
    solution.tokens_per_s, solution.lengths(toy.start)

All times are multiples of a tick: a draft token, a message, a batch of T new tokens (`batch_ticks + token_ticks·T`). The
server takes all that waits and starts at once. A round of k drafted tokens commits `(1 − α^(k+1))/(1 − α)` tokens on
average (arXiv 2211.17192); how many they are changes no time, so only means are needed and every transition is certain.

**State** when a batch ends: (ticks until it reaches the server, drafted tokens) of every device that was not in the batch,
sorted; devices are identical. **Action**: draft lengths of those that were. They see the whole state, more than a device
of the engine does, so the optimum is a bound for it. **Transition**: the next batch holds what has arrived when the
server is free; it ends `wait + batch` ticks later and commits its members' tokens.

The gain (tokens per second in the long run) and policy come from relative value iteration (White, 1963) on the
equivalent chain of equal steps (Schweitzer, 1971; Puterman, Markov Decision Processes, 1994, section 11.4); it stops when
the bounds on the gain, the least and the largest change of a value, are close.

`toy_scenario` is the same case as a scenario of the engine. Ticks are a power of two of a second, so that the engine's
clock is exact and messages arrive at batch ends to the bit. The devices' predictor knows nothing (AUC .5) there.
"""

from dataclasses import asdict, dataclass
from itertools import combinations_with_replacement
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wisp_gym.scenario import Scenario, load, with_
from wisp_gym.scenario.fields import Count, Part, Range, ScenarioError

TICK_S = 1.0 / 64.0
CLOSE = 1e-9  # relative width of the bounds on the gain at which the iteration ends
MAX_SWEEPS = 200_000
ENDLESS_TOKENS = 100_000

State = tuple[tuple[int, int], ...]
Lengths = tuple[int, ...]


@dataclass(frozen=True)
class Toy(Part):
    """A toy case; times in ticks of 1/64 s.

    Attributes:
        devices: 1 to 3. draft_ticks: per drafted token, a power of two. link_ticks: one way.
        batch_ticks, token_ticks: a batch of T new tokens takes `batch_ticks + token_ticks·T`.
        acceptance: probability α that a drafted token is accepted, given those before it.
        max_draft_tokens: longest round K.
    """

    devices: Annotated[int, Range(1, 3)]
    draft_ticks: Count
    link_ticks: Count
    batch_ticks: Count
    token_ticks: Count
    acceptance: Annotated[float, Range(0.0, 1.0, open_low=True, open_high=True)]
    max_draft_tokens: Annotated[int, Range(1, 32)]

    def check(self) -> None:
        """Drafting times are powers of two, so that the engine's clock is exact."""
        if self.draft_ticks & (self.draft_ticks - 1):
            raise ScenarioError(f"given {self.draft_ticks}, allowed: 1, 2, 4, 8, …", "draft_ticks")

    @property
    def start(self) -> State:
        """All devices have just been answered."""
        return ()

    def tokens(self, k: int) -> float:
        """Mean tokens that a round of k drafted tokens commits."""
        return (1.0 - self.acceptance ** (k + 1)) / (1.0 - self.acceptance)

    def actions(self, state: State) -> list[Lengths]:
        """Draft lengths of the devices that were in the batch, in rising order (they are alike)."""
        answered = self.devices - len(state)
        return list(combinations_with_replacement(range(self.max_draft_tokens + 1), answered))

    def step(self, state: State, lengths: Lengths) -> tuple[State, int, float]:
        """Next state, ticks until then, and mean tokens committed by the batch that ends then."""
        sent = [(2 * self.link_ticks + k * self.draft_ticks, k) for k in lengths]
        coming = sorted([*state, *sent])
        launch = max(coming[0][0], 0)
        members = [k for ticks, k in coming if ticks <= launch]
        took = launch + self.batch_ticks + self.token_ticks * sum(k + 1 for k in members)
        # What waits already waits: how long does not matter to a server that takes everything.
        left = tuple(sorted((max(ticks - took, 0), k) for ticks, k in coming if ticks > launch))
        return left, took, sum(map(self.tokens, members))


class Transitions(NamedTuple):
    """Every action of every reachable state, state by state."""

    states: list[State]
    first: NDArray[np.int64]  # (states,) place of a state's first action
    actions: list[Lengths]
    after: NDArray[np.int64]  # (actions,) next state
    ticks: NDArray[np.float64]  # (actions,)
    tokens: NDArray[np.float64]  # (actions,)


@dataclass(frozen=True)
class Solution:
    """The best that any controller of the toy reaches.

    Attributes:
        tokens_per_s: long-run gain. low, high: bounds on it. policy: state → draft lengths.
    """

    tokens_per_s: float
    low: float
    high: float
    policy: dict[State, Lengths]

    def lengths(self, state: State) -> Lengths:
        """Draft lengths of the devices that have just been answered."""
        return self.policy[state]


def transitions(toy: Toy, allowed: Lengths | None = None) -> Transitions:
    """All that can be reached from the start.

    Args:
        toy: the case. allowed: draft lengths that may be used; default all.
    """
    places, states = {toy.start: 0}, [toy.start]
    first, rows = [], []
    actions: list[Lengths] = []
    for state in states:  # grows while it is walked
        first.append(len(actions))
        for lengths in toy.actions(state):
            if allowed is not None and not set(lengths) <= set(allowed):
                continue
            after, ticks, tokens = toy.step(state, lengths)
            if after not in places:
                places[after] = len(states)
                states.append(after)
            actions.append(lengths)
            rows.append((places[after], ticks, tokens))
    after_, ticks_, tokens_ = (np.array(column) for column in zip(*rows, strict=True))
    return Transitions(states, np.array(first), actions, after_, ticks_.astype(float), tokens_.astype(float))


def solve(toy: Toy, allowed: Lengths | None = None) -> Solution:
    """Gain and policy by relative value iteration.

    Args:
        toy: the case. allowed: draft lengths that may be used (one alone: the fixed-length policy); default all.

    Raises:
        ValueError: no length allowed. ArithmeticError: no convergence.
    """
    if allowed is not None and not set(allowed) & set(range(toy.max_draft_tokens + 1)):
        raise ValueError(f"allowed: given {allowed}, allowed: some of 0 to {toy.max_draft_tokens}")
    t = transitions(toy, allowed)
    here = np.repeat(np.arange(len(t.states)), np.diff([*t.first, len(t.actions)]))
    step = t.ticks.min() / 2.0  # half of the shortest: the chain then stays with some chance, so it has no period
    value = np.zeros(len(t.states))
    for _ in range(MAX_SWEEPS):
        gain = (t.tokens + value[t.after] - value[here]) / t.ticks  # per tick, of each action
        best = np.maximum.reduceat(gain, t.first)
        value = value + step * best
        value -= value[0]
        if best.max() - best.min() <= CLOSE * best.max():
            chosen = {t.states[here[a]]: t.actions[a] for a in np.flatnonzero(gain >= best[here])[::-1]}
            low, high = float(best.min()) / TICK_S, float(best.max()) / TICK_S
            return Solution((low + high) / 2.0, low, high, chosen)
    raise ArithmeticError(f"{toy}: the gain has not converged after {MAX_SWEEPS} sweeps")


def follow(toy: Toy, policy: dict[State, Lengths]) -> list[tuple[State, Lengths]]:
    """The cycle of (state, lengths) into which a policy falls from the start."""
    seen: dict[State, int] = {}
    path: list[tuple[State, Lengths]] = []
    state = toy.start
    while state not in seen:
        seen[state] = len(path)
        path.append((state, policy[state]))
        state = toy.step(state, policy[state])[0]
    return path[seen[state] :]


def toy_scenario(toy: Toy, measure_s: float = 200.0) -> Scenario:
    """The toy as a scenario of the engine: the same times to the bit, `measure_s` of measurement after 20 s.

    One endless request for each device, all from time 0. To be run with `fcfs`, which takes all that waits.
    """
    base = load("wisp-a100-qwen3-32b")
    link = asdict(base.devices[0].link) | {
        "name": "lattice", "one_way_s": toy.link_ticks * TICK_S, "jitter": 0.0, "loss": 0.0, "outages_per_s": 0.0,
        "wake_s": 0.0, "uplink_bytes_per_s": 1e300, "downlink_bytes_per_s": 1e300,
    }  # fmt: skip
    device = asdict(base.devices[0]) | {
        "name": "toy", "draft_tokens_per_s": 1.0 / (toy.draft_ticks * TICK_S), "round_overhead_s": 0.0,
        "predictor_s": 0.0, "throttle_ratio": 1.0, "link": link,
    }  # fmt: skip
    batch_s, token_s = toy.batch_ticks * TICK_S, toy.token_ticks * TICK_S
    endless = {"median_tokens": ENDLESS_TOKENS, "log_std": 0.0, "min_tokens": 1, "max_tokens": ENDLESS_TOKENS}
    prompt = {"median_tokens": 1, "log_std": 0.0, "min_tokens": 1, "max_tokens": 1}
    room = 4 * ENDLESS_TOKENS * base.target.kv_bytes_per_token + base.target.weights_bytes
    return with_(base, **{
        "name": f"toy-{toy.devices}", "description": "A case that relative value iteration solves exactly",
        "n_devices": toy.devices, "max_draft_tokens": toy.max_draft_tokens, "devices": [device],
        "slo": [asdict(base.slo[0]) | {"name": "any", "share": 1.0}],
        "server.host_s": 0.0, "server.noise": 0.0, "server.prefill_chunk_tokens": 0, "server.memory_bytes": room,
        "server.memory_utilisation": 1.0, "server.activation_bytes": 0,
        "verification": {"launch_s": 0.0, "weights_s": batch_s, "token_s": token_s, "sharpness": 1.0,
                         "cached_token_s": 0.0, "pair_s": 0.0},
        "estimator": {"launch_s": batch_s, "new_token_s": token_s, "pair_s": 0.0, "cached_token_s": 0.0},
        "draft.acceptance": {"logit_mean": float(np.log(toy.acceptance / (1.0 - toy.acceptance))), "request_std": 0.0,
                             "drift_std": 0.0, "drift_tokens": 100.0, "after_rejection_logit": 0.0},
        "draft.statistics": {"auc": 0.5, "overconfidence": 0.0},
        "workload.arrivals": "closed", "workload.think_s": 0.0, "workload.start_window_s": 0.0, "workload.prompt": prompt,
        "workload.output": endless, "horizon": {"warmup_s": 20.0, "measure_s": measure_s, "drain_s": 0.0},
    })  # fmt: skip
