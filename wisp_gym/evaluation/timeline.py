"""What devices and server do under several controllers in the same world, one above the other.

    wisp-gym timeline --controllers wisp,sled --devices 10 --png timeline.png --trace timeline.json

The picture is for people; the Chrome trace opens in ui.perfetto.dev, a process for each controller. One controller
alone, without matplotlib: `wisp-gym timeline`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from wisp_gym.cli import MAX_DEVICES, MAX_SEED, Parser, output_file, refuse_same_files, run, whole
from wisp_gym.engine.worlds import load_trace
from wisp_gym.errors import InputError
from wisp_gym.evaluation.arguments import EPILOG, controller_names
from wisp_gym.evaluation.outcomes import chosen_controllers, run_world
from wisp_gym.files import write_bytes, write_text
from wisp_gym.scenario import DEFAULT_SCENARIO, Scenario, load, warnings, with_
from wisp_gym.view.timeline import MOST_S, chrome_trace, record, window
from wisp_gym.view.timeline_plot import draw

PROGRAM = "wisp-gym timeline"
MOST_CONTROLLERS = 4


@dataclass(frozen=True)
class Strip:
    """A stretch of one world under one controller.

    Attributes:
        spans: (n,) SPAN that reach into the stretch. predicted_s: (batches,) predicted ends inside it.
        metrics: what the whole world gave (`wisp_gym.evaluation.metrics`).
    """

    controller: str
    spans: np.ndarray
    predicted_s: np.ndarray
    metrics: dict[str, Any]


def seconds(low: float) -> Callable[[str], float]:
    """Type of a number of seconds from `low` to an hour."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= MOST_S:
            raise argparse.ArgumentTypeError(
                f"given '{text}', allowed is a number of seconds from {low:g} to {MOST_S:g}"
            )
        return value

    return parse


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    about = "Draw controllers in the same world one above the other, or write them for Perfetto."
    parser = Parser(prog=PROGRAM, description=about, epilog=EPILOG)
    add = parser.add_argument
    add("--scenario", default=DEFAULT_SCENARIO, metavar="NAME|FILE", help="preset or TOML file (default %(default)s)")
    add(
        "--controllers", type=controller_names, nargs="+", default=[["wisp", "sled"]], metavar="a,b",
        help=f"up to {MOST_CONTROLLERS}, listed below (default wisp,sled)",
    )  # fmt: skip
    add("--devices", type=whole(1, MAX_DEVICES), default=10, metavar="N", help="population (default %(default)s)")
    add("--seed", type=whole(0, MAX_SEED), default=0, metavar="S", help="of the world (default %(default)s)")
    add("--start", type=seconds(0.0), default=55.0, metavar="S", help="first second to show (default %(default)g)")
    add("--seconds", type=seconds(0.01), default=2.5, metavar="S", help="how many seconds (default %(default)g)")
    add("--trace", type=output_file(".json"), metavar="FILE.json", help="write a Chrome trace (ui.perfetto.dev)")
    add("--png", type=output_file(".png"), metavar="FILE.png", help="draw it")
    return parser.parse_args(arguments)


def check(given: argparse.Namespace) -> None:
    """Refuse flags that contradict each other or ask for nothing."""
    refuse_same_files({"--scenario": given.scenario}, {"--trace": given.trace, "--png": given.png})
    if given.trace is None and given.png is None:
        raise InputError("neither --png nor --trace is given, allowed is one of them or both")
    if given.start + given.seconds > MOST_S:
        reason = f"given {given.start:g} and {given.seconds:g}, allowed is an end at {MOST_S:g} s or before"
        raise InputError(f"arguments --start and --seconds: {reason}")
    n = sum(len(group) for group in given.controllers)
    if n > MOST_CONTROLLERS:
        raise InputError(f"argument --controllers: given {n}, allowed are at most {MOST_CONTROLLERS}")


def strips(given: argparse.Namespace, scenario: Scenario) -> list[Strip]:
    """The same stretch of the same world under each controller, in the order given."""
    controllers, trace, end_s = (
        chosen_controllers([n for g in given.controllers for n in g], scenario),
        load_trace(scenario),
        given.start + given.seconds,
    )
    found = []
    for name, controller in tqdm(controllers.items(), unit="world", disable=None, leave=False):
        log, overhead_s = record(given.scenario, name, given.devices, end_s, given.seed)
        metrics = run_world(scenario, controller, given.seed, trace).metrics
        found.append(Strip(name, *window(log, given.start, end_s, overhead_s), metrics))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, and write where asked."""
    given = parse(arguments)
    check(given)
    scenario = with_(load(given.scenario), n_devices=given.devices)
    for warning in warnings(scenario):
        print(f"note: {warning}", file=sys.stderr)
    shown = strips(given, scenario)
    if given.trace:
        write_text(
            given.trace, json.dumps(chrome_trace({s.controller: (s.spans, s.predicted_s) for s in shown})) + "\n"
        )
        print(f"wrote {given.trace}")
    if given.png:
        write_bytes(given.png, draw(shown, scenario, given.seed, given.start, given.start + given.seconds))
        print(f"wrote {given.png}")


if __name__ == "__main__":
    sys.exit(run(main, PROGRAM))
