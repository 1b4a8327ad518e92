"""Measure the batch time of a Qwen3-type model over a grid of batches, with power and the share of what is possible.

    python -m estimators.profiling batches --device cuda --shape qwen3-32b --out profile-qwen3-32b.csv

Weights are random and made in place, nothing is downloaded: the time depends on the shape alone. `estimators.profiling.forward`
is the model, `estimators.profiling.grid` the grid. A batch is timed by events on the device, as a CUDA graph where it is
small enough for launches to show; the row holds the median, and beside it the least time that the device's own ceilings
allow. The file grows by whole rows: an interrupted run goes on, and `--minutes` ends one early (exit code 75).
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from estimators.profiling.grid import Batch, Limits, grid
from estimators.profiling.machine import about, gpu_id
from estimators.profiling.power import PowerLog
from estimators.profiling.shapes import SHAPES, Shape
from wisp_gym.cli import MAX_SEED, OutOfTime, Parser, between, deadline, table, whole
from wisp_gym.errors import InputError, one_of
from wisp_gym.files import check_writable, csv_rows, write_csv
from wisp_gym.interrupts import leaves

if TYPE_CHECKING:  # torch takes seconds to import: --help and wrong flags do without
    from estimators.profiling.forward import Model
    from estimators.profiling.timing import Ceilings

PROGRAM = "python -m estimators.profiling batches"
GRAPH_TOKENS = 1024  # new tokens up to which a graph is captured: beyond, a layer outlasts its launches
REPEATS, SECONDS = 7, 0.35  # of each batch at least; the seconds also let the power settle
DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4}
MEMORY_SHARE = 0.94  # of the GPU's memory: the rest is the driver's and the context's
SPARE_BYTES = 3 << 29  # workspaces of matrix products, captured graphs, fragments
ROOM_STEP = 1024  # the cache's rows are a multiple, so that the same device gets the same grid again
CPU_ROOM_TOKENS = 16_384
MOST = 1 << 24  # of every size


def room_tokens(shape: Shape, limits: Limits, given: Namespace) -> int:
    """Return rows of the cache: what is asked for, or what fits beside weights and activations.

    Raises:
        InputError: the model does not fit the GPU.
    """
    if given.room:
        return given.room
    if given.device == "cpu":
        return CPU_ROOM_TOKENS
    import torch

    total, wide = torch.cuda.get_device_properties(0).total_memory, DTYPES[given.dtype]
    widths = 4 * shape.hidden + 2 * shape.qkv_width + 3 * shape.intermediate  # of a token's activations at once
    activations = wide * (limits.batch_tokens * widths + limits.requests * limits.new * shape.vocabulary)
    left = MEMORY_SHARE * total - wide * shape.parameters - activations - SPARE_BYTES
    tokens = int(left // shape.kv_bytes_per_token(wide)) // ROOM_STEP * ROOM_STEP
    if tokens < limits.longest:
        raise InputError(f"--shape {given.shape}: {total / 1e9:.0f} GB of memory leave {max(tokens, 0)} tokens of cache; "
                         f"one sequence has {limits.longest}; give --cached, --prompt or --batch-tokens smaller")  # fmt: skip
    return min(tokens, limits.requests * (limits.cached + limits.new))


def bounds_s(shape: Shape, batch: Batch, logit_tokens: int, ceilings: Ceilings, given: Namespace) -> dict[str, float]:
    """Return the least seconds that memory and arithmetic allow at the measured ceilings."""
    sums = {**batch.sums(), "logit_tokens": logit_tokens}
    memory_s = shape.least_bytes(sums, DTYPES[given.dtype]) / ceilings.memory_bytes_s
    return {"memory_bound_s": memory_s, "matrix_bound_s": shape.least_flop(sums) / ceilings.matrix_flop_s}


def measure(model: Model, batch: Batch, ceilings: Ceilings, power: PowerLog, given: Namespace) -> dict[str, Any]:
    """Return one row: what the batch is, its time, its bounds, the power drawn meanwhile."""
    import torch

    from estimators.profiling.attention import lay_out
    from estimators.profiling.timing import captured, timed

    layout = lay_out(batch.new, batch.cached, model.shape, model.device)
    ids = torch.randint(model.shape.vocabulary, (sum(batch.new),), device=model.device)
    graph = given.device == "cuda" and not given.no_graphs and sum(batch.new) <= GRAPH_TOKENS
    forward = captured(lambda: model.forward(ids, layout)) if graph else lambda: model.forward(ids, layout)
    start = time.perf_counter()
    found = timed(forward, given.device, given.repeats, given.seconds)
    drawn = power.since(start + (time.perf_counter() - start) / 2)
    bounds = bounds_s(model.shape, batch, len(layout.logit_rows), ceilings, given)
    return {
        "name": batch.name, "kind": batch.kind, "requests": len(batch.new), "longest_new": max(batch.new),
        "longest_cached": max(batch.cached), **batch.features(),
        **{name: f"{value:.6g}" for name, value in (asdict(found) | bounds).items()},
        "share_of_bound": f"{max(bounds.values()) / found.seconds:.4f}", "graph": int(graph), **drawn,
    }  # fmt: skip


def read_rows(path: Path, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of an earlier run; none without a file.

    Raises:
        InputError: the file holds another device's, model's or version's rows.
    """
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = [row for _, row in csv_rows(path)]
    for name, value in wanted.items():
        other = next((row.get(name) for row in rows if row.get(name) != str(value)), None)
        if other is not None:
            raise InputError(f"{path}: its {name} is {other!r}, now it is {value!r}; choose another --out or remove it")
    return rows


