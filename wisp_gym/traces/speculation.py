"""Speculation traces: what a draft model proposed at every position of a target model's output, and what came of it.

At position n of a request's output stands the row of the K tokens that the draft proposes from the true prefix there
(the prompt and the target's first n tokens): their statistics, and the accepted run, the number of them that the target
accepts from the first on. In greedy decoding neither depends on where rounds begin, so a replay is exact for every
stopping rule: a round that starts at n and drafts k ≤ K tokens has min(k, run) accepted.

Runs of a draft model agree with each other: what it proposes at n and at n + 1 follows the same tokens. A head on the
target's features (EAGLE) or a search in the text proposes something else from each position: such runs are independent.
A trace need not have statistics; then nothing is known of a token but how often its place in a round is accepted.

A file is an NPZ (a ZIP of NPY arrays), written and read without pickle; traces/README.md describes it. It is input from
outside: sizes are checked before memory is taken, and every fault is one `TraceError` line that names the file, the
array and, inside an array, the request, the position and the drafted token.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wisp_gym.arrays import numbers
from wisp_gym.errors import of_kind, path_of, shown
from wisp_gym.files import write_bytes
from wisp_gym.traces.npz import NpzError, pack, read_arrays
from wisp_gym.traces.requests import TraceError, shipped
from wisp_gym.values import whole

FORMAT = "wisp-gym speculation trace"
VERSION, PLAIN_VERSION = 2, 1  # files that need nothing of version 2 stay of version 1
AGREEING, INDEPENDENT = "agreeing", "independent"
STATISTICS = ("confidence", "entropy", "margin", "spread")
# Confidence and margin are probabilities; entropy is in nats, below the logarithm of 400 million words; the spread is
# bounded by float16 alone.
STATISTIC_LIMITS = (1.0, 20.0, 1.0, 65_504.0)
MAX_DRAFT_TOKENS = 64
MAX_PROMPT_TOKENS = 10_000_000
MAX_PROMPT_ID = 2**31 - 1
MAX_BYTES = 1 << 30  # all arrays together: about 16 million positions of 8 drafted tokens
MAX_HEADER_BYTES = 1 << 20
DTYPES = {"header": "u1", "prompt_id": "<i4", "prompt_tokens": "<i4", "offsets": "<i8", "accepted_run": "u1",
          "statistics": "<f2", "acceptance": "<f2"}  # fmt: skip
OPTIONAL = ("statistics", "acceptance")


@dataclass(frozen=True, eq=False)
class SpeculationTrace:
    """R requests with P positions in all, K tokens drafted at each.

    Attributes:
        prompt_id: (R,) int32, which prompt of the recorder's file, 0 or above.
        prompt_tokens: (R,) int32, length of the prompt, 1 … `MAX_PROMPT_TOKENS`.
        offsets: (R + 1,) int64, request r has positions `offsets[r]` … `offsets[r + 1] - 1`, at least one.
        accepted_run: (P,) uint8, 0 … K, and never beyond the end of the request's output.
        statistics: (P, K, 4) float16, of each drafted token: confidence (probability that the draft gave it), entropy
            of the draft's distribution (nats), top-2 margin (difference of its two highest probabilities), spread of
            the logits (their standard deviation over the vocabulary); None where nothing was recorded of single tokens.
        acceptance: (P, K) float16, min(1, p/q), the probability that the target accepts the token once all before it
            are accepted; None at temperature 0, where `accepted_run` says it.
        header: What the recorder says of the models; JSON values. `temperature` is 0 and `runs` is "agreeing" unless it says
            otherwise; `draft_tokens` is K, needed where there are no statistics.

    Raises:
        TraceError: wrong shapes, or a value that is NaN or out of its range. At temperature 0 also agreeing runs that
            contradict each other: `accepted_run[n + 1]` is one less than an `accepted_run[n]` from 1 to K − 1, as both
            follow the same tokens.
    """

    prompt_id: np.ndarray
    prompt_tokens: np.ndarray
    offsets: np.ndarray
    accepted_run: np.ndarray
    statistics: np.ndarray | None = None
    acceptance: np.ndarray | None = None
    header: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, array in self.arrays().items():
            object.__setattr__(self, name, _as_type(name, array))
        _check_shapes(self)
        _check_values(self)

    def __len__(self) -> int:
        return len(self.prompt_id)

    @property
    def draft_tokens(self) -> int:
        """K, the tokens drafted at each position."""
        return int(self.header["draft_tokens"]) if self.statistics is None else self.statistics.shape[1]

    @property
    def independent(self) -> bool:
        """Whether runs at neighbouring positions need not agree."""
        return self.header.get("runs", AGREEING) == INDEPENDENT

    @property
    def temperature(self) -> float:
        """Of target and draft; 0 is greedy."""
        return float(self.header.get("temperature", 0.0))

    @property
    def output_tokens(self) -> np.ndarray:
        """(R,) int64 lengths of the target's outputs."""
        return np.diff(self.offsets)

    def positions(self, request: int) -> slice:
        """The places of a request's positions in the arrays of P."""
        return slice(int(self.offsets[request]), int(self.offsets[request + 1]))

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name; `statistics` and `acceptance` only where there are some."""
        names = [name for name in DTYPES if name != "header" and getattr(self, name) is not None]
        return {name: getattr(self, name) for name in names}


def read_speculation_trace(path: str | Path, max_bytes: int = MAX_BYTES) -> SpeculationTrace:
    """Read a trace and check all of it.

    Args:
        path: A regular file.
        max_bytes: Arrays that need more memory than this in all are an error; nothing is unpacked before the check.

    Raises:
        TraceError: one line with the file and the place of the fault.
    """
    path = path_of("trace", path, TraceError)
    whole(0, 2**63 - 1).checked("max_bytes", max_bytes)
    try:
        arrays = read_arrays(path, DTYPES, OPTIONAL, max_bytes)
        return SpeculationTrace(header=_header(arrays.pop("header")), **arrays)
    except (NpzError, TraceError) as error:
        raise TraceError(f"{path}: {error}") from None


def write_speculation_trace(trace: SpeculationTrace, path: str | Path) -> None:
    """Write a trace, wholly or not at all; equal traces give equal bytes.

    Raises:
        TraceError: the place cannot be written, or the header is longer than `MAX_HEADER_BYTES`.
    """
    path = path_of("trace", path, TraceError)
    of_kind("trace", trace, SpeculationTrace, TraceError)
    plain = trace.statistics is not None and not trace.independent
    about = {**trace.header, "format": FORMAT, "version": PLAIN_VERSION if plain else VERSION, "draft_tokens": trace.draft_tokens,
             "statistics": [] if trace.statistics is None else list(STATISTICS)}  # fmt: skip
    text = json.dumps(about, sort_keys=True, allow_nan=False).encode()
    if len(text) > MAX_HEADER_BYTES:
        raise TraceError(f"{path}: header: {len(text)} bytes; allowed: at most {MAX_HEADER_BYTES}")
    try:
        write_bytes(path, pack({"header": np.frombuffer(text, np.uint8), **trace.arrays()}))
    except OSError as error:
        raise TraceError(f"{path}: cannot be written ({error.strerror})") from None


def concatenate(traces: Sequence[SpeculationTrace]) -> SpeculationTrace:
    """One trace of all requests in order, under the first one's header.

    Raises:
        TraceError: no trace, or traces that differ in K, temperature, kind of runs, or in whether they have statistics.
    """
    traces = [
        of_kind("traces", trace, SpeculationTrace, TraceError)
        for trace in of_kind("traces", traces, (list, tuple), TraceError)
    ]
    kinds = {
        (t.draft_tokens, t.temperature, INDEPENDENT if t.independent else AGREEING, t.statistics is not None) for t in traces
    }  # fmt: skip
    if len(kinds) != 1:
        given = f"traces of (draft tokens, temperature, runs, statistics) {sorted(kinds)}"
        raise TraceError(f"{given}; allowed: one kind, at least one trace")
    joined = {name: np.concatenate([trace.arrays()[name] for trace in traces])
              for name in traces[0].arrays() if name != "offsets"}  # fmt: skip
    lengths = np.concatenate([trace.output_tokens for trace in traces])
    return SpeculationTrace(**joined, offsets=np.concatenate([[0], np.cumsum(lengths)]), header=traces[0].header)


def sample_path(name: str) -> Path:
    """Path of a trace that is shipped with the package, such as ``"qwen2.5-coder-0.5b-1.5b.npz"``.

    Raises:
        TraceError: none has this name.
    """
    known = samples()
    if of_kind("trace", name, str, TraceError) not in known:
        raise TraceError(f"no speculation trace {name!r}; allowed: {', '.join(known) or 'none is installed'}")
    return known[name]


def find(name: str) -> Path:
    """The shipped sample of this bare name, or else the file of this path; `./NAME` is always a file.

    Raises:
        TraceError: a bare name that is neither.
    """
    path = path_of("trace", name, TraceError)
    is_path = path.name != name or (name not in samples() and path.is_file())
    return path if is_path else sample_path(name)


def samples() -> dict[str, Path]:
    """Shipped speculation traces by name, sorted."""
    return shipped(".npz")


def replay(trace: SpeculationTrace, request: int, lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(drafted, accepted) of each round of a request whose rounds draft `lengths` tokens in turn, over and over.

    A round commits accepted + 1 tokens. Nothing is drafted beyond the end of the output or beyond K.

    Raises:
        TraceError: no lengths, or one that is not 0 … K.
    """
    of_kind("trace", trace, SpeculationTrace, TraceError)
    whole(0, len(trace) - 1).checked("request", request)
    numbers("lengths", lengths, np.int64, (None,))
    if not len(lengths) or not all(0 <= length <= trace.draft_tokens for length in lengths):
        raise TraceError(f"lengths {list(lengths)}; allowed: at least one, each 0 to {trace.draft_tokens}")
    runs = trace.accepted_run[trace.positions(request)].tolist()
    position = turn = 0
    while position < len(runs):
        drafted = min(lengths[turn % len(lengths)], len(runs) - position)
        accepted = min(drafted, runs[position])
        yield drafted, accepted
        position, turn = position + accepted + 1, turn + 1


