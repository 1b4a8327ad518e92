"""The state of worlds: one structured array for each kind of thing, with one leading axis for the world.

A row's fields lie side by side in memory, so that an event touches one or two cache lines of a device. Every field
is a number: the state can be copied, compared, saved and restored as bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from wisp_gym.jit import COMPILES
from wisp_gym.rules.controller import NO_POLICY
from wisp_gym.scenario.parts import MAX_SIZES

F, I, U, B = np.float64, np.int64, np.uint64, np.int8


def table(shape: int | tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeroed rows, whose fields plain Python can read as attributes too where nothing is compiled."""
    zeros = np.zeros(shape, dtype)
    return zeros if COMPILES or not dtype.names else zeros.view(np.recarray)


PARAMETERS = 8  # parameters that a controller may have
SURVIVALS = 32  # most tokens that a round may draft
SLO_CLASSES = 8  # service classes that a scenario may have
ROOFLINES = SURVIVALS + 2  # new tokens that a verification without prefill has at most, and none
LATENCY_BINS = 512  # logarithmic bins of the latency histograms
LATENCY_LOW_S, LATENCY_HIGH_S = 1e-3, 1e3

# Constants of a world, from the scenario and the chosen controllers.
CONFIG = np.dtype(
    [
        ("seed", U), ("n_devices", I), ("max_draft_tokens", I), ("from_trace", I),
        ("warmup_s", F), ("window_end_s", F), ("end_s", F), ("ends_early", I),
        # verification: the soft roofline (truth) and the four-term prediction (what the scheduler sees)
        ("host_s", F), ("launch_s", F), ("weights_s", F), ("token_s", F), ("sharpness", F), ("cached_token_s", F), ("pair_s", F), ("noise", F),
        ("host_request_s", F), ("host_token_s", F), ("graph_tokens", I), ("eager_s", F),
        ("est_launch_s", F), ("est_new_token_s", F), ("est_pair_s", F), ("est_cached_token_s", F), ("est_request_s", F),
        ("est_sizes", I), ("est_size_tokens", F, MAX_SIZES), ("est_size_s", F, MAX_SIZES),
        ("kv_capacity_tokens", I), ("max_batch_requests", I), ("prefill_chunk_tokens", I), ("centralized", I),
        ("chunk_tokens", I), ("chunk_share", F), ("trim", I), ("trim_tokens", I), ("admit_share", F),
        # pacing: longest batch (0: none is paced), when the floor begins for those in memory and for others, the floor, what counts as ahead
        ("pace_batch_s", F), ("pace_patience_s", F), ("pace_begin_s", F), ("pace_floor_tokens_per_s", F), ("pace_lead_s", F), ("pace_credit_s", F),
        # acceptance
        ("logit_mean", F), ("request_std", F), ("drift_std", F), ("drift_keep", F), ("drift_fresh", F), ("after_rejection_logit", F),
        ("loop_enter", F), ("loop_leave", F), ("loop_whole", F), ("loop_period_tokens", I), ("loop_longer", F),
        ("accept_prior", F),
        # statistics: separation d' of the evidence, log odds of the average acceptance
        ("separation", F), ("base_logit", F), ("overconfidence", F),
        # workload
        ("arrivals", I), ("think_s", F), ("requests_per_s", F), ("start_window_s", F),
        ("prompt_log_mean", F), ("prompt_log_std", F), ("prompt_min", F), ("prompt_max", F),
        ("output_log_mean", F), ("output_log_std", F), ("output_min", F), ("output_max", F),
        # controllers: kind ids; which decisions are taken outside (0 none, 1 each token, 2 length of a round)
        ("speculation", I), ("uses_predictor", I), ("sees_statistics", I), ("sees_observation", I), ("learns", I), ("suggests", I), ("batching", I),
        ("external_speculation", I), ("external_device", I), ("external_batching", I), ("visible_requests", I), ("sets_prices", I),
        ("chooses_way", I), ("external_ways", I), ("external_hosting", I), ("chooses_hosting", I),  # who says how rounds end, who drafts
        ("own_rule", I), ("own_by_length", I),  # address of a function that decides for the devices (0: none), and whether it chooses lengths
        ("responses_join", I),  # those in memory, before an outside decision about a batch
        ("log_decisions", I),  # draw the policy's actions and log this many decisions (0: take its best action, log none)
        # who drafts besides a device before it sends: tokens drafted on while a round is away, how a session's drafter and the server's
        # length are chosen, places kept for the server's drafts; memory without a draft model
        ("overlap_tokens", I), ("overlap_chance", F), ("drafter", I), ("server_length", I), ("lookahead_tokens", I), ("memory_tokens", I),
        # the draft on the server: time of its steps, whether its fates are the devices', else its process
        ("step_overhead_s", F), ("step_launch_s", F), ("step_sequence_s", F), ("step_token_s", F), ("step_cached_token_s", F),
        ("server_shares", I), ("server_offer", F), ("server_correlation", F), ("server_own", F), ("server_logit_mean", F),
        ("server_request_std", F), ("server_drift_std", F), ("server_drift_keep", F), ("server_drift_fresh", F),
        ("server_after_rejection_logit", F),
        ("server_loop_enter", F), ("server_loop_leave", F), ("server_loop_whole", F), ("server_loop_period_tokens", I), ("server_loop_longer", F),
        ("server_prior", F), ("server_base_logit", F),
    ]
)  # fmt: skip
CLOSED, OPEN, TRACE = 0, 1, 2

