"""What happened when: the event log as spans of time, and as a Chrome trace that Perfetto opens.

A span is a stretch of time that one device (or the server) spent on one thing. The log holds moments, and what lies
between two moments of a device follows from their kinds:

    delivery of a reply (or start of a request) → send     drafting; the end of it wasted, where tokens were rejected
    send → arrival                                         flight to the server
    arrival (or end of a prompt's earlier chunk) → launch  queueing
    launch → end of that batch                             verification
    verification → delivery                                flight to the device
    end of a response → next request                       thinking

A session that the server drafts for, as in centralized serving, queues again as soon as its verification ends, while its tokens are
in flight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wisp_gym.engine import state
from wisp_gym.errors import InputError

SERVER = -1
KINDS = ("thinking", "drafting", "wasted drafting", "uplink", "queueing", "verification", "downlink", "batch")
THINKING, DRAFTING, WASTED, UPLINK, QUEUEING, VERIFYING, DOWNLINK, BATCH = range(8)

LANES = 64  # thread numbers that a device has in a Chrome trace

# One span. `tokens`: drafted (drafting, uplink, queueing), beyond the first rejected one (wasted), accepted
# (verification), delivered (downlink), members (batch).
SPAN = np.dtype(
    [("device", np.int64), ("kind", np.int64), ("start_s", np.float64), ("end_s", np.float64), ("tokens", np.float64)]
)


@dataclass(frozen=True)
class Stretch:
    """What happened in a stretch of one world's time, s.

    Attributes:
        spans: (n,) SPAN that reach into it. predicted_s: (batches,) predicted ends of batches inside it.
    """

    spans: np.ndarray
    predicted_s: np.ndarray
    start_s: float
    end_s: float


def following(starts: np.ndarray, ends: np.ndarray, device: np.ndarray) -> np.ndarray:
    """For each place in `starts` the first later place in `ends` of the same device, −1 without one."""
    at = np.searchsorted(ends, starts, side="right")
    found = np.append(ends, -1)[at]
    return np.where((found >= 0) & (device[found] == device[starts]), found, -1)


def preceding(ends: np.ndarray, starts: np.ndarray, device: np.ndarray) -> np.ndarray:
    """For each place in `ends` the last earlier place in `starts` of the same device, −1 without one."""
    found = np.append(starts, -1)[np.searchsorted(starts, ends, side="left") - 1]
    return np.where((found >= 0) & (device[found] == device[ends]), found, -1)


def make(device: np.ndarray, kind: int, start_s: np.ndarray, end_s: np.ndarray, tokens: Any) -> np.ndarray:
    """(n,) SPAN of one kind; tokens: (n,) or one number."""
    made = np.zeros(len(start_s), SPAN)
    made["device"], made["kind"], made["start_s"], made["end_s"], made["tokens"] = device, kind, start_s, end_s, tokens
    return made


def written(log: np.ndarray) -> np.ndarray:
    """The rows in use: an unused row is all zero, and no prompt has zero tokens."""
    return log[(log["kind"] != state.LOG_REQUEST) | (log["value"] > 0)]


def latest_s(log: np.ndarray) -> float:
    """Clock of the server, the last time it did something; a device's log runs ahead of it."""
    kinds = (state.LOG_ARRIVE, state.LOG_LAUNCH, state.LOG_END, state.LOG_VERIFY)
    return float(log["time_s"][np.isin(log["kind"], kinds)].max(initial=0.0))


