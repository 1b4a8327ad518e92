"""First come first served, without a bundle: what a server runs by default, and what takes over from a scheduler that fails."""

from __future__ import annotations

from collections.abc import Sequence

from wisp_gym.serving.scheduler.base import Batch, Scheduler, sums
from wisp_gym.serving.scheduler.features import Request


class FirstComeFirstServed(Scheduler):
    """Takes what waits in order of arrival and passes over what does not fit."""

    def compose(self, queue: Sequence[Request], now_s: float, kv_used_tokens: int = 0) -> Batch:
        """All that fit, in order; contexts share the chunk (docs/model/model.md, §5)."""
        self.decisions += 1
        members: list[int] = []
        taken: list[int] = []
        left = self.limits.prefill_tokens or sum(request.new_tokens for request in queue)
        room = self.limits.kv_tokens
        for place, request in enumerate(queue):
            whole = request.uncached_tokens <= left
            take = request.new_tokens if whole else left
            held = self.limits.held(request.cached_tokens + take)
            if take > 0 and held <= room and len(members) < self.limits.requests:
                members.append(place)
                taken.append(take)
                left -= request.uncached_tokens if whole else left
                room -= held
        new, pairs, cached = sums([queue[place] for place in members], taken)
        predicted_s = self.estimator.predict(new, pairs, cached) if members else 0.0
        wait_s = 0.0 if members or not queue else self.wait_s()
        return Batch(members, taken, predicted_s, pairs, cached, wait_s=wait_s, composed_s=now_s)
