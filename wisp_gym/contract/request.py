"""What the server sees of a waiting request when it composes a batch. Numbers alone, nothing compiled."""

from wisp_gym.contract.entry import CLASS, DEVICE, ESTIMATOR, FIXED, MESSAGE, NOW, SERVER, Entry, K, T, columns
from wisp_gym.contract.ladders import PATIENCE_S, STARVED_TOKENS_PER_S
from wisp_gym.contract.server import FAR

ENTRIES = (
    Entry("waiting", T, "s", 0, FAR, "time since the request reached the server", SERVER, NOW),
    Entry("slack", T, "s", -FAR, FAR, "time until its verification must be complete", DEVICE, MESSAGE),
    Entry("new_tokens", 64, "tokens", 0, FAR, "tokens it would run through the model", SERVER, NOW),
    Entry("uncached_tokens", 512, "tokens", 0, FAR, "context that must be computed first", SERVER, NOW),
    Entry("cached_tokens", 1024, "tokens", 0, FAR, "context in the cache", SERVER, NOW),
    Entry("expected_tokens", K, "tokens", 0, 2, "expected tokens committed, as the device reported", DEVICE, MESSAGE),
    Entry("slo", 10, "tokens/s", 0, 100, "speed of its service class", CLASS, FIXED),
    Entry("marginal", T, "s", 0, FAR, "predicted time that it adds to a batch", ESTIMATOR, NOW),
    Entry("solo", T, "s", 0, FAR, "predicted time of a batch of this request alone", ESTIMATOR, NOW),
    Entry("draft_tokens", K, "tokens", 0, 1, "drafted tokens to verify", DEVICE, MESSAGE),
    Entry("running", 1, "flag", 0, 1, "a sequence already admitted (centralized serving)", SERVER, NOW),
    Entry("batch_time_with", T, "s", 0, FAR, "predicted time of the batch so far with it", ESTIMATOR, NOW),
    Entry("present", 1, "flag", 0, 1, "this place holds a request", SERVER, NOW),
    Entry("admissible", 1, "flag", 0, 1, "it may be picked now", SERVER, NOW),
    Entry("picked", 1, "flag", 0, 1, "it is in the batch already", SERVER, NOW),
    Entry("due", T, "s", -FAR, FAR, "time until the response's next token must leave to be on time", DEVICE, MESSAGE),
    Entry("age", 10, "s", 0, FAR, "time since the device made its request", DEVICE, NOW),
    Entry("committed", 64, "tokens", 0, FAR, "output tokens of the response so far", SERVER, NOW),
    Entry("rate", 10, "tokens/s", 0, 100, "those tokens divided by the age", SERVER, NOW),
    Entry("memory_with", 1, "share", 0, 2, "KV memory in use with all of its context", SERVER, NOW),
    Entry("begun", 1, "flag", 0, 1, "some of its context is in memory", SERVER, NOW),
    Entry("evicted", 1, "flag", 0, 1, "its context was in memory and has been evicted", SERVER, NOW),
    Entry("starving", 1, "flag", 0, 1, f"less than {STARVED_TOKENS_PER_S:g} token for each second of its age beyond {PATIENCE_S:g} s", SERVER, NOW),
    Entry("at_server", 1, "flag", 0, 1, "the server drafts for its session", SERVER, NOW),
    Entry("stays", 1, "flag", 0, 1, "the server will draft for its session after this round, as things stand", SERVER, NOW),
    Entry("movable", 1, "flag", 0, 1, "that may be changed now", SERVER, NOW),
    Entry("gain", 1, "tokens/T", -20, 20, "tokens per batch time that the session is expected to gain there", ESTIMATOR, NOW),
    Entry("use", 1, "share", -20, 20, "share of the server's time that it would cost there beyond its device's rounds", ESTIMATOR, NOW),
)  # fmt: skip
SIZE = len(ENTRIES)
NAMES, SCALE, LOW, HIGH = columns(ENTRIES)

(
    WAITING, SLACK, NEW_TOKENS, UNCACHED_TOKENS, CACHED_TOKENS, EXPECTED_TOKENS, SLO, MARGINAL, SOLO, DRAFT_TOKENS, RUNNING,
    BATCH_TIME_WITH, PRESENT, ADMISSIBLE, PICKED, DUE, AGE, COMMITTED, RATE, MEMORY_WITH, BEGUN, EVICTED, STARVING, AT_SERVER, STAYS,
    MOVABLE, GAIN, USE,
) = range(SIZE)  # fmt: skip

# What changes while a batch is composed, or says nothing of the request.
MOVING = (BATCH_TIME_WITH, PRESENT, ADMISSIBLE, PICKED, STAYS, MOVABLE)
