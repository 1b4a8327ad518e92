"""The batch scheduler of a server: the queue in, a batch out.

    scheduler = BatchScheduler(load_bundle("batching-wisp.onnx"), VerificationTimeEstimator.load("a100-80gb--qwen3-32b"), limits)
    batch = scheduler.compose(queue, now_s)                # a list of Request
    ...                                                    # the server runs batch.members
    scheduler.finished(batch, seconds)                     # what it took: the estimator learns

The policy orders the queue and says which requests lead and how long a batch each allows; memory, the prefill chunk and the batch
limit are kept here, as in `wisp_gym.engine.compose`. No method raises: what cannot be used is left to WISP's heuristic, and
`fallbacks` counts why.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from wisp_gym.contract.decisions import OF_SERVERS
from wisp_gym.errors import of_kind, one_of
from wisp_gym.serving import wisp
from wisp_gym.serving.bundle.bundle import Bundle
from wisp_gym.serving.bundle.schema import MOST_REQUESTS, ORDER, SCORERS, BundleError
from wisp_gym.serving.device.facts import FAILED, MISSING, OUT_OF_RANGE
from wisp_gym.serving.estimator import VerificationTimeEstimator
from wisp_gym.serving.scheduler.asked import Asked
from wisp_gym.serving.scheduler.base import Batch, Room, Scheduler, ServerLimits
from wisp_gym.serving.scheduler.factored import Factored, Floats
from wisp_gym.serving.scheduler.features import (
    NO_DRAFT,
    Queue,
    Request,
    Server,
    ServerDraft,
    describe,
    facts_of,
    matrix,
)
from wisp_gym.serving.scheduler.picking import Picking, Scores
from wisp_gym.serving.wisp import Order


class BatchScheduler(Scheduler):
    """Composes the batches of one server by a bundle; WISP's heuristic takes over where the policy cannot decide.

    Args:
        bundle: a policy that orders the queue, or picks request by request. estimator, limits: of `Scheduler`.
        draft: what the server drafts with; without one it drafts for nobody.

    Raises:
        BundleError: a bundle of another decision. ValueError: limits below 1, a draft that there cannot be.

    Attributes:
        server_tokens: that the server drafted for each of its sessions in the last batch that drafted; one whose own rule chooses
            writes it here.
    """

    def __init__(
        self, bundle: Bundle, estimator: VerificationTimeEstimator, limits: ServerLimits, draft: ServerDraft = NO_DRAFT
    ):
        if of_kind("bundle", bundle, Bundle, BundleError).schema.decision not in (ORDER, *SCORERS):
            allowed = ", ".join((ORDER, *SCORERS))
            raise BundleError(f"a server needs a policy of {allowed}, given one of '{bundle.schema.decision}'")
        super().__init__(estimator, limits)
        of_kind("draft", draft, ServerDraft).check()
        self.bundle, self.draft, self.server_tokens = bundle, draft, draft.longest_tokens
        self.names = {name: [feature[0] for feature in features] for name, features in bundle.schema.inputs.items()}

    def compose(self, queue: Sequence[Request], now_s: float, kv_used_tokens: int = 0) -> Batch:
        """The next batch of the waiting requests, which are given in order of arrival; empty where none can join.

        Args:
            kv_used_tokens: tokens whose keys and values are in memory, read by learned policies and for `admit_share`.
        """
        self.decisions += 1
        try:
            facts, usable = facts_of(queue[:MOST_REQUESTS])
            if not (math.isfinite(now_s) and 0 <= kv_used_tokens < math.inf):
                raise ValueError("the clock, or the memory in use")
            seen = describe(facts, now_s, self.limits.prefill_tokens, self.estimator)
            batch = self.decide(seen, usable, float(kv_used_tokens))
            wait_s = 0.0 if batch.members or not len(usable) else self.wait_s()
            return replace(batch, composed_s=now_s, refused=np.flatnonzero(~usable).tolist(), wait_s=wait_s)
        except Exception:  # no clock, no queue: nothing can be composed, and the loop goes on
            self.fallbacks[FAILED] += 1
            return Batch()

    def decide(self, seen: Queue, usable: NDArray[np.bool_], kv_used: float) -> Batch:
        """The policy's batch, or that of WISP's heuristic where an input or the policy's answer cannot be used."""
        server = Server(
            self.mean_batch_s, self.bundle.schema.max_draft_tokens, self.utilisation, self.tokens_per_s, self.price, kv_used,
            float(self.limits.kv_tokens), self.draft, self.server_tokens,
        )  # fmt: skip
        reason = "" if usable.all() else OUT_OF_RANGE
        if not reason and len(usable):
            try:
                if self.bundle.schema.decision in SCORERS:
                    return self.pick(seen, usable, server)
                return self.admit(seen, usable, self.order(seen, server), kv_used)
            except LookupError:
                reason = MISSING
            except Exception:
                reason = FAILED
        if reason:
            self.fallbacks[reason] += 1
        settings, t = self.bundle.schema.fallback, server.mean_batch_s
        heuristic = wisp.order(seen.slack_s / t, seen.solo_s / t, seen.expected, settings["margin"], settings["window"])
        return self.admit(seen, usable, heuristic, kv_used)

    def order(self, seen: Queue, server: Server) -> Order:
        """The policy's order of the queue."""
        inputs = {name: matrix(name, names, seen, server) for name, names in self.names.items()}
        if any(np.isnan(values).any() for values in inputs.values()):
            raise LookupError("a fact that the policy reads is missing")
        key, leads, limit = self.bundle.decide(inputs)
        if np.isnan(key).any() or np.isnan(limit).any():
            raise ValueError("the policy's order is not of numbers")
        return Order(key, leads, limit)

    def pick(self, seen: Queue, usable: NDArray[np.bool_], server: Server) -> Batch:
        """The batch that a scorer picks request by request."""
        seen, server = of_kind("seen", seen, Queue), of_kind("server", server, Server)
        decision = OF_SERVERS[one_of("bundle", self.bundle.schema.decision, SCORERS, BundleError)]
        with np.errstate(all="ignore"):  # what overflows is told by its result
            picking = Picking(self.scores_of, decision, seen, server, usable, self.estimator, self.limits)
            picked = picking.run()
        if picked.length is not None and picked.drafting:
            self.server_tokens = picked.length
        if picked.price is not None:
            self.price = picked.price
        predicted_s = self.estimator.predict(picked.new, picked.pairs, picked.cached) if picked.members else 0.0
        facts = (picked.members, picked.taken, predicted_s, picked.pairs, picked.cached)
        batch = Batch(*facts, price=picked.price, waits=picked.ends == "wait")
        return replace(batch, draft_tokens=picked.length, draft_s=picking.drafting_s()[1], moves=picked.moves)

    def scores_of(self, rows: Floats, seen: Floats) -> Scores:
        """What scores a batch's decisions."""
        scorer = self.bundle.scorer
        return Asked(self.bundle.decide, rows, seen) if scorer is None else Factored(scorer, rows, seen)

    def admit(self, seen: Queue, usable: NDArray[np.bool_], order: Order, kv_used: float = 0.0) -> Batch:
        """Take requests in their order while memory, chunk, batch limit and the limits of those that joined allow (`compose`)."""
        limits, (launch, new_token, pair, cached_token) = self.limits, self.estimator.coefficients.tolist()

        def predict(new: float, pairs: float, cached: float) -> float:
            return float(launch + new_token * new + pair * pairs + cached_token * cached + self.estimator.level_s(new))

        places = np.lexsort((order.key, ~order.leads)).tolist()
        leads, limit_s = order.leads.tolist(), (order.limit * self.mean_batch_s).tolist()
        ahead = self.draft.longest_tokens * np.nan_to_num(seen.at_server)  # places for the server's own drafts
        columns = (seen.uncached, seen.cached, seen.draft, ahead, usable)
        uncached, cached, draft, kept, fine = (column.tolist() for column in columns)
        chunk = float(limits.prefill_tokens) if limits.prefill_tokens > 0 else math.inf
        members: list[int] = []
        taken: list[int] = []
        new = pairs = old = kv = 0.0
        room = Room(limits.admit_share * limits.kv_tokens, kv_used + float(seen.uncached[seen.cached > 0].sum()))
        due_s, checked = math.inf, False
        for q in places:
            if len(members) >= limits.requests:
                break
            if not checked and not leads[q]:
                checked = True
                so_far_s = predict(new, pairs, old)
                due_s = min((limit_s[m] for m in members if limit_s[m] >= so_far_s), default=math.inf)
            if checked and members and predict(new + 1.0, pairs, old) > due_s:
                break
            whole = uncached[q] <= chunk
            take = uncached[q] + 1.0 + draft[q] if whole else chunk
            attended = cached[q] + take
            held = limits.held(attended + kept[q])
            if take <= 0.0 or kv + held > limits.kv_tokens or not fine[q]:
                continue
            if cached[q] == 0.0 and not room.lets_begin(uncached[q] + 1.0 + draft[q] + kept[q]):
                continue
            if checked and members:
                with_s = predict(new + take, pairs + take * attended, old + cached[q])
                if with_s > due_s or with_s > limit_s[q]:
                    continue
            chunk -= uncached[q] if whole else take
            room.take(uncached[q] if whole else take, take + kept[q], uncached[q] if cached[q] == 0.0 else 0.0)
            new, pairs, old, kv = new + take, pairs + take * attended, old + cached[q], kv + held
            due_s = min(due_s, limit_s[q])
            members.append(q)
            taken.append(int(take))
        return Batch(members, taken, predict(new, pairs, old) if members else 0.0, pairs, old)
