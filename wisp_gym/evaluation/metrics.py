"""What a world is judged by, from the totals that the engine kept. Definitions: docs/model/model.md."""

import math
from dataclasses import asdict, dataclass

import numpy as np

from wisp_gym.engine.state import LATENCY_BINS, LATENCY_HIGH_S, LATENCY_LOW_S, World
from wisp_gym.scenario import Scenario

STARVED_TOKENS_PER_S = 1.0
BIN_EDGES_S = np.geomspace(LATENCY_LOW_S, LATENCY_HIGH_S, LATENCY_BINS + 1)


@dataclass(frozen=True)
class Metrics:
    """Measures of one world over its window of measurement; the units are in the names.

    Attributes:
        throughput_tokens_per_s: tokens delivered.
        goodput_tokens_per_s: tokens delivered on time.
        response_goodput_tokens_per_s: tokens of counted responses that met their SLO.
        slo_attainment: share of counted requests whose last token came on time; unfinished ones count as missed.
        token_attainment: share of delivered tokens that were on time.
        round_latency_p50_s, round_latency_p95_s: from the start of drafting (or the last token) to the reply.
        ttft_p50_s, ttft_p95_s: from a request's arrival to its first token.
        wasted_drafting_share: drafting time beyond the first rejected token or left out by the server, as a share of all drafting time.
        wasted_drafting_s: the same, seconds a device and minute.
        wasted_with_rejected_share: the variant that counts the rejected token too.
        interference_s: mean over verified requests of T(batch) − T(request alone).
        acceptance, trimmed_share: accepted / drafted tokens, left out by the server / drafted. drafted_per_round, committed_per_round: tokens.
        server_use: share of time that the server verifies. batch_requests: mean batch size. batch_s: batch time that the mean request meets.
        server_drafted_share: share of rounds in which the server drafted. server_drafting_share: share of time that it drafts.
        overlap_used_share: of the tokens drafted while a round was away, those of use.
        joules_per_1k_tokens, dollars_per_1k_tokens: edge and server together; the server's price alone.
        starved_share: share of devices that got less than 1 token/s.
        requests, finished: counted requests and those of them that finished.
        evictions: sessions evicted from the prefix cache, until the world ended. invalid_actions: masked actions taken all the same.
    """

    throughput_tokens_per_s: float
    goodput_tokens_per_s: float
    response_goodput_tokens_per_s: float
    slo_attainment: float
    token_attainment: float
    round_latency_p50_s: float
    round_latency_p95_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    wasted_drafting_share: float
    wasted_drafting_s: float
    wasted_with_rejected_share: float
    interference_s: float
    acceptance: float
    trimmed_share: float
    drafted_per_round: float
    committed_per_round: float
    server_use: float
    batch_requests: float
    batch_s: float
    server_drafted_share: float
    server_drafting_share: float
    overlap_used_share: float
    joules_per_1k_tokens: float
    edge_joules_per_1k_tokens: float
    dollars_per_1k_tokens: float
    starved_share: float
    requests: int
    finished: int
    rounds: int
    evictions: int
    invalid_actions: int

    def row(self) -> dict[str, float | None]:
        """Plain dictionary, NaN as None for JSON."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


def ratio(top: float, bottom: float) -> float:
    """top / bottom, NaN where nothing was counted."""
    return float(top) / float(bottom) if bottom > 0 else math.nan


def quantile_s(histogram: np.ndarray, share: float) -> float:
    """Quantile of a (LATENCY_BINS,) histogram, interpolated on a logarithmic scale within its bin (bins are 2.7 % wide)."""
    total = histogram.sum()
    if total == 0:
        return math.nan
    cumulative = np.cumsum(histogram)
    bin_index = int(np.searchsorted(cumulative, share * total))
    inside = (share * total - (cumulative[bin_index] - histogram[bin_index])) / histogram[bin_index]
    return float(BIN_EDGES_S[bin_index] * (BIN_EDGES_S[bin_index + 1] / BIN_EDGES_S[bin_index]) ** inside)


def energy_j(worlds: World, index: int, scenario: Scenario, measure_s: float) -> tuple[float, float]:
    """Joules at the edge (drafting, idle, radio) and at the server (busy, idle) in the window."""
    n = int(worlds.config[index, 0]["n_devices"])
    d, busy_s = worlds.device[index, :n], float(worlds.totals[index, 0]["busy_s"])
    drafting_s = np.minimum(d["draft_s"], measure_s)
    edge = d["draft_w"] * drafting_s + d["idle_w"] * (measure_s - drafting_s) + d["radio_j"] * d["window_messages"]
    return float(edge.sum()), scenario.server.busy_w * busy_s + scenario.server.idle_w * (measure_s - busy_s)


def measure(worlds: World, index: int, scenario: Scenario) -> Metrics:
    """Metrics of world `index` after it has run to its end."""
    c, t, s = worlds.config[index, 0], worlds.totals[index, 0], worlds.slo_totals[index]
    n, measure_s = int(c["n_devices"]), float(c["window_end_s"] - c["warmup_s"])
    tokens, rounds = float(t["tokens"]), float(t["rounds"])
    edge_j, server_j = energy_j(worlds, index, scenario, measure_s)
    device_rate = worlds.device[index, :n]["window_tokens"] / measure_s
    latency, ttft = worlds.histogram[index]
    return Metrics(
        throughput_tokens_per_s=tokens / measure_s,
        goodput_tokens_per_s=float(t["tokens_on_time"]) / measure_s,
        response_goodput_tokens_per_s=float(s["attained_tokens"].sum()) / measure_s,
        slo_attainment=ratio(s["attained"].sum(), s["arrived"].sum()),
        token_attainment=ratio(t["tokens_on_time"], tokens),
        round_latency_p50_s=quantile_s(latency, 0.5),
        round_latency_p95_s=quantile_s(latency, 0.95),
        ttft_p50_s=quantile_s(ttft, 0.5),
        ttft_p95_s=quantile_s(ttft, 0.95),
        wasted_drafting_share=ratio(t["wasted_s"], t["draft_s"]),
        wasted_drafting_s=float(t["wasted_s"]) / n / measure_s * 60.0,
        wasted_with_rejected_share=ratio(t["wasted_with_rejected_s"], t["draft_s"]),
        interference_s=ratio(t["interference_s"], t["verified_requests"]),
        acceptance=ratio(t["window_accepted"], t["window_drafted"]),
        trimmed_share=ratio(t["window_trimmed"], t["window_drafted"]),
        drafted_per_round=ratio(t["window_drafted"], rounds),
        committed_per_round=ratio(t["window_accepted"] + rounds, rounds),
        server_use=float(t["busy_s"]) / measure_s,
        batch_requests=ratio(t["batched_requests"], t["batches"]),
        batch_s=ratio(t["verify_s"], t["batched_requests"]),
        server_drafted_share=ratio(t["server_rounds"], rounds),
        server_drafting_share=float(t["server_draft_s"]) / measure_s,
        overlap_used_share=ratio(t["overlap_used"], t["overlapped"]),
        joules_per_1k_tokens=ratio((edge_j + server_j) * 1e3, tokens),
        edge_joules_per_1k_tokens=ratio(edge_j * 1e3, tokens),
        dollars_per_1k_tokens=ratio(scenario.server.dollars_per_hour * measure_s / 3600.0 * 1e3, tokens),
        starved_share=float((device_rate < STARVED_TOKENS_PER_S).mean()),
        requests=int(s["arrived"].sum()),
        finished=int(s["finished"].sum()),
        rounds=int(rounds),
        evictions=int(t["evictions"]),
        invalid_actions=int(worlds.server[index, 0]["invalid_actions"]),
    )


def per_class(worlds: World, index: int, scenario: Scenario) -> list[dict[str, float]]:
    """Requests, attainment and goodput of each service class of a world."""
    measure_s = scenario.horizon.measure_s
    return [
        {
            "slo_tokens_per_s": slo.speed_tokens_per_s,
            "requests": int(row["arrived"]),
            "slo_attainment": ratio(row["attained"], row["arrived"]),
            "goodput_tokens_per_s": float(row["tokens_on_time"]) / measure_s,
        }
        for slo, row in zip(scenario.slo, worlds.slo_totals[index], strict=False)
    ]
