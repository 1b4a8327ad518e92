"""The numbered invariants of docs/model/model.md, asked of a world that has run: each a function that asserts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from tests.support.small_worlds import SmallWorld, run
from wisp_gym.engine import state
from wisp_gym.engine.state import LOG_KINDS, World
from wisp_gym.rules import drafters
from wisp_gym.scenario import with_

LOG_ROWS = 40_000
AT_SERVER = ("arrive", "launch", "draft", "end", "verify", "drafter")
AT_DEVICE = ("request", "send", "deliver", "overlap", "done")
NUMBERS = (
    "config",
    "server",
    "totals",
    "slo_totals",
    "device",
    "sessions",
    "observation",
    "event_s",
    "memory",
    "server_memory",
    "log",
)
ENDLESS = {"wake_s", "earliest_deadline_s"}  # infinite where nothing is due


@dataclass(frozen=True)
class Ran:
    """A world after its run."""

    world: SmallWorld
    arrays: World

    @cached_property
    def log(self) -> np.ndarray:
        """Its events, in the order written, (n,) LOG_ROW."""
        return self.arrays.log[0, : int(self.arrays.server["log_length"][0, 0])]

    @cached_property
    def kinds(self) -> np.ndarray:
        """(n,) kind of each event, by name."""
        return np.array(LOG_KINDS)[self.log["kind"]]

    def of(self, *kinds: str) -> np.ndarray:
        """Events of these kinds, in the order written."""
        return self.log[np.isin(self.kinds, kinds)]

    def by_device(self, *kinds: str) -> Iterator[np.ndarray]:
        """Events of these kinds at each device."""
        rows = self.of(*kinds)
        rows = rows[np.argsort(rows["device"], kind="stable")]
        return iter(np.split(rows, np.searchsorted(rows["device"], range(1, self.world.scenario.n_devices))))

    @property
    def events(self) -> int:
        """Events of the server that were worked on."""
        return int(self.arrays.totals["events"][0, 0])


def ran(world: SmallWorld) -> Ran:
    """Run a world to its end, with room for its whole log."""
    rows = LOG_ROWS
    while True:
        arrays = run(world.scenario, world.controller, [world.seed], rows, world.trace)
        needed = int(arrays.server["log_length"][0, 0])
        if needed <= rows:
            return Ran(world, arrays)
        rows = needed


def i1_drafted_tokens_are_accepted_rejected_trimmed_or_unverified(r: Ran) -> None:
    """Nothing drafted is lost or counted twice."""
    t, device = r.arrays.totals[0, 0], r.arrays.device[0]
    assert t["drafted"] == t["accepted"] + t["rejected"] + t["trimmed"] + t["unverified"]
    on_the_way = np.isin(device["phase"], (state.UPLINK, state.QUEUED, state.VERIFYING))
    assert t["unverified"] == device["drafted"][on_the_way].sum()
    assert min(t["accepted"], t["rejected"], t["trimmed"], t["unverified"]) >= 0


def i2_requests_are_done_or_in_progress(r: Ran) -> None:
    """At most one in progress on each device."""
    t = r.arrays.totals[0, 0]
    assert t["requests_in"] == t["requests_done"] + (r.arrays.device[0]["phase"] != state.THINKING).sum()
    assert len(r.of("request")) == t["requests_in"]
    assert len(r.of("done")) == t["requests_done"]


def i3_the_clock_never_goes_back(r: Ran) -> None:
    """Neither the server's nor a device's."""
    assert (np.diff(r.of(*AT_SERVER)["time_s"]) >= 0).all()
    assert all((np.diff(rows["time_s"]) >= 0).all() for rows in r.by_device(*AT_DEVICE))


def i4_nothing_is_delivered_before_it_was_sent(r: Ran) -> None:
    """Sent, arrived, launched, ended, delivered: in this order for each round."""
    launched, links = r.of("launch")["time_s"], [device.link for device in r.world.scenario.devices]
    delays = all(
        link.one_way_s >= 1e-3 and link.jitter < 1.0 for link in links
    )  # shorter ones vanish beside a late clock
    before = np.less if delays else np.less_equal
    kinds = ("send", "arrive", "verify", "deliver")
    for rows in zip(*(r.by_device(kind) for kind in kinds), strict=True):
        send, arrive, end, deliver = (row["time_s"] for row in rows)
        assert len(send) - 1 <= len(arrive) <= len(send)
        assert before(send[: len(arrive)], arrive).all()
        assert len(deliver) == len(end)
        assert before(end, deliver).all()
        if len(end) == 0:
            continue
        launch = launched[np.searchsorted(launched, end, side="left") - 1]
        assert (launch < end).all()
        if r.arrays.config["drafter"][0, 0] == drafters.DEVICE:  # else a session may go on without a message
            assert (arrive[: len(end)] <= launch).all()
            assert (deliver[: len(send) - 1] <= send[1:])[: len(deliver)].all()


def i5_one_batch_at_a_time(r: Ran) -> None:
    """Launch and end alternate, with the same members."""
    rows = r.of("launch", "end")
    sizes, ends = rows["value"], rows["kind"] == LOG_KINDS.index("end")
    assert (ends == np.arange(len(rows)) % 2).all()
    assert (sizes[0 : len(sizes) - len(sizes) % 2 : 2] == sizes[1::2]).all()
    assert ((sizes >= 1) & (sizes <= r.world.scenario.server.max_batch_requests)).all()


def i6_keys_and_values_never_exceed_memory(r: Ran) -> None:
    """What is cached and what runs is what is in use, and fits."""
    c = r.arrays.config[0, 0]
    assert r.arrays.totals["kv_peak_tokens"][0, 0] <= c["kv_capacity_tokens"] <= r.world.scenario.kv_tokens
    memory_adds_up(r.arrays)


def memory_adds_up(arrays: World) -> None:
    """What the first world's server counts is what is there."""
    c, server, device = arrays.config[0, 0], arrays.server[0, 0], arrays.device[0]
    inside = (device["in_batch"] == 1) & (server["busy"] == 1)  # what is being composed takes no room yet
    spare = (c["lookahead_tokens"] - device["verified"]) * device["at_server"]
    assert server["kv_tokens"] == device["cached_tokens"].sum() + (device["take_tokens"] + spare)[inside].sum()
    assert (device["cached_tokens"] >= 0).all()
    leaving = server["n_replies"] > server["reply_next"]  # sessions that go back to their devices are counted out first
    if c["drafter"] not in (drafters.DEVICE, drafters.SERVER) and not leaving:
        assert server["n_at_server"] == device["at_server"].sum()


