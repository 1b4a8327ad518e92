"""The rules that controllers are made of, by name, each with its settings: published values, what is allowed, ranges to search."""

import math
from dataclasses import dataclass

from wisp_gym.rules import batching, drafters, server_lengths, speculation, trimming


@dataclass(frozen=True)
class Setting:
    """One number of a rule, given after the colon.

    Attributes:
        name: how messages and listings call it.
        default: the published value where there is one.
        low, high: what is allowed.
        tune: range that a comparison searches, (low, high); None keeps the default.
        log: search its logarithm. whole: only whole numbers make sense.
    """

    name: str
    default: float
    low: float
    high: float
    tune: tuple[float, float] | None = None
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Rule:
    """A named rule and its settings."""

    kind: int
    meaning: str
    settings: tuple[Setting, ...] = ()
    uses_predictor: bool = False
    sees_statistics: bool = False
    sees_observation: bool = False
    learns: bool = False
    suggests: bool = False


K_MAX = Setting("k_max", math.inf, 0, math.inf, whole=True)

SPECULATION = {
    "fixed": Rule(speculation.FIXED, "draft k tokens in every round (SLED as WISP describes it)",
        (Setting("k", 4, 0, 32, tune=(0, 12), whole=True),)),
    "confidence": Rule(speculation.CONFIDENCE_RULE, "SLED's device rule: continue while the last token's confidence is at least c",
        (Setting("c", 0.6, 0, 1, tune=(0, 0.99)), K_MAX), sees_statistics=True),
    "wisp": Rule(speculation.WISP, "WISP: stop when the predictor takes the last token for rejected (acceptance below p; "
        "default: WISP's published operating point)", (Setting("p", math.nan, 0, 1, tune=(0.02, 0.95)), K_MAX), uses_predictor=True),
    "survival": Rule(speculation.SURVIVAL_RULE, "SpecDec++: stop when the predicted probability that a token is rejected exceeds h",
        (Setting("h", 0.7, 0, 1, tune=(0.3, 0.95)), K_MAX, Setting("k_min", 0, 0, 32, whole=True)), uses_predictor=True),
    "random": Rule(speculation.RANDOM, "after each token, continue with probability p", (Setting("p", 0.5, 0, 1),)),
    "margin": Rule(speculation.MARGIN_RULE, "continue while the last token's top-2 margin is at least m",
        (Setting("m", 0.5, 0, 1, tune=(0, 0.95)), K_MAX), sees_statistics=True),
    "svip": Rule(speculation.SVIP, "SVIP (arXiv 2411.18462): stop when the root of the draft's entropy exceeds h (0.6: ours)",
        (Setting("h", 0.6, 0, 3, tune=(0.3, 2)), K_MAX), sees_statistics=True),
    "adaedl": Rule(speculation.ADAEDL, "AdaEDL (arXiv 2410.18351): stop when 1 - root(gamma*entropy) < lambda, adapted to a target acceptance",
        (Setting("gamma", 0.2, 0, 10), Setting("lambda", 0.4, 0, 1), Setting("target", 0.9, 0, 1, tune=(0.3, 0.95)),
         Setting("step", 0.01, 0, 1, tune=(0.003, 0.3), log=True), K_MAX), sees_statistics=True, learns=True),
    "price": Rule(speculation.PRICE_RULE, "price stop: continue while the next token's survival exceeds A*rate/speed + M",
        (Setting("A", 1, 0, 10, tune=(0, 1.5)), Setting("M", 0, 0, 10, tune=(0, 0.6)), K_MAX), uses_predictor=True, sees_observation=True),
    "aligned": Rule(speculation.ALIGNED, "boundary-aligned price stop: free drafting until the next launch (survival above thr), priced beyond it",
        (Setting("thr", 0.15, 0, 1, tune=(0, 0.6)), Setting("A", 0.9, 0, 10, tune=(0, 2)), Setting("margin", 2, 0, 100, tune=(0, 8)),
         Setting("guard", 0.05, 0, 1, tune=(0, 0.3)), K_MAX), uses_predictor=True, sees_observation=True),
    "leviathan": Rule(speculation.LEVIATHAN, "Leviathan (arXiv 2211.17192): the length with the most expected tokens per predicted round time",
        (Setting("w", 0.5, 0, 10, tune=(0, 2)), K_MAX), sees_observation=True),
    "ratio": Rule(speculation.RATIO, "ratio-optimal stopping in closed form (arXiv 2606.20591)", (K_MAX,), sees_observation=True),
    "specstop": Rule(speculation.SPECSTOP, "UCB-SpecStop (arXiv 2606.20591): UCB over lengths, tokens and time kept apart",
        (Setting("c", 1, 0, 10, tune=(0.003, 1), log=True), Setting("k_min", 1, 0, 32, whole=True), K_MAX), sees_observation=True, learns=True),
    "banditspec": Rule(speculation.BANDITSPEC, "BanditSpec (arXiv 2505.15141): UCB1 over lengths, rewarded with a round's tokens/s",
        (Setting("c", 1, 0, 10, tune=(0.003, 1), log=True), Setting("k_min", 1, 0, 32, whole=True), K_MAX), sees_observation=True, learns=True),
    "contextual": Rule(speculation.CONTEXTUAL, "contextual bandit: optimistic regression of a round's tokens and time on what the device sees",
        (Setting("c", 0.3, 0, 10, tune=(0.01, 1), log=True), Setting("ridge", 1, 0.001, 1e6, tune=(0.1, 100), log=True), K_MAX),
        sees_observation=True, learns=True),
    "sglang": Rule(speculation.SGLANG, "SGLang's adaptive steps, on each device: a ladder of three lengths climbed by the average accepted",
        (Setting("low", 1, 0, 32, whole=True), Setting("mid", 3, 0, 32, tune=(1, 6), whole=True),
         Setting("high", 7, 0, 32, tune=(3, 12), whole=True),
         Setting("keep", 0.2, 0, 1), Setting("down", -0.25, -10, 10, tune=(-1, 1)), Setting("up", 0, -10, 10, tune=(-1, 2)),
         Setting("every", 5, 1, 1e6, whole=True), Setting("warmup", 10, 0, 1e6, whole=True)), sees_observation=True, learns=True),
    "awc": Rule(speculation.AWC, "DSD's adaptive window control (arXiv 2511.21669), with a closed form in place of its network",
        (Setting("smoothing", 0.4, 0.01, 1), K_MAX), sees_observation=True, learns=True),
    "turbospec": Rule(speculation.TURBOSPEC, "TurboSpec (arXiv 2406.14066): the server suggests one length for the batch, favouring 0 by a factor",
        (Setting("favour", 1.1, 1, 10, tune=(1, 2)),), sees_observation=True, suggests=True),
    "vllm-dynamic": Rule(speculation.VLLM_DYNAMIC, "vLLM's dynamic length by batch size, from acceptance per position, suggested by the server",
        sees_observation=True, suggests=True),
    "sglang-load": Rule(speculation.SGLANG_LOAD, "SGLang's adaptive steps as published: ladders by batch size, suggested by the server",
        sees_observation=True, suggests=True),
    "goodspeed": Rule(speculation.GOODSPEED, "GoodSpeed (arXiv 2512.09963): the server shares a budget of drafts per batch, proportionally fair",
        (Setting("budget", 32, 0, 4096, tune=(4, 256), log=True, whole=True),), sees_observation=True, suggests=True),
    "dipsd": Rule(
        speculation.SUGGESTED_LENGTH, "DiP-SD (arXiv 2604.20919): a fixed length for each device, planned from the scenario for groups in turn",
        sees_observation=True),
    "perfect": Rule(speculation.PERFECT, "bound: learns a token's fate when it has been drafted"),
    "oracle": Rule(speculation.ORACLE, "bound: knows a token's fate before drafting it"),
}  # fmt: skip

