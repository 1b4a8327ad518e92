"""A small case solved exactly: identical devices, one server, times on a lattice, who drafts how much chosen at replies.

    toy = Toy(devices=2, draft_ticks=1, link_ticks=1, batch_ticks=4, token_ticks=1, acceptance=0.75, max_draft_tokens=4)
    solution = solve(toy)
    solution.tokens_per_s, solution.lengths(toy.start)

All times are multiples of a tick: a draft token, a message, a batch of T new tokens (`batch_ticks + token_ticks·T`).
The server takes all that waits and starts at once. A round of k drafted tokens commits `(1 − α^(k+1))/(1 − α)` tokens
on average (arXiv 2211.17192); how many they are changes no time, so only means are needed and every transition is
certain.

Where drafting at the server takes time (`step_ticks`), a session may also be at the server for its next round: it
waits there at once, and `step_ticks·(its longest length)` of the batch draft for all of those
(docs/model/who-drafts.md). Drafting while a round is away is left out: what comes of it depends on chance, so
transitions would not be certain.

**State** when a batch ends: (ticks until it reaches the server, choice) of every session that was not in the batch,
sorted; devices are identical. **Choice**: k drafted tokens, by the device (k) or by the server (K + 1 + k).
**Action**: choices of those that were in the batch. They see the whole state, more than a device or a server of the
engine does, and a length of its own for each session at the server, so the optimum is a bound for it. **Transition**:
the next batch holds what has arrived when the server is free; it ends `wait + batch` ticks later and commits its
members' tokens.

The gain (tokens per second in the long run) and policy come from relative value iteration (White, 1963) on the
equivalent chain of equal steps (Schweitzer, 1971; Puterman, Markov Decision Processes, 1994, section 11.4); it stops
when the bounds on the gain, the least and the largest change of a value, are close.

`toy_scenario` is the same case as a scenario of the engine. Ticks are a power of two of a second, so that the
engine's clock is exact and messages arrive at batch ends to the bit. The devices' predictor knows nothing (AUC .5)
there.
"""

from dataclasses import asdict, dataclass
from itertools import combinations_with_replacement
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wisp_gym.scenario import Scenario, load, with_
from wisp_gym.scenario.fields import Count, CountOrZero, Part, Range, ScenarioError

TICK_S = 1.0 / 64.0
CLOSE = 1e-9  # relative width of the bounds on the gain at which the iteration ends
MAX_SWEEPS = 200_000
ENDLESS_TOKENS = 100_000

State = tuple[tuple[int, int], ...]
Choices = tuple[int, ...]


@dataclass(frozen=True)
class Toy(Part):
    """A toy case; times in ticks of 1/64 s.

    Attributes:
        devices: 1 to 3. draft_ticks: per drafted token, a power of two. link_ticks: one way.
        batch_ticks, token_ticks: a batch of T new tokens takes `batch_ticks + token_ticks·T`.
        step_ticks: a draft step of the server for a batch, a power of two; 0: the server does not draft, and keeps no session.
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
    step_ticks: CountOrZero = 0

    def check(self) -> None:
        """Drafting times are powers of two, so that the engine's clock is exact."""
        for name in ("draft_ticks", "step_ticks"):
            ticks = getattr(self, name)
            if ticks & (ticks - 1):
                raise ScenarioError(f"given {ticks}, allowed: 1, 2, 4, 8, …", name)

    @property
    def start(self) -> State:
        """All devices have just been answered."""
        return ()

    @property
    def choices(self) -> range:
        """All that may be chosen for a session."""
        lengths = self.max_draft_tokens + 1
        return range(2 * lengths if self.step_ticks else lengths)

    def at_server(self, k: int) -> int:
        """The choice that the server drafts k tokens."""
        return self.max_draft_tokens + 1 + k

    def split(self, choice: int) -> tuple[bool, int]:
        """Whether the server drafts, and how many tokens are drafted."""
        server, k = divmod(choice, self.max_draft_tokens + 1)
        return server == 1, k

    def tokens(self, k: int) -> float:
        """Mean tokens that a round of k drafted tokens commits."""
        return (1.0 - self.acceptance ** (k + 1)) / (1.0 - self.acceptance)

    def reaches(self, choice: int) -> int:
        """Ticks until a session that is answered now waits at the server again."""
        server, k = self.split(choice)
        return 0 if server else 2 * self.link_ticks + k * self.draft_ticks

    def actions(self, state: State, choices: Choices | None = None) -> list[Choices]:
        """Choices for the sessions that were in the batch, in rising order (they are alike); `choices`: those allowed."""
        answered = self.devices - len(state)
        return list(combinations_with_replacement(self.choices if choices is None else sorted(choices), answered))

    def step(self, state: State, choices: Choices) -> tuple[State, int, float]:
        """Next state, ticks until then, and mean tokens committed by the batch that ends then."""
        coming = sorted([*state, *((self.reaches(choice), choice) for choice in choices)])
        launch = max(coming[0][0], 0)
        members = [self.split(choice) for ticks, choice in coming if ticks <= launch]
        drafting = self.step_ticks * max((k for server, k in members if server), default=0)
        took = launch + drafting + self.batch_ticks + self.token_ticks * sum(k + 1 for _, k in members)
        # What waits already waits: how long does not matter to a server that takes everything.
        left = tuple(sorted((max(ticks - took, 0), choice) for ticks, choice in coming if ticks > launch))
        return left, took, sum(self.tokens(k) for _, k in members)


