"""The parts of a scenario as frozen dataclasses: every field has its unit in its name and its range in its type.

All values are plain numbers and strings in SI units. An impossible value raises `ScenarioError` with one line that
names the key and what is allowed. `wisp_gym.scenario` is the module to import them from.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from wisp_gym.scenario.fields import (
    Amount,
    Bandwidth,
    BelowOne,
    Chance,
    Count,
    CountOrZero,
    Logit,
    LogStd,
    Name,
    Part,
    PerSecond,
    Positive,
    PositiveSeconds,
    Range,
    Ratio,
    ScenarioError,
    Seconds,
    Tokens,
    Weight,
)
from wisp_gym.values import MAX_DEVICES


@dataclass(frozen=True)
class VerificationTime(Part):
    """True time of a batch, without the host's part: the soft roofline of `wisp_gym.engine.verification`."""

    launch_s: Seconds  # per batch
    weights_s: PositiveSeconds  # reading the weights once
    token_s: Positive  # arithmetic per new token
    sharpness: Annotated[float, Range(0.2, 100.0)]  # 1 = sum of both, large = their maximum; below 1: concave
    cached_token_s: Seconds  # reading one cached token's keys and values
    pair_s: Seconds  # attention arithmetic per new token × length

    def check(self) -> None:
        """Powers of the roofline stay numbers: `weights_s ** sharpness` must neither vanish nor overflow."""
        digits = abs(math.log10(self.weights_s))
        if self.sharpness * digits > 300:
            most = math.floor(300 / digits)
            raise ScenarioError(
                f"given {self.sharpness:g}, allowed with weights_s {self.weights_s:g}: <= {most}", "sharpness"
            )


@dataclass(frozen=True)
class SizeTime(Part):
    """Time that batches of so many new tokens take beyond the estimator's terms."""

    tokens: Count  # new tokens of the batch
    add_s: Seconds  # beyond the terms


MAX_SIZES = 64  # the engine keeps so many; vLLM captures 51


@dataclass(frozen=True)
class Estimator(Part):
    """Predicted time of a batch, all the scheduler sees: `launch + new_token·Σn + pair·Σ(n·L) + cached_token·Σc`.

    n, c: new and cached tokens of a request, L = n + c. The four terms are those WISP published. What a profile tells beyond
    them stands in the other fields: a term per request, and levels by size, with straight lines between them, the first one below
    them and in proportion to the tokens above.
    """

    launch_s: Seconds  # per batch
    new_token_s: Seconds  # per new token
    pair_s: Seconds  # per new token × length
    cached_token_s: Seconds  # per cached token
    request_s: Seconds = 0.0  # per request of the batch
    sizes: tuple[SizeTime, ...] = ()  # added by the number of new tokens, in increasing order

    def check(self) -> None:
        tokens = [size.tokens for size in self.sizes]
        if len(tokens) > MAX_SIZES:
            raise ScenarioError(f"given {len(tokens)} sizes, allowed: up to {MAX_SIZES}", "sizes")
        for i in range(1, len(tokens)):
            if tokens[i] <= tokens[i - 1]:
                raise ScenarioError(
                    f"given {tokens[i]}, allowed: > {tokens[i - 1]}, the one before", f"sizes[{i}].tokens"
                )