class Events:
    """The log of the devices, ordered by device and, within one, as written; places are indices into it."""

    def __init__(self, log: np.ndarray, end_s: float):
        rows = log[log["device"] >= 0]
        rows = rows[np.argsort(rows["device"], kind="stable")]
        at_server = self.at_server(rows)
        told = ~np.isin(rows["kind"], (state.LOG_DRAFT, state.LOG_DRAFTER, state.LOG_OVERLAP))
        rows, self.stays = rows[told], at_server[told]
        self.device, self.kind, self.time_s, self.value = rows["device"], rows["kind"], rows["time_s"], rows["value"]
        self.end_s = end_s

    def places(self, *kinds: int) -> np.ndarray:
        """Places of the events of some kinds."""
        return np.flatnonzero(np.isin(self.kind, kinds))

    @staticmethod
    def at_server(rows: np.ndarray) -> np.ndarray:
        """Whether each session was the server's after each event: it has said so since the request began, or streams all of them."""
        kind, places = rows["kind"], np.arange(len(rows))
        said = np.isin(kind, (state.LOG_DRAFTER, state.LOG_REQUEST))
        last = np.maximum.accumulate(np.where(said, places, -1))
        known = (last >= 0) & (rows["device"][last] == rows["device"]) & (kind[last] == state.LOG_DRAFTER)
        chosen = known & (rows["value"][last] == 1.0)
        return chosen | (streaming(kind, rows["device"]) and not (kind == state.LOG_DRAFTER).any())

    def kept(self) -> np.ndarray:
        """Places of verifications after which the session queues again: its next delivery finds it at the server."""
        verified = self.places(state.LOG_VERIFY)
        delivered = following(verified, self.places(state.LOG_DELIVER), self.device)
        return verified[self.stays[np.where(delivered >= 0, delivered, verified)]]

    def followed_by(self, starts: np.ndarray, kind: int) -> np.ndarray:
        """Which of the places have an event of this kind, or nothing yet, directly after them."""
        after = np.minimum(starts + 1, len(self.kind) - 1)
        return (after == starts) | (self.device[after] != self.device[starts]) | (self.kind[after] == kind)

    def between(self, span_kind: int, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """A span from each start to the following end; those that have not ended yet end at `end_s`."""
        last = following(starts, ends, self.device)
        end_s = np.where(last >= 0, self.time_s[last], np.maximum(self.end_s, self.time_s[starts]))
        return make(self.device[starts], span_kind, self.time_s[starts], end_s, self.value[starts])


def streaming(kind: np.ndarray, device: np.ndarray) -> bool:
    """Whether sequences stay at the server and are verified again at once; events ordered by device."""
    verified = np.flatnonzero(kind == state.LOG_VERIFY)
    comes = np.flatnonzero(np.isin(kind, (state.LOG_ARRIVE, state.LOG_VERIFY)))
    before = preceding(verified, comes, device)
    return bool((kind[before[before >= 0]] == state.LOG_VERIFY).any())


def drafting(events: Events, overhead_s: np.ndarray | float) -> np.ndarray:
    """Drafting, split where the tokens beyond the first rejected one begin: `max(0, K − A − 1)` of K are wasted."""
    sends, begins = events.places(state.LOG_SEND), events.places(state.LOG_REQUEST, state.LOG_DELIVER)
    begins = begins[(events.kind[begins] == state.LOG_REQUEST) | ~events.stays[begins]]
    begins = begins[events.followed_by(begins, state.LOG_SEND)]  # a response's last delivery is followed by its end
    drafts = events.between(DRAFTING, begins, sends)
    sent = following(begins, sends, events.device)
    verified = following(begins, events.places(state.LOG_VERIFY), events.device)
    drafted = np.where(sent >= 0, events.value[sent], 0.0)
    accepted = np.where((sent >= 0) & (verified >= 0), events.value[verified], drafted)
    wasted = np.maximum(drafted - accepted - 1.0, 0.0)
    overhead = np.broadcast_to(overhead_s, events.device.max(initial=0) + 1)[drafts["device"]]
    token_s = (drafts["end_s"] - drafts["start_s"] - overhead) / np.maximum(drafted, 1.0)
    split_s = drafts["end_s"] - wasted * token_s
    waste = make(drafts["device"], WASTED, split_s, drafts["end_s"], wasted)
    drafts["end_s"], drafts["tokens"] = split_s, drafted
    return np.concatenate((drafts, waste))


def batches(log: np.ndarray, end_s: float) -> np.ndarray:
    """The server's batches; the one that is running ends at `end_s`."""
    launches, ends = log[log["kind"] == state.LOG_LAUNCH], log[log["kind"] == state.LOG_END]["time_s"]
    ends = ends[np.searchsorted(ends, launches["time_s"][0], side="right") :] if len(launches) else ends
    until_s = np.append(ends, max(end_s, launches["time_s"].max(initial=0.0)))[: len(launches)]
    return make(np.full(len(launches), SERVER), BATCH, launches["time_s"], until_s, launches["value"])


def batch_end_s(launch_s: np.ndarray, served: np.ndarray) -> np.ndarray:
    """End of the batches that were launched at these times; the launch itself where the log does not hold it."""
    batch = np.searchsorted(served["start_s"], launch_s)
    start_s, end_s = (np.append(served[name], np.nan)[batch] for name in ("start_s", "end_s"))
    return np.where(start_s == launch_s, end_s, launch_s)


def waits_since(events: Events, begins: np.ndarray, served: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start of the waiting that begins at each place, and drafted tokens: after a chunk of a prompt, its batch's end."""
    kind, time_s = events.kind[begins], events.time_s[begins]
    since_s = np.where(kind == state.LOG_MEMBER, batch_end_s(time_s, served), time_s)
    return since_s, np.where(kind == state.LOG_ARRIVE, events.value[begins], 0.0)


def verification(events: Events, served: np.ndarray) -> np.ndarray:
    """Queueing and verification of every member of every batch; a prompt in chunks is a member of several batches."""
    members, verified = events.places(state.LOG_MEMBER), events.places(state.LOG_VERIFY)
    device, launch_s = events.device[members], events.time_s[members]
    end_s = batch_end_s(launch_s, served)
    begins = preceding(members, events.places(state.LOG_ARRIVE, state.LOG_MEMBER, state.LOG_VERIFY), events.device)
    since_s, drafted = waits_since(events, begins, served)
    waits = make(device, QUEUEING, np.where(begins >= 0, since_s, launch_s), launch_s, drafted)
    outcome = following(members, verified, events.device)
    done = (outcome >= 0) & (events.time_s[outcome] == end_s)
    accepted = np.where(done, events.value[outcome], 0.0)
    return np.concatenate((waits, make(device, VERIFYING, launch_s, end_s, accepted)))


def waiting(events: Events, served: np.ndarray) -> np.ndarray:
    """Queueing of requests that no later batch has taken yet."""
    begins = np.sort(np.concatenate((events.places(state.LOG_ARRIVE, state.LOG_MEMBER), events.kept())))
    later = events.places(state.LOG_MEMBER, state.LOG_VERIFY, state.LOG_DONE)
    begins = begins[following(begins, later, events.device) < 0]
    since_s, drafted = waits_since(events, begins, served)
    return make(events.device[begins], QUEUEING, since_s, np.maximum(since_s, events.end_s), drafted)


def predicted_ends_s(log: np.ndarray) -> np.ndarray:
    """(batches,) ends of the batches as the server predicted them when it launched each: the boundaries devices are told."""
    return np.asarray(log["value"][log["kind"] == state.LOG_PREDICT])


def flights(events: Events) -> np.ndarray:
    """Messages to the server and back. Replies keep their order: the k-th delivery is of the k-th verification."""
    up = events.between(UPLINK, events.places(state.LOG_SEND), events.places(state.LOG_ARRIVE))
    verified, delivered = events.places(state.LOG_VERIFY), events.places(state.LOG_DELIVER)
    device, of_replies = events.device[verified], events.device[delivered]
    begin, end = (np.searchsorted(of_replies, device, side) for side in ("left", "right"))
    # A log that begins in the middle may hold a delivery whose verification it does not.
    orphan = np.append(preceding(delivered, verified, events.device) < 0, False)[begin]
    match = begin + orphan + np.arange(len(verified)) - np.searchsorted(device, device)
    place = np.append(delivered, -1)[np.where(match < end, match, len(delivered))]
    end_s = np.where(place >= 0, events.time_s[place], np.maximum(events.end_s, events.time_s[verified]))
    tokens = np.where(place >= 0, events.value[place], 0.0)
    return np.concatenate((up, make(device, DOWNLINK, events.time_s[verified], end_s, tokens)))


def spans(log: np.ndarray, end_s: float | None = None, overhead_s: np.ndarray | float = 0.0) -> np.ndarray:
    """Spans of an event log, ordered by device (the server is −1) and start; empty ones are left out.

    Args:
        log: (rows,) LOG_ROW as the engine wrote it (or sorted by time); unused rows are passed over.
        end_s: time at which what has not ended yet is cut; default the server's clock.
        overhead_s: what a round costs a device before its first token, one number or (n_devices,); not in the log.

    Returns:
        (n,) SPAN.
    """
    log = written(log)
    end_s = latest_s(log) if end_s is None else end_s
    events = Events(log, end_s)
    served = batches(log, end_s)
    thinking = events.between(THINKING, events.places(state.LOG_DONE), events.places(state.LOG_REQUEST))
    at_server = (verification(events, served), waiting(events, served))
    found = np.concatenate((served, thinking, drafting(events, overhead_s), flights(events), *at_server))
    found = found[found["end_s"] > found["start_s"]]
    return found[np.lexsort((found["start_s"], found["device"]))]


def window(log: np.ndarray, start_s: float, end_s: float, overhead_s: np.ndarray | float = 0.0) -> Stretch:
    """A stretch of time of an event log (see `spans`); what has not ended at `end_s` is cut there.

    Raises:
        InputError: an empty stretch.
    """
    if not start_s < end_s:
        raise InputError(f"timeline: given {start_s:g} to {end_s:g} s, allowed is a start before the end")
    found, predicted_s = spans(log, end_s, overhead_s), predicted_ends_s(log)
    visible = found[(found["end_s"] > start_s) & (found["start_s"] < end_s)]
    return Stretch(visible, predicted_s[(predicted_s > start_s) & (predicted_s < end_s)], start_s, end_s)


def rows_of(n_devices: int, tagged: int | None = None, most: int = 12) -> list[int]:
    """Devices to show: the tagged one first (whatever its number), then the others in order, `most` of them at most."""
    first = [] if tagged is None or tagged < 0 else [tagged]
    return [*first, *(device for device in range(n_devices) if device not in first)][: min(n_devices, most)]


def lanes(found: np.ndarray) -> np.ndarray:
    """(n,) thread of each span beside its device's first: 0, or more for replies that overlap what follows them."""
    lane = np.zeros(len(found), int)
    until_s: dict[int, list[float]] = {}  # of each device: when its further threads become free
    same = found["device"][1:] == found["device"][:-1]
    overlaps = same & (found["end_s"][:-1] > found["start_s"][1:]) & (found["kind"][:-1] == DOWNLINK)
    for place in np.flatnonzero(overlaps).tolist():
        device, _, start_s, end_s, _ = found[place].tolist()
        ends = until_s.setdefault(device, [])
        free = next((k for k, busy_s in enumerate(ends) if busy_s <= start_s), len(ends))
        ends[free:] = [end_s, *ends[free + 1 :]]
        lane[place] = free + 1
    return lane


def trace_events(world: Stretch, pid: int, process: str) -> list[dict[str, Any]]:
    """Chrome trace events of one world: a process with a thread for the server and one for each device.

    A token in flight while its sequence is verified again (centralized serving) goes to a further thread, for spans of
    one thread may not overlap. Predicted ends of batches are instants of the server's thread.
    """
    found = world.spans
    start_ns, end_ns = (np.rint(found[name] * 1e9).astype(np.int64) for name in ("start_s", "end_s"))
    thread = (found["device"] + 1) * LANES + lanes(found).clip(max=LANES - 1)  # the server, −1, is thread 0
    events = names(pid, process, np.unique(thread).tolist())
    columns = (found["kind"], found["tokens"], thread, start_ns, end_ns)
    for kind, tokens, tid, from_ns, to_ns in zip(*(column.tolist() for column in columns), strict=True):
        events.append({
            "name": KINDS[kind], "cat": KINDS[kind], "ph": "X", "pid": pid, "tid": tid,
            "ts": from_ns / 1e3, "dur": (to_ns - from_ns) / 1e3,
            "args": {"requests" if kind == BATCH else "tokens": tokens},
        })  # fmt: skip
    marks = (np.rint(world.predicted_s * 1e9) / 1e3).tolist()
    about = {"name": "predicted end", "cat": "prediction", "ph": "i", "s": "t", "pid": pid, "tid": 0}
    return events + [about | {"ts": ts} for ts in marks]


def names(pid: int, process: str, threads: list[int]) -> list[dict[str, Any]]:
    """Metadata events that name a process and its threads, the server's above the devices'."""
    about: list[tuple[int, str, dict[str, Any]]] = [
        (0, "process_name", {"name": process}), (0, "process_sort_index", {"sort_index": pid}),
    ]  # fmt: skip
    for tid in threads:
        device, lane = divmod(tid - LANES, LANES)
        name = f"device {device}" if device >= 0 else "server"
        about.append((tid, "thread_name", {"name": f"{name}, replies {lane}" if lane else name}))
        about.append((tid, "thread_sort_index", {"sort_index": tid}))
    return [{"name": name, "ph": "M", "pid": pid, "tid": tid, "args": args} for tid, name, args in about]


def chrome_trace(worlds: Mapping[str, Stretch]) -> dict[str, Any]:
    """Chrome trace-event JSON, which ui.perfetto.dev opens; microseconds, to the nanosecond.

    Args:
        worlds: name of a process → what happened there.
    """
    named = enumerate(worlds.items(), start=1)
    events = [event for pid, (name, world) in named for event in trace_events(world, pid, name)]
    return {"traceEvents": events, "displayTimeUnit": "ms"}
