"""A device drafts on while its round is away (docs/model/who-drafts.md).

What it drafts then is right exactly where all it sent is accepted and the target's own next token is its own: so nothing is drawn
here, only time and heat are counted, and the next round finds its first tokens done.

Legend: `c` CONFIG, `s` SERVER, `d` DEVICE, `r` SESSION and `totals` TOTALS row; `log` (capacity,) LOG_ROW; `i` number of a device;
`done` tokens drafted while the round was away, in `busy_s`; `guessed` 1 where the first was right and is of use.
"""

from wisp_gym.contract.actions import DRAFTS_ON, HANDS_OVER
from wisp_gym.engine.drafting import heat_up
from wisp_gym.engine.session import in_window, write_log
from wisp_gym.engine.state import LOG_OVERLAP
from wisp_gym.engine.ways import BY_RULE
from wisp_gym.engine.world_type import row_type, rows_type
from wisp_gym.jit import INTEGER, VOID, jit, on_demand


@on_demand(lambda: VOID(*map(row_type, ("config", "device", "sessions", "totals"))))
def note_sent(c, d, r, totals):
    """A round has been drafted and is sent: what came of the tokens drafted before it began, and what the device does meanwhile or asks."""
    count_head(c, d, r, totals)
    r.device_tokens = d.drafted
    likely = d.survival * d.accepted_sum / d.examined_sum >= c.overlap_chance
    wanted = likely if r.way == BY_RULE else r.way == DRAFTS_ON
    r.overlaps = 1 if c.overlap_tokens > 0 and d.drafted > 0 and wanted else 0
    r.asks = 1 if r.way == HANDS_OVER else 0


@jit
def count_head(c, d, r, totals):
    """Of the tokens that were there when the round began some were taken; the others' time is wasted."""
    taken = min(d.drafted, r.head_tokens)
    if in_window(c, d.round_start_s):
        totals.overlap_used += taken
        waste(totals, r, r.head_tokens - taken)
    r.head_tokens, r.under_way = 0, 0


@jit
def waste(totals, r, tokens):
    """Count tokens drafted while a round was away that were of no use."""
    totals.wasted_s += r.away_token_s * tokens
    totals.wasted_with_rejected_s += r.away_token_s * tokens
    totals.draft_s += r.away_token_s * tokens


@on_demand(
    lambda: VOID(
        *map(row_type, ("config", "server", "device", "sessions", "totals")), rows_type("log"), INTEGER, INTEGER
    )
)
def end_overlap(c, s, d, r, totals, log, i, begins_round):
    """The reply to a device's round has been delivered: what was drafted meanwhile, and what of it the next round begins with.

    `begins_round`: whether the device drafts a next round.
    """
    r.head_tokens, r.under_way = 0, 0
    if r.overlaps == 0:
        return
    r.overlaps, r.away_token_s = 0, d.draft_token_s
    away_s, most = d.delivered_s - d.sent_s, c.overlap_tokens
    busy_s = min(most * d.draft_token_s, away_s)
    done = int(min(float(most), away_s / d.draft_token_s))
    heat_up(d, busy_s)
    guessed = 1 if begins_round == 1 and d.guess_held and done >= 1 else 0
    if guessed:
        r.head_tokens = done - 1
        r.under_way = 1 if done < most else 0
        r.under_way_s = d.sent_s + (done + 1) * d.draft_token_s
    count_overlap(c, d, r, totals, busy_s, done, guessed)
    write_log(s, log, d.delivered_s, LOG_OVERLAP, i, done)


@jit
def count_overlap(c, d, r, totals, busy_s, done, guessed):
    """Count what was drafted while the round was away; the head's use is known when the next round is sent."""
    if not in_window(c, d.delivered_s):
        return
    d.draft_s += busy_s
    totals.overlap_s += busy_s
    totals.overlapped += done
    totals.overlap_used += guessed
    waste(totals, r, done - guessed - r.head_tokens)
