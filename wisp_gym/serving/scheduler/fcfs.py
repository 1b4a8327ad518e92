"""First come first served, without a bundle: what a server runs by default, and what takes over from a scheduler that fails."""

import math
from collections.abc import Iterable, Sequence

from wisp_gym.errors import InputError, of_kind
from wisp_gym.serving.scheduler.base import Batch, Room, Scheduler, sums
from wisp_gym.serving.scheduler.features import Request
from wisp_gym.values import between

CLOCK, TOKENS = between(-math.inf, math.inf), between(0.0, math.inf)


class FirstComeFirstServed(Scheduler):
    """Takes what waits in order of arrival and passes over what does not fit."""

    def compose(self, queue: Sequence[Request], now_s: float, kv_used_tokens: int = 0) -> Batch:
        """All that fit, in order; contexts share the chunk (docs/model/model.md, §5).

        Raises:
            InputError: what is no request, no clock or no number of tokens.
        """
        queue = [of_kind("queue", request, Request) for request in of_kind("queue", queue, Iterable)]
        CLOCK.checked("now_s", now_s)
        TOKENS.checked("kv_used_tokens", kv_used_tokens)
        self.decisions += 1
        try:
            return self.filled(queue, now_s, kv_used_tokens)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"queue: given a request whose facts are no numbers ({error}), allowed are tokens"
            ) from None

    def filled(self, queue: Sequence[Request], now_s: float, kv_used_tokens: int) -> Batch:
        """The batch of what fits."""
        members: list[int] = []
        taken: list[int] = []
        left = self.limits.prefill_tokens or sum(request.new_tokens for request in queue)
        free, begun = self.limits.kv_tokens, [request for request in queue if request.cached_tokens]
        room = Room(self.limits.admit_share * free, kv_used_tokens + sum(request.uncached_tokens for request in begun))
        for place, request in enumerate(queue):
            whole = request.uncached_tokens <= left
            take = request.new_tokens if whole else left
            held = self.limits.held(request.cached_tokens + take)
            begins = 0 if request.cached_tokens else request.uncached_tokens
            if take <= 0 or held > free or len(members) >= self.limits.requests:
                continue
            if not request.cached_tokens and not room.lets_begin(request.new_tokens):
                continue
            prefilled = request.uncached_tokens if whole else left
            room.take(prefilled, take, begins)
            members.append(place)
            taken.append(take)
            left, free = left - prefilled, free - held
        new, pairs, cached = sums([queue[place] for place in members], taken)
        predicted_s = self.estimator.predict(new, pairs, cached) if members else 0.0
        wait_s = 0.0 if members or not queue else self.wait_s()
        return Batch(members, taken, predicted_s, pairs, cached, wait_s=wait_s, composed_s=now_s)