def _as_type(name: str, array: Any) -> np.ndarray:
    """The array in the format's type, where nothing is lost but the precision of floats."""
    wanted = np.dtype(DTYPES[name])
    try:
        given = np.asarray(array)
    except (TypeError, ValueError):  # rows of different lengths
        raise TraceError(f"{name}: given {shown(array)}; allowed: an array of {wanted}") from None
    if given.dtype == wanted:
        return np.ascontiguousarray(given)
    if given.dtype.kind not in ("iu" if wanted.kind in "iu" else "iuf"):
        raise TraceError(f"{name}: type {given.dtype}; allowed: {wanted}")
    if wanted.kind in "iu" and given.size:
        limits = np.iinfo(wanted)
        if given.min() < limits.min or given.max() > limits.max:
            raise TraceError(f"{name}: values beyond {wanted}; allowed: {limits.min} to {limits.max}")
    return np.ascontiguousarray(given, wanted)


def _check_shapes(trace: SpeculationTrace) -> None:
    """R, P and K agree everywhere, and the offsets cut P positions into R requests."""
    dimensions = 3 if trace.statistics is None else trace.statistics.ndim
    if dimensions != 3 or trace.prompt_id.ndim != 1 or trace.accepted_run.ndim != 1:
        shapes = [array.shape for array in (trace.prompt_id, trace.accepted_run, trace.statistics) if array is not None]
        raise TraceError(f"prompt_id, accepted_run, statistics: shapes {shapes}; allowed: (R,), (P,), (P, K, 4)")
    requests, positions, k = len(trace.prompt_id), len(trace.accepted_run), _drafted(trace)
    wanted = {"prompt_id": (requests,), "prompt_tokens": (requests,), "offsets": (requests + 1,),
              "accepted_run": (positions,), "statistics": (positions, k, 4), "acceptance": (positions, k)}  # fmt: skip
    for name, array in trace.arrays().items():
        if array.shape != wanted[name]:
            raise TraceError(f"{name}: shape {array.shape}; allowed: {wanted[name]}, as the other arrays have it")
    if not requests:
        raise TraceError("prompt_id: no request; allowed: at least one")
    if trace.offsets[0] != 0 or trace.offsets[-1] != positions:
        raise TraceError(f"offsets: from {trace.offsets[0]} to {trace.offsets[-1]}; allowed: from 0 to {positions}")
    _check_range("offsets", np.diff(trace.offsets), 1, positions, trace.offsets, "positions of the request")


