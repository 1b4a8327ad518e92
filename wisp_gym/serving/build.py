"""The door by which a policy of one's own becomes a bundle; it needs more packages than serving one, and imports them when it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wisp_gym.errors import of_kind, require
from wisp_gym.serving.bundle.bundle import Bundle

if TYPE_CHECKING:
    from wisp_gym.scenario import Scenario


def build_bundle(
    policy: Any, decision: str = "token", *, scenario: str | Path | Scenario = "", made_by: str = ""
) -> Bundle:
    """A policy of one's own as a bundle, checked and ready to serve; `bundle.save(path)` writes its file.

    Args:
        policy: of devices, any network of (n, 36) observations of `wisp_gym/Speculation-v1` that answers (n, actions) scores or (n,)
            actions; of a server, any network of (queue, 28) requests and (1, 21) facts of the server (`wisp_gym/Batching-v1`) that answers
            (queue,) scores of the requests, in whatever order they come, and (1, actions) of all else, and of one that hosts (queue,) of
            moving each session. Given as an ONNX file, its bytes or model, a torch module, a model of stable-baselines3, a list of (W,
            b) with tanh between them, a `Policy`, a `ScorerPolicy`, a run's folder.
        decision: "token", "length", "token-way", "length-way" of devices; "batching", "joint", "batching-hosting", "joint-hosting" of servers.
            A saved policy says its own.
        scenario: whose cap K the policy counts tokens in; default the one of `train.py`. made_by: where it comes from, for who reads it.

    Raises:
        InputError (BundleError): what is no policy of this decision, or larger than a bundle may be; one line.
    """
    require("onnx", "export")
    from wisp_gym.scenario import DEFAULT_SCENARIO
    from wisp_gym.serving.export.build import bundle_of

    of_kind("made_by", made_by, str)
    return bundle_of(policy, decision, scenario or DEFAULT_SCENARIO, made_by or type(policy).__name__)
