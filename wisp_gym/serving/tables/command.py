"""Draft lengths by batch size as a table that vLLM, SGLang or TensorRT-LLM reads (docs/serving/tables.md).

    wisp-gym table eagle3-qwen3-32b --as vllm --scenario wisp-a100-qwen3-32b -o table.json
    wisp-gym table my-head --as sglang --profile steps.json --accepted 0.71,0.49,0.33,0.22 -o table.json

Solved in the model: the length with the most expected tokens per second of a step. Times and acceptance are those of a
scenario's server draft, or measured: step times by --profile, acceptance by --accepted. Only ranges of batch sizes are written
that a batch may wander about in.
"""

import json
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wisp_gym import __version__
from wisp_gym.cli import Parser, between, cell, output_file, refuse_same_files, table, whole
from wisp_gym.controllers.who_drafts import round_tokens
from wisp_gym.errors import InputError
from wisp_gym.files import write_json, write_text
from wisp_gym.scenario import DEFAULT_SCENARIO, load
from wisp_gym.serving.tables import basis as bases
from wisp_gym.serving.tables.engines import ENGINES, Engine
from wisp_gym.serving.tables.lengths import Floats, Range, choices, most_lost, steady

PROGRAM = "wisp-gym table"
LONGEST = 8  # tokens, unless somebody asks for more: engines keep room and graphs for each (assumption)
MARGIN, AROUND = 0.02, 0.125  # assumptions: half of what a fit is off by, and a batch that wanders by an eighth


def survival(text: str) -> list[float]:
    """Type of `--accepted`: shares from 1 down to 0 with commas between them, none above the one before it."""
    try:
        shares = [float(piece) for piece in text.split(",")]
    except ValueError:
        shares = [np.nan]
    steps = zip([1.0, *shares], [*shares, 0.0], strict=True)
    if not all(before >= after for before, after in steps):
        raise ArgumentTypeError(f"given '{text}', allowed are falling shares from 1 to 0 such as 0.7,0.5,0.3")
    return shares


