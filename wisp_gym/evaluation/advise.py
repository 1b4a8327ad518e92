"""Advice for one case: who should draft, the device, the server, either by a rule or nobody, and with which controller.

    wisp-gym advise --server h100-80gb --target qwen3-32b --draft qwen3-0.6b --devices 64 --rtt 0.02

A few controllers of each kind are tuned with one budget in training worlds; the best of each kind then meet in other, paired
worlds, those of `wisp-gym evaluate` in the same scenario. docs/guide/advise.md describes what is printed.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wisp_gym import cli, values
from wisp_gym.cli import Bar, Parser, between, output_file, positive, refuse_same_files, seeds, speed, whole
from wisp_gym.engine.feasibility import warnings
from wisp_gym.errors import InputError, require
from wisp_gym.evaluation.advise_cases import KINDS, Parts, is_hosting, loadable, with_parts, with_prompt, with_rtt
from wisp_gym.evaluation.advise_plot import draw
from wisp_gym.evaluation.advise_search import SETTINGS, TRAIN_SEEDS, Search, settings_for, training_worlds
from wisp_gym.evaluation.advise_words import sentence, show
from wisp_gym.evaluation.capacities import capacity
from wisp_gym.evaluation.comparison import evaluate
from wisp_gym.evaluation.outcomes import Row, chosen_scenario, chosen_seeds, goodput
from wisp_gym.evaluation.pool import Pool
from wisp_gym.files import write_bytes, write_json
from wisp_gym.scenario import DEFAULT_SCENARIO, AnyScenario, Scenario, save
from wisp_gym.values import MAX_DEVICES

PROGRAM = "wisp-gym advise"
DEFAULT_SEEDS = 20
CAPACITY_SEEDS = 3  # the first of the held-out ones
CAPACITY_DEVICES = 200  # a larger case goes without: its worlds take too long
MOST_CAPACITY = 512  # where the search ends
MOST_SETTINGS = 10_000
BUDGET = values.whole(3, MOST_SETTINGS)


@dataclass(frozen=True)
class Advice:
    """The best controller of each kind in the same held-out worlds.

    Attributes:
        scenario: as it ran. seeds: held-out worlds. notes: what a reader should know, a line each.
        rows: one for each kind, the one with most goodput first: `kind`, `server_drafts` (whether it ever does), the keys of
            `Comparison.rows` with the first one as `reference`, and those of a capacity where it was searched for.
    """

    scenario: Scenario
    seeds: tuple[int, ...]
    notes: list[str]
    rows: list[Row]

    @property
    def sentence(self) -> str:
        """Who should draft, in a sentence."""
        return sentence(self.rows)

    def table(self) -> str:
        """What is printed."""
        return f"{self.sentence}\n\n{show(self.rows, self.scenario)}"

    def told(self) -> dict[str, Any]:
        """All of it, for JSON."""
        first = self.rows[0]
        answer = {"answer": self.sentence, "kind": first["kind"], "controller": first["controller"]}
        case = {"scenario": self.scenario.name, "devices": self.scenario.n_devices}
        return answer | case | {"notes": self.notes, "rows": self.rows}

    def with_capacities(self, pool: Pool | None = None, bar: Bar | None = None) -> "Advice":
        """The same with the capacity of each row's controller, as it is tuned for this number of devices."""
        names, each = [row["controller"] for row in self.rows], self.seeds[:CAPACITY_SEEDS]
        found = capacity(names, self.scenario, None, each, max_devices=MOST_CAPACITY, pool=pool, bar=bar)
        keys = ("capacity_devices", "capacity_low", "capacity_high", "at_limit", "max_devices")
        each_row = zip(self.rows, found.rows, strict=True)
        return replace(self, rows=[row | {key: one[key] for key in keys} for row, one in each_row])


def advise(
    scenario: AnyScenario = DEFAULT_SCENARIO, devices: int | None = None, slo: float | None = None,
    seeds: Iterable[int] = range(DEFAULT_SEEDS), settings: int | None = None, capacities: bool = True,
    *, pool: Pool | None = None, bar: Bar | None = None,
) -> Advice:  # fmt: skip
    """Who should draft.

    Args:
        scenario, devices, slo, seeds, pool, bar: as for `wisp_gym.evaluation.evaluate`; at least two seeds, none of `TRAIN_SEEDS`.
        settings: of each controller that are tried, at least 3; default by the size of the case (`settings_for`).
        capacities: search for them too, where the case is small enough.

    Raises:
        InputError: one line that names what is wrong.
    """
    world, each = chosen_scenario(scenario, devices, slo), held_out(seeds)
    budget = settings_for(world) if settings is None else BUDGET.checked("settings", settings)
    fitting, _ = loadable(world)
    best = Search(world, budget, pool, bar).best_of_each_kind(fitting)
    found = evaluate(list(best.values()), world, seeds=each, reference=next(iter(best.values())), pool=pool, bar=bar)
    kinds: dict[str, Row] = {
        name: {"kind": kind, "server_drafts": is_hosting(name, world)} for kind, name in best.items()
    }
    winner = max(best.values(), key=lambda name: math.fsum(goodput(found.outcomes[name])))
    rows = [kinds[row["controller"]] | row for row in replace(found, reference=winner).rows()]
    rows.sort(key=lambda row: -row["goodput_tokens_per_s"])
    advice = Advice(world, each, notes(world, budget), rows)
    return advice.with_capacities(pool, bar) if capacities and has_capacities(world) else advice