class Transitions(NamedTuple):
    """Every action of every reachable state, state by state."""

    states: list[State]
    first: NDArray[np.int64]  # (states,) place of a state's first action
    actions: list[Choices]
    after: NDArray[np.int64]  # (actions,) next state
    ticks: NDArray[np.float64]  # (actions,)
    tokens: NDArray[np.float64]  # (actions,)


@dataclass(frozen=True)
class Solution:
    """The best that any controller of the toy reaches.

    Attributes:
        tokens_per_s: long-run gain. low, high: bounds on it. policy: state → choices.
    """

    tokens_per_s: float
    low: float
    high: float
    policy: dict[State, Choices]

    def lengths(self, state: State) -> Choices:
        """Choices for the sessions that have just been answered; draft lengths where devices alone draft."""
        return self.policy[state]


def transitions(toy: Toy, allowed: Choices | None = None) -> Transitions:
    """All that can be reached from the start.

    Args:
        toy: the case. allowed: choices that may be used; default all.
    """
    places, states = {toy.start: 0}, [toy.start]
    first, rows = [], []
    actions: list[Choices] = []
    for state in states:  # grows while it is walked
        first.append(len(actions))
        for choices in toy.actions(state, allowed):
            after, ticks, tokens = toy.step(state, choices)
            if after not in places:
                places[after] = len(states)
                states.append(after)
            actions.append(choices)
            rows.append((places[after], ticks, tokens))
    after_, ticks_, tokens_ = (np.array(column) for column in zip(*rows, strict=True))
    return Transitions(states, np.array(first), actions, after_, ticks_.astype(float), tokens_.astype(float))


def solve(toy: Toy, allowed: Choices | None = None) -> Solution:
    """Gain and policy by relative value iteration.

    Args:
        toy: the case. allowed: choices that may be used (one alone: the fixed-length policy); default all.

    Raises:
        ValueError: no such choice. ArithmeticError: no convergence.
    """
    if allowed is not None and not (allowed and set(allowed) <= set(toy.choices)):
        raise ValueError(f"allowed: given {allowed}, allowed: some of 0 to {toy.choices[-1]}")
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


def follow(toy: Toy, policy: dict[State, Choices]) -> list[tuple[State, Choices]]:
    """The cycle of (state, choices) into which a policy falls from the start."""
    seen: dict[State, int] = {}
    path: list[tuple[State, Choices]] = []
    state = toy.start
    while state not in seen:
        seen[state] = len(path)
        path.append((state, policy[state]))
        state = toy.step(state, policy[state])[0]
    return path[seen[state] :]


def server_drafts(toy: Toy, acceptance: dict[str, float]) -> list[dict[str, Any]]:
    """What the toy's server drafts with: the devices' source, a step for a batch whatever its sessions; nothing where it does not."""
    time = dict.fromkeys(("overhead_s", "sequence_s", "token_s", "cached_token_s"), 0.0) | {
        "launch_s": toy.step_ticks * TICK_S
    }
    draft = {
        "name": "toy", "weights_bytes": 0, "kv_bytes_per_token": 0, "offer": 1.0, "correlation": 1.0, "acceptance": acceptance, "time": time,
    }  # fmt: skip
    return [draft] if toy.step_ticks else []


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
    acceptance = {
        "logit_mean": float(np.log(toy.acceptance / (1.0 - toy.acceptance))), "request_std": 0.0, "drift_std": 0.0,
        "drift_tokens": 100.0, "after_rejection_logit": 0.0,
    }  # fmt: skip
    return with_(base, **{
        "name": f"toy-{toy.devices}", "description": "A case that relative value iteration solves exactly",
        "n_devices": toy.devices, "max_draft_tokens": toy.max_draft_tokens, "devices": [device],
        "slo": [asdict(base.slo[0]) | {"name": "any", "share": 1.0}],
        "server.host_s": 0.0, "server.noise": 0.0, "server.prefill_chunk_tokens": 0, "server.memory_bytes": room,
        "server.memory_utilisation": 1.0, "server.activation_bytes": 0,
        "verification": {"launch_s": 0.0, "weights_s": batch_s, "token_s": token_s, "sharpness": 1.0,
                         "cached_token_s": 0.0, "pair_s": 0.0},
        "estimator": {"launch_s": batch_s, "new_token_s": token_s, "pair_s": 0.0, "cached_token_s": 0.0},
        "draft.acceptance": acceptance, "server_drafts": server_drafts(toy, acceptance),
        "draft.statistics": {"auc": 0.5, "overconfidence": 0.0},
        "workload.arrivals": "closed", "workload.think_s": 0.0, "workload.start_window_s": 0.0, "workload.prompt": prompt,
        "workload.output": endless, "horizon": {"warmup_s": 20.0, "measure_s": measure_s, "drain_s": 0.0},
    })  # fmt: skip
