"""What server and scheduler say to each other, over vLLM's own request socket.

A session is a request of vLLM. A batch is an *order*: one more request, whose sampling parameters carry the rounds to run, and whose one
output carries the *report*. So nothing of vLLM is changed, and it works however its processes are laid out.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from vllm import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason

ORDER = "wisp_gym_order"
MASK = (1 << 63) - 1


class Round(NamedTuple):
    """One round of an order.

    Attributes:
        name: of the session's request. drafted: tokens to verify.
        chunk_end: tokens of the context that memory is to hold afterwards, and nothing is sampled; 0: all, and the round is verified.
    """

    name: str
    drafted: list[int]
    chunk_end: int


class Report(NamedTuple):
    """What became of an order.

    Attributes:
        tokens: that each verified round commits. cached: tokens of each of its sessions whose keys and values are in memory.
        evicted: sessions whose memory was taken. unfinished: rounds that could not run at all.
        used_tokens: memory in use, in whole blocks. steps: passes of the model, each with the tokens that it ran of each session.
    """

    tokens: dict[str, list[int]]
    cached: dict[str, int]
    evicted: list[str]
    unfinished: list[str]
    used_tokens: int
    steps: list[dict[str, int]]


def session_request(name: str, context: Sequence[int], sampling: SamplingParams) -> EngineCoreRequest:
    """The request that a session is."""
    return EngineCoreRequest(
        request_id=name, prompt_token_ids=list(context), mm_features=None, sampling_params=sampling, pooling_params=None,
        arrival_time=time.time(), lora_request=None, cache_salt=None, data_parallel_rank=None,
    )  # fmt: skip


def order_request(name: str, rounds: Sequence[Round]) -> EngineCoreRequest:
    """The request that an order is."""
    told = {ORDER: [list(each) for each in rounds]}
    return session_request(name, [0], SamplingParams(max_tokens=1, extra_args=told))


def rounds_of(sampling: SamplingParams | None) -> list[Round] | None:
    """The rounds of an order; None of any other request."""
    told = (sampling.extra_args or {}).get(ORDER) if sampling is not None else None
    return None if told is None else [Round(*each) for each in told]


def report_output(name: str, report: Report) -> EngineCoreOutput:
    """The output that answers an order."""
    told: dict[str, Any] = report._asdict()
    return EngineCoreOutput(name, [], finish_reason=FinishReason.STOP, kv_transfer_params=told)


def report_of(outputs: EngineCoreOutputs, name: str) -> Report | None:
    """The report of an order, if it is among these outputs."""
    for output in outputs.outputs:
        if output.request_id == name and output.kv_transfer_params is not None:
            return Report(**output.kv_transfer_params)
    return None