DEVICE = np.dtype(
    [
        # what the server reads of a waiting request, side by side
        ("arrived_s", F), ("deadline_s", F), ("expected_tokens", F), ("slo_tokens_per_s", F), ("prompt_tokens", I), ("committed", I),
        ("cached_tokens", I), ("drafted", I), ("take_tokens", I), ("verified", I),
        ("newer", I), ("older", I), ("accepted", I), ("phase", I), ("commit_tokens", I), ("output_tokens", I),
        # 0 or 1: of the request at the server; of the token just drafted and the walk; of what else is said below
        ("running", B), ("in_batch", B), ("completes", B), ("resident", B), ("on_path", B), ("fate", B), ("after_rejection", B),
        ("mark_after_rejection", B), ("counted", B), ("clock_from_arrival", B), ("info_busy", B), ("last_rejected", B),
        ("at_server", B), ("guess_held", B),  # who drafts is the server; the target's next token was the draft's own
        ("group", I), ("turn_s", F),  # in a pipelined plan: group (−1: none), when it was last launched in its turn
        # constants of the device's class, link and service class
        ("token_s", F), ("round_overhead_s", F), ("predictor_s", F), ("draft_w", F), ("idle_w", F), ("radio_j", F),
        ("throttle_ratio", F), ("throttle_s", F),
        ("one_way_s", F), ("jitter", F), ("jitter_keep", F), ("jitter_fresh", F), ("loss", F), ("timeout_s", F),
        ("outages_per_s", F), ("outage_s", F), ("uplink_bytes_per_s", F), ("downlink_bytes_per_s", F), ("idle_after_s", F), ("wake_s", F),
        ("grace_s", F), ("ttft_s", F), ("class_id", I), ("slo_id", I),
        # the request being served
        ("request", I), ("arrival_s", F),
        ("first_token_s", F), ("messages", I),
        ("owed_tokens", F),  # of pacing's floor, from the device's responses before
        # walk along the target's output: position, drift, what became of the last token
        ("acceptance_key", U), ("evidence_key", U), ("off_path_key", U), ("views_key", U), ("drift_key", U), ("network_key", U), ("loss_key", U),
        ("outage_key", U),
        ("request_logit", F), ("drift", F), ("drift_block", I), ("position", I), ("p_accept", F), ("p_accept_after", F),
        ("loop_key", U), ("loop_period", I), ("loop_place", I),
        ("mark_drift", F), ("mark_loop_period", I), ("mark_loop_place", I),  # at the start of the round
        # the round
        ("round_start_s", F), ("clock_s", F), ("draft_token_s", F), ("cap", I), ("target_tokens", I), ("action", I),
        ("survival", F), ("p_token", F), ("evidence", F), ("token_index", I),
        ("sent_s", F), ("uplink_s", F), ("verified_tokens", F),
        # the last reply
        ("delivered_s", F),
        # link and heat
        ("link_state", F), ("link_used_s", F), ("heat", F), ("heat_at_s", F),
        # what the device has learned: running averages and the server state carried by its last reply
        ("delay_mean_s", F), ("delay_spread_s", F), ("accepted_sum", F), ("examined_sum", F), ("token_sum", F), ("time_sum_s", F),
        ("info_s", F), ("info_end_s", F), ("info_batch_s", F), ("info_queue_s", F), ("info_utilisation", F), ("price", F),
        ("suggested_tokens", I),
        # what the running acceptance makes of the predictor's survival
        ("odds_ratio", F), ("adapted_survival", F),
        # measured
        ("window_tokens", I), ("draft_s", F), ("window_messages", I),
        ("round", I),  # number of the logged round, −1 for none
        # on a speculation trace, apart from what every round touches: first row of the answer, statistics of the last token
        ("answer", I), ("confidence", F), ("entropy", F), ("margin", F), ("logit_spread", F),
    ],
    align=True,
)  # fmt: skip
THINKING, DRAFTING, UPLINK, QUEUED, VERIFYING, DOWNLINK = range(6)
NOBODY = -1  # a gap in the line of those who wait

