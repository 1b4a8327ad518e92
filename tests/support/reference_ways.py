"""The plain reference simulator's devices whose policy says how a round ends too (who-drafts.md §5)."""

from __future__ import annotations

import numpy as np

from tests.support.reference_host import Host, expected
from tests.support.reference_parts import Device
from wisp_gym.rules import drafters, mlp, speculation
from wisp_gym.rules.controller import Controller


class Ways:
    """What a device may do and what its policy chooses."""

    def __init__(self, controller: Controller, host: Host, max_draft_tokens: int):
        self.controller, self.host, self.most = controller, host, max_draft_tokens

    @property
    def by_length(self) -> bool:
        """Whether the policy chooses once a round."""
        return self.controller.speculation == speculation.POLICY_LENGTH

    def sight(self, device: Device, server_tokens: int, share: float) -> dict[str, float]:
        """What a device sees of the choice when its round begins."""
        drafting, seen = self.controller.drafting, {}
        if drafting.overlap_tokens or drafting.mixes:
            head = device.head.tokens if device.head else 0
            seen = {"drafts_on": float(drafting.overlap_tokens > 0), "head_tokens": head}
        if drafting.mixes:
            rate = expected(self.host.alpha(device), server_tokens)
            seen |= {
                "takes_over": device.takes,
                "server_tokens": server_tokens,
                "server_rate": rate,
                "server_share": share,
            }
        return seen

    def possible(self, device: Device, cap: int, drafted: int) -> list[bool]:
        """Whether each way is open to a round of so many tokens."""
        on = bool(self.controller.drafting.overlap_tokens) and drafted > 0
        return [True, on, self.controller.drafting.mixes and device.takes and cap > 0]

    def allowed(self, device: Device, cap: int) -> list[bool]:
        """Of each action."""
        if self.by_length:
            ways = [self.possible(device, cap, k) for k in range(self.most + 1)]
            return [k <= cap and ways[k][way] for way in range(3) for k in range(self.most + 1)]
        send, on, over = self.possible(device, cap, len(device.tokens))
        return [send, len(device.tokens) < cap, on, over]

    def decide(self, device: Device, cap: int) -> bool:
        """Whether one more token is drafted; else how the round ends is noted."""
        if device.length is not None:
            return len(device.tokens) < device.length
        out = np.zeros(mlp.MAX_WIDTH, np.float32)
        n = mlp.logits(self.controller.policy, device.row, out)
        allowed = self.allowed(device, cap)
        assert len(allowed) == n
        action = max((k for k in range(n) if allowed[k]), key=lambda k: (out[k], -k))
        if self.by_length:
            device.way, device.length = divmod(action, self.most + 1)
            return len(device.tokens) < device.length
        device.way = {0: 0, 1: None, 2: 1, 3: 2}[action]
        return action == 1

    def asks_at_cap(self, device: Device, cap: int) -> bool:
        """Whether the policy is asked once more, when the round holds no more tokens."""
        open_ = self.controller.drafting.overlap_tokens or (self.controller.drafting.mixes and device.takes)
        return bool(self.controller.chooses_way and not self.by_length and cap > 0 and open_ and device.way is None)

    def moves(self, device: Device, takes: bool) -> bool:
        """Whether a session that the server would take goes there."""
        itself = self.controller.chooses_way or self.controller.drafting.drafter == drafters.BY_DEVICE
        return takes and (device.asks or not itself)
