"""vLLM's scheduler with its own speculation, whose lengths a policy sets. vLLM calls this interface not public; what is used of it is here.

vLLM drafts after it has verified: the length that `schedule` sets is what the step's end drafts, and the next step verifies. How
many drafts of each request are verified is set when they arrive (`update_draft_token_ids`). Both only cut what vLLM would verify,
so the answers are those of vLLM.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import start_http_server
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from wisp_gym.testbed.vllm_steering import settings
from wisp_gym.testbed.vllm_steering.accounts import Accounts
from wisp_gym.testbed.vllm_steering.lengths import Drafted
from wisp_gym.testbed.vllm_steering.steerer import Steerer
from wisp_gym.testbed.vllm_steering.step_times import Step


@dataclass
class OpenStep:
    """A step that runs.

    Attributes:
        step: its sizes. begun_s, ended_s: on the scheduler's clock. requests: that it runs. rounds: that it verified.
        first: names of those that gave an answer's first token.
    """

    step: Step
    begun_s: float
    ended_s: float
    requests: int
    rounds: list[Drafted] = field(default_factory=list)
    first: set[str] = field(default_factory=set)


class WispScheduler(Scheduler):
    """A `scheduler_cls` of vLLM, with settings in `additional_config` (`settings.Steering`).

    Raises:
        InputError: another version of vLLM, no speculation, or a way of running that lengths cannot be steered in.

    Attributes:
        steerer: what sets the lengths; None leaves them to vLLM. clock: seconds, never falling, by which steps are timed.
    """

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        settings.check_engine(self.vllm_config)
        asked = settings.read(self.vllm_config.additional_config)
        self.clock: Callable[[], float] = time.monotonic
        self.own_lookup: list[int] | None = self.dynamic_sd_lookup  # vLLM's table as it was given one
        self.steerer: Steerer | None
        self.accounts: Accounts | None
        self.step: OpenStep | None
        self.allowed: dict[str, int] = {}  # tokens that each request might have had drafted for the next step
        steerer = Steerer(asked, self.num_spec_tokens)
        self.steer(steerer)
        if asked.metrics:
            host, port = asked.metrics_address()
            start_http_server(port, host, steerer.metrics.registry)

    def steer(self, steerer: Steerer | None) -> None:
        """Let this set the lengths from now on; None: vLLM, by the number or table that it was started with."""
        self.steerer, self.step = steerer, None
        self.dynamic_sd_lookup = self.own_lookup
        self.accounts = None if steerer is None else Accounts(steerer.metrics)
        self.allowed.clear()
        if (
            steerer is not None
        ):  # else vLLM pads requests that come in with a single token left by drafts that nobody made
            self.dynamic_sd_lookup = [self.num_spec_tokens] * (self.max_num_running_reqs + 1)

    def add_request(self, request: Request) -> None:
        """A request has come."""
        super().add_request(request)
        if self.accounts is not None:
            sampling = request.sampling_params
            self.accounts.begin(request.request_id, sampling.extra_args if sampling else None, self.clock())

    # --- a step ----------------------------------------------------------------------------------------------------------

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """The next step, with the length that is drafted at its end."""
        self._close_step()
        begun_s = self.clock()
        found = super().schedule(throttle_prefills)
        if self.steerer is not None and found.total_num_scheduled_tokens:
            decoding = [
                self.requests[name] for name in found.num_scheduled_tokens if not self.requests[name].is_prefill_chunk
            ]
            step = sizes(found.num_scheduled_tokens, self.requests, decoding)
            others = step.new_tokens - sum(found.num_scheduled_tokens[request.request_id] for request in decoding)
            length = self.steerer.length([request.request_id for request in decoding], step.context, others)
            found.num_spec_tokens_to_schedule = length
            ran = len(found.num_scheduled_tokens)
            self.step = OpenStep(step._replace(length=length), begun_s, begun_s, ran)
        return found

    def _close_step(self) -> None:
        """What the last step teaches; its time is that until its drafts were there."""
        step, self.step = self.step, None
        if step is not None and self.steerer is not None:
            self.steerer.ended(step.step, step.ended_s - step.begun_s, step.rounds, step.first)
            self.steerer.lengths.keep(self.requests.keys())

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, Any]:
        """vLLM's own; rounds and answers are counted."""
        step = self.step
        if step is not None:
            step.rounds = list(self._rounds(scheduler_output, model_runner_output))
            step.first = {each.name for each in step.rounds if not self.requests[each.name].num_output_tokens}
        outputs: dict[int, Any] = super().update_from_output(scheduler_output, model_runner_output)
        if step is not None:
            step.ended_s = self.clock()
            self._count(outputs, step.ended_s)
        return outputs

    def _rounds(self, scheduler_output: Any, model_runner_output: Any) -> Iterable[Drafted]:
        """The rounds that a step has verified: of requests that it gave tokens to."""
        sampled, places = model_runner_output.sampled_token_ids, model_runner_output.req_id_to_index
        for name in scheduler_output.num_scheduled_tokens if sampled else ():
            request, tokens = self.requests.get(name), sampled[places[name]]
            if request is not None and not request.is_finished() and tokens:
                drafted = len(scheduler_output.scheduled_spec_decode_tokens.get(name, ()))
                yield Drafted(name, drafted, min(len(tokens) - 1, drafted), self.allowed.pop(name, 0))

    def _count(self, outputs: dict[int, Any], now_s: float) -> None:
        """Count the tokens that leave."""
        assert self.accounts is not None
        for each in outputs.values():
            for output in each.outputs:
                self.accounts.tokens(
                    output.request_id, len(output.new_token_ids), now_s, output.finish_reason is not None
                )

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        """Drafts have come: of each request as many are kept as are to be verified."""
        super().update_draft_token_ids(draft_token_ids)
        if self.steerer is None or self.step is None:
            return
        for name in draft_token_ids.req_ids:
            request = self.requests.get(name)
            if request is not None and not request.is_finished() and not request.is_prefill_chunk:
                self._cut(request, self.step.step.length)
        self.step.ended_s = self.clock()

    def _cut(self, request: Request, length: int) -> None:
        """Keep the drafts of a request that are to be verified, none beyond its answer's end."""
        assert self.steerer is not None
        room = request.max_tokens - request.num_output_tokens - 1
        self.allowed[request.request_id] = self.steerer.verified(request.request_id, length, room)
        request.spec_token_ids = request.spec_token_ids[: self.allowed[request.request_id]]

    def finish_requests(self, request_ids: Any, finished_status: Any) -> Any:
        """Requests are aborted."""
        found = super().finish_requests(request_ids, finished_status)
        if self.accounts is not None:
            for name in self.accounts.open.keys() - self.requests.keys():
                self.accounts.forget(name)
        return found


def sizes(ran: dict[str, int], requests: dict[str, Request], decoding: list[Request]) -> Step:
    """What a step runs, whose tokens vLLM already counts as computed."""
    cached = {name: requests[name].num_computed_tokens - new for name, new in ran.items()}
    pairs = float(sum(new * (cached[name] + new) for name, new in ran.items()))
    context = sum(request.num_tokens for request in decoding)
    return Step(sum(ran.values()), pairs, sum(cached.values()), len(decoding), context)
