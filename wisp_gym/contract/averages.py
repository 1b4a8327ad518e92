"""Weights of the running averages that devices and the server keep. Numbers alone, nothing compiled."""

# Assumptions; a time constant of ten rounds or batches.
KEEP, FRESH = 0.9, 0.1

# Weight of the mean acceptance expected beforehand in the running one. It does not fade: else a device whose average a few
# bad rounds have brought so low that it drafts nothing would never learn better.
PRIOR_TOKENS = 4.0
