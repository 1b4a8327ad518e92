"""What verifies: the one interface between the server and a target model. `torch_engine` is one such engine; another may stand beside it."""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, Protocol

from wisp_gym.testbed.sampling import Law


class Job(NamedTuple):
    """One round to verify, or a chunk of a context to compute.

    Attributes:
        key: of the session. context: prompt and committed tokens, more than are cached.
        drafted: k tokens. laws: what they were drawn from, k of them above temperature 0.
        temperature, seed: of the request. position: committed tokens.
        chunk_end: tokens of the context that memory holds afterwards, of a chunk that commits nothing; 0: all, and the draft is verified.
    """

    key: Hashable
    context: Sequence[int]
    drafted: Sequence[int] = ()
    laws: Sequence[Law] = ()
    temperature: float = 0.0
    seed: int = 0
    position: int = 0
    chunk_end: int = 0


class Engine(Protocol):
    """A target model, and the keys and values of sessions in its memory.

    `verify` runs in a thread of its own, one batch at a time; everything else is called from the server's loop, also meanwhile.

    Attributes:
        vocabulary: tokens that the model knows. max_tokens: of the longest sequence. end_tokens: that end an answer.
        kv_capacity_tokens: that memory holds of all sessions together. block_tokens: in which it is given to a session.
        samples: whether it serves temperatures above 0.
    """

    vocabulary: int
    max_tokens: int
    end_tokens: frozenset[int]
    kv_capacity_tokens: int
    block_tokens: int
    samples: bool

    @property
    def kv_used_tokens(self) -> int:
        """Tokens that are occupied, in whole blocks."""

    def cached_tokens(self, key: Hashable) -> int:
        """First tokens of a session's context whose keys and values are in memory; never its last one."""

    def reserve(self, tokens: Mapping[Hashable, int]) -> int:
        """Make room for a batch whose sessions hold so many tokens each, cached and new; how many were evicted since this was last asked."""

    def verify(self, jobs: Sequence[Job]) -> list[list[int]]:
        """The tokens that each round commits, of a chunk anything; memory then holds its context and the accepted tokens."""

    def forget(self, key: Hashable) -> None:
        """Free a session's memory; the session may come again, with nothing cached."""

    def first_coefficients(self) -> dict[str, float]:
        """Seconds by name, with which an estimator of batch times begins (`wisp_gym.serving.estimator.TERMS`)."""

    def close(self) -> None:
        """Free what it holds of the machine; nothing is asked of it afterwards."""
