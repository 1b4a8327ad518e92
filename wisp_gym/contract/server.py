"""What the server sees of itself, and of the batch so far, when it composes a batch. Numbers alone, nothing compiled.

An observation is these entries, then those of each waiting request (`wisp_gym.contract.request`) in order of arrival.
"""

from wisp_gym.contract.entry import BATCHES, ESTIMATOR, FIXED, LAUNCH, MESSAGE, NOW, SERVER, Entry, K, T, columns

FAR = 1000  # end of what has no natural one; the entry of what is not limited at all

ENTRIES = (
    Entry("batch_requests", 16, "requests", 0, 64, "requests in the batch so far", SERVER, NOW),
    Entry("batch_tokens", 64, "tokens", 0, FAR, "new tokens in the batch so far", SERVER, NOW),
    Entry("batch_time", T, "s", 0, FAR, "predicted time of the batch so far", ESTIMATOR, NOW),
    Entry("batch_slack", T, "s", -FAR, FAR, f"time until the earliest deadline in the batch that can still be met ({FAR}: none)", SERVER, MESSAGE),
    Entry("batch_memory", 1, "share", 0, 1, "KV memory that the batch needs", SERVER, NOW),
    Entry("chunk_left", 512, "tokens", 0, FAR, f"prefill tokens still allowed in this batch ({FAR}: no limit)", SERVER, NOW),
    Entry("queue", 16, "requests", 0, FAR, "requests waiting, visible or not", SERVER, NOW),
    Entry("memory", 1, "share", 0, 1, "KV memory in use", SERVER, NOW),
    Entry("utilisation", 1, "share", 0, 1, "running share of time that the server verifies", SERVER, BATCHES),
    Entry("mean_batch_time", 0.1, "s", 0, 100, "T", SERVER, BATCHES),
    Entry("token_rate", 1000, "tokens/s", 0, 100, "running tokens per second committed while the server verifies", SERVER, BATCHES),
    Entry("chunk_open", 1, "flag", 0, 1, "a prefill chunk may be chosen now", SERVER, NOW),
    Entry("prefill_waiting", 1024, "tokens", 0, FAR, "context that waiting requests lack in memory", SERVER, NOW),
    Entry("memory_spoken_for", 1, "share", 0, FAR, "KV memory in use, added by the batch so far, and that prompts begun still lack", SERVER, NOW),
    Entry("starving", 16, "requests", 0, FAR, "waiting requests whose response starves", SERVER, NOW),
    Entry("price", 1, "tokens", 0, 10, "price of one draft token that replies carry now, in expected accepted tokens", SERVER, LAUNCH),
    Entry("server_sessions", 16, "sessions", 0, FAR, "sessions that the server drafts for", SERVER, NOW),
    Entry("draft_tokens", K, "tokens", 0, 1, "tokens that it drafts for each in this batch; before they are chosen, in the last", SERVER, NOW),
    Entry("draft_step", T, "s", 0, FAR, "predicted time of one draft step of those in the batch so far", ESTIMATOR, NOW),
    Entry("length_open", 1, "flag", 0, 1, "these tokens may be chosen now", SERVER, NOW),
    Entry("longest", K, "tokens", 0, 1, "tokens that it can draft at most", SERVER, FIXED),
)  # fmt: skip
SIZE = len(ENTRIES)
NAMES, SCALE, LOW, HIGH = columns(ENTRIES)

(
    BATCH_REQUESTS, BATCH_TOKENS, BATCH_TIME, BATCH_SLACK, BATCH_MEMORY, CHUNK_LEFT, QUEUE, MEMORY, UTILISATION, MEAN_BATCH_TIME,
    TOKEN_RATE, CHUNK_OPEN, PREFILL_WAITING, MEMORY_SPOKEN_FOR, STARVING, PRICE, SERVER_SESSIONS, DRAFT_TOKENS, DRAFT_STEP, LENGTH_OPEN, LONGEST,
) = range(SIZE)  # fmt: skip