def parse(arguments: Sequence[str] | None) -> Namespace:
    """The flags."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add("draft", metavar="NAME", help="a server draft of the scenario; with --profile and --accepted any name")
    add("--as", dest="engine", choices=sorted(ENGINES), required=True, help="whose table")
    add("--scenario", default="", metavar="NAME|FILE", help=f"preset or TOML file (default {DEFAULT_SCENARIO})")
    add("--profile", type=Path, metavar="JSON", help="step times fitted by python -m estimators.batch_time steps")
    add("--accepted", type=survival, metavar="P,P,…", help="measured P(at least 1, 2 … drafts are accepted)")
    add(
        "--context",
        type=between(1, 10**7),
        metavar="TOKENS",
        help="of a session (default: the scenario's or profile's)",
    )
    add("--largest", type=whole(1, 4096), metavar="B", help="batch size to go up to (default: all that is known)")
    add("--longest", type=whole(1, 64), metavar="K", help=f"tokens to draft at most (default up to {LONGEST})")
    add("--margin", type=between(0, 1), default=MARGIN, metavar="SHARE",
        help="by which a longer length must gain (default %(default)s)")  # fmt: skip
    add("--around", type=between(0, 1), default=AROUND, metavar="SHARE",
        help="of a batch size: throughout so far to both sides (default %(default)s)")  # fmt: skip
    add("-o", "--output", type=output_file(), metavar="FILE", help="default: standard output, without what it rests on")
    return parser.parse_args(arguments)


def sources(
    draft: str, scenario_name: str, profile: Path | None, accepted: list[float] | None
) -> tuple[bases.Times, bases.Accepted]:
    """Times and acceptance; the scenario is read only where one of them is not measured.

    Raises:
        InputError: no such scenario, draft or profile, or a scenario of which nothing would be used.
    """
    if profile is not None and accepted is not None:
        if scenario_name:
            raise InputError("argument --scenario: allowed is none where --profile and --accepted say everything")
        return bases.measured_times(profile), bases.measured_acceptance(accepted)
    scenario = load(scenario_name or DEFAULT_SCENARIO)
    hosted = bases.server_draft(scenario, draft)
    return (
        bases.modelled_times(scenario, hosted) if profile is None else bases.measured_times(profile),
        bases.modelled_acceptance(scenario, hosted) if accepted is None else bases.measured_acceptance(accepted),
    )


def within(flag: str, given: float | None, default: float, least: float, most: float) -> float:
    """A flag's value, or the default.

    Raises:
        InputError: beyond what is known.
    """
    value = default if given is None else given
    if not least <= value <= most:
        raise InputError(f"argument {flag}: given {value:g}, allowed is {least:g} to {most:g}, what is known")
    return value


def solve(rates: Floats, margin: float, around: float) -> list[Range]:
    """The table of rates, (B, K + 1).

    Raises:
        InputError: it would never draft.
    """
    found = steady(rates, choices(rates, margin, around), around)
    if all(one.length == 0 for one in found):
        reason = f"of up to {rates.shape[1] - 1} tokens gains {100 * margin:g} % over no drafts at any batch size"
        raise InputError(f"table: no length {reason}, allowed is a draft that pays: leave speculation off")
    return found


def gains(rates: Floats, found: Sequence[Range]) -> list[dict[str, Any]]:
    """Each range with its gain over no drafts, in percent, at its two ends."""

    def percent(batch: int, length: int) -> float:
        return round(100.0 * float(rates[batch - 1, length] / rates[batch - 1, 0] - 1.0), 1)

    return [
        {"from_batch": one.low, "to_batch": one.high, "draft_tokens": one.length,
         "gain_percent": [percent(one.low, one.length), percent(one.high, one.length)]}
        for one in found
    ]  # fmt: skip


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """The ranges, aligned."""
    lines = [[f"{row['from_batch']}-{row['to_batch']}", str(row["draft_tokens"]), *map(cell, row["gain_percent"])]
             for row in rows]  # fmt: skip
    return table(["batch sizes", "draft tokens", "gain, %: first", "last"], lines)


def write(path: Path, engine: Engine, text: str, about: dict[str, Any]) -> list[Path]:
    """Write the table and what it rests on: as comments where the form has some (YAML), else beside it; the files."""
    if path.suffix != ".json":
        comment = "".join(f"# {line}\n" for line in json.dumps(about, indent=1, ensure_ascii=False).splitlines())
        write_text(path, comment + text)
        return [path]
    beside = path.with_suffix(".about.json")
    write_text(path, text)
    write_json(beside, about)
    return [path, beside]


def main(arguments: Sequence[str] | None = None) -> None:
    """Solve, write, and print."""
    given = parse(arguments)
    engine = ENGINES[given.engine]
    if given.output and given.output.suffix.lower() not in engine.endings:
        endings = " or ".join(engine.endings)
        raise InputError(
            f"argument -o: given '{given.output.name}', allowed for {given.engine} is a file that ends in {endings}"
        )
    inputs = {"--profile": given.profile} if given.profile else {}
    refuse_same_files(inputs, {"-o": given.output})
    times, accepted = sources(given.draft, given.scenario, given.profile, given.accepted)
    most = min(times.longest, accepted.longest)
    longest = int(within("--longest", given.longest, min(LONGEST, most), 1, most))
    largest = int(within("--largest", given.largest, times.largest, 1, times.largest))
    context = within("--context", given.context, times.context, *times.contexts)
    batch, k = np.arange(1.0, largest + 1.0)[:, None], np.arange(longest + 1.0)
    held = accepted.survival(longest)
    rates = round_tokens(held) / times.time.seconds(batch, k, context)
    found = solve(rates, given.margin, given.around)
    text, rows = engine.text(found), gains(rates, found)
    about = {
        "format": "wisp-gym table", "wisp_gym": __version__, "engine": given.engine, "option": engine.option,
        "documented": engine.documented, "draft": given.draft, **times.about, **accepted.about,
        "accepted": [round(float(share), 4) for share in held], "context_tokens": context, "largest_batch": largest,
        "longest_tokens": longest, "margin": given.margin, "around": given.around,
        "most_lost_percent": round(100.0 * most_lost(rates, found), 2), "ranges": rows,
    }  # fmt: skip
    if given.output is None:
        print(shown(rows), file=sys.stderr)
        print(text, end="")
        return
    files = write(given.output, engine, text, about)
    print(shown(rows))
    error = about["time_error_percent"]
    print(f"times: {'' if error is None else f'{error:g} %, '}{about['time_error_of']}")
    print(f"at most {about['most_lost_percent']:g} % of the best rate is given up at a batch size")
    print(f"wrote {', '.join(path.name for path in files)}")
