"""Whether an exported policy decides as its original does, on observations recorded in the environment."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from wisp_gym.contract.device import SCALE, TOKENS_LEFT
from wisp_gym.controllers.policy import Policy
from wisp_gym.controllers.predict import SpeculationPredictor
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario
from wisp_gym.serving.bundle.bundle import Bundle, schema

BY_TOKEN, BY_LENGTH = "wisp_gym/Speculation-v1", "wisp_gym/SpeculationLength-v1"
PLAIN = {"ways": False}
ENVIRONMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    schema.TOKEN: (BY_TOKEN, PLAIN), schema.LENGTH: (BY_LENGTH, PLAIN), schema.TOKEN_WAY: (BY_TOKEN, {}), schema.LENGTH_WAY: (BY_LENGTH, {}),
}  # fmt: skip
WORLDS = 16
Floats = NDArray[np.float32]
Whole = NDArray[np.int64]


def record(scenario: Scenario, decision: str, controller: Controller, n: int, seed: int = 0) -> Floats:
    """(n, SIZE) observations of the deciding devices of some worlds, who act as the controller says."""
    predictor = SpeculationPredictor(controller, scenario)
    name, world = ENVIRONMENTS[decision]
    envs = gym.make_vec(name, WORLDS, "vector_entry_point", scenario=scenario, horizon_s=30.0, **world)
    observations, _ = envs.reset(seed=seed)
    seen = []
    for _ in range(-(-n // WORLDS)):
        seen.append(observations)
        observations = envs.step(predictor.predict(observations)[0])[0]
    return np.concatenate(seen)[:n]


def compiled_actions(controller: Controller, scenario: Scenario, observations: Floats) -> Whole:
    """(n,) what the engine's compiled rule or policy does; it cuts a length to what the round may hold."""
    actions = SpeculationPredictor(controller, scenario).predict(observations)[0]
    return actions if controller.chooses_way else held(actions, observations, scenario)


def held(actions: Whole, observations: Floats, scenario: Scenario) -> Whole:
    """Actions as the engine carries them out: a length at most K and one less than the tokens still wanted."""
    wanted = np.rint(observations[:, TOKENS_LEFT] * SCALE[TOKENS_LEFT]).astype(np.int64) - 1
    return np.minimum(actions, np.maximum(np.minimum(wanted, scenario.max_draft_tokens), 0))


def torch_network(policy: Policy) -> torch.nn.Sequential:
    """The policy's network in torch: (n, SIZE) observations to (n, actions) scores."""
    parts: list[torch.nn.Module] = []
    for w, b in policy.layers:
        linear = torch.nn.Linear(w.shape[1], w.shape[0])
        linear.weight.data, linear.bias.data = torch.from_numpy(w), torch.from_numpy(b)
        parts += [linear, torch.nn.ReLU() if policy.activation == "relu" else torch.nn.Tanh()]
    return torch.nn.Sequential(*parts[:-1])


def compare(bundle: Bundle, controller: Controller, policy: Policy | None, scenario: Scenario, n: int) -> str:
    """One line: how many of n recorded observations the bundle decides as the engine does and, for a network, as torch does."""
    observations = record(scenario, bundle.schema.decision, controller, n)
    ours = bundle.decide({"observation": observations})[0]
    same = int((ours == compiled_actions(controller, scenario, observations)).sum())
    line = f"{same:,} of {n:,} recorded observations decided as by the engine"
    if policy is not None and not policy.chooses_way:
        with torch.no_grad():
            best = torch_network(policy)(torch.from_numpy(observations)).argmax(dim=1).numpy()
        line += f", {int((ours == held(best, observations, scenario)).sum()):,} as by torch"
    return line
