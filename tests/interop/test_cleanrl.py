"""CleanRL's style: PPO in one loop over Gymnasium's vector API, whose statistics of episodes are those of single environments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.interop.replay import Replay, run_page

torch = pytest.importorskip("torch")

NAME, WORLD = "wisp_gym/Speculation-v1", {"devices": 4, "horizon_s": 10.0}
N, STEPS, UPDATES = 8, 64, 6


class Agent(torch.nn.Module):  # type: ignore[name-defined, misc]
    """Actor and critic; masked actions have no chance."""

    def __init__(self, size: int, actions: int):
        super().__init__()
        self.actor = torch.nn.Sequential(torch.nn.Linear(size, 64), torch.nn.Tanh(), torch.nn.Linear(64, actions))
        self.critic = torch.nn.Sequential(torch.nn.Linear(size, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))

    def forward(self, seen: Any, masks: Any) -> tuple[Any, Any]:
        logits = self.actor(seen).masked_fill(masks == 0, -torch.inf)
        return torch.distributions.Categorical(logits=logits), self.critic(seen).squeeze(-1)


def advantages_of(rewards: Any, values: Any, over: Any, gamma: float = 0.99, trace: float = 0.95) -> Any:
    """(T, N) of (T, N) rewards and (T + 1, N) values; over (T + 1, N): the episode had ended before that step."""
    found, last = torch.zeros_like(rewards), torch.zeros(rewards.shape[1])
    for t in reversed(range(len(rewards))):
        goes_on = 1.0 - over[t + 1]
        last = rewards[t] + gamma * values[t + 1] * goes_on - values[t] + gamma * trace * goes_on * last
        found[t] = last
    return found


def improve(agent: Agent, optimizer: Any, batch: dict[str, Any]) -> float:
    """One step of PPO on a batch; the loss."""
    chances, values = agent(batch["seen"], batch["masks"])
    ratio = (chances.log_prob(batch["actions"]) - batch["log_chances"]).exp()
    gain = torch.minimum(ratio * batch["advantages"], ratio.clamp(0.8, 1.2) * batch["advantages"]).mean()
    loss = 0.5 * ((values - batch["returns"]) ** 2).mean() - gain - 0.01 * chances.entropy().mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
    optimizer.step()
    return float(loss.detach())


class Played:
    """Episodes of each world as they are played; at the next step after an end nothing happens but the reset."""

    def __init__(self, first: np.ndarray):
        self.replay = Replay(NAME, range(1, N + 1), **WORLD)
        self.parts: list[Any] = [([row], [], []) for row in first]
        self.resets = np.zeros(N, bool)

    def add(self, seen: np.ndarray, actions: Any, rewards: np.ndarray, infos: dict[str, Any], over: np.ndarray) -> None:
        """A step of all worlds."""
        for k in range(N):
            if self.resets[k]:
                assert rewards[k] == 0.0
                self.parts[k] = ([seen[k]], [], [])
                continue
            observations, taken, paid = self.parts[k]
            observations.append(seen[k])
            taken.append(actions[k])
            paid.append(rewards[k])
            if over[k]:
                assert self.replay.check(observations, taken, paid)["invalid_actions"] == 0
                assert infos["episode"]["r"][k] == pytest.approx(sum(paid), rel=1e-4, abs=1e-4)
                assert infos["episode"]["l"][k] == len(paid)
        self.resets = over


def test_the_loop_trains_and_its_episodes_are_right() -> None:
    torch.manual_seed(0)
    envs = run_page("CleanRL")["envs"]
    agent = Agent(envs.single_observation_space.shape[0], int(envs.single_action_space.n))
    optimizer = torch.optim.Adam(agent.parameters(), 1e-3)
    seen, infos = envs.reset(seed=1)
    played, over = Played(seen), torch.zeros(N)
    for _ in range(UPDATES):
        rows: dict[str, list[Any]] = {
            name: [] for name in ("seen", "masks", "actions", "log_chances", "values", "over", "rewards")
        }
        for _ in range(STEPS):
            now, masks = torch.as_tensor(seen), torch.as_tensor(infos["action_mask"])
            with torch.no_grad():
                chances, values = agent(now, masks)
                actions = chances.sample()
            row = {
                "seen": now,
                "masks": masks,
                "actions": actions,
                "log_chances": chances.log_prob(actions),
                "values": values,
                "over": over,
            }
            seen, rewards, _, truncated, infos = envs.step(actions.numpy())
            played.add(seen, actions.numpy(), rewards, infos, truncated)
            over = torch.as_tensor(truncated, dtype=torch.float32)
            for name, value in (row | {"rewards": torch.as_tensor(rewards, dtype=torch.float32)}).items():
                rows[name].append(value)
        with torch.no_grad():
            last = agent(torch.as_tensor(seen), torch.as_tensor(infos["action_mask"]))[1]
        batch = {name: torch.stack(values) for name, values in rows.items()}
        values, ends = torch.vstack([batch["values"], last]), torch.vstack([batch["over"], over])
        batch["advantages"] = advantages_of(batch["rewards"], values, ends)
        batch["returns"] = batch["advantages"] + batch["values"]
        flat = {name: part.flatten(0, 1) for name, part in batch.items()}
        assert all(np.isfinite(improve(agent, optimizer, flat)) for _ in range(4))
    assert played.replay.episodes >= N
