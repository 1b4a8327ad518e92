"""vLLM's own speculation, steered: a policy sets how many tokens each step drafts and how many of each request are verified."""
