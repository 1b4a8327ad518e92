"""A vLLM engine in a process of its own that plays requests under whatever sets the lengths, for comparisons.

The engine is started before anything compiled of ours is imported: on a processor vLLM 0.32.0 looks into every loaded module when
its worker starts, and fails on llvmlite's.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

from wisp_gym.errors import InputError
from wisp_gym.testbed.vllm_engine.core import block_bytes, prepare_environment, started_or_refused

if TYPE_CHECKING:  # nothing compiled may be imported yet
    from wisp_gym.testbed.vllm_steering.step_times import Step

WISP_SCHEDULER = f"{__name__.rpartition('.')[0]}.scheduler.WispScheduler"
# vLLM's own lengths: as it was started, so many tokens in each step, or its table by batch size, as JSON.
OWN, FIXED, TABLE = "vllm", "vllm:", "table:"
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
END_S = 1.0  # that a process has to leave in
COUNTERS = {
    "drafted": "vllm:spec_decode_num_draft_tokens",
    "accepted": "vllm:spec_decode_num_accepted_tokens",
    "preemptions": "vllm:num_preemptions",
}


class Settings(NamedTuple):
    """With what an engine is started.

    Attributes:
        arguments: of `vllm.EngineArgs`. threads: of a processor, 0: vLLM's choice. kv_tokens: keys and values in memory.
    """

    arguments: dict[str, Any]
    threads: int
    kv_tokens: int


class Plan(NamedTuple):
    """What to play.

    Attributes:
        lengths: `vllm`, `vllm:K`, `table:JSON`, or a rule (`settings.rule_of`). prompts: tokens of each. tokens: of each answer.
        concurrency: requests that are open at a time. temperature: of sampling. clock: of CLOCKS; `cpu` is the engine's process,
            for processors that other programs share.
    """

    lengths: str
    prompts: list[list[int]]
    tokens: int
    concurrency: int
    temperature: float = 0.0
    clock: str = "wall"


class Played(NamedTuple):
    """What came of it.

    Attributes:
        seconds: by the plan's clock. steps: of the engine. drafted, accepted, preemptions: counted by vLLM.
        fallbacks: steps that a rule did not decide. answers: tokens of each. timed: steps of a rule, with their seconds.
    """

    seconds: float
    steps: int
    drafted: int
    accepted: int
    preemptions: int
    fallbacks: int
    answers: list[list[int]]
    timed: "Sequence[tuple[Step, float]]" = ()

    @property
    def tokens(self) -> int:
        """Of all answers."""
        return sum(map(len, self.answers))


class BenchEngine:
    """A running engine; `close` ends its process.

    Raises:
        InputError: vLLM refuses model or arguments.
    """

    def __init__(self, settings: Settings) -> None:
        spawn = get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, settings), daemon=True)
        self.process.start()
        theirs.close()

    def wait(self) -> None:
        """Until the engine has started."""
        self._answer()

    def play(self, plan: Plan) -> Played:
        """Play requests; nothing else may be asked meanwhile."""
        self.pipe.send(plan)
        found: Played = self._answer()
        return found

    def _answer(self) -> Any:
        try:
            good, found = self.pipe.recv()
        except EOFError:
            raise InputError("vLLM's process has ended; what it said stands above") from None
        if not good:
            raise InputError(found)
        return found

    def close(self) -> None:
        """End it."""
        self.pipe.close()
        self.process.join(20)
        self.process.kill()


def serve(pipe: Connection, settings: Settings) -> None:
    """The engine's process: start, then play whatever is asked until the pipe is closed."""
    try:
        engine = start(settings)
    except InputError as error:
        pipe.send((False, str(error)))
        return
    pipe.send((True, None))
    kept: dict[str, Any] = {}
    while True:
        try:
            plan: Plan = pipe.recv()
        except EOFError:
            engine.engine_core.shutdown()
            end = threading.Timer(END_S, os._exit, (0,))  # threads of vLLM would keep the process
            end.daemon = True
            return end.start()
        try:
            pipe.send((True, play(engine, plan, kept)))
        except InputError as error:
            pipe.send((False, str(error)))


