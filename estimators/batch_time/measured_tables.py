"""Three public tables of batch times, read into series: one server, model and data type each."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from estimators.batch_time.fit import Profile
from estimators.batch_time.regression import COLUMNS
from wisp_gym.errors import InputError
from wisp_gym.files import read_text

QUEUED_TTFT_MS = 1500.0  # vLLM runs either answer within a second or hold requests back for memory, 2.4 s and more
VLLM_SETTING = ("gpu", "dataset", "target", "tp", "method", "draft", "k", "concurrency")
VLLM_COLUMNS = (*VLLM_SETTING, "successful", "in_tokens", "out_tokens", "median_ttft_ms", "median_itl_ms")


@dataclass(frozen=True)
class Table:
    """One file of batch times.

    Attributes:
        file: its name in the data folder.
        columns: the columns that are read.
        source: project, commit and path.
        licence: class of the source's licence; rows of the file are never shipped, whatever it says.
        kind: "measured", or "reconstructed" (a sum of measured operators).
    """

    file: str
    columns: tuple[str, ...]
    source: str
    licence: str
    kind: str


TABLES = {
    "vllm": Table(
        "vllm_specdec_serving_bench.csv",
        VLLM_COLUMNS,
        "tomasruizt/vllm-scripts, commit d94d714f, results/logs-*: vLLM, greedy, bf16, median time between chunks",
        "no licence file: fitted numbers only",
        "measured",
    ),
    "aiconfigurator": Table(
        "aic_reconstructed_iteration_points.csv",
        ("gpu", "model", "tp", "dtype", "batch", "q_per_req", "ctx", "total_ms"),
        "sums of operator times of ai-dynamo/aiconfigurator, commit 095f58a5, systems/data/{a100,h100,h200}_sxm",
        "Apache-2.0",
        "reconstructed",
    ),
    "vidur": Table(
        "vidur_reconstructed_iteration_points.csv",
        ("gpu", "model", "tp", "batch", "q_per_req", "ctx", "total_ms"),
        "sums of operator times of microsoft/vidur, commit 7d475133, data/profiling, attention from aiconfigurator",
        "MIT and Apache-2.0",
        "reconstructed",
    ),
}


@dataclass(frozen=True)
class Series:
    """Batch times of one server, model and data type.

    Attributes:
        table: a key of `TABLES`.
        gpu, model, tp, dtype: as the table names them; tp is the number of GPUs of the tensor-parallel server.
        columns: names of X's columns: those of `COLUMNS`, then what drafting on the same server adds.
        profile: X, shape (rows, columns), and seconds, shape (rows,), with each row's configuration.
        labels: what a picture colours each row by, shape (rows,).
    """

    table: str
    gpu: str
    model: str
    tp: int
    dtype: str
    columns: tuple[str, ...]
    profile: Profile = field(repr=False)
    labels: NDArray[np.str_] = field(repr=False)

    @property
    def name(self) -> str:
        """The series in a few words."""
        return f"{self.gpu} {self.model} TP{self.tp} {self.dtype}"

    @property
    def key(self) -> dict[str, str | int]:
        """What tells this series from the others, as columns of a result."""
        return {"table": self.table, "gpu": self.gpu, "model": self.model, "tp": self.tp, "dtype": self.dtype}


def read(folder: str | Path, name: str) -> list[Series]:
    """Return the series of table `name`, a key of `TABLES`, from its file in `folder`.

    Raises:
        InputError: the file, a column or a value is missing or wrong; names the place and what is allowed.
    """
    path = Path(folder) / TABLES[name].file
    rows = read_rows(path, TABLES[name].columns)
    series = vllm(rows, path) if name == "vllm" else reconstructed(name, rows, path)
    if not series:
        raise InputError(f"{path}: no row of a known kind; is this the right file?")
    return series


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV as text by column, each with its line number under "line"."""
    try:
        reader = csv.DictReader(read_text(path).splitlines())
        rows = [{**row, "line": str(reader.line_num)} for row in reader]
        header = reader.fieldnames or []
    except (OSError, InputError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "not a text table"
        raise InputError(f"cannot read {path}: {reason} (--data names the folder that holds it)") from None
    missing = [column for column in columns if column not in header]
    if missing or not rows:
        raise InputError(f"{path}: no {f'column {missing[0]!r}' if missing else 'rows'} (needed: {', '.join(columns)})")
    return rows


def number(row: Mapping[str, str], column: str, path: Path, least: float = 0.0) -> float:
    """Return the finite number in `column` of `row`, which must be at least `least`."""
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = float("nan")
    if not np.isfinite(value) or value < least:
        given = f"{path}, line {row['line']}: {column} is {row[column]!r}"
        raise InputError(f"{given}, a number of at least {least:g} is needed")
    return value


def batch(requests: float, new_each: float, context_each: float) -> list[float]:
    """Return `COLUMNS` of a batch of equal requests: new tokens, pairs, cached tokens."""
    return [requests * new_each, requests * new_each * (context_each + new_each), requests * context_each]


def configurations(keys: Iterable[tuple]) -> NDArray[np.int64]:
    """Return a number for each distinct key, shape (rows,)."""
    known: dict[tuple, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)


def grouped(rows: Iterable[dict[str, str]], columns: Sequence[str]) -> dict[tuple[str, ...], list[dict[str, str]]]:
    """Return `rows` by their values in `columns`, in the order of the file."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in columns), []).append(row)
    return groups


def reconstructed(name: str, rows: list[dict[str, str]], path: Path) -> list[Series]:
    """Return a series per GPU, model, tensor parallelism and data type; a configuration is (batch, q, context)."""
    for row in rows:
        row.setdefault("dtype", "bfloat16")  # Vidur's table has no other
    series = []
    for (gpu, model, tp, dtype), group in grouped(rows, ("gpu", "model", "tp", "dtype")).items():
        keys = [tuple(number(row, column, path, 1) for column in ("batch", "q_per_req", "ctx")) for row in group]
        seconds = np.array([1e-3 * number(row, "total_ms", path, 1e-6) for row in group])
        profile = Profile(np.array([batch(*key) for key in keys]), seconds, configurations(keys), TABLES[name].source)
        gpus = int(number({"tp": tp, "line": group[0]["line"]}, "tp", path, 1))
        series.append(Series(name, gpu, model, gpus, dtype, COLUMNS, profile, np.full(len(group), gpu)))
    return series


def vllm(rows: list[dict[str, str]], path: Path) -> list[Series]:
    """Return a series per GPU for the 32B target; a configuration is (method, draft, k, concurrency, data set).

    The time is one engine step: k tokens drafted on the same GPU, then their verification. Drafting is linear beside
    the verification: a constant once anything is drafted, k steps of each draft, and for draft models k·requests. A
    request's context is its prompt and half its output. Runs whose requests wait for memory are left out, as their
    batch is not the stated concurrency.
    """
    kept = [row for row in rows if row["target"] == "Qwen3-32B" and not queued(row, path)]
    drafts = sorted({(row["draft"], row["method"]) for row in kept if row["draft"]})
    columns = [*COLUMNS, "drafting"]
    for draft, method in drafts:
        columns += [f"k[{draft}]"] + ([f"k·requests[{draft}]"] if method == "draft_model" else [])
    series = []
    for (gpu, tp), group in grouped(kept, ("gpu", "tp")).items():
        X = np.array([vllm_batch(row, drafts, path) for row in group])
        seconds = np.array([1e-3 * number(row, "median_itl_ms", path, 1e-6) for row in group])
        keys = [tuple(row[c] for c in ("method", "draft", "k", "concurrency", "dataset")) for row in group]
        profile = Profile(X, seconds, configurations(keys), TABLES["vllm"].source)
        labels = np.array([row["draft"] or "no draft" for row in group])
        short = "H100-94GB" if "94GB" in gpu else "H100 (brev)"
        series.append(Series("vllm", short, "Qwen3-32B", int(tp), "bfloat16", tuple(columns), profile, labels))
    return series


def queued(row: Mapping[str, str], path: Path) -> bool:
    """Return whether a run held requests back: its median first token came later than `QUEUED_TTFT_MS`."""
    return bool(row["median_ttft_ms"]) and number(row, "median_ttft_ms", path) > QUEUED_TTFT_MS


def vllm_batch(row: Mapping[str, str], drafts: Sequence[tuple[str, str]], path: Path) -> list[float]:
    """Return the sums of one vLLM run's typical step, in the order of `vllm`'s columns."""
    requests, answered = number(row, "concurrency", path, 1), number(row, "successful", path, 1)
    k = number(row, "k", path)
    context = (number(row, "in_tokens", path) + 0.5 * number(row, "out_tokens", path)) / answered
    sums = [*batch(requests, k + 1.0, context), float(k > 0)]
    for draft, method in drafts:
        own = k * (row["draft"] == draft)
        sums += [own] + ([own * requests] if method == "draft_model" else [])
    return sums
