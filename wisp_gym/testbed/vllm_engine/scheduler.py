"""vLLM's scheduler, run by orders: it holds every session, and runs just the rounds and chunks that the server has composed.

vLLM calls this interface not public; what is used of it is here and in `transport`. Everything of memory stays vLLM's own: blocks, the prefix
cache, preemption. Sessions whose memory is needed are preempted, the longest unordered first; what they had stays in the prefix cache until
its blocks are used.
"""

import time
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.request import Request

from wisp_gym.testbed.vllm_engine.lifetime import end_with_the_parent
from wisp_gym.testbed.vllm_engine.transport import Report, Round, report_output, rounds_of

MOST_EMPTY_STEPS = 3  # in a row, with nothing left to evict: then what is left of an order cannot run


class Order:
    """An order while it runs.

    Args:
        name: of its request. rounds: to run. client: of vLLM, to which the report goes.
    """

    def __init__(self, name: str, rounds: list[Round], client: int) -> None:
        self.name, self.client = name, client
        self.open = {each.name: each for each in rounds}
        self.names = [each.name for each in rounds]
        self.tokens: dict[str, list[int]] = {}
        self.steps: list[dict[str, int]] = []
        self.empty_steps = 0


class OrderedScheduler(Scheduler):
    """A `scheduler_cls` of vLLM."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        end_with_the_parent()
        self.order: Order | None = None
        self.evicted: list[str] = []  # since the last report
        self.spare_blocks = 0  # of memory, besides what the order asked for
        # New requests with a single token left would be padded with drafts that nobody made, unless a table gives the number of drafts.
        self.dynamic_sd_lookup = [self.num_spec_tokens] * (self.max_num_running_reqs + 1)

    def add_request(self, request: Request) -> None:
        """A session, or an order; there is one order at a time."""
        rounds = rounds_of(request.sampling_params)
        if rounds is None:
            super().add_request(request)
        else:
            self.order = Order(request.request_id, rounds, request.client_index)

    def has_requests(self) -> bool:
        """Whether there is anything to do: without an order all sessions are held, and vLLM sleeps until a message comes."""
        return self.order is not None or self.has_finished_requests()

    # --- before a step ---------------------------------------------------------------------------------------------------

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """The next step of the order."""
        if self.order is not None:
            self._line_up(self.order)
            self._make_room(self.order)
            self._hand_out_drafts(self.order)
        return super().schedule(throttle_prefills)

    def _line_up(self, order: Order) -> None:
        """Rounds in their order, then held sessions, the longest unordered last: vLLM preempts from the end."""
        self._to_the_front(order)
        waiting = [request for name in order.open if (request := self._waits(name)) is not None]
        self.waiting.remove_requests(waiting)
        self.waiting.prepend_requests(reversed(waiting))  # vLLM puts the last of them in front
        missing = {name for name in order.open if name not in self.requests}
        for name in missing:  # its device is gone
            del order.open[name]

    def _to_the_front(self, order: Order) -> None:
        """What is ordered comes first; all else keeps its place, the longest unordered last."""
        rank = {name: place for place, name in enumerate(order.names)}
        self.running.sort(key=lambda request: rank.get(request.request_id, len(rank)))

    def _waits(self, name: str) -> Request | None:
        request = self.requests.get(name)
        return request if request is not None and not self._is_running(request) else None

    @staticmethod
    def _is_running(request: Request) -> bool:
        return bool(request.status.name == "RUNNING")

    def _make_room(self, order: Order) -> None:
        """Evict held sessions until the open rounds' new blocks and places are free."""
        requests = [self.requests[name] for name in order.open]
        wanted = sum(self._new_blocks(request, order) for request in requests)
        arriving = sum(not self._is_running(request) for request in requests)
        pool = self.kv_cache_manager.block_pool
        while (
            pool.get_num_free_blocks() < wanted or len(self.running) + arriving > self.max_num_active_reqs
        ) and self._evict(order):
            pass
        self.spare_blocks = max(pool.get_num_free_blocks() - wanted, 0)

    def _new_blocks(self, request: Request, order: Order) -> int:
        """Blocks that a round needs besides those that its session has."""
        each = order.open[request.request_id]
        tokens = min(each.chunk_end, request.num_tokens - 1) or request.num_tokens + len(each.drafted)
        held = len(self.kv_cache_manager.get_block_ids(request.request_id)[0])
        return max(-(-tokens // self.block_size) - held, 0)

    def _evict(self, order: Order) -> bool:
        """Take the memory of the session that was not ordered for longest, last of one whose round is done; whether there was one.

        The latter since vLLM keeps blocks of rejected drafts, so an order may need a block or two more than it was composed for.
        """
        request = next((r for r in reversed(self.running) if r.request_id not in order.open), None)
        if request is None:
            return False
        self.running.remove(request)
        self._preempt_request(request, time.monotonic())
        return True

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        self.evicted.append(request.request_id)
        super()._preempt_request(request, timestamp, drop_stale_output)

    def _hand_out_drafts(self, order: Order) -> None:
        """Drafts join once the whole context but its last token is in memory."""
        for request in self.running:
            each = order.open.get(request.request_id)
            ready = each is not None and not each.chunk_end and request.num_computed_tokens >= request.num_tokens - 1
            request.spec_token_ids = list(each.drafted) if each is not None and ready else []

    # --- what vLLM asks while it builds the step -------------------------------------------------------------------------

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        """A session without memory waits until it is ordered."""
        ordered = self.order is not None and request.request_id in self.order.open
        return ordered and super()._handle_blocked_waiting_request(request)

    def _get_local_prefix_cache_hit(self, request: Request) -> Any:
        """What the prefix cache has of a context.

        A block less where nothing would be left to run before its last token; of a chunk no more beyond its end than memory has to spare.
        """
        blocks, tokens, boundary, diverged = super()._get_local_prefix_cache_hit(request)
        if self._stops_before_the_last(request):
            most = (request.num_tokens - 2) // self.block_size
            if (chunk_end := self._chunk_end(request)) > 0:
                asked = -(-chunk_end // self.block_size)
                most = min(most, asked + self.spare_blocks)
                self.spare_blocks -= max(min(most, tokens // self.block_size) - asked, 0)
            if tokens > most * self.block_size:
                tokens = most * self.block_size
                blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, tokens)
        return blocks, tokens, boundary, diverged

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """Tokens that the step runs of a session, of those that vLLM would: none of one that is held."""
        most = self._goal(request, num_computed_tokens) - num_computed_tokens
        return max(min(super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens), most), 0)

    def _goal(self, request: Request, computed: int) -> int:
        """Tokens that are to be computed after the step."""
        each = self.order.open.get(request.request_id) if self.order is not None else None
        if each is None:
            return computed
        if not self._stops_before_the_last(request):
            return int(request.num_tokens_with_spec)
        last = int(request.num_tokens - 1)
        if not each.chunk_end:
            return last
        # A session that comes in must run a token at least, even if the prefix cache has more than the chunk.
        least = 0 if self._is_running(request) else computed + 1
        return min(max(each.chunk_end, least), last)

    def _chunk_end(self, request: Request) -> int:
        each = self.order.open.get(request.request_id) if self.order is not None else None
        return each.chunk_end if each is not None else 0

    def _stops_before_the_last(self, request: Request) -> bool:
        """Whether a round's step ends before the context's last token: a chunk, or drafts that wait for their context."""
        each = self.order.open.get(request.request_id) if self.order is not None else None
        if each is None or request.num_tokens < 2:
            return False
        return each.chunk_end > 0 or (bool(each.drafted) and not request.spec_token_ids)

    # --- after a step ----------------------------------------------------------------------------------------------------

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, Any]:
        """vLLM's own, with the order's report in place of the sessions' outputs."""
        outputs: dict[int, Any] = super().update_from_output(scheduler_output, model_runner_output)
        order = self.order
        if order is None:
            return outputs
        self._note(order, dict(scheduler_output.num_scheduled_tokens), outputs)
        if not order.open or self._is_stuck(order):
            outputs.setdefault(order.client, EngineCoreOutputs()).outputs.append(
                report_output(order.name, self._report(order))
            )
            self._to_the_front(order)  # vLLM has put those that came in at the end
            self.order = None
        return outputs

    def _note(self, order: Order, ran: dict[str, int], outputs: dict[int, Any]) -> None:
        """Strike out the rounds that are done."""
        order.empty_steps = 0 if ran else order.empty_steps + 1
        if ran:
            order.steps.append(ran)
        for each in outputs.values():
            order.tokens.update({output.request_id: output.new_token_ids for output in each.outputs})
            each.outputs = []
        for name, each in list(order.open.items()):
            request = self.requests.get(name)
            ended = min(each.chunk_end, request.num_tokens - 1) if request is not None else 0
            computed = request.num_computed_tokens if request is not None else 0
            if name in order.tokens or (each.chunk_end and computed >= ended):
                del order.open[name]

    def _is_stuck(self, order: Order) -> bool:
        """Whether nothing more of the order can run; while others have memory, theirs is taken."""
        if order.empty_steps == 0:
            return False
        return not self._evict(order) and order.empty_steps >= MOST_EMPTY_STEPS

    def _report(self, order: Order) -> Report:
        pool, evicted = self.kv_cache_manager.block_pool, list(self.evicted)
        self.evicted.clear()
        cached = {name: self.requests[name].num_computed_tokens for name in order.names if name in self.requests}
        used_blocks = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()  # one block is vLLM's own
        return Report(order.tokens, cached, evicted, list(order.open), used_blocks * self.block_size, order.steps)

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        """Drafts come from devices alone."""
