"""The co-located cells of `agents.sim2real`: vLLM drafts for itself with the pair's draft, steered by a rule; devices receive."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agents.sim2real import settings as chosen
from agents.sim2real.devices import Deployed, Fleet, ServerProcess
from agents.sim2real.steps import MeasuredSteps, build_scenario, measure
from agents.sim2real.stream_server import WANDERING, Streamed, read_steps
from wisp_gym.controllers.lookup import Part, find
from wisp_gym.controllers.names import parse
from wisp_gym.controllers.who_drafts import longest_of
from wisp_gym.engine.build import accepted_share
from wisp_gym.errors import InputError
from wisp_gym.rules import server_lengths
from wisp_gym.rules.catalogue import ALIASES, COLOCATED, SOURCE
from wisp_gym.scenario import Scenario

if TYPE_CHECKING:  # it imports torch's models
    from agents.sim2real.deploy import Bench

HALF = 0.5  # share of drafts believed to be accepted while lengths are drawn: no rule asks


def is_colocated(name: str) -> bool:
    """Whether a controller is a server that drafts for itself."""
    return parse(ALIASES.get(name, name))[0].name in COLOCATED


def rule_of(name: str, engine: str) -> Part:
    """The rule of a co-located controller, whose first number is positive where it is a length.

    Raises:
        InputError: one that vLLM cannot be steered by, or another engine than vLLM.
    """
    first, *rest = parse(name)
    steered = [each for each, rule in COLOCATED.items() if rule.kind != server_lengths.TABLE]
    if engine != chosen.VLLM:
        allowed = f"--engine {chosen.VLLM}, or controllers whose devices draft, such as wisp+wisp"
        raise InputError(
            f"--controllers '{name}': with --engine {engine} the server cannot draft for itself; allowed: {allowed}"
        )
    if rest or first.name not in steered:
        raise InputError(
            f"--controllers '{name}': allowed where the server drafts: {', '.join(steered)}, without additions"
        )
    part = find(first, COLOCATED, "length")
    if part.values[part.rule.settings.index(SOURCE)] or not longest(part):
        raise InputError(f"--controllers '{name}': allowed are lengths from 1 on, and the pair's own draft (draft=0)")
    return part


def longest(part: Part) -> float:
    """Longest length, in tokens, that a rule may choose; it may be infinite."""
    numbers = (value for s, value in zip(part.rule.settings, part.values, strict=True) if s is not SOURCE)
    return longest_of(part.rule.kind, tuple(numbers))


def check(names: Sequence[str], engine: str) -> None:
    """Refuse co-located controllers that cannot be deployed, before anything is measured.

    Raises:
        InputError: names the controller.
    """
    for name in names:
        if is_colocated(name):
            rule_of(name, engine)


class Colocation:
    """The co-located side of a bench.

    Args:
        bench: whose pair, prompts, devices and cores it shares.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench, self.profiled = bench, list[Deployed]()

    def profile(self, cycle: int) -> MeasuredSteps:
        """Measure the engine that drafts for itself at each load, with lengths drawn anew for each step, in other worlds than those compared."""
        given = self.bench.settings
        most = min(chosen.PROFILE_DRAFT_TOKENS, given.max_draft_tokens)
        for n in given.loads:
            seed = chosen.OTHER_WORLDS + given.first_seeds[cycle]
            fleet = self.bench.fleet(n, given.profile_seconds, seed, None, ())
            self.profiled.append(self.run(f"profile-colocated-{n}-{cycle}", fleet, WANDERING, most, HALF))
        return measure(self.profiled)

    def scenario(self, measured: MeasuredSteps, edge: Scenario) -> Scenario:
        """The scenario of these cells: what the devices' cells have in common with them is theirs."""
        return build_scenario(measured, edge)

    def deploy(self, scenario: Scenario, name: str, n: int, cycle: int) -> Deployed:
        """A rule with `n` devices."""
        given = self.bench.settings
        most = int(min(longest(rule_of(name, given.engine)), given.max_draft_tokens))
        seconds = scenario.horizon.warmup_s + scenario.horizon.measure_s
        fleet = self.bench.fleet(n, seconds, given.first_seeds[cycle], None, ())
        label = f"{n}-{re.sub('[^a-z0-9.]+', '-', name.lower())}-{cycle}"
        return self.run(label, fleet, name, most, accepted_share(scenario))

    def run(self, label: str, fleet: Fleet, lengths: str, most: int, accepted: float) -> Deployed:
        """One deployment, or what an earlier call wrote of it."""

        def now(folder: Path) -> Deployed:
            return self.run_now(folder, label, fleet, self.served(folder, lengths, most, accepted))

        return self.bench.once(label, now)

    def served(self, folder: Path, lengths: str, most: int, accepted: float) -> Streamed:
        """With what vLLM is started: a rule, or WANDERING, and the most tokens that it may draft."""
        bench, limits = self.bench, chosen
        step_tokens = limits.MAX_BATCH_REQUESTS * (most + 1) + limits.PREFILL_CHUNK_TOKENS
        target, *_ = bench.served
        return Streamed(
            target, bench.names["draft"], bench.settings.dtype, bench.server_cores, lengths, most, accepted,
            limits.KV_TOKENS, limits.MAX_BATCH_REQUESTS, step_tokens, self.max_tokens(most), bench.end_tokens(),
            str(folder / "steps.json"),
        )  # fmt: skip

    def max_tokens(self, most: int) -> int:
        """The longest sequence, and room behind it: vLLM drafts for nobody while one sequence has none for the longest draft."""
        from transformers import AutoConfig

        wanted = max(map(len, self.bench.prompts)) + self.bench.settings.max_new_tokens + most + 1
        sides = (AutoConfig.from_pretrained(self.bench.names[side]) for side in ("draft", "target"))
        return min(wanted, *(int(getattr(config, "max_position_embeddings", wanted)) for config in sides))

    def run_now(self, folder: Path, label: str, fleet: Fleet, served: Streamed) -> Deployed:
        """Server and receivers, each on cores of its own."""
        from agents.sim2real.receivers import receive_all

        server = ServerProcess(served, folder, self.bench.settings.server_python, "stream")
        deployed = self.bench.beside(server, lambda: receive_all(fleet, server.address, label))
        if not deployed.faults:  # else the server may not have come to write them
            deployed.steps, deployed.fallbacks = read_steps(Path(served.steps))
        return deployed
