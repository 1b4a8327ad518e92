"""What a server allows: the limits that each of its parts keeps, with their defaults."""

from dataclasses import dataclass

PROTOCOL_VERSION = 1
SERVICE = "wisp_gym.testbed.v1.Verification"  # in wire.proto, with the one method `Serve`
SESSION_ID_BYTES = 16
NO_SLO_TOKENS_PER_S = 1e-3  # stands for a request without a service class: nothing is ever due
NEVER_S = 1e6  # from a round's arrival: when it is due without a service class
BLOCK_TOKENS = 64  # caches of keys and values grow by this much: few copies, little memory unused


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        kv_tokens: keys and values in memory, tokens of all sessions together, in whole blocks.
        admit_share: a prompt, or an evicted session again, begins only if with it at most this share of memory is spoken for (0: any).
        max_sessions: sessions that are open; those without a connection make room for new ones.
        max_sessions_per_connection: sessions that one connection may have open.
        max_waiting: rounds that wait for verification; beyond it devices are told to come again.
        max_batch_rounds: rounds of one batch.
        prefill_chunk_tokens: uncached context that a batch computes besides the rounds' own tokens; longer prompts take several
            batches (0: any).
        max_prompt_tokens, max_new_tokens, max_draft_tokens: of one request, answer and round.
        max_message_bytes: longest message that is read at all.
        orphan_s: how long a session outlives its connection. idle_s: how long one that sends nothing is kept.
        stalled_s: how long a connection may leave its replies unread.
        retry_after_s: what refused devices are told to wait at least.
    """

    kv_tokens: int = 65_536
    admit_share: float = 0.0
    max_sessions: int = 256
    max_sessions_per_connection: int = 4
    max_waiting: int = 256
    max_batch_rounds: int = 64
    prefill_chunk_tokens: int = 512
    max_prompt_tokens: int = 4096
    max_new_tokens: int = 2048
    max_draft_tokens: int = 16
    max_message_bytes: int = 16 << 20
    orphan_s: float = 60.0
    idle_s: float = 300.0
    stalled_s: float = 60.0
    retry_after_s: float = 0.05
