"""A training loop of your own: train, prune, rewind, and train again under the guard.

Run it with: python examples/plain_loop.py
"""
# mypy: allow-untyped-calls

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tombola as tb

Digits = tuple[Tensor, Tensor]


def digits() -> tuple[Digits, Digits]:
    """1,500 handwritten digits to train on and 297 to test on, pixels from 0 to 1."""
    found = load_digits()
    x, y = torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return (x[:1500], y[:1500]), (x[1500:], y[1500:])


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Digits, epochs: int = 20) -> None:
    """Nothing here knows of masks."""
    x, y = data
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(60):
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """The share of right answers."""
    x, y = data
    return float((model(x).argmax(dim=1) == y).float().mean())


torch.manual_seed(0)
torch.set_num_threads(1)  # the net is too small for more
training, test = digits()
model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
initial = copy.deepcopy(model.state_dict())

train(model, torch.optim.Adam(model.parameters(), lr=1.2e-3), training)
print(f"dense net: accuracy {accuracy(model, test):.3f}")

mask = tb.prune(tb.score(model, "magnitude"), density=0.1)  # keep the largest tenth of all weights
print(f"mask: {mask.kept} of {mask.total} weights kept, density {mask.density:.3f}")

model.load_state_dict(initial)  # the survivors start again from their initial values,
optimizer = torch.optim.Adam(model.parameters(), lr=1.2e-3, fused=True)  # with fresh optimiser state,
with tb.guard(model, optimizer, mask):  # and what is pruned is zero from here on
    train(model, optimizer, training)
print(f"ticket: accuracy {accuracy(model, test):.3f}")

zeros = sum(int((weight == 0).sum()) for weight in tb.prunable(model).values())
print(f"after training: {zeros} weights are exactly zero, {mask.total - mask.kept} were pruned")
