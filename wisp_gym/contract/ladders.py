"""What a batching policy may choose for a batch, and when a response starves. Numbers alone, nothing compiled."""

# Prompt tokens that a batch prefills at most, and, where the policy sets prices, the price of a draft token that the replies
# carry, in expected accepted tokens. Both ladders are ours.
CHUNK_TOKENS = (0, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
PRICES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)

# Tokens that the server drafts in a batch for each of its sessions; longer than the controller's rule may choose is not possible. Ours.
SERVER_TOKENS = (0, 1, 2, 3, 4, 5, 6, 7, 8)

# A response starves that gets less than this for each second beyond the first few since its request (docs/model/model.md).
STARVED_TOKENS_PER_S = 1.0
PATIENCE_S = 20.0  # those first few, where what starves is counted (ours)

# Whoever composes no batch though requests wait is asked again at the next arrival, at the latest after this share of a mean
# batch (ours).
WAIT_SHARE = 0.25