# What is kept of a session besides where the server may draft for it, or its device drafts on while a round is away.
SESSION = np.dtype(
    [
        ("draft_cached", I), ("drafting", I),  # context in the server draft's cache; whether the server drafts for it in this batch
        ("device_tokens", I),  # length of the device's last round
        # walk of a server draft that is not the devices', and where it stood at the start of the round
        ("request", I), ("logit", F), ("drift", F), ("block", I), ("position", I), ("after_rejection", I),
        ("mark_drift", F), ("mark_block", I), ("mark_position", I), ("mark_after_rejection", I),
        ("loop_period", I), ("loop_place", I), ("mark_loop_period", I), ("mark_loop_place", I),
        # overlapped drafting: whether the device drafts on; what the next round begins with: tokens that are there, one under way
        ("overlaps", I), ("away_token_s", F), ("head_tokens", I), ("under_way", I), ("under_way_s", F),
        # who drafts next: how the round ends, if not by a rule; whether the device asks the server, and the server would agree; whether it stays
        # at the server where somebody outside says so, and whether that has been changed for the batch that is composed
        ("way", I), ("asks", I), ("takes", I), ("stays", I), ("moved", I),
    ],
    align=True,
)  # fmt: skip

SERVER = np.dtype(
    [
        ("now_s", F), ("stage", I), ("busy", I), ("batch_end_s", F), ("batch_start_s", F), ("batch_time_s", F), ("batch_clean_s", F), ("wake_s", F),
        ("n_events", I), ("n_open", I), ("n_queue", I), ("n_batch", I), ("n_replies", I), ("reply_next", I), ("mid_draft", I), ("batches", I),
        ("kv_tokens", I), ("lru_oldest", I), ("lru_newest", I), ("n_running", I), ("turn", I),
        ("n_waiting", I), ("line_first", I), ("line_end", I), ("n_cold", I), ("cold_tokens", I), ("cold_least_tokens", I),
        ("sum_new", F), ("sum_pairs", F), ("sum_cached", F), ("sum_kv", I), ("sum_context", I), ("kv_missing", I), ("prefill_waiting", I),
        ("n_starving", I), ("composed_s", F), ("chunk_settled", I), ("memory_kept", I), ("chunk_left", I), ("earliest_deadline_s", F),
        ("mean_batch_s", F), ("utilisation", F), ("predicted_end_s", F), ("last_end_s", F), ("token_rate", F), ("price", F), ("queue_s", F),
        # rewards of the external decision maker since its last decision
        ("step_on_time", F), ("step_committed", F), ("step_wasted", F), ("step_work_s", F), ("step_round_s", F), ("step_starved_s", F),
        ("invalid_actions", I), ("log_length", I),
        # logged for a learner since it last took them
        ("rounds", I), ("n_decisions", I), ("n_outcomes", I),
        # sessions that the server drafts for; length of its last batch; of the batch so far: sessions, their context, places kept
        ("n_at_server", I), ("server_tokens", I), ("n_drafting", I), ("draft_context", I), ("sum_lookahead", I), ("draft_s", F),
        ("chosen_tokens", I), ("share_at_server", F),  # length chosen outside for this batch, −1 for none; share of its sessions in the last one
        ("batch_token_s", F), ("ended_token_s", F),  # time that one more token would add to the running batch, to the one that ended
    ],
    align=True,
)  # fmt: skip
EVENTS, COMPOSE, PICK, REPLY, OVER = range(5)