def digest(arrays: World) -> str:
    """Hash of everything that a run leaves behind."""
    content = hashlib.sha256()
    for array in (
        arrays.server,
        arrays.totals,
        arrays.slo_totals,
        arrays.histogram,
        arrays.device,
        arrays.sessions,
        arrays.log,
    ):
        content.update(array.tobytes())
    return content.hexdigest()


def i7_the_same_world_has_the_same_bytes(r: Ran) -> None:
    """Run again."""
    w = r.world
    again = run(w.scenario, w.controller, [w.seed], r.arrays.log.shape[1], w.trace)
    assert digest(again) == digest(r.arrays)


def i8_nothing_sees_the_future(r: Ran) -> None:
    """A world that ends earlier has the same events until then."""
    h, w = r.world.scenario.horizon, r.world
    cut_s = h.warmup_s + h.measure_s / 2
    shorter = with_(w.scenario, **{"horizon.measure_s": h.measure_s / 2, "horizon.drain_s": 0.0})
    before = ran(replace(w, scenario=shorter)).log
    assert (before[before["time_s"] < cut_s] == r.log[r.log["time_s"] < cut_s]).all()


def i9_every_number_is_finite(r: Ran) -> None:
    """No overflow and no quotient of nothing, in whatever is kept; no count below 0."""
    for name in NUMBERS:
        array = getattr(r.arrays, name)
        for field in array.dtype.names or ("",):
            values = array[field] if field else array
            assert field in ENDLESS or not np.isnan(values).any(), (name, field)
            assert field in ENDLESS or np.isfinite(values).all(), (name, field)
    for name in state.TOTALS.names or ():
        assert r.arrays.totals[name].min() >= 0, name
    assert r.arrays.histogram.min() >= 0


Invariant = Callable[[Ran], None]
OF_A_RUN: tuple[Invariant, ...] = (
    i1_drafted_tokens_are_accepted_rejected_trimmed_or_unverified,
    i2_requests_are_done_or_in_progress,
    i3_the_clock_never_goes_back,
    i4_nothing_is_delivered_before_it_was_sent,
    i5_one_batch_at_a_time,
    i6_keys_and_values_never_exceed_memory,
    i7_the_same_world_has_the_same_bytes,
    i8_nothing_sees_the_future,
    i9_every_number_is_finite,
)


def assert_kept(world: SmallWorld) -> int:
    """Run a world and ask all of it; returns the number of its events."""
    found = ran(world)
    for invariant in OF_A_RUN:
        invariant(found)
    return found.events
