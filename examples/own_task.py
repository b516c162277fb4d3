"""A net and data of your own as a task: search for a ticket, keep it in a file, train from the file.

Run it with: python examples/own_task.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import tombola as tb


def make_net() -> nn.Module:
    """A small net; its weights are drawn anew at every call."""
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def make_data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points in 20 dimensions; the first three alone decide the class."""
    x = torch.randn(count, 20, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] * x[:, 1] + x[:, 2] > 0).long()


task = tb.Task(
    name="three-of-twenty",
    model=make_net,
    train=make_data(4000, seed=1),
    validation=make_data(1000, seed=2),
    test=make_data(1000, seed=3),
    recipe=tb.Recipe(steps="400it", batch=100, lr=3e-3, evaluate_every="50it"),
)

with tempfile.TemporaryDirectory() as folder:  # give a folder of your own to keep every run, and resume after a stop
    ticket = tb.draw(task, rounds=5, rate=0.3, allocation="global", margin=0.01, seed=0, store=Path(folder) / "runs")
    results = ticket.origin["results"]
    print(f"round {ticket.origin['round']} of 5, density {ticket.density:.3f}")
    print(f"dense net: accuracy {results['dense']['stop']['test_accuracy']:.3f}")
    print(f"ticket: accuracy {results['ticket']['stop']['test_accuracy']:.3f}")

    path = ticket.save(Path(folder) / "three-of-twenty.ticket")
    loaded = tb.load(path)
    print(f"file: {path.stat().st_size} bytes, the same ticket: {loaded == ticket}")

net = loaded.model(make_net)  # initial values, pruned weights zero: train it under tb.guard
zeros = sum(int((weight == 0).sum()) for weight in tb.prunable(net).values())
print(f"net: {zeros} weights are zero, {loaded.mask.total - loaded.mask.kept} are pruned")