@dataclass(frozen=True)
class Target(Part):
    """The large model on the server: its shape, from which memory follows."""

    name: Name
    parameters: Count  # all of them: 32e9, not 32
    layers: Count
    heads: Count  # query heads
    kv_heads: Count  # heads of keys and values
    head_dim: Count
    dtype_bytes: Count  # 2 = bf16
    weight_bits: Amount = 0.0  # of a weight, on average, where weights are quantised; 0: 8 · dtype_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values per token: 2 (K and V) × layers × kv_heads × head_dim × dtype_bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype_bytes

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights: parameters × dtype_bytes, or × weight_bits / 8."""
        if self.weight_bits:
            return math.ceil(self.parameters * self.weight_bits / 8)
        return self.parameters * self.dtype_bytes


@dataclass(frozen=True)
class Server(Part):
    """The machine that verifies: memory, host overhead, noise, power, price and batch limits, all GPUs together."""

    name: Name
    gpus: Count
    memory_bytes: Count  # all GPUs together
    memory_utilisation: Ratio  # share of the memory that the serving engine may use
    activation_bytes: CountOrZero  # reserved for activations
    host_s: Seconds  # per batch
    noise: LogStd  # log-normal std of a batch's time
    busy_w: Amount  # while a batch runs
    idle_w: Amount  # while none does
    dollars_per_hour: Amount  # all GPUs together
    max_batch_requests: Count  # at most in one batch
    prefill_chunk_tokens: CountOrZero  # uncached prompt tokens per batch at most; 0 = prompts are prefilled whole
    host_request_s: Seconds = (
        0.0  # per request of a batch: to schedule it, to sample its tokens, to take and answer its message
    )
    host_token_s: Seconds = 0.0  # per new token
    graph_tokens: CountOrZero = (
        0  # batches are padded to sizes captured as CUDA graphs up to so many new tokens; 0 = none
    )
    eager_s: Seconds = 0.0  # added to a larger batch, which runs without a graph


@dataclass(frozen=True)
class Acceptance(Part):
    """Process of the probability that a draft token is accepted, per position of the target's output, in logits.

    `logit = logit_mean + request effect + drift`: the request effect is normal with std request_std, the drift is an
    AR(1) process with std drift_std and correlation length drift_tokens. The token that follows a rejected one has
    `after_rejection_logit` less. Texts that repeat themselves or copy have one more state, a loop: in it the draft is always
    right, or wrong once a period.
    """

    logit_mean: Logit  # mean over requests
    request_std: LogStd  # between requests
    drift_std: LogStd  # within a request
    drift_tokens: Positive  # correlation length of the drift
    after_rejection_logit: Logit  # taken off after a rejected token
    loop_enter: Chance = 0.0  # per position outside a loop
    loop_leave: Chance = 0.0  # per position inside
    loop_whole: Chance = 1.0  # share of loops in which every token is accepted; in the others one of each period is not
    loop_period_tokens: Annotated[int, Range(1, 1000)] = 1  # shortest period
    loop_more_tokens: Annotated[float, Range(0.0, 1000.0)] = 0.0  # mean of what a period has beyond it, geometric


@dataclass(frozen=True)
class Statistics(Part):
    """What the draft model's own output tells about acceptance."""

    auc: Annotated[float, Range(0.5, 1.0, open_high=True)]  # area under the ROC curve, accepted against rejected tokens
    overconfidence: Annotated[float, Range(0.0, 20.0)]  # logits added to the confidence


@dataclass(frozen=True)
class Draft(Part):
    """The small model on the devices, with its acceptance by the scenario's target.

    A speculation trace replaces `acceptance` and `statistics` by what was recorded of two real models; a rejection
    predictor replaces the prediction that a device makes of a token. Either is a path or the bare name of a shipped file.
    """

    name: Name
    parameters: Count  # all of them
    acceptance: Acceptance
    statistics: Statistics
    trace: str  # path of a speculation trace, "" = the parametric process
    predictor: str  # path of a rejection predictor, "" = none


@dataclass(frozen=True)
class DraftTime(Part):
    """Time of drafting on the server, for the whole batch (docs/model/who-drafts.md).

    Step j of a batch takes `launch + sequence·B + token·n + cached_token·c`: B sequences that draft a j-th token, n tokens run
    through the draft model for them (in the first step all that its cache lacks), c tokens read from its cache.
    """

    overhead_s: Seconds  # per batch in which the server drafts at all
    launch_s: Seconds  # per step
    sequence_s: Seconds  # per sequence in a step
    token_s: Seconds  # arithmetic per token
    cached_token_s: Seconds  # reading one cached token's keys and values


@dataclass(frozen=True)
class ServerDraft(Part):
    """A source of drafts on the server itself: a small model beside the target, a head on it, a search in the text.

    Its fates have a process of their own, which shares its draws with the devices' draft as `correlation` says; with the same
    process and correlation 1 they are those of the devices' draft, place by place.
    """

    name: Name
    weights_bytes: CountOrZero  # while it is loaded
    kv_bytes_per_token: CountOrZero  # beside the target's
    offer: Annotated[
        float, Range(0.0, 1.0)
    ]  # share of rounds with nothing right to draft in which it drafts all the same
    correlation: Annotated[float, Range(0.0, 1.0)]  # share of the draws that it has in common with the devices' draft
    acceptance: Acceptance
    time: DraftTime


@dataclass(frozen=True)
class Link(Part):
    """A network path of a device: each message's delay, loss, outages, bandwidth and waking from idle."""

    name: Name
    one_way_s: Seconds  # median
    jitter: LogStd  # log-normal std of a one-way delay: ln(p95/p50)/1.645
    autocorrelation: BelowOne  # of the log delay, from message to message
    loss: BelowOne  # probability per message
    timeout_s: Seconds  # retransmission after a loss
    outages_per_s: Annotated[float, Range(0.0, 0.1)]  # at most one begins in each 10 s
    outage_s: Seconds  # mean length
    uplink_bytes_per_s: Bandwidth  # from the device to the server
    downlink_bytes_per_s: Bandwidth  # from the server to the device
    idle_after_s: Seconds  # silence after which the radio sleeps
    wake_s: Seconds  # added to the message that wakes it; 0 = never sleeps