def held_out(seeds: Iterable[int]) -> tuple[int, ...]:
    """Seeds of worlds that are none of training, at least two."""
    each = chosen_seeds(seeds)
    if len(each) < 2:
        raise InputError(f"seeds: given {cli.seed_list(each)}, allowed are two or more: one world gives no interval")
    if set(each) & set(TRAIN_SEEDS):
        taken = cli.seed_list(TRAIN_SEEDS)
        raise InputError(
            f"seeds: given {cli.seed_list(each)}, allowed are others than {taken}, where settings are chosen"
        )
    return each


def has_capacities(scenario: Scenario) -> bool:
    """Whether capacities are searched for: the load grows with the devices, and the worlds do not take too long."""
    return scenario.n_devices <= CAPACITY_DEVICES and scenario.workload.arrivals != "trace"


def notes(scenario: Scenario, settings: int) -> list[str]:
    """What a reader should know: doubts about the scenario, and what is left out."""
    found = [*warnings(scenario), *loadable(scenario)[1]]
    if settings < SETTINGS:
        found.append(f"{settings} settings of each controller are tried instead of {SETTINGS}")
    if not has_capacities(scenario):
        found.append(f"no capacities: they are searched for up to {CAPACITY_DEVICES} devices, without a request trace")
    return found


# --- the command -----------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    about = f"Who should draft: {', '.join(KINDS[:-1])} (by a rule) or {KINDS[-1]}, and with which controller."
    parser = Parser(prog=PROGRAM, description=about)
    add = parser.add_argument
    add("--scenario", metavar="NAME|FILE", help=f"preset or TOML file, in place of parts (default {DEFAULT_SCENARIO})")
    for part, what in (("server", "GPU"), ("target", "large model"), ("draft", "the devices' small model")):
        add(f"--{part}", metavar="NAME", help=f"{what}, of the catalogue (default: the preset's)")
    add("--devices", type=whole(1, MAX_DEVICES), metavar="N", help="number of devices (default: the scenario's)")
    add(
        "--rtt",
        type=between(0.0, 60.0),
        metavar="S",
        help="median round trip of every link, s (default: the scenario's)",
    )
    add("--prompt", type=positive(1e6), metavar="TOKENS", help="median prompt (default: the scenario's)")
    add("--slo", type=speed, metavar="V", help="one class of V tokens/s for all devices (default: the scenario's mix)")
    add(
        "--seeds", type=seeds, default=tuple(range(DEFAULT_SEEDS)), metavar="S",
        help=f"held-out worlds: a count, or seeds and ranges such as 7,10-19 (default {DEFAULT_SEEDS})",
    )  # fmt: skip
    add(
        "--settings", type=whole(3, MOST_SETTINGS), metavar="N",
        help=f"of each controller that are tried (default {SETTINGS}, fewer in large cases)",
    )  # fmt: skip
    add("--no-capacity", action="store_true", help="leave out how many devices each carries: a third of the time")
    add("--png", type=output_file(".png"), metavar="FILE.png", help="draw it")
    add("--json", type=output_file(), metavar="FILE", help="write answer, notes and rows as JSON")
    add(
        "--save",
        type=output_file(".toml"),
        metavar="FILE.toml",
        help="write the case, for `wisp-gym evaluate --scenario`",
    )
    return parser.parse_args(arguments)


def case(given: argparse.Namespace) -> Scenario:
    """The scenario that is asked about."""
    parts = Parts(given.server, given.target, given.draft)
    if given.scenario is not None and parts.given:
        flag = next(iter(parts.given))
        raise InputError(
            f"argument --{flag}: given beside --scenario, which has a {flag} of its own; allowed is either"
        )
    base = with_parts(parts) if given.scenario is None else given.scenario
    return with_prompt(with_rtt(chosen_scenario(base, given.devices, given.slo), given.rtt), given.prompt)


def main(arguments: Sequence[str] | None = None) -> None:
    """Search, write where asked, and print."""
    given = parse(arguments)
    inputs = {} if given.scenario is None else {"--scenario": given.scenario}
    refuse_same_files(inputs, {"--png": given.png, "--json": given.json, "--save": given.save})
    if given.png:
        require("matplotlib", "plot")
    scenario, each = case(given), held_out(given.seeds)
    settings = given.settings or settings_for(scenario)
    for note in notes(scenario, settings):
        print(f"note: {note}", file=sys.stderr)
    fitting, _ = loadable(scenario)
    worlds = training_worlds(fitting, settings) + len(KINDS) * len(each)
    with cli.progress(worlds, desc="advise") as bar:
        found = advise(scenario, seeds=each, settings=settings, capacities=False, bar=bar)
    if not given.no_capacity and has_capacities(scenario):
        with cli.progress(desc="capacities") as bar:
            found = found.with_capacities(bar=bar)
    if given.save:
        save(scenario, given.save)
    if given.json:
        write_json(given.json, found.told())
    if given.png:
        write_bytes(given.png, draw(found.rows, scenario, sentence(found.rows, named=False)))
    print(found.table())
