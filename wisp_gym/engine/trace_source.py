"""Fates and statistics of drafted tokens from a speculation trace of two real models.

At position n of an answer of the trace stands the row of the K tokens that the draft proposes from the true prefix there. A
round that starts at n reads row n from left to right, so every stopping rule meets exactly what the draft would have
shown and the target accepted. Token j of the row, at place n + j of the output, is accepted (once all before it are) if
the draw of its place lies below its acceptance probability. In greedy decoding that is 1 or 0, and no draw matters.
Rows need not agree: nothing is taken from one row to the next.

Legend: `d` DEVICE row; `source` Source; `answer_key` uint64 key of the draw of an answer.
"""

from wisp_gym.engine.draws import uniform
from wisp_gym.jit import jit


@jit
def begin_walk(d, answer_key, source):
    """Give a new request one of the trace's answers, at its first position; its length is the output's."""
    answer = int(uniform(answer_key, 0) * (source.offsets.shape[0] - 1))
    d.answer = source.offsets[answer]
    d.output_tokens = source.offsets[answer + 1] - source.offsets[answer]
    d.position = 0


@jit
def fate_here(d, source):
    """Whether the next token drafted is accepted (1) or not (0), once all before it are; 0 beyond the round's cap."""
    if d.drafted >= d.cap:
        return 0
    p = source.tokens[d.answer + d.committed, d.drafted].acceptance
    return 1 if uniform(d.acceptance_key, d.position) < p else 0


@jit
def first_fate(d, source):
    """Whether the first token that would be drafted at the current position is accepted (1) or not (0)."""
    p = source.tokens[d.answer + d.position, 0].acceptance
    return 1 if uniform(d.acceptance_key, d.position) < p else 0


@jit
def draft_token(d, source):
    """Draft one more token: its fate, its statistics, and the draft's own confidence as predicted acceptance."""
    if d.on_path:
        d.fate = fate_here(d, source)
        d.position += 1
        d.accepted += d.fate
        d.on_path = d.fate
    else:
        d.fate = 0
    token = source.tokens[d.answer + d.committed, d.drafted]
    d.confidence, d.entropy, d.margin, d.logit_spread = (
        token.confidence,
        token.entropy,
        token.margin,
        token.logit_spread,
    )
    d.p_token = d.confidence
