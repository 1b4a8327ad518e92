"""What a device sees when it decides. Numbers alone, nothing compiled.

Times are in mean batch times T, the one that the last reply carried; tokens are in caps K or in those that the service class
asks for, never in numbers of devices. `o[DRAFT_TIME]` is an entry, `SCALE[TOKENS_LEFT]` and `HIGH[DRAFT_TIME]` are its columns.
"""

from wisp_gym.contract.entry import (
    AHEAD,
    CLASS,
    DELAYS,
    DEVICE,
    FIXED,
    LINK,
    NOW,
    REPLIED_BATCHES,
    REPLY,
    ROUND,
    ROUNDS,
    SERVER,
    Entry,
    K,
    T,
    columns,
)

ENTRIES = (
    Entry("drafted_tokens", K, "tokens", 0, 1, "tokens drafted in this round", DEVICE, NOW),
    Entry("survival", 1, "probability", 0, 1, "predicted probability that all of them are accepted (1 before the first)", DEVICE, NOW),
    Entry("accept_probability", 1, "probability", 0, 1, "predictor's output for the last token (1 before the first)", DEVICE, NOW),
    Entry("confidence", 1, "probability", 0, 1, "draft model's probability of the last token", DEVICE, NOW),
    Entry("entropy", 1, "nats", 0, 8, "entropy of the draft distribution at the last token", DEVICE, NOW),
    Entry("margin", 1, "probability", 0, 1, "top-2 margin at the last token", DEVICE, NOW),
    Entry("logit_spread", 1, "logits", 0, 16, "spread of the logits at the last token", DEVICE, NOW),
    Entry("acceptance_average", 1, "probability", 0, 1, "running share of examined tokens that were accepted", DEVICE, ROUNDS),
    Entry("expected_tokens", K, "tokens", 0, 2, "expected tokens committed if sent now: 1 + sum of survivals", DEVICE, NOW),
    Entry("draft_time", T, "s", 0, 20, "time to draft one token", DEVICE, ROUND),
    Entry("one_way_delay", T, "s", 0, 20, "running mean of the one-way delay", LINK, DELAYS),
    Entry("jitter", T, "s", 0, 20, "running mean absolute deviation of the one-way delay", LINK, DELAYS),
    Entry("slo_period", T, "s", 0, 50, "time between tokens that the service class asks for", CLASS, FIXED),
    Entry("slack", 1, "tokens", -20, 20, "time until the next token is due, in tokens of the service class", DEVICE, NOW),
    Entry("tokens_left", 64, "tokens", 0, 1, "output tokens still wanted, counted up to 64", DEVICE, REPLY),
    Entry("boundary_left", T, "s", 0, 5, "time from arrival at the server, if sent now, to the next batch boundary", SERVER, AHEAD),
    Entry("draftable_tokens", K, "tokens", 0, 1, "tokens that can still be drafted before that boundary", SERVER, AHEAD),
    Entry("boundaries_missed", 1, "batches", 0, 8, "batch boundaries that pass before arrival, if sent now", SERVER, AHEAD),
    Entry("server_busy", 1, "flag", 0, 1, "a batch was running when the last reply left", SERVER, REPLY),
    Entry("queue_work", T, "s", 0, 10, "predicted verification time of the requests waiting then", SERVER, REPLY),
    Entry("utilisation", 1, "share", 0, 1, "running share of time that the server verifies", SERVER, REPLIED_BATCHES),
    Entry("own_rate", 1, "tokens/T", 0, 20, "tokens per batch time that this device has been getting", DEVICE, ROUNDS),
    Entry("price", 1, "tokens", 0, 10, "server's price of one draft token, in expected accepted tokens", SERVER, REPLY),
    Entry("batch_time", 0.1, "s", 0, 20, "mean batch time T", SERVER, REPLIED_BATCHES),
    Entry("info_age", T, "s", 0, 20, "age of the server state", DEVICE, NOW),
    Entry("context", 1000, "tokens", 0, 32, "prompt and output so far", DEVICE, REPLY),
    Entry("round_time", T, "s", 0, 20, "time since this round began", DEVICE, NOW),
    Entry("suggested_tokens", K, "tokens", 0, 1, "length that the last reply suggested (0 where the server suggests none)", SERVER, REPLY),
    Entry("adapted_survival", 1, "probability", 0, 1, "survival with the predictor's odds scaled to the acceptance average", DEVICE, NOW),
    Entry("last_rejected", 1, "flag", 0, 1, "the last reply corrected a drafted token", SERVER, REPLY),
    Entry("drafts_on", 1, "flag", 0, 1, "the device can draft on while a round is away", DEVICE, FIXED),
    Entry("head_tokens", K, "tokens", 0, 1, "tokens that were there when the round began, drafted while the last one was away", DEVICE, ROUND),
    Entry("takes_over", 1, "flag", 0, 1, "the server would draft for the session if it were asked", SERVER, REPLY),
    Entry("server_tokens", K, "tokens", 0, 1, "tokens that the server last drafted for each of its sessions", SERVER, REPLY),
    Entry("server_rate", 1, "tokens/T", 0, 20, "tokens per batch time that the server expects the session to get there", SERVER, REPLY),
    Entry("server_share", 1, "share", 0, 1, "members of the last batch that the server drafted for", SERVER, REPLY),
)  # fmt: skip
SIZE = len(ENTRIES)
NAMES, SCALE, LOW, HIGH = columns(ENTRIES)

(
    DRAFTED_TOKENS, SURVIVAL, ACCEPT_PROBABILITY, CONFIDENCE, ENTROPY, MARGIN, LOGIT_SPREAD, ACCEPTANCE_AVERAGE, EXPECTED_TOKENS,
    DRAFT_TIME, ONE_WAY_DELAY, JITTER, SLO_PERIOD, SLACK, TOKENS_LEFT, BOUNDARY_LEFT, DRAFTABLE_TOKENS, BOUNDARIES_MISSED,
    SERVER_BUSY, QUEUE_WORK, UTILISATION, OWN_RATE, PRICE, BATCH_TIME, INFO_AGE, CONTEXT, ROUND_TIME, SUGGESTED_TOKENS,
    ADAPTED_SURVIVAL, LAST_REJECTED, DRAFTS_ON, HEAD_TOKENS, TAKES_OVER, SERVER_TOKENS, SERVER_RATE, SERVER_SHARE,
) = range(SIZE)  # fmt: skip
