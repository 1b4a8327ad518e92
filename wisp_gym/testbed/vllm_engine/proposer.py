"""The proposer that vLLM asks for drafts: it has none, since drafts come from devices. With it vLLM's rejection sampler is on."""

from typing import Any


class NoDrafts:
    """A proposer of vLLM (`speculative_config`, method "custom_class")."""

    def __init__(self, vllm_config: Any) -> None:
        del vllm_config

    def load_model(self, model: Any) -> None:
        """There is no draft model."""

    def propose(
        self, sampled_token_ids: list[list[int]], num_tokens_no_spec: Any, token_ids_cpu: Any, slot_mappings: Any = None
    ) -> list[list[int]]:
        """No tokens for any of the requests."""
        return [[] for _ in sampled_token_ids]