def _drafted(trace: SpeculationTrace) -> int:
    """K, 1 to `MAX_DRAFT_TOKENS`."""
    if trace.statistics is not None:
        place, k = "statistics", trace.statistics.shape[1]
    else:
        place, k = "header: draft_tokens (needed, as there are no statistics)", trace.header.get("draft_tokens")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_DRAFT_TOKENS:
        raise TraceError(f"{place}: {shown(k)} drafted tokens a position; allowed: 1 to {MAX_DRAFT_TOKENS}")
    return k


def _check_values(trace: SpeculationTrace) -> None:
    """Every number in its range; at temperature 0 runs that agree with each other, unless they are independent."""
    if (runs := trace.header.get("runs", AGREEING)) not in (AGREEING, INDEPENDENT):
        raise TraceError(f"header: runs {shown(runs)}; allowed: {AGREEING!r}, {INDEPENDENT!r}")
    try:
        greedy = trace.temperature == 0
    except (TypeError, ValueError):
        raise TraceError(f"header: temperature {trace.header['temperature']!r}; allowed: a number") from None
    if not (math.isfinite(trace.temperature) and trace.temperature >= 0):
        raise TraceError(f"header: temperature {trace.temperature}; allowed: 0 or above")
    if greedy != (trace.acceptance is None):
        rule = "only for temperature above 0" if greedy else "needed for temperature above 0"
        raise TraceError(f"acceptance: {'present' if greedy else 'missing'}; {rule} (here {trace.temperature})")
    _check_range("prompt_id", trace.prompt_id, 0, MAX_PROMPT_ID, trace.offsets)
    _check_range("prompt_tokens", trace.prompt_tokens, 1, MAX_PROMPT_TOKENS, trace.offsets)
    for i, (name, limit) in enumerate(zip(STATISTICS, STATISTIC_LIMITS, strict=True)):
        if trace.statistics is not None:
            _check_range("statistics", trace.statistics[:, :, i], 0, limit, trace.offsets, name)
    if trace.acceptance is not None:
        _check_range("acceptance", trace.acceptance, 0, 1, trace.offsets)
    to_the_end = np.repeat(trace.offsets[1:], trace.output_tokens) - np.arange(len(trace.accepted_run))
    _check_range("accepted_run", trace.accepted_run, 0, np.minimum(trace.draft_tokens, to_the_end), trace.offsets)
    if greedy and not trace.independent:
        _check_runs(trace, to_the_end)