TOTALS = np.dtype(
    [
        ("requests_in", I), ("requests_done", I),
        ("drafted", I), ("accepted", I), ("rejected", I), ("trimmed", I), ("unverified", I),
        # below: inside the window of measurement only
        ("rounds", I), ("window_drafted", I), ("window_accepted", I), ("window_trimmed", I), ("tokens", I), ("tokens_on_time", I),
        ("wasted_s", F), ("wasted_with_rejected_s", F), ("draft_s", F), ("interference_s", F), ("verified_requests", I), ("verify_s", F),
        ("busy_s", F), ("batches", I), ("batched_requests", I), ("recomputed_tokens", I), ("evictions", I), ("messages", I),
        ("round_latency_s", F), ("ttft_s", F), ("ttft_n", I),
        ("kv_peak_tokens", I), ("events", I), ("decisions", I),
        ("server_rounds", I), ("server_drafted", I), ("server_draft_s", F), ("overlapped", I), ("overlap_used", I), ("overlap_s", F),
    ],
    align=True,
)  # fmt: skip

SLO_TOTALS = np.dtype(
    [
        ("arrived", I),
        ("finished", I),
        ("attained", I),
        ("attained_tokens", I),
        ("tokens", I),
        ("tokens_on_time", I),
    ]
)

TRACE_ROW = np.dtype([("arrival_s", F), ("prompt_tokens", I), ("output_tokens", I)])
NO_TRACE = table(0, TRACE_ROW)

# One drafted token of a speculation trace: the chance that it is accepted once all before it are (0 or 1 in greedy
# decoding), and its statistics.
TRACE_TOKEN = np.dtype(
    [(name, np.float32) for name in ("acceptance", "confidence", "entropy", "margin", "logit_spread")]
)

# What a learner is handed of each decision of a policy, and of each round once its reply has been delivered.
DECISION = np.dtype([("round", I), ("device", I), ("action", I), ("time_s", F), ("log_probability", F)])
OUTCOME = np.dtype(
    [
        ("round", I), ("device", I), ("drafted", I), ("accepted", I), ("committed", I), ("on_time", I), ("last", I),
        ("start_s", F), ("draft_s", F), ("end_s", F), ("work_s", F), ("token_rate", F), ("utilisation", F), ("price", F),
    ]
)  # fmt: skip

LOG_ROW = np.dtype([("time_s", F), ("kind", I), ("device", I), ("value", F)])
# Values: prompt tokens; drafted; drafted; members; members; tokens; tokens; accepted; new tokens run; predicted end, s; drafted by the
# server; who drafts from now on (1 the server); drafted while the round was away.
(
    LOG_REQUEST, LOG_SEND, LOG_ARRIVE, LOG_LAUNCH, LOG_END, LOG_DELIVER, LOG_DONE, LOG_VERIFY, LOG_MEMBER, LOG_PREDICT,
    LOG_DRAFT, LOG_DRAFTER, LOG_OVERLAP,
) = range(13)  # fmt: skip
LOG_KINDS = (
    "request", "send", "arrive", "launch", "end", "deliver", "done", "verify", "member", "predict", "draft", "drafter", "overlap",
)  # fmt: skip


class Source(NamedTuple):
    """What a scenario's draft takes from files, shared by all worlds."""

    offsets: np.ndarray  # (answers + 1,) int64 first row of each answer of the trace
    tokens: np.ndarray  # (rows, K) TRACE_TOKEN drafted at each position of the answers
    predictor: np.ndarray  # (weights,) float32 of a rejection predictor, empty without one


NO_SOURCE = Source(np.zeros(1, np.int64), table((0, 1), TRACE_TOKEN), NO_POLICY)