BATCHING = {
    "fcfs": Rule(batching.FCFS, "take everything that waits, in order of arrival"),
    "static": Rule(batching.STATIC, "batches of n, or fewer after a timeout",
        (Setting("n", 4, 1, 4096, tune=(1, 32), log=True, whole=True), Setting("timeout_s", 0.1, 0, 1e6, tune=(0.005, 0.5), log=True))),
    "edf": Rule(batching.EDF, "earliest deadline first"),
    "edf-demoted": Rule(batching.EDF_DEMOTED, "earliest deadline first; a request late by more than late_s joins last, and only where it makes "
        "no other one late", (Setting("late_s", 0.0, 0, 1e6, tune=(0, 2)),)),
    "aged": Rule(batching.AGED, "responses in memory first, then prompts that can still be on time, by deadline, then late ones; who has waited "
        "for patience_s goes before all other prompts", (Setting("patience_s", 30, 0, 1e6, tune=(5, 60), log=True),)),
    "least-laxity": Rule(batching.LEAST_LAXITY, "least laxity first: earliest latest start, deadline − time of a batch of it alone"),
    "control-limit": Rule(batching.CONTROL_LIMIT, "start when n requests wait or the first has waited for the timeout; take everything",
        (Setting("n", 8, 1, 4096, tune=(1, 64), log=True, whole=True), Setting("timeout_s", 0.1, 0, 1e6, tune=(0.005, 0.5), log=True))),
    "marginal": Rule(batching.MARGINAL, "in order of arrival, take a request that adds less time than factor × the batch's time per request so far",
        (Setting("factor", 1.0, 0, 1e6, tune=(0.25, 8), log=True),)),
    "pipelined": Rule(batching.PIPELINED, "DiP-SD: the planned groups of devices launch in turn; a turn waits for its members until `patience` "
        "planned cycles after its last launch", (Setting("patience", 1.0, 0, 100, tune=(0, 3)),)),
    "wisp": Rule(batching.WISP, "WISP: urgent requests by deadline, then by goodput density what fits memory and makes nobody late "
        "(margin on predictions; urgent within `window` mean batches of the latest start)",
        # 4: the publication leaves the threshold open; the strongest of those tried (docs/guide/batching.md)
        (Setting("margin", 0.05, 0, 10, tune=(0, 0.5)), Setting("window", 4.0, 0, 1000, tune=(0, 16)))),
}  # fmt: skip

