"""Prometheus metrics of a server; a registry of its own, so that several servers live in one process."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """All metrics; names begin with `wisp_`, with units as Prometheus asks."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.rounds = counter("wisp_rounds", "Rounds verified")
        self.drafted = counter("wisp_drafted_tokens", "Drafted tokens verified")
        self.accepted = counter("wisp_accepted_tokens", "Drafted tokens accepted")
        self.committed = counter("wisp_committed_tokens", "Tokens committed to answers")
        self.computed = counter("wisp_computed_tokens", "Tokens run through the target")
        self.answers = counter("wisp_answers", "Answers finished")
        self.batch_s = histogram("wisp_batch_seconds", "Time of a verification", buckets=SECONDS)
        self.batch_rounds = histogram("wisp_batch_rounds", "Rounds of a batch", buckets=SIZES)
        self.held_s = histogram("wisp_round_held_seconds", "Arrival of a round to its reply", buckets=SECONDS)
        self.refusals = counter("wisp_refusals", "Messages refused", ["reason"])
        self.dropped = counter("wisp_dropped_replies", "Replies dropped: the device does not read")
        self.fallbacks = counter("wisp_scheduler_fallbacks", "Batches that the policy did not compose", ["reason"])
        self.failures = counter("wisp_failed_batches", "Batches whose verification raised an error")
        self.evictions = counter("wisp_evictions", "Sessions whose keys and values were evicted")
        self.connections = gauge("wisp_connections", "Connected devices")
        self.sessions = gauge("wisp_sessions", "Open sessions")
        self.waiting = gauge("wisp_waiting_rounds", "Rounds in the queue")
        self.kv_tokens = gauge("wisp_kv_tokens", "Tokens whose keys and values are in memory")
        self.price = gauge("wisp_price_tokens", "Price of a draft token in the replies, accepted tokens")
        self.utilisation = gauge("wisp_utilisation", "Running share of time that the server verifies")
