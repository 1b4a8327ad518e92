"""Sampling with drafts on a processor, put right, and a check that it is.

In vLLM 0.32.0 without Triton, `expand_batch_to_tokens` returns uninitialised memory for temperature, top-p and top-k: its stand-in for
the Triton kernel copies the output to integers and drops the copy (vllm-project/vllm#55005). Every process of vLLM loads this module by
the entry point `wisp_gym` of `vllm.general_plugins`.
"""

import os
from typing import Any

from wisp_gym.errors import InputError
from wisp_gym.testbed.vllm_engine.lifetime import end_with_the_parent
from wisp_gym.testbed.vllm_engine.version import PINNED, check_version

PLUGIN = "wisp_gym"


def expand(
    output: Any, input_val: Any, cu_num_tokens: Any, replace_from: float, replace_to: float, MAX_NUM_TOKENS: int = 0
) -> None:
    """Repeat each request's number for each of its tokens, in place of vLLM's `_expand_kernel_impl`.

    Args:
        output: (tokens,). input_val: (requests,). cu_num_tokens: (requests,) ends of the requests' tokens. replace_from, replace_to: a number
            that is replaced, and by what.
    """
    import torch

    ends = cu_num_tokens.long()
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    replaced = torch.where(input_val == replace_from, torch.full_like(input_val, replace_to), input_val)
    output.copy_(replaced.repeat_interleave(counts))


def register() -> None:
    """Called by vLLM in each of its processes: replace the faulty function, in the one version that has it and on a processor alone."""
    from vllm.platforms import current_platform

    end_with_the_parent()
    try:
        check_version()
    except InputError:
        return  # of another version nothing is known; the server checks what it samples with
    if current_platform.is_cpu():
        from vllm.utils import cpu_triton_utils

        cpu_triton_utils._expand_kernel_impl = expand


def samples_right() -> bool:
    """Whether this process repeats each request's temperature for its tokens as it should."""
    import torch
    from vllm.platforms import current_platform
    from vllm.v1.sample.rejection_sampler import expand_batch_to_tokens

    values, ends = torch.tensor([0.5, 2.0, 0.0]), torch.tensor([2, 5, 6], dtype=torch.int32)
    where = current_platform.device_type
    found = expand_batch_to_tokens(values.to(where), ends.to(where), 6, 0, 1)
    return bool(torch.equal(found.cpu(), torch.tensor([0.5, 0.5, 2.0, 2.0, 2.0, 1.0])))


class SamplingCheck:
    """What vLLM's workers are asked besides (`worker_extension_cls`)."""

    def wisp_samples_right(self) -> bool:
        """`samples_right`, in the process that samples."""
        return samples_right()


def why_not() -> str:
    """One line for who may not sample."""
    named = os.environ.get("VLLM_PLUGINS")
    hidden = f"; VLLM_PLUGINS is {named!r} and must name it" if named is not None else ""
    return f"vLLM {PINNED} samples wrongly on a processor unless the plugin {PLUGIN!r} of an installed wisp-gym is loaded{hidden}"