class World(NamedTuple):
    """Arrays of one world (numba sees this tuple) or, with a leading axis, of many. What is shared by all has no such axis."""

    # the state, which a restart copies from a template

    config: np.ndarray  # (1,) CONFIG
    server: np.ndarray  # (1,) SERVER
    totals: np.ndarray  # (1,) TOTALS
    slo_totals: np.ndarray  # (SLO_CLASSES,) SLO_TOTALS
    histogram: np.ndarray  # (2, LATENCY_BINS) int64: round latency, time to first token
    device: np.ndarray  # (n,) DEVICE
    observation: np.ndarray  # (n, OBSERVATION) float32, or (1, …) where none outlives its decision
    event_device: np.ndarray  # (n,) int64 heap of devices whose message is on its way to the server
    event_s: np.ndarray  # (n,) float64 heap keys
    line: np.ndarray  # (2n,) int64 devices waiting at the server in order of arrival, NOBODY where one has left
    places: np.ndarray  # (n,) int64 place in the line of each of them
    queue: np.ndarray  # (n,) int64 of them those described for the next batch, in order of arrival where all are
    cold: np.ndarray  # (n,) int64 heap of all others, which have nothing in memory
    cold_keys: np.ndarray  # (n,) float64 lowest priority that they can have
    batch: np.ndarray  # (n,) int64 members of the running batch
    replies: np.ndarray  # (n,) int64 members of the batch that has just ended
    features: np.ndarray  # (n, FEATURES) float64 one row for each device, filled while its request is in the queue
    keys: np.ndarray  # (n,) float64 priorities of the queued requests
    order: np.ndarray  # (n,) int64 heap of their places in the line by priority
    rooflines: np.ndarray  # (ROOFLINES,) float64 `batch.roofline_s` of 0, 1, 2 … new tokens
    speculation_parameters: np.ndarray  # (PARAMETERS,) float64
    batching_parameters: np.ndarray  # (PARAMETERS,) float64
    drafter_parameters: np.ndarray  # (PARAMETERS,) float64
    length_parameters: np.ndarray  # (PARAMETERS,) float64
    server_memory: np.ndarray  # (MEMORY,) float64 what the rule of the server's own lengths keeps
    sessions: np.ndarray  # (n,) SESSION, or (1,) where nobody drafts but a device before it sends
    memory: np.ndarray  # (n + 1, MEMORY) float64 what a rule keeps of each device and, last, the server; or (1, …)
    # what is written down, and working memory
    log: np.ndarray  # (capacity,) LOG_ROW
    decisions: np.ndarray  # (capacity,) DECISION
    seen: np.ndarray  # (capacity, OBSERVATION) float32 what the policy saw at each of them
    outcomes: np.ndarray  # (capacity,) OUTCOME
    survivals: np.ndarray  # (n, SURVIVALS) float32 of each drafted token, where the server trims; else (1, …)
    # shared by all worlds
    trace: np.ndarray = NO_TRACE  # (rows,) TRACE_ROW
    policy: np.ndarray = NO_POLICY  # (weights,) float32 of the learned speculation policy
    scorer: np.ndarray = NO_POLICY  # (weights,) float32 of the learned batching policy
    source: Source = NO_SOURCE
    # where compiled code that is called on demand finds it again, see `arguments.world_at`
    home: int = 0
    place: int = 0

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """How copies and other processes get it, see `arrived`."""
        return arrived, tuple(self)

    def own(self) -> dict[str, np.ndarray]:
        """Arrays that each world has for itself, by name."""
        names = self._fields[: self._fields.index("trace")]
        return {name: getattr(self, name) for name in names}

    def at(self, index: int | slice) -> World:
        """One of many worlds, as compiled functions take it, or some of them; its arrays are views."""
        views: dict[str, Any] = {name: array[index] for name, array in self.own().items()}
        return self._replace(**views)

    def with_rows(self, **rows: int) -> World:
        """The same with at least so many rows for each world in some arrays, by name; what they held stays."""
        grown: dict[str, Any] = {}
        for name, n in rows.items():
            old = getattr(self, name)
            if old.shape[1] < n:
                grown[name] = table((old.shape[0], n, *old.shape[2:]), old.dtype)
                grown[name][:, : old.shape[1]] = old
        return self._replace(**grown) if grown else self

    def clear(self, index: int) -> None:
        """Set every number of world `index` to zero."""
        for array in self.own().values():
            array[index] = np.zeros((), array.dtype)

    def state_bytes(self) -> list[np.ndarray]:
        """The state as (W, bytes) views: numpy copies them some ten times as fast as structures, field by field."""
        return self.as_bytes(self._fields[: self._fields.index("log")])

    def as_bytes(self, names: Iterable[str]) -> list[np.ndarray]:
        """Arrays that each world has for itself, by name, as `state_bytes`."""
        arrays = (getattr(self, name) for name in names)
        return [array.reshape(len(array), -1).view(np.uint8, np.ndarray) for array in arrays]


STRUCTURES = (CONFIG, DEVICE, SESSION, SERVER, TOTALS, SLO_TOTALS, TRACE_ROW, TRACE_TOKEN, DECISION, OUTCOME, LOG_ROW)


def arrived(*parts: Any) -> World:
    """The arrays of a world that comes from a copy or from another process, with this module's structures.

    Theirs are equal, but numba knows only these by sight: with others every call would compare all fields.
    """
    *arrays, source, home, place = parts
    return World._make([*map(as_known, arrays), Source(*map(as_known, source)), home, place])


def as_known(array: np.ndarray) -> np.ndarray:
    """The same memory under this module's structure, where it has one."""
    known = next((dtype for dtype in STRUCTURES if dtype == array.dtype), None)
    if known is None:
        return array
    plain = array.view(known, np.ndarray)
    return plain if COMPILES else plain.view(np.recarray)