CENTRALIZED = {
    "centralized": Rule(
        batching.CONTINUOUS, "continuous batching on the server alone: at most b sequences a step, in turn, and n admitted (0: no limit)",
        # 16 in a step: a reading of WISP's published capacities, not WISP's word (docs/model/calibration.md)
        (Setting("b", 16, 0, 1e6, tune=(4, 256), log=True, whole=True), Setting("n", 0, 0, 1e6, tune=(4, 256), log=True, whole=True))),
    "centralized-paced": Rule(batching.PACED, "continuous batching on the server alone; a sequence is admitted "
        "while the predicted decode step keeps the speed promised to all that run",
        (Setting("margin", 0.0, 0, 10, tune=(0, 1)),)),
}  # fmt: skip

# 64: an assumption; a capacity belongs to a server
BUDGET = Setting("tokens", 64, 0, 1e6, tune=(8, 512), log=True, whole=True)

TRIMMING = {
    "dspark": Rule(trimming.DSPARK, "verify the n most likely drafted tokens, n with the most expected tokens per second of the batch"),
    "tetris": Rule(trimming.TETRIS, "verify the most likely drafted tokens of the batch, so many at most", (BUDGET,)),
    "adaserve": Rule(
        trimming.ADASERVE, "of so many drafted tokens, verify first what each request needs for its speed, then the most likely", (BUDGET,)),
}  # fmt: skip
CHUNK = {
    "chunk": Rule(
        trimming.NONE, "prefill at most so many prompt tokens in a batch, or this share of those that wait where that is more (0 tokens: prompts "
        "whole; default: the scenario's)",
        (Setting("tokens", 128, 0, 1e6, tune=(32, 512), log=True, whole=True), Setting("share", 0, 0, 1, tune=(0, 0.5)))),
}  # fmt: skip
ADMISSION = {
    "admit": Rule(
        trimming.NONE,
        "begin a prompt, or an evicted session again, only if with it at most this share of KV memory is spoken for",
        (Setting("share", 0.95, 0.01, 1, tune=(0.7, 1)),),
    )
}
PACE = {
    "pace": Rule(
        trimming.NONE,
        "who needs it goes first: devices below the floor, responses due within lead_s, late ones (cheapest to bring back first), those ahead; "
        "no request makes a batch longer than batch_s but the first prompt below the floor. The floor, in tokens/s, counts from patience_s after "
        "the request, from begin_s without context in memory, and what a device had before, credit_s of the floor at most",
        # the default floor leaves room above the 1 token/s below which a device counts as starved
        (Setting("batch_s", 0.2, 0.001, 1e6, tune=(0.1, 0.4), log=True), Setting("patience_s", 8, 0, 1e6, tune=(3, 12), log=True),
         Setting("begin_s", 50, 0, 1e6, tune=(20, 80), log=True), Setting("floor", 1.3, 0, 1e6), Setting("lead_s", 1.5, 0, 1e6),
         Setting("credit_s", 30, 0, 1e6)),
    )
}  # fmt: skip
# Which of the scenario's server drafts the server loads, the first one being 0.
SOURCE = Setting("draft", 0, 0, 7, whole=True)
SESSIONS = Setting("n", math.inf, 0, math.inf, tune=(1, 256), log=True, whole=True)