def start(settings: Settings) -> Any:
    """A `vllm.LLMEngine` in this process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # the scheduler and raw prompts are warned of
    prepare_environment(settings.threads)
    given = settings.arguments
    with started_or_refused(given["model"]):
        from vllm import EngineArgs, LLMEngine
        from vllm.platforms import current_platform

        on_cpu = {"enforce_eager": True} if current_platform.is_cpu() else {}  # compiling takes a minute there
        own = {"async_scheduling": False, "enable_prefix_caching": False, "skip_tokenizer_init": True}
        steered = {"scheduler_cls": WISP_SCHEDULER} if given.get("speculative_config") else {}
        arguments = EngineArgs(**on_cpu, **own, **steered, disable_log_stats=False, **given)
        config = arguments.create_engine_config()
        blocks = settings.kv_tokens // config.cache_config.block_size + 1
        arguments.num_gpu_blocks_override = blocks
        arguments.kv_cache_memory_bytes = blocks * bytes_of_a_block(config)
        return LLMEngine.from_engine_args(arguments)


def bytes_of_a_block(config: Any) -> int:
    """Keys and values of one block, of the target and of a model or head that drafts."""
    tokens, speculation = config.cache_config.block_size, config.speculative_config
    target = block_bytes(config.model_config, config.parallel_config, tokens)
    if speculation is None or not speculation.uses_draft_kv_cache():
        return target
    return target + block_bytes(speculation.draft_model_config, speculation.draft_parallel_config, tokens)


def scheduler_of(engine: Any) -> Any:
    """The scheduler of an engine in this process."""
    return engine.engine_core.engine_core.scheduler


def steer(scheduler: Any, lengths: str, kept: dict[str, Any]) -> Any:
    """Let this set the lengths: a rule that goes on with what it has learned, or vLLM; the steerer, None of vLLM's own."""
    if lengths.startswith((OWN, TABLE)):
        scheduler.steer(None)
        if lengths != OWN:
            scheduler.dynamic_sd_lookup = lookup(scheduler, lengths)
        return None
    from wisp_gym.testbed.vllm_steering import settings
    from wisp_gym.testbed.vllm_steering.steerer import Steerer

    if lengths not in kept:
        kept[lengths] = Steerer(settings.Steering(lengths), scheduler.num_spec_tokens)
    scheduler.steer(kept[lengths])
    return kept[lengths]


def lookup(scheduler: Any, lengths: str) -> list[int] | None:
    """vLLM's own lengths by batch size; None where each step drafts all that the engine can."""
    from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

    longest = scheduler.num_spec_tokens
    if lengths == f"{FIXED}{longest}":
        return None
    fixed = lengths.startswith(FIXED)
    table = [[1, 1, int(lengths.removeprefix(FIXED))]] if fixed else json.loads(lengths.removeprefix(TABLE))
    found: list[int] = build_dynamic_sd_schedule_lookup(table, scheduler.max_num_running_reqs, longest)
    return found


def play(engine: Any, plan: Plan, kept: dict[str, Any]) -> Played:
    """Play requests with so many open at a time."""
    scheduler, clock = scheduler_of(engine), CLOCKS[plan.clock]
    steerer = steer(scheduler, plan.lengths, kept) if scheduler.num_spec_tokens else None
    scheduler.clock = clock  # which vLLM's own scheduler does not read
    if steerer:
        steerer.timed = []
    before, failed = counters(engine), steerer.fallbacks if steerer else 0
    answers: list[list[int]] = [[] for _ in plan.prompts]
    begun_s, steps, asked, open_ = clock(), 0, 0, 0
    while asked < len(plan.prompts) or open_:
        while asked < len(plan.prompts) and open_ < plan.concurrency:
            ask(engine, str(asked), plan)
            asked, open_ = asked + 1, open_ + 1
        for output in engine.step():
            answers[int(output.request_id)] += output.outputs[0].token_ids
            open_ -= output.finished
        steps += 1
    seconds, after = clock() - begun_s, counters(engine)
    drafted, accepted, preemptions = (int(after[name] - before[name]) for name in COUNTERS)
    failed = steerer.fallbacks - failed if steerer else 0
    return Played(seconds, steps, drafted, accepted, preemptions, failed, answers, steerer.timed if steerer else ())


def ask(engine: Any, name: str, plan: Plan) -> None:
    """Send a request of a plan, by its place."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = SamplingParams(
        temperature=plan.temperature, max_tokens=plan.tokens, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
    )  # fmt: skip
    engine.add_request(name, {"prompt_token_ids": plan.prompts[int(name)]}, sampling)


def counters(engine: Any) -> Mapping[str, float]:
    """vLLM's own counters, by our names; 0 where it has none."""
    values = {metric.name: metric.value for metric in engine.get_metrics() if hasattr(metric, "value")}
    return {name: values.get(theirs, 0.0) for name, theirs in COUNTERS.items()}


def same(answers: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> int:
    """How many answers are token for token the other ones."""
    return sum(list(one) == list(other) for one, other in zip(answers, others, strict=True))
