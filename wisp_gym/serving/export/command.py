"""Export a policy or a rule for real servers: one ONNX file that `wisp_gym.serving` runs without torch.

    wisp-gym export runs/ppo-Speculation-v1_1 -o policy.onnx
    wisp-gym export aligned --scenario wisp-a100-qwen3-32b -o aligned.onnx
    wisp-gym export --batching wisp -o batching.onnx
    wisp-gym export mine.onnx --decision token -o policy.onnx

The file holds the whole decision (normalisation, network or rule, masking, decoding) and its schema: features with units and
ranges, meaning of the actions, the commit that trained it, the hash of its scenario. The same input gives the same bytes.
A graph of another architecture (mine.onnx) is copied into it; `wisp_gym.serving.build_bundle` says what it must be.
With --check it is compared with torch and with the engine's compiled policy on recorded observations.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from wisp_gym.cli import Parser, output_file, whole
from wisp_gym.controllers.choice import names_choice
from wisp_gym.controllers.names import is_policy
from wisp_gym.controllers.policy import load_policy, saved_decision
from wisp_gym.controllers.predict import named
from wisp_gym.controllers.shipped import shipped_names
from wisp_gym.errors import InputError, require
from wisp_gym.files import write_bytes
from wisp_gym.scenario import DEFAULT_SCENARIO, load
from wisp_gym.serving.bundle.bundle import from_bytes, schema
from wisp_gym.serving.bundle.names import find
from wisp_gym.serving.export import policies
from wisp_gym.serving.export.build import DECISIONS, bundle_of

PROGRAM = "wisp-gym export"


def parse(arguments: Sequence[str] | None) -> Namespace:
    """The flags."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add(
        "policy",
        metavar="RUN|RULE|ONNX",
        help="run folder, policy.json, a shipped policy, a rule such as wisp, fixed:4, aligned, or an ONNX graph of your own",
    )
    add("--decision", choices=DECISIONS, default="token", help="what an ONNX graph decides (default token)")
    add("--batching", action="store_true", help="the rule is a server's (wisp, edf-demoted …), not a device's")
    add("-o", "--output", type=output_file(".onnx"), required=True, metavar="FILE", help="the bundle to write")
    add("--scenario", default="", metavar="NAME|FILE",
        help=f"a rule's scenario (default {DEFAULT_SCENARIO}); that of a run is in its folder")  # fmt: skip
    add("--check", type=whole(1, 10**6), default=0, metavar="N", help="compare on N recorded observations, e.g. 10000")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    flags = parse(arguments)
    if names_choice(flags.policy):
        raise InputError(
            f"'{flags.policy}' chooses a whole controller; allowed: the policies that it takes (`wisp-gym choose`)"
        )
    if flags.policy in shipped_names() and not (flags.scenario or flags.check):
        return write(
            flags.output, find(flags.policy).read_bytes()
        )  # as it was exported from its run, which is not here
    if flags.policy.endswith(".onnx"):
        return write(
            flags.output,
            bundle_of(flags.policy, flags.decision, flags.scenario or DEFAULT_SCENARIO, Path(flags.policy).stem).data,
        )
    if is_policy(flags.policy) and saved_decision(flags.policy) in schema.SCORERS:
        scenario = policies.scenario_of_run(flags.policy, flags.scenario)
        return write(flags.output, policies.scorer_bundle(flags.policy, scenario))
    if flags.batching:
        scenario = load(flags.scenario or DEFAULT_SCENARIO)
        return write(flags.output, policies.batching_bundle(flags.policy, scenario))
    policy = load_policy(flags.policy) if is_policy(flags.policy) else None
    if policy is not None:
        scenario = policies.scenario_of_run(flags.policy, flags.scenario)
        data = policies.learned_bundle(policy, scenario, policies.origin_of_run(flags.policy, scenario))
        controller = named(flags.policy, scenario)
    else:
        scenario = load(flags.scenario or DEFAULT_SCENARIO)
        controller = policies.rule_of(flags.policy, scenario)
        data = policies.rule_bundle(controller, scenario)
    if flags.check:
        require("torch", "train")  # the export itself does without
        from wisp_gym.serving.export.parity import compare

        alike = compare(from_bytes(data), controller, policy, scenario, flags.check)
    write(flags.output, data)
    if flags.check:
        print(alike)


def write(path: Path, data: bytes) -> None:
    """Write a bundle, which must be one that can be read."""
    bundle = from_bytes(data)
    write_bytes(path, data)
    print(f"{path.name}: {bundle.schema.decision} policy, {len(data):,} bytes, sha256 {bundle.sha256}")
