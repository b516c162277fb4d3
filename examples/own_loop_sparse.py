"""A training loop of your own at the speed of the kept weights: prune, compile, train with any optimiser, use the net.

Run it with: python examples/own_loop_sparse.py
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


def train(model: nn.Module, data: Digits, epochs: int = 20) -> None:
    """Nothing here knows of masks."""
    x, y = data
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.2e-3, fused=True)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(60):
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()


torch.manual_seed(0)
torch.set_num_threads(1)  # the net is too small for more
training, test = digits()
model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.GELU(), nn.Linear(100, 10))
initial = copy.deepcopy(model.state_dict())

train(model, training)
mask = tb.prune(tb.score(model, "magnitude"), density=0.1)  # keep the largest tenth of all weights
model.load_state_dict(initial)  # the survivors start again from their initial values

fast = tb.compile(model, mask, training[0][:1])  # the example gives the shape of a batch
print(fast.note)  # which layers are sparse, and what is left to torch
numbers = sum(parameter.numel() for parameter in fast.parameters())
print(f"numbers to train: {numbers} of {sum(p.numel() for p in model.parameters())}")

train(fast, training)  # the optimiser sees kept weights only
model.load_state_dict(fast.state_dict())  # names and shapes are the model's

x, y = test
with torch.no_grad():
    print(f"ticket: accuracy {float((fast(x).argmax(dim=1) == y).float().mean()):.3f}")
zeros = sum(int((weight == 0).sum()) for weight in tb.prunable(model).values())
print(f"after training: {zeros} weights are exactly zero, {mask.total - mask.kept} were pruned")