def _check_runs(trace: SpeculationTrace, to_the_end: np.ndarray) -> None:
    """A run of a tokens continues as one of a − 1 at the next position, or of K if it is as long as it can be."""
    run, following = trace.accepted_run[:-1].astype(np.int64), trace.accepted_run[1:].astype(np.int64)
    longest = np.where(run == trace.draft_tokens, trace.draft_tokens, run - 1)
    agrees = (run == 0) | (to_the_end[:-1] == 1) | ((following >= run - 1) & (following <= longest))
    if not agrees.all():
        n = int(np.argmin(agrees))
        raise TraceError(f"accepted_run: {_place(trace.offsets, n + 1)}: {following[n]} after a run of {run[n]}; "
                         f"allowed: {run[n] - 1} to {longest[n]}")  # fmt: skip


def _check_range(name: str, values: np.ndarray, low: float, high: Any, offsets: np.ndarray, what: str = "") -> None:
    """Raise a `TraceError` that names the first value outside low … high, or NaN."""
    inside = (values >= low) & (values <= high)
    if inside.all():
        return
    at = np.unravel_index(int(np.argmin(inside)), values.shape)
    per_request = name in ("prompt_id", "prompt_tokens", "offsets")
    place = f"request {at[0]}" if per_request else _place(offsets, int(at[0]))
    place += f", drafted token {at[1]}" if len(at) > 1 else ""
    allowed = high if np.ndim(high) == 0 else high[at]
    raise TraceError(f"{name}: {place}: {what + ' ' if what else ''}{values[at]}; allowed: {low:g} to {allowed:.12g}")


def _place(offsets: np.ndarray, n: int) -> str:
    """Request and position of the n-th position of the file."""
    request = int(np.searchsorted(offsets, n, "right")) - 1
    return f"request {request}, position {n - int(offsets[request])}"


def _header(raw: np.ndarray) -> dict[str, Any]:
    """The JSON object of the header, of this format and version."""
    if raw.ndim != 1 or raw.size > MAX_HEADER_BYTES:
        raise TraceError(f"header: shape {raw.shape}; allowed: (n,) with n at most {MAX_HEADER_BYTES}")
    try:
        header = json.loads(raw.tobytes())
    except (ValueError, RecursionError):
        raise TraceError("header: not JSON in UTF-8") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise TraceError(f"header: not of this format; allowed: a JSON object with format {FORMAT!r}")
    if header.get("version") not in (PLAIN_VERSION, VERSION):
        raise TraceError(f"header: version {header.get('version')!r}; allowed: {PLAIN_VERSION}, {VERSION}")
    return header