COLOCATED = {
    "colocated": Rule(server_lengths.FIXED, "the server drafts k tokens for each session",
        (Setting("k", 2, 0, 32, tune=(0, 6), whole=True), SOURCE)),
    "colocated-table": Rule(server_lengths.TABLE, "vLLM's length by the number of scheduled requests: the longest k ≤ k_max within its "
        "threshold, solved from the scenario and times `stretch`",
        (Setting("k_max", 4, 0, server_lengths.TABLE_LENGTHS, tune=(1, 6), whole=True),
         Setting("stretch", 1, 0, 100, tune=(0.25, 4), log=True), SOURCE)),
    "colocated-turbospec": Rule(server_lengths.TURBOSPEC, "TurboSpec (arXiv 2406.14066): the k with the most expected tokens a second of the "
        "batch, favouring 0 by a factor", (Setting("favour", 1.1, 1, 10, tune=(1, 2)), SOURCE)),
    "colocated-ema": Rule(server_lengths.EMA, "SGLang's adaptive steps: a ladder of three lengths climbed by the average accepted",
        (Setting("low", 1, 0, 32, whole=True), Setting("mid", 3, 0, 32, tune=(1, 6), whole=True),
         Setting("high", 7, 0, 32, tune=(3, 12), whole=True),
         Setting("keep", 0.2, 0, 1), Setting("down", -0.25, -10, 10, tune=(-1, 1)), Setting("up", 0, -10, 10, tune=(-1, 2)),
         Setting("every", 5, 1, 1e6, whole=True), Setting("warmup", 10, 0, 1e6, whole=True), SOURCE)),
    "colocated-throughput": Rule(server_lengths.THROUGHPUT, "SGLang's throughput-aware steps: of three lengths the one with the most expected "
        "tokens per predicted second, once it gains `margin`",
        (Setting("low", 0, 0, 32, whole=True), Setting("mid", 2, 0, 32, tune=(1, 4), whole=True),
         Setting("high", 5, 0, 32, tune=(3, 12), whole=True), Setting("margin", 0.05, 0, 10, tune=(0, 0.3)), SOURCE)),
    "colocated-survival": Rule(server_lengths.SURVIVAL, "the server stops drafting for a session when the predicted probability that a token is "
        "rejected exceeds h", (Setting("h", 0.6, 0, 1, tune=(0.2, 0.9)), Setting("k_max", 7, 0, 32, tune=(1, 12), whole=True), SOURCE)),
}  # fmt: skip
DRAFTERS = {
    "by-load": Rule(drafters.BY_LOAD, "the server drafts for n sessions at most, each until its response ends",
        (Setting("n", 16, 0, 1e6, tune=(1, 256), log=True, whole=True),)),
    "by-class": Rule(drafters.BY_CLASS, "the server drafts for sessions of classes from v tokens/s on, n at most",
        (Setting("v", 6, 0, 1e9, tune=(1, 12)), SESSIONS)),
    "by-speed": Rule(drafters.BY_SPEED, "the server drafts for devices that draft at most v tokens/s, n at most",
        (Setting("v", 30, 0, 1e9, tune=(5, 200), log=True), SESSIONS)),
    "by-price": Rule(drafters.BY_PRICE, "the server drafts for a session, n at most, where it gains more tokens/s than A times what the server's "
        "time brings in elsewhere", (Setting("A", 1, -1e3, 1e3, tune=(0, 3)), SESSIONS)),
    "by-device": Rule(drafters.BY_DEVICE, "the server drafts for sessions whose device asks for it, as policies may and rules do not, n at most",
        (SESSIONS,)),
}  # fmt: skip
OVERLAP = {
    "overlap": Rule(
        trimming.NONE, "while a round is away its device drafts on, n tokens at most, if all that it sent and its own next token are accepted with "
        "a probability of at least p",
        (Setting("n", 8, 0, 32, tune=(0, 16), whole=True), Setting("p", 0, 0, 1, tune=(0, 0.6)))),
}  # fmt: skip
ADDITIONS = TRIMMING | CHUNK | ADMISSION | PACE | COLOCATED | DRAFTERS | OVERLAP

ALIASES = {
    "wisp": "wisp+wisp",
    "sled": "fixed:8+static:4,0.1+overlap",
    "sled-confidence": "confidence:0.6+static:4,0.1+overlap",
    "sled-plain": "fixed:8+static:4,0.1",  # as WISP describes its baseline: without drafting on while it waits
    "dipsd": "dipsd+pipelined",
    "dspark": "fixed:8+fcfs+dspark",
    "tetris": "fixed:8+fcfs+tetris",
    "adaserve": "fixed:8+fcfs+adaserve",
}
