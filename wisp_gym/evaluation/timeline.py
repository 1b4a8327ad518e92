"""What devices and server do under several controllers in the same world, one above the other.

    wisp-gym timeline --controllers wisp,sled --devices 10 --png timeline.png --trace timeline.json

The picture is for people; the Chrome trace opens in ui.perfetto.dev, a process for each controller. With neither it is text.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wisp_gym.cli import MAX_SEED, Parser, between, output_file, progress, refuse_same_files, whole
from wisp_gym.engine.feasibility import warnings
from wisp_gym.engine.trace_load import load_trace
from wisp_gym.engine.worlds import Worlds
from wisp_gym.errors import InputError, require
from wisp_gym.evaluation.arguments import EPILOG, add_world
from wisp_gym.evaluation.outcomes import chosen_controllers, chosen_scenario, run_world
from wisp_gym.files import write_bytes, write_text
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario, with_
from wisp_gym.values import MAX_DEVICES
from wisp_gym.view.plot import png
from wisp_gym.view.spans import Stretch, chrome_trace, rows_of, window
from wisp_gym.view.text import ansi

PROGRAM = "wisp-gym timeline"
MOST_CONTROLLERS = 4
MOST_S = 3600.0  # of a world whose events are kept


@dataclass(frozen=True)
class Strip:
    """A stretch of one world under one controller.

    Attributes:
        metrics: what the whole world gave (`wisp_gym.evaluation.metrics`).
    """

    controller: str
    shown: Stretch
    metrics: dict[str, Any]


def run_logged(scenario: Scenario, controller: Controller, seed: int, end_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Event log of a world up to `end_s`, (rows,) LOG_ROW, and the devices' overhead a round, (n_devices,) s."""
    horizon = {"horizon.warmup_s": 0.0, "horizon.measure_s": end_s, "horizon.drain_s": 0.0}
    cut, trace, rows = with_(scenario, **horizon), load_trace(scenario), 1 << 16
    while True:
        worlds = Worlds(1, cut.n_devices, log_rows=rows, trace=trace)
        worlds.fill(0, cut, seed, controller)
        worlds.run()
        length = int(worlds.arrays.server[0, 0]["log_length"])
        if length <= rows:
            return worlds.arrays.log[0, :length], worlds.arrays.device[0]["round_overhead_s"].copy()
        rows = length  # the same seed writes the same log


def strip(scenario: Scenario, name: str, controller: Controller, seed: int, start_s: float, end_s: float) -> Strip:
    """A stretch of a seed's world under a controller, and what the whole world gives."""
    log, overhead_s = run_logged(scenario, controller, seed, end_s)
    whole_world = run_world(scenario, controller, seed, load_trace(scenario))
    return Strip(name, window(log, start_s, end_s, overhead_s), whole_world.metrics)


def title(strip: Strip, scenario: Scenario) -> str:
    """Controller and what it delivers in the whole world, in the window of measurement."""
    horizon, met = scenario.horizon, strip.metrics["slo_attainment"]
    until_s = horizon.warmup_s + horizon.measure_s
    words = f"{strip.controller}: goodput {strip.metrics['goodput_tokens_per_s']:,.1f} tokens/s"
    words += "" if met is None else f", {100.0 * met:.0f} % of requests within their SLO"
    return f"{words}  ({horizon.warmup_s:g} to {until_s:g} s)"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    about = "Draw controllers in the same world one above the other: as text, as a picture, or for Perfetto."
    parser = Parser(prog=PROGRAM, description=about, epilog=EPILOG)
    add_world(parser, ["wisp", "sled"], f"up to {MOST_CONTROLLERS}")
    add = parser.add_argument
    add("--devices", type=whole(1, MAX_DEVICES), default=10, metavar="N", help="population (default %(default)s)")
    add("--seed", type=whole(0, MAX_SEED), default=0, metavar="S", help="of the world (default %(default)s)")
    add("--start", type=between(0.0, MOST_S), default=55.0, metavar="S", help="first second to show (default 55)")
    add("--seconds", type=between(0.01, MOST_S), default=2.5, metavar="S", help="how many seconds (default 2.5)")
    add("--trace", type=output_file(".json"), metavar="FILE.json", help="write a Chrome trace (ui.perfetto.dev)")
    add("--png", type=output_file(".png"), metavar="FILE.png", help="draw it")
    return parser.parse_args(arguments)


def check(given: argparse.Namespace) -> None:
    """Refuse flags that contradict each other, and a picture without what draws it."""
    refuse_same_files({"--scenario": given.scenario}, {"--trace": given.trace, "--png": given.png})
    if given.start + given.seconds > MOST_S:
        reason = f"given {given.start:g} and {given.seconds:g}, allowed is an end at {MOST_S:g} s or before"
        raise InputError(f"arguments --start and --seconds: {reason}")
    if (n := len(given.controllers)) > MOST_CONTROLLERS:
        raise InputError(f"argument --controllers: given {n}, allowed are at most {MOST_CONTROLLERS}")
    if given.png:
        require("matplotlib", "plot")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, and print, or write where asked."""
    given = parse(arguments)
    check(given)
    scenario, end_s = chosen_scenario(given.scenario, given.devices), given.start + given.seconds
    controllers, strips = chosen_controllers(given.controllers, scenario), []
    for warning in warnings(scenario):
        print(f"note: {warning}", file=sys.stderr)
    with progress(len(controllers)) as bar:
        for name, controller in controllers.items():
            strips.append(strip(scenario, name, controller, given.seed, given.start, end_s))
            bar.update()
    panels, devices = {title(one, scenario): one.shown for one in strips}, rows_of(scenario.n_devices)
    if given.trace:
        write_text(given.trace, json.dumps(chrome_trace({one.controller: one.shown for one in strips})) + "\n")
        print(f"wrote {given.trace}")
    if given.png:
        some = f"the first {len(devices)} of " if len(devices) < scenario.n_devices else ""
        heading = f"{scenario.name}, {some}{scenario.n_devices} devices, the same world (seed {given.seed})"
        write_bytes(given.png, png(panels, devices, heading))
        print(f"wrote {given.png}")
    if not (given.trace or given.png):
        print("\n\n".join(f"{words}\n{ansi(shown, devices)}" for words, shown in panels.items()))
