"""Prometheus metrics of a server; a registry of its own, so that several servers live in one process."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """All metrics; names begin with `wisp_`, with units as Prometheus asks."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.rounds = Counter("wisp_rounds", "Rounds verified", registry=registry)
        self.drafted = Counter("wisp_drafted_tokens", "Drafted tokens verified", registry=registry)
        self.accepted = Counter("wisp_accepted_tokens", "Drafted tokens accepted", registry=registry)
        self.committed = Counter("wisp_committed_tokens", "Tokens committed to answers", registry=registry)
        self.computed = Counter("wisp_computed_tokens", "Tokens run through the target", registry=registry)
        self.answers = Counter("wisp_answers", "Answers finished", registry=registry)
        self.batch_s = Histogram("wisp_batch_seconds", "Time of a verification", buckets=SECONDS, registry=registry)
        self.batch_rounds = Histogram("wisp_batch_rounds", "Rounds of a batch", buckets=SIZES, registry=registry)
        self.held_s = Histogram(
            "wisp_round_held_seconds", "Arrival of a round to its reply", buckets=SECONDS, registry=registry
        )
        self.refusals = Counter("wisp_refusals", "Messages refused", ["reason"], registry=registry)
        self.dropped = Counter("wisp_dropped_replies", "Replies dropped: the device does not read", registry=registry)
        self.fallbacks = Counter(
            "wisp_scheduler_fallbacks", "Batches not composed by the scheduler's policy", ["reason"], registry=registry
        )
        self.failures = Counter("wisp_failed_batches", "Batches whose verification raised an error", registry=registry)
        self.evictions = Counter("wisp_evictions", "Sessions whose keys and values were evicted", registry=registry)
        self.connections = Gauge("wisp_connections", "Connected devices", registry=registry)
        self.sessions = Gauge("wisp_sessions", "Open sessions", registry=registry)
        self.waiting = Gauge("wisp_waiting_rounds", "Rounds in the queue", registry=registry)
        self.kv_tokens = Gauge("wisp_kv_tokens", "Tokens whose keys and values are in memory", registry=registry)
        self.price = Gauge(
            "wisp_price_tokens", "Price of a draft token in the replies, accepted tokens", registry=registry
        )
        self.utilisation = Gauge(
            "wisp_utilisation", "Running share of time that the server verifies", registry=registry
        )