@dataclass(frozen=True)
class DeviceClass(Part):
    """A kind of edge device: drafting speed, overheads, power, throttling and link."""

    name: Name
    share: Weight  # weight in the mix; weights need not sum to 1
    draft_tokens_per_s: PerSecond  # before throttling
    round_overhead_s: Seconds  # per round
    predictor_s: Seconds  # rejection predictor, per drafted token
    draft_w: Amount  # while it drafts
    idle_w: Amount  # while it does not
    radio_j: Amount  # per message
    throttle_ratio: Annotated[float, Range(1e-3, 1.0)]  # sustained over start speed; 1 = none
    throttle_s: PositiveSeconds  # time constant
    link: Link


@dataclass(frozen=True)
class SLOClass(Part):
    """A token speed promised to a user: token n is due `clock + n / speed_tokens_per_s + grace_s`."""

    name: Name
    share: Weight  # weight in the mix
    speed_tokens_per_s: PerSecond  # promised
    grace_s: Seconds  # by which every token may be late
    ttft_s: PositiveSeconds  # target for the first token, used to schedule prompts
    clock: Literal["first_token", "arrival"]  # what deadlines count from


@dataclass(frozen=True)
class Lengths(Part):
    """A log-normal number of tokens, clipped to [min_tokens, max_tokens]."""

    median_tokens: Positive  # before it is clipped
    log_std: LogStd  # spread of the logarithm
    min_tokens: Tokens  # what is shorter gets so many
    max_tokens: Tokens  # what is longer is cut

    def check(self) -> None:
        if self.min_tokens > self.max_tokens:
            raise ScenarioError(f"given {self.min_tokens}, allowed: <= max_tokens ({self.max_tokens})", "min_tokens")
        if not self.min_tokens <= self.median_tokens <= self.max_tokens:
            allowed = f"{self.min_tokens} to {self.max_tokens} (min_tokens to max_tokens)"
            raise ScenarioError(f"given {self.median_tokens:g}, allowed: {allowed}", "median_tokens")


@dataclass(frozen=True)
class TraceColumns(Part):
    """What a request trace calls its columns; "" = as its format does (`wisp_gym.traces.request_formats`)."""

    time: str = ""  # arrival
    unit: Literal["", "s", "ms", "us", "ns", "date"] = ""  # of the times; date = a date and time as text
    prompt: str = ""  # tokens of the prompt
    output: str = ""  # tokens of the answer
    records: str = ""  # path of the requests in a JSON document


TraceFormat = Literal[
    "azure", "mooncake", "bailian", "burstgpt", "servegen", "vidur", "vllm", "guidellm", "csv", "jsonl", "json", ""
]


@dataclass(frozen=True)
class Workload(Part):
    """When requests come and how long they are. With trace arrivals both come from the trace, lengths within the ranges."""

    arrivals: Literal["closed", "open", "trace"]
    think_s: Seconds  # closed: mean think time between a response and the next request
    requests_per_s: Amount  # open: Poisson rate per device
    start_window_s: Seconds  # closed: first requests are spread uniformly over it
    prompt: Lengths
    output: Lengths
    trace: str  # path of the trace, "" if none
    trace_format: TraceFormat
    trace_start_s: Seconds = 0.0  # the trace is replayed from here on: seconds after its first request
    trace_rows: CountOrZero = 0  # so many requests of it at most, 0 = all
    trace_columns: TraceColumns = TraceColumns()

    def check(self) -> None:
        if self.arrivals == "open" and self.requests_per_s <= 0:
            raise ScenarioError(f"given {self.requests_per_s:g}, allowed with open arrivals: > 0", "requests_per_s")
        if self.arrivals == "trace" and not self.trace:
            raise ScenarioError("given '', allowed with trace arrivals: the path of a trace file", "trace")
        if self.arrivals == "trace" and not self.trace_format:
            known = ", ".join(get_args(TraceFormat)[:-1])
            raise ScenarioError(f"given '', allowed with trace arrivals: {known}", "trace_format")


@dataclass(frozen=True)
class Horizon(Part):
    """Requests that arrive in [warmup_s, warmup_s + measure_s) are counted; the world runs on for drain_s."""

    warmup_s: Seconds  # before what is measured
    measure_s: PositiveSeconds  # arrivals in it are counted
    drain_s: Seconds  # after it, for what is unfinished


MAX_SLO_CLASSES = 8  # the engine keeps totals for so many
MAX_EVENTS = 1e9  # batches, or requests: about an hour of computing