def check_attention(shape: Shape, given: Namespace) -> None:
    """Raise `InputError` where the device's attention is not that of plain matrix products on a ragged batch."""
    import torch

    from estimators.profiling import attention

    def random(*size: int) -> Any:
        return torch.randn(size, device="cuda").to(getattr(torch, given.dtype))

    layout = attention.lay_out([5, 1, 40, 16], [700, 2000, 300, 33], shape, "cuda")
    q = random(62, shape.heads, shape.head_dim)
    keys, values = (random(3095, shape.kv_heads, shape.head_dim) for _ in range(2))
    found = attention.attend(q, keys, values, layout).float()
    fast, attention.ragged = attention.ragged, attention.plain
    try:
        want = attention.attend(q, keys, values, layout).float()
    finally:
        attention.ragged = fast
    error = float((found - want).norm() / want.norm())
    if not error < 0.02:  # bfloat16 keeps 8 bits; NaN fails as well
        raise InputError(f"attention on this device is off by {error:.3g} of its size; allowed: 0.02")


def profile(given: Namespace) -> tuple[list[dict[str, Any]], int]:
    """Measure what is left of the grid; return all rows and how many batches are still left."""
    import torch

    from estimators.profiling.timing import ceilings, keep_memory

    ends = deadline(given.minutes)
    if given.threads:
        torch.set_num_threads(given.threads)
    keep_memory()
    torch.manual_seed(given.seed)
    shape, dtype = SHAPES[given.shape], getattr(torch, given.dtype)
    limits = Limits(given.requests, given.new, given.prompt, given.cached, given.batch_tokens)
    limits = replace(limits, room_tokens=room_tokens(shape, limits, given))
    batches = grid(limits, given.count, given.seed)
    machine = about(given.device)
    fixed = {"shape": given.shape, "dtype": given.dtype, **{k: machine[k] for k in ("device", "torch")}}
    rows = read_rows(given.out, fixed)
    done = {row["name"] for row in rows}
    left = [batch for batch in batches if batch.name not in done]
    if not left:
        return rows, 0
    if given.device == "cuda":
        check_attention(shape, given)
    rates = ceilings(given.device, dtype)
    torch.cuda.empty_cache()  # what the ceilings took: the model needs it; on a CPU it does nothing
    print(f"{machine['device']}: matrix products {rates.matrix_flop_s / 1e12:.4g} TFLOP/s, copy "
          f"{rates.copy_bytes_s / 1e9:.4g} GB/s, read {rates.read_bytes_s / 1e9:.4g} GB/s", flush=True)  # fmt: skip
    constant = {**fixed, **machine, **{name: f"{value:.5g}" for name, value in asdict(rates).items()}}
    for extra in _measured(shape, limits, left, rates, ends, given):
        rows.append({**extra, **constant})
        write_csv(given.out, rows, describe(given, limits))
    return rows, len(batches) - len(rows)


def _measured(shape: Shape, limits: Limits, left: list[Batch], rates: Ceilings, ends: float, given: Namespace) -> Any:
    """Yield a row for each batch that is left, until the time is up."""
    import torch

    from estimators.profiling.forward import Model

    dtype, gpu = getattr(torch, given.dtype), given.device == "cuda"
    model = Model(shape, given.device, dtype, limits.room_tokens, limits.longest, given.seed, compiled=gpu)
    with PowerLog(gpu_id(given.device)) as power, tqdm(left, given.shape, unit="batch", disable=None) as bar:
        for batch in bar:
            if time.monotonic() > ends:
                break
            try:
                yield measure(model, batch, rates, power, given)
            except torch.OutOfMemoryError:
                tqdm.write(f"{batch.name}: does not fit, left out")
            torch.cuda.empty_cache()


