"""The scorer of waiting requests in torch, as a policy of sb3-contrib's MaskablePPO, and its copy for the engine.

The formulas are those of `wisp_gym.rules.scorer`. The critic has the same form with weights of its own and is not
exported.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from torch import nn

from wisp_gym.contract import request, server
from wisp_gym.contract.decisions import OF_SERVERS
from wisp_gym.controllers.scorer_policy import ScorerPolicy, make_scorer, shape_for

CRITIC_LEARNING_RATE = 1e-3
FORBIDDEN = -1e9
WIDTHS = (32, 24, 32)  # hidden, embedding, context: an engine that scores is about as fast as one with a rule


def symlog(x: torch.Tensor) -> torch.Tensor:
    """sign(x)·log(1 + |x|)."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def requests_of(observations: torch.Tensor) -> torch.Tensor:
    """(B, Q, REQUEST) of (B, size) observations."""
    return observations[:, server.SIZE :].reshape(len(observations), -1, request.SIZE)


class Trunk(nn.Module):
    """Embeddings of requests and the pooled context.

    Args:
        widths: hidden, embedding, context. embeds_all: requests that lack no context in memory too.
    """

    def __init__(self, widths: tuple[int, int, int], embeds_all: bool = False):
        super().__init__()
        self.embeds_all = embeds_all
        hidden, embedding, context = widths
        self.hidden = nn.Linear(request.SIZE, hidden)
        self.embedding = nn.Linear(hidden, embedding)
        self.context = nn.Linear(server.SIZE + embedding, context)

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, size) → (B, Q, H) embeddings, zero where no request is embedded, and (B, C) context."""
        requests = requests_of(observations)
        scored = requests[:, :, request.PRESENT] > 0.5
        if not self.embeds_all:
            scored &= requests[:, :, request.UNCACHED_TOKENS] > 0.0
        static = requests[scored]  # few of many places: the others need no work
        static[:, list(request.MOVING)] = 0.0
        each = torch.tanh(self.embedding(torch.tanh(self.hidden(symlog(static)))))
        embeddings = each.new_zeros((*scored.shape, each.shape[1]))
        embeddings[scored] = each
        pooled = embeddings.sum(1) / scored.sum(1, keepdim=True).clamp(min=1)
        inputs = torch.cat([symlog(observations[:, : server.SIZE]), pooled], 1)
        return embeddings, torch.tanh(self.context(inputs))


class Scorer(nn.Module):
    """One score for each action, in the environment's order: picks, launches, wait, chunks, the server's lengths, moves."""

    def __init__(self, decision: str, widths: tuple[int, int, int] = WIDTHS):
        super().__init__()
        self.decision, shape = decision, shape_for(decision, *widths)
        self.trunk, layers = Trunk(widths, embeds_all=shape.lengths > 0), shape.layers()
        self.query, self.heads = (nn.Linear(n_in, n_out) for n_out, n_in in layers[3:])

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """(B, size) → (B, actions)."""
        embeddings, context = self.trunk(observations)
        queries = self.query(context).split(embeddings.shape[2] + 1, 1)
        picks, *stays = ((embeddings @ query[:, :-1, None]).squeeze(2) + query[:, -1:] for query in queries)
        back = 1.0 - 2.0 * requests_of(observations)[:, :, request.STAYS]  # −1 of those who would move back
        return torch.cat([picks, self.heads(context), *(back * score for score in stays)], 1)

    def layers(self) -> list[nn.Linear]:
        """The engine's parts in their order."""
        return [self.trunk.hidden, self.trunk.embedding, self.trunk.context, self.query, self.heads]

    def weights(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(W, b) float32 of each part."""
        return [(part.weight.detach().numpy().copy(), part.bias.detach().numpy().copy()) for part in self.layers()]

    def load(self, policy: ScorerPolicy) -> None:
        """Take the weights of a saved policy."""
        with torch.no_grad():
            for part, (w, b) in zip(self.layers(), policy.layers, strict=True):
                part.weight.copy_(torch.from_numpy(w))
                part.bias.copy_(torch.from_numpy(b))

    def engine_policy(self, **about: Any) -> ScorerPolicy:
        """The scorer as the engine runs it."""
        return make_scorer(self.weights(), self.decision, **about)


def decision_of(actions: int, visible: int) -> str:
    """The decision that has so many actions with so many places for requests."""
    others = {name: shape_for(name, *WIDTHS).layers()[-1][0] for name in OF_SERVERS}
    of_requests = {name: 2 if decision.lengths else 1 for name, decision in OF_SERVERS.items()}
    return next(name for name, n in others.items() if n + of_requests[name] * visible == actions)


class Critic(nn.Module):
    """Value of a state, from a trunk of its own."""

    def __init__(self, widths: tuple[int, int, int] = WIDTHS, embeds_all: bool = False):
        super().__init__()
        self.trunk = Trunk(widths, embeds_all)
        self.value = nn.Linear(widths[2], 1)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """(B, size) → (B, 1)."""
        return self.value(self.trunk(observations)[1])


def divergence(anchor: torch.Tensor, scores: torch.Tensor, masks: torch.Tensor | None) -> torch.Tensor:
    """(B,) KL divergence of the anchor's actions from the policy's, over the valid ones; scores are (B, actions)."""
    invalid = torch.zeros_like(scores, dtype=torch.bool) if masks is None else masks == 0
    p, q = (s.masked_fill(invalid, FORBIDDEN).log_softmax(1) for s in (anchor, scores))
    return (p.exp() * (p - q)).sum(1)


class ScorerActorCritic(MaskableActorCriticPolicy):
    """MaskablePPO's policy whose logits are the scorer's scores; order and number of waiting requests do not matter."""

    scorer: Scorer
    critic: Critic
    anchor: Scorer | None  # where the policy started from

    def _build(self, lr_schedule: Callable[[float], float]) -> None:
        """Scorer, critic and optimiser, in place of the perceptrons."""
        size, actions = self.observation_space.shape[0], int(self.action_space.n)  # type: ignore[index, attr-defined]
        self.scorer = Scorer(decision_of(actions, (size - server.SIZE) // request.SIZE))
        self.critic, self.anchor = Critic(embeds_all=self.scorer.trunk.embeds_all), None
        groups = [
            {"params": list(self.scorer.parameters()), "lr": lr_schedule(1)},
            {"params": list(self.critic.parameters()), "lr": CRITIC_LEARNING_RATE},
        ]
        self.optimizer = self.optimizer_class(groups, **self.optimizer_kwargs)

    def start_from(self, scorer: Scorer) -> None:
        """Take a scorer's weights, and measure from now on how far the policy has come from them."""
        self.scorer.load_state_dict(scorer.state_dict())
        self.anchor = copy.deepcopy(self.scorer).requires_grad_(False)

    def get_distribution(self, obs: Any, action_masks: Any = None) -> Any:
        """Distribution over the valid actions."""
        distribution = self.action_dist.proba_distribution(action_logits=self.scorer(obs))
        if action_masks is not None:
            distribution.apply_masking(action_masks)
        return distribution

    def forward(
        self, obs: torch.Tensor, deterministic: bool = False, action_masks: np.ndarray | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Actions, values and log probabilities."""
        distribution = self.get_distribution(obs, action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self.critic(obs), distribution.log_prob(actions)

    def evaluate_actions(
        self, obs: torch.Tensor, actions: torch.Tensor, action_masks: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Values, log probabilities and, in place of the entropy, −KL(anchor ‖ policy): a price on leaving it."""
        distribution = self.get_distribution(obs, action_masks)
        values, log_probabilities = self.critic(obs), distribution.log_prob(actions)
        if self.anchor is None:
            return values, log_probabilities, distribution.entropy()
        return values, log_probabilities, -divergence(self.anchor(obs), self.scorer(obs), action_masks)

    def predict_values(self, obs: Any) -> torch.Tensor:
        """Values alone."""
        return self.critic(obs)
