"""Prometheus metrics of what serves; a registry of its own, so that several servers live in one process."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
LENGTHS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 32)
MOST_CLASSES = 16  # that get a label of their own: who asks names the class, and labels stay for ever
OTHER_CLASS = "other"
DEVICE, SERVER, NOBODY = "device", "server", "nobody"  # who drafts a round


class Metrics:
    """What every server of ours counts, whoever drafts; names begin with `wisp_`, with units as Prometheus asks.

    `registry` holds them. A class of answers is their promised speed in tokens/s, "0" where none was promised.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, histogram = partial(Counter, registry=self.registry), partial(Histogram, registry=self.registry)
        self.rounds = counter("wisp_rounds", "Rounds verified")
        self.drafters = counter(
            "wisp_drafter_rounds", "Rounds after an answer's first token, by who drafted", ["drafter"]
        )
        self.drafted = counter("wisp_drafted_tokens", "Drafted tokens verified")
        self.accepted = counter("wisp_accepted_tokens", "Drafted tokens accepted")
        self.committed = counter("wisp_committed_tokens", "Tokens committed to answers")
        self.on_time = counter(
            "wisp_on_time_tokens", "Tokens committed in time, those that nobody waits for among them"
        )
        self.computed = counter("wisp_computed_tokens", "Tokens run through the target")
        self.answers = counter("wisp_answers", "Answers finished")
        self.ended = counter("wisp_class_answers", "Answers finished, by class", ["slo_tokens_per_s"])
        self.attained = counter(
            "wisp_class_attained", "Answers whose last token came in time, by class", ["slo_tokens_per_s"]
        )
        self.batch_s = histogram("wisp_batch_seconds", "Time of a batch", buckets=SECONDS)
        self.predicted_s = histogram("wisp_batch_predicted_seconds", "Predicted time of a batch", buckets=SECONDS)
        self.batch_rounds = histogram("wisp_batch_rounds", "Rounds of a batch", buckets=SIZES)
        self.fallbacks = counter("wisp_scheduler_fallbacks", "Batches that the policy did not decide", ["reason"])
        self.classes: set[str] = set()

    def batch(self, predicted_s: float, seconds: float, rounds: int, computed_tokens: int) -> None:
        """A batch has run."""
        self.predicted_s.observe(predicted_s)
        self.batch_s.observe(seconds)
        self.batch_rounds.observe(rounds)
        self.computed.inc(computed_tokens)

    def round(self, drafter: str, drafted: int, accepted: int, first: bool = False) -> None:
        """A round has been verified; `drafter`: who would have drafted, `first`: it commits its answer's first token."""
        self.rounds.inc()
        self.drafted.inc(drafted)
        self.accepted.inc(accepted)
        if not first:
            self.drafters.labels(drafter if drafted else NOBODY).inc()

    def tokens(self, committed: int, on_time: int) -> None:
        """Tokens have joined an answer."""
        self.committed.inc(committed)
        self.on_time.inc(on_time)

    def answer(self, slo_tokens_per_s: float, attained: bool) -> None:
        """An answer is complete."""
        name = f"{slo_tokens_per_s:g}"
        if name not in self.classes and len(self.classes) == MOST_CLASSES:
            name = OTHER_CLASS
        else:
            self.classes.add(name)
        self.answers.inc()
        self.ended.labels(name).inc()
        self.attained.labels(name).inc(attained)


class ServerMetrics(Metrics):
    """Those of a verification server besides."""

    def __init__(self) -> None:
        super().__init__()
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        self.held_s = Histogram(
            "wisp_round_held_seconds", "Arrival of a round to its reply", buckets=SECONDS, registry=self.registry
        )
        self.refusals = counter("wisp_refusals", "Messages refused", ["reason"])
        self.dropped = counter("wisp_dropped_replies", "Replies dropped: the device does not read")
        self.failures = counter("wisp_failed_batches", "Batches whose verification raised an error")
        self.evictions = counter("wisp_evictions", "Sessions whose keys and values were evicted")
        self.connections = gauge("wisp_connections", "Connected devices")
        self.sessions = gauge("wisp_sessions", "Open sessions")
        self.waiting = gauge("wisp_waiting_rounds", "Rounds in the queue")
        self.kv_tokens = gauge("wisp_kv_tokens", "Tokens whose keys and values are in memory")
        self.price = gauge("wisp_price_tokens", "Price of a draft token in the replies, accepted tokens")
        self.utilisation = gauge("wisp_utilisation", "Running share of time that the server verifies")


class SteeringMetrics(Metrics):
    """Those of an engine's own speculation besides, whose lengths a policy sets."""

    def __init__(self) -> None:
        super().__init__()
        counter, histogram = partial(Counter, registry=self.registry), partial(Histogram, registry=self.registry)
        self.allowed = counter(
            "wisp_allowed_tokens", "Tokens that might have been drafted, so many a round as the policy set"
        )
        self.length = histogram("wisp_draft_length_tokens", "Length that the policy set for a step", buckets=LENGTHS)
        self.probes = counter("wisp_probe_steps", "Steps whose length was set to learn what it costs")