def describe(given: Namespace, limits: Limits) -> str:
    """Return the comment that stands before the CSV's header."""
    return (
        f"{given.shape} with random weights in {given.dtype}: {SHAPES[given.shape]}\n"
        f"Written by {PROGRAM} --shape {given.shape} --device {given.device} --count {given.count} --seed {given.seed}; "
        f"{limits}\n"
        f"seconds: median of at least {given.repeats} runs and {given.seconds:g} s; spread_s: half the interquartile range.\n"
        "new_tokens, pairs, cached_tokens: sums over the batch. memory_bound_s, matrix_bound_s: least bytes and operations "
        "over the rates measured on this device (copy or read, matrix_flop_s); share_of_bound: the larger over seconds."
    )


def parse(arguments: Sequence[str] | None) -> Namespace:
    """Return the flags, checked."""
    parser = Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="CSV to write, or to go on with")
    parser.add_argument("--shape", default="qwen3-32b", help=f"one of: {', '.join(SHAPES)} (default %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="", help="(default: bfloat16 on cuda, else float32)")
    sizes = {"requests": "of a batch", "new": "tokens of a verified request", "prompt": "tokens of a prompt",
             "cached": "tokens of a request", "batch-tokens": "new tokens of a batch"}  # fmt: skip
    for name, what in sizes.items():
        default = getattr(Limits(), name.replace("-", "_"))
        help_ = f"most {what} (default %(default)s)"
        parser.add_argument(f"--{name}", type=whole(1, MOST), default=default, help=help_)
    help_ = "runs of a batch at least (default %(default)s)"
    span = between(0, 1e6)
    parser.add_argument("--count", type=whole(20, MOST), default=360, help="batches of the grid (default %(default)s)")
    parser.add_argument(
        "--room", type=whole(0, 1 << 40), default=0, help="tokens of the cache; 0: what fits the GPU (default)"
    )
    parser.add_argument("--repeats", type=whole(2, MOST), default=REPEATS, help=help_)
    parser.add_argument("--seconds", type=span, default=SECONDS, help="of a batch at least (default %(default)s)")
    parser.add_argument("--minutes", type=span, default=0, help="end after so many; 0: when all is done (default)")
    parser.add_argument("--no-graphs", action="store_true", help="launch every kernel from the host")
    parser.add_argument("--threads", type=whole(0, MOST), default=0, help="of the CPU; 0: torch's choice (default)")
    parser.add_argument("--seed", type=whole(0, MAX_SEED), default=0, help="of grid and weights (default 0)")
    given = parser.parse_args(arguments)
    given.dtype = given.dtype or ("bfloat16" if given.device == "cuda" else "float32")
    one_of("shape", given.shape, SHAPES)
    if given.device == "cuda" and given.dtype == "float32":
        raise InputError("--dtype float32 with --device cuda: FlashAttention takes bfloat16 or float16")
    return given


def summary(rows: list[dict[str, Any]]) -> str:
    """Return a table: how near batches of each kind come to their bounds."""
    kinds = {"one request, one token": [r for r in rows if r["kind"] == "equal" and int(r["new_tokens"]) == 1]}
    kinds |= {kind: [row for row in rows if row["kind"] == kind] for kind in ("equal", "prompt", "mixed")}
    lines = []
    for kind, some in kinds.items():
        if some:
            times = sorted(1e3 * float(row["seconds"]) for row in some)
            shares = sorted(float(row["share_of_bound"]) for row in some)
            spans = [f"{each[i]:.{n}f}" for each, n in ((times, 3), (shares, 2)) for i in (0, len(some) // 2, -1)]
            lines.append([kind, str(len(some)), *spans])
    return table(["batches", "number", "ms, least", "median", "most", "share of bound, least", "median", "most"], lines)


@leaves("the same command goes on")
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the CSV row by row, and print how near to the bounds the batches come."""
    given = parse(arguments)
    check_writable(given.out)
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device (allowed here: cpu)")
    rows, left = profile(given)
    print(summary(rows))
    print(f"{len(rows)} batches in {given.out}")
    if left:
        raise OutOfTime(f"{left} batches are left; the same command goes on")
