"""Networks of other architectures than ours, for devices and for servers."""

from __future__ import annotations

import torch

from wisp_gym.contract import request, server


class Attends(torch.nn.Module):
    """A network that no perceptron is: attention over groups of entries, layer normalisation, SiLU and GELU."""

    def __init__(self, actions: int):
        super().__init__()
        torch.manual_seed(0)
        self.inside, self.norm = torch.nn.Linear(9, 8), torch.nn.LayerNorm(8)
        self.query, self.key, self.value = (torch.nn.Linear(8, 8) for _ in range(3))
        self.outside, self.drop = torch.nn.Linear(32, actions), torch.nn.Dropout(0.5)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """(n, 36) → (n, actions)."""
        groups = torch.nn.functional.gelu(self.norm(self.inside(observation.reshape(-1, 4, 9))))
        shares = torch.softmax(self.query(groups) @ self.key(groups).transpose(1, 2) / 8**0.5, dim=2)
        mixed = torch.nn.functional.silu(groups + shares @ self.value(groups)).clamp(min=-3.0)
        return self.outside(self.drop(mixed.flatten(1)))


class AttendsOverQueue(torch.nn.Module):
    """A scorer of another architecture: attention of the requests to each other."""

    def __init__(self, actions: int, hosts: bool = False, ordered: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.inside, self.seen = torch.nn.Linear(request.SIZE, 16), torch.nn.Linear(server.SIZE, 16)
        self.query, self.key, self.value = (torch.nn.Linear(16, 16) for _ in range(3))
        self.pick, self.others = torch.nn.Linear(16, 2), torch.nn.Linear(16, actions)
        self.hosts, self.ordered = hosts, ordered

    def forward(self, requests: torch.Tensor, globals: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(queue, 28), (1, 21) → (queue,), (1, actions), and (queue,) of one that hosts."""
        rows = torch.tanh(self.inside(requests) + self.seen(globals))
        heads = [part(rows).reshape(-1, 2, 8).transpose(0, 1) for part in (self.query, self.key, self.value)]
        attended = torch.nn.functional.scaled_dot_product_attention(*heads)
        mixed = rows + attended.transpose(0, 1).flatten(1)
        if self.ordered:
            mixed = mixed + mixed[:1]
        scores = self.pick(mixed)
        found = scores[:, 0], self.others(mixed.mean(0, keepdim=True))
        return (*found, scores[:, 1]) if self.hosts else found
