"""A controller by its one name, in the form that each of its users runs: engine, environment, server.

loaded = load("speculation-v1")                # a shipped policy, a rule, a run folder or policy.json
simulate(scenario, loaded.engine(scenario))    # wisp_gym.simulation
loaded.environment(scenario).predict(observation)
SpeculationController(loaded.bundle(), profile)  # wisp_gym.serving

loaded = load("batching-v1")                   # the same for policies of the server, batching and joint
BatchScheduler(loaded.bundle(), estimator, limits)
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

from wisp_gym.contract.decisions import OF_SERVERS, sets_prices
from wisp_gym.values import texts

if TYPE_CHECKING:
    from wisp_gym.controllers.predict import SpeculationPredictor
    from wisp_gym.controllers.predict_batching import BatchingPredictor
    from wisp_gym.controllers.resolve import Controller
    from wisp_gym.scenario import AnyScenario
    from wisp_gym.serving import Bundle


@dataclass(frozen=True)
class Loaded:
    """A controller by name. What is not used is not imported: a server needs neither numba nor Gymnasium."""

    name: str

    def engine(self, scenario: AnyScenario) -> Controller:
        """For `wisp_gym.simulation.simulate`.

        Where the name has no batching rule, a rule is with first come first served; a batching policy alone is as it was
        trained, beside `speculation-v1` and with `admit`.
        """
        from wisp_gym.controllers.predict import named
        from wisp_gym.scenario import load as load_scenario

        return named(self.name, load_scenario(scenario))

    def environment(self, scenario: AnyScenario) -> SpeculationPredictor | BatchingPredictor:
        """For `wisp_gym/Speculation-v1`, or `Batching-v1` or `Joint-v1`, with the `predict` of stable-baselines3."""
        from wisp_gym.controllers.predict import SpeculationPredictor
        from wisp_gym.controllers.predict_batching import BatchingPredictor

        if self.decides_batches():
            return BatchingPredictor(self.name, scenario, prices=sets_prices(self.decision()))
        return SpeculationPredictor(self.engine(scenario), scenario)

    def decision(self) -> str:
        """What a saved policy decides ("token", "length", "batching", "joint", …); empty for a rule."""
        from wisp_gym.controllers.policy import saved_decision

        return saved_decision(self.name)

    def decides_batches(self) -> bool:
        """Whether it is a policy of the server."""
        return self.decision() in OF_SERVERS

    def bundle(self, decision: str = "token") -> Bundle:
        """For `wisp_gym.serving`: a shipped policy's or rule's, or the `policy.onnx` that was exported beside a policy.json.

        Args:
            decision: whose rule is meant by a rule's name: a device's ("token") or a server's ("batching").

        Raises:
            BundleError: there is none.
        """
        from wisp_gym.serving import load_bundle

        return load_bundle(self.name, decision)


def load(name: str | PathLike[str]) -> Loaded:
    """A controller by name: a shipped policy, a rule of docs/guide/controllers.md, or a saved policy (run folder or policy.json)."""
    return Loaded(texts("a controller's name, or a path").checked("controller", name))
