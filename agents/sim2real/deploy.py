"""The bench of `agents.sim2real`: one pair of models on this machine, run with any controller at any load."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.sim2real.compare import classes
from agents.sim2real.devices import Deployed, Fleet, Running, ServerProcess, Shape, read_deployed, write_deployed
from agents.sim2real.profile import Measured, RandomLength, build_scenario, measure
from agents.sim2real.server import FCFS, Served, deepened, read_batches
from agents.sim2real.settings import (
    KV_TOKENS,
    MAX_BATCH_REQUESTS,
    OTHER_WORLDS,
    PREFILL_CHUNK_TOKENS,
    PROFILE_DRAFT_TOKENS,
    START_WINDOW_S,
    VLLM,
    Settings,
)
from traces import record
from wisp_gym.controllers.names import is_policy, parse
from wisp_gym.engine.build import accepted_share, smallest_batch_s
from wisp_gym.errors import InputError
from wisp_gym.files import write_bytes, write_text
from wisp_gym.policies import load as load_controller
from wisp_gym.rules.catalogue import ALIASES
from wisp_gym.scenario import Scenario, Target
from wisp_gym.serving import DeviceProfile, SpeculationController
from wisp_gym.serving.bundle.bundle import from_bytes
from wisp_gym.serving.estimator import TERMS
from wisp_gym.serving.export.policies import batching_bundle, rule_bundle, rule_of
from wisp_gym.traces.speculation import SpeculationTrace, read_speculation_trace

TRACE = "speculation.npz"


def cores() -> tuple[list[int], list[int]]:
    """Cores of the devices and of the server: the last one is the server's, of more than three half of them."""
    have = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    kept = max(len(have) // 2, 1)
    return (have[:-kept], have[-kept:]) if len(have) > 1 else (have, have)


def check_pair(settings: Settings) -> None:
    """Refuse a pair of the user's own that cannot be loaded, before anything is written.

    Raises:
        InputError: names the flag.
    """
    from wisp_gym.testbed.tokenizers import load_tokenizer

    for side in ("draft", "target") if settings.target else ():
        load_tokenizer(getattr(settings, side), f"--{side}")


class Bench:
    """One pair, its prompts and their trace.

    Args:
        settings: of the run. folder: its folder.

    Attributes:
        notes: one line for each deployment that a reader should know something of.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        from wisp_gym.testbed.tokenizers import load_tokenizer, tokenizer_digest
        from wisp_gym.testbed.torch_engine.models import default_pair, load_model

        pair = None if settings.target else default_pair()
        self.settings, self.folder, self.notes, self.profiled = settings, folder, list[str](), list[Deployed]()
        self.names = {side: getattr(settings, side) or str(Path(str(pair)) / side) for side in ("draft", "target")}
        self.trace = self.recorded(settings.prompts or Path(str(pair)) / "prompts.jsonl")
        self.device_cores, self.server_cores = cores()
        tokenizer = load_tokenizer(self.names["draft"], "--draft")
        texts = [prompt.text for prompt in record.read_prompts(folder / "prompts.jsonl")]
        self.prompts = [list(tokenizer(texts[place])["input_ids"]) for place in self.trace.prompt_id]
        self.model = load_model(self.names["draft"], "--draft")
        self.served = self.served_target()
        self.vocabulary, self.digest = min(self.model.config.vocab_size, len(tokenizer)), tokenizer_digest(tokenizer)

    def served_target(self) -> tuple[str, int, int]:
        """The target's name or folder, and the layers and width to which the server deepens it: vLLM is given a folder that is deep."""
        given, name = self.settings, self.names["target"]
        if given.engine != VLLM or not given.target_layers:
            return name, given.target_layers, given.target_intermediate
        from wisp_gym.testbed.tokenizers import load_tokenizer
        from wisp_gym.testbed.torch_engine.models import load_model

        folder = self.folder / "target"
        if not folder.is_dir():
            draft = folder.with_name("target.draft")
            deep = deepened(
                load_model(name, "--target", dtype=given.dtype), given.target_layers, given.target_intermediate
            )
            deep.save_pretrained(draft)
            load_tokenizer(name, "--target").save_pretrained(draft)
            draft.rename(folder)
        return str(folder), 0, 0

    def recorded(self, prompts: Path) -> SpeculationTrace:
        """The pair's speculation trace on the prompts, recorded where it is missing."""
        path, chosen = self.folder / TRACE, self.folder / "prompts.jsonl"
        if not path.is_file():
            texts = [prompt.text for prompt in record.read_prompts(prompts)][: self.settings.n_prompts]
            write_text(chosen, "".join(json.dumps({"prompt": text}) + "\n" for text in texts))
            flags = {"draft": self.names["draft"], "target": self.names["target"], "prompts": chosen, "out": path,
                     "draft-tokens": self.settings.max_draft_tokens, "max-new-tokens": self.settings.max_new_tokens}  # fmt: skip
            record.main([word for name, value in flags.items() for word in (f"--{name}", str(value))])
        return read_speculation_trace(path)

    # --- profile ---------------------------------------------------------------------------------------------------------

    def profile(self, cycle: int) -> Measured:
        """Measure the running pair at each load, with drafts of random lengths; what all cycles up to this one have measured."""
        most = min(PROFILE_DRAFT_TOKENS, self.settings.max_draft_tokens)
        for n in self.settings.loads:
            # Other worlds than those compared: what is predicted must not have been measured.
            seed = OTHER_WORLDS + self.settings.first_seeds[cycle]
            fleet = self.fleet(n, self.settings.profile_seconds, seed, lambda place: RandomLength(most, place), ())
            self.profiled.append(self.run(f"profile-{n}-{cycle}", fleet, FCFS, {}))
        return measure(self.profiled)

    def scenario(self, measured: Measured) -> Scenario:
        """The scenario of the measurements, its trace beside it."""
        return build_scenario(measured, self.settings, self.target_shape(), self.trace.prompt_tokens.tolist(), TRACE)

    def target_shape(self) -> Target:
        """Shape of the target, for the memory that its keys and values take."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.names["target"])
        parameters, heads = int(self.trace.header["settings"]["target"]["parameters"]), config.num_attention_heads
        layers = self.settings.target_layers or config.num_hidden_layers
        kv_heads, width = getattr(config, "num_key_value_heads", None) or heads, config.hidden_size // heads
        return Target("measured", parameters, layers, heads, kv_heads, width, dtype_bytes=4)

    # --- deployment ------------------------------------------------------------------------------------------------------

    def deploy(self, scenario: Scenario, name: str, n: int, cycle: int) -> Deployed:
        """A controller with `n` devices."""
        speculation, batching = pieces(name)
        controllers = self.controllers(scenario, speculation, n)
        seconds = scenario.horizon.warmup_s + scenario.horizon.measure_s
        slo = [(kind.speed_tokens_per_s, kind.ttft_s) for kind in classes(scenario, n)]
        fleet = self.fleet(n, seconds, self.settings.first_seeds[cycle], controllers, slo)
        label = f"{n}-{re.sub('[^a-z0-9.]+', '-', name.lower())}-{cycle}"
        coefficients = {name: float(getattr(scenario.estimator, name)) for name in TERMS}
        scheduler = FCFS
        if is_policy(batching):
            scheduler = batching
        elif batching != FCFS:
            scheduler = str(self.place(label) / "batching.onnx")
            write_bytes(scheduler, batching_bundle(batching, scenario))
        return self.run(label, fleet, scheduler, coefficients)

    def controllers(self, scenario: Scenario, name: str, n: int) -> Callable[[int], SpeculationController]:
        """A bundle's controllers, told what a device of the scenario knows at first."""
        rule = None if is_policy(name) else rule_bundle(rule_of(name, scenario), scenario)
        bundle = load_controller(name).bundle() if rule is None else from_bytes(rule)
        device, kinds = scenario.devices[0], classes(scenario, n)
        token_s, known = 1.0 / device.draft_tokens_per_s, (accepted_share(scenario), smallest_batch_s(scenario))
        first = DeviceProfile(1.0, token_s, device.link.one_way_s, *known)

        def make(place: int) -> SpeculationController:
            slo = kinds[place]
            profile = replace(first, slo_tokens_per_s=slo.speed_tokens_per_s, grace_s=slo.grace_s, ttft_s=slo.ttft_s)
            return SpeculationController(bundle, profile)

        return make

    def place(self, label: str) -> Path:
        """The folder of one deployment."""
        folder = self.folder / "deployed" / label
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def fleet(self, n: int, seconds: float, seed: int, controller: Any, slo: Sequence[tuple[float, float]]) -> Fleet:
        """Devices of the settings."""
        given = self.settings
        shape = Shape(given.draft_token_ms / 1e3, given.one_way_ms / 1e3, given.jitter)
        return Fleet(n, seconds, seed, START_WINDOW_S, given.max_draft_tokens, given.max_new_tokens, shape, self.prompts, controller,
                     slo or [(0.0, 0.0)] * n)  # fmt: skip

    def run(self, label: str, fleet: Fleet, scheduler: str, coefficients: dict[str, float]) -> Deployed:
        """One deployment whose devices draft, or what an earlier call wrote of it."""
        return self.once(label, lambda folder: self.run_now(folder, label, fleet, scheduler, coefficients))

    def once(self, label: str, now: Callable[[Path], Deployed]) -> Deployed:
        """What `now` runs in a deployment's folder, or what an earlier call wrote of it.

        Raises:
            InputError: a device broke off.
        """
        path = self.place(label) / "rounds.json"
        if not path.is_file():
            deployed = now(path.parent)
            if deployed.faults:
                raise InputError(f"{label}: {deployed.faults[0]}")
            write_deployed(path, deployed)
        deployed = read_deployed(path)
        if deployed.late_share > 0.01 or deployed.fallbacks:
            self.notes.append(f"{label}: {100 * deployed.late_share:.1f} % of the drafted tokens came later than paced, "
                              f"{deployed.fallbacks} decisions fell back to WISP's rule or vLLM's own length")  # fmt: skip
        return deployed

    def run_now(
        self, folder: Path, label: str, fleet: Fleet, scheduler: str, coefficients: dict[str, float]
    ) -> Deployed:
        """Server and devices that draft, each on cores of its own."""
        given = self.settings
        limits = {"kv_tokens": KV_TOKENS, "max_batch_rounds": MAX_BATCH_REQUESTS, "max_sessions": 2 * fleet.n + 64}
        limits |= {"prefill_chunk_tokens": PREFILL_CHUNK_TOKENS, "max_waiting": fleet.n + 64}
        served = Served(given.engine, *self.served, given.device, given.dtype, self.server_cores, scheduler, limits, coefficients,
                        str(folder / "batches.jsonl"))  # fmt: skip
        server = ServerProcess(served, folder, given.server_python, "server")

        def devices() -> Deployed:
            return Running(fleet, server.address, self.model, self.vocabulary, self.digest).run(label)

        deployed = self.beside(server, devices)
        deployed.batches = read_batches(Path(served.batches))
        return deployed

    def beside(self, server: ServerProcess, devices: Callable[[], Deployed]) -> Deployed:
        """What devices do, on cores of their own and in torch on one thread, beside a server that ends with them."""
        import torch

        threads, before = torch.get_num_threads(), kept_to(self.device_cores)
        torch.set_num_threads(1)
        try:
            return devices()
        finally:
            kept_to(before)
            torch.set_num_threads(threads)
            server.stop()

    def end_tokens(self) -> list[int]:
        """Tokens that end an answer of the target."""
        from wisp_gym.testbed.vllm_engine.engine import read_end_tokens

        return sorted(read_end_tokens(self.names["target"]))


def kept_to(chosen: list[int]) -> list[int]:
    """Keep this process to some cores; those that it had."""
    if not hasattr(os, "sched_setaffinity"):
        return chosen
    before = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, chosen)
    return before


def pieces(name: str) -> tuple[str, str]:
    """Speculation and batching of a controller's name.

    Raises:
        InputError: additions, which the testbed's server does not know.
    """
    speculation, *rest = [piece.text for piece in parse(ALIASES.get(name, name))]
    if len(rest) > 1:
        raise InputError(f"--controllers '{name}': allowed are a speculation and a batching rule, without additions")
    return speculation, rest[0] if rest else "wisp"