@dataclass(frozen=True)
class Scenario(Part):
    """Everything that fixes a world but its seed."""

    name: Name
    description: str
    server: Server
    target: Target
    draft: Draft
    verification: VerificationTime
    estimator: Estimator
    devices: tuple[DeviceClass, ...]
    slo: tuple[SLOClass, ...]
    workload: Workload
    horizon: Horizon
    n_devices: Annotated[int, Range(1, MAX_DEVICES)]  # default population
    max_draft_tokens: Annotated[int, Range(1, 32)]  # cap per round
    server_drafts: tuple[ServerDraft, ...] = ()  # what the server can draft with, one of them at a time

    @property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values fit: (memory · utilisation − weights − activations) / bytes per token."""
        return self.kv_tokens_beside(0, 0)

    def kv_tokens_beside(self, weights_bytes: int, kv_bytes_per_token: int) -> int:
        """The same where a draft model with such weights, keys and values is loaded too; not above 0 where it has no room.

        A block of memory holds keys and values of both models for its tokens, whoever drafts (as in vLLM).
        """
        server, target = self.server, self.target
        usable = server.memory_bytes * server.memory_utilisation - server.activation_bytes
        free = usable - target.weights_bytes - weights_bytes
        return int(free // (target.kv_bytes_per_token + kv_bytes_per_token))

    @property
    def longest_tokens(self) -> int:
        """Most tokens that one request keeps in memory: prompt, output and drafts."""
        return self.workload.prompt.max_tokens + self.workload.output.max_tokens + self.max_draft_tokens

    def check(self) -> None:
        _refuse_doubles("devices", [device.name for device in self.devices])
        _refuse_doubles("slo", [slo.name for slo in self.slo])
        _refuse_doubles("server_drafts", [draft.name for draft in self.server_drafts])
        _refuse_two_of_one(self)
        if len(self.slo) > MAX_SLO_CLASSES:
            raise ScenarioError(f"given {len(self.slo)} classes, allowed: 1 to {MAX_SLO_CLASSES}", "slo")
        if self.kv_tokens <= 0:
            usable_gb = self.server.memory_bytes * self.server.memory_utilisation / 1e9
            raise ScenarioError(
                f"given {self.server.memory_bytes / 1e9:.0f} GB ({usable_gb:.0f} GB usable), allowed: more than the "
                f"{(self.target.weights_bytes + self.server.activation_bytes) / 1e9:.0f} GB that weights of "
                f"{self.target.name} and activations take", "server.memory_bytes")  # fmt: skip
        _refuse_endless(self)
        # A trace's requests are checked one by one where it is read: its longest prompt need not have its longest output.
        if self.workload.arrivals == "trace":
            return
        longest = self.longest_tokens
        if longest > self.kv_tokens:
            raise ScenarioError(
                f"longest prompt + output + max_draft_tokens is {longest} tokens, allowed: <= {self.kv_tokens}, all "
                f"that KV memory of {self.server.name} holds", "workload.prompt.max_tokens")  # fmt: skip


def _refuse_doubles(key: str, names: list[str]) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ScenarioError(f"given '{name}' twice, allowed: a name of its own", f"{key}[{i}].name")


def _refuse_two_of_one(scenario: Scenario) -> None:
    """Refuse a server draft that is the devices' own draft, fate by fate, and has other numbers."""
    for i, draft in enumerate(scenario.server_drafts):
        if (
            draft.name == scenario.draft.name
            and draft.correlation == 1.0
            and draft.acceptance != scenario.draft.acceptance
        ):
            raise ScenarioError(
                f"given other numbers than draft '{draft.name}' of the devices has, allowed with its name and correlation 1: "
                "those of draft.acceptance", f"server_drafts[{i}].acceptance")  # fmt: skip


def _refuse_endless(scenario: Scenario) -> None:
    """Refuse what would not end: batches too short, or requests too many, for the horizon; a batch that lasts for ever."""
    horizon, time, workload = scenario.horizon, scenario.verification, scenario.workload
    window_s = horizon.warmup_s + horizon.measure_s
    shortest_s = scenario.server.host_s + time.launch_s + time.weights_s
    if (window_s + horizon.drain_s) / shortest_s > MAX_EVENTS:
        raise ScenarioError(
            f"warmup_s + measure_s + drain_s is {window_s + horizon.drain_s:g} s, allowed: <= "
            f"{MAX_EVENTS * shortest_s:g} s, {MAX_EVENTS:g} batches of the shortest kind", "horizon")  # fmt: skip
    if workload.arrivals == "open" and workload.requests_per_s * window_s * scenario.n_devices > MAX_EVENTS:
        most = MAX_EVENTS / window_s / scenario.n_devices
        raise ScenarioError(
            f"given {workload.requests_per_s:g}, allowed: <= {most:g}, {MAX_EVENTS:g} requests of all devices in the "
            "horizon", "workload.requests_per_s")  # fmt: skip
    if time.sharpness * math.log10(max(time.token_s * scenario.kv_tokens, 1e-300)) > 300:
        raise ScenarioError(
            f"given {time.token_s:g}, allowed with sharpness {time.sharpness:g} and {scenario.kv_tokens} tokens: <= "
            f"{10 ** (300 / time.sharpness) / scenario.kv_tokens:g}", "verification.token_s")  # fmt: skip
