"""sb3-contrib: MaskablePPO finds the masks by itself, and never takes a masked action."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from tests.interop.replay import run_page

pytest.importorskip("sb3_contrib")
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported

from wisp_gym.sb3 import DecisionVecEnv


def test_the_pages_lines_train_and_mind_the_masks() -> None:
    found = run_page("sb3-contrib", also="masked = envs.task.outcomes")
    model, envs = found["model"], found["envs"]
    assert model.num_timesteps >= 3_000
    assert is_masking_supported(model.get_env())
    assert (envs.task.told()["invalid_actions"] == 0).all()  # of the episodes under way after training
    fresh = DecisionVecEnv(
        gym.make_vec("wisp_gym/Batching-v1", num_envs=2, devices=8, visible=8, horizon_s=3.0), seed=1
    )
    seen, ended = fresh.reset(), 0
    while ended < 4:
        masks = get_action_masks(fresh)
        actions, _ = model.predict(seen, action_masks=masks)
        assert masks[np.arange(2), actions].all()
        seen, _, over, _ = fresh.step(actions)
        ended += int(over.sum())
        assert (fresh.envs.task.told()["invalid_actions"] == 0).all()
