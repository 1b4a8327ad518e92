"""What a controller may answer, and when. Numbers alone, nothing compiled.

A device ends its round in one of three ways. One that decides after each token answers with a number below; one that chooses a
length k ≤ K once a round answers with `way·(K + 1) + k`.
"""

# Ways to end a round.
SENDS, DRAFTS_ON, HANDS_OVER = range(3)
WAYS = (
    "send",
    "send, and draft on while the round is away",
    "send, and let the server draft from then on",
)

# After each token; the ways are all but DRAFT.
SEND, DRAFT, DRAFT_ON, HAND_OVER = range(4)
TOKEN_ACTIONS = (f"{WAYS[SENDS]} what is drafted", "draft one more token", WAYS[DRAFTS_ON], WAYS[HANDS_OVER])
PLAIN_TOKEN_ACTIONS = 2  # of one that leaves the ways to rules
