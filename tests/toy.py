"""A small task that trains in a fraction of a second, shared by the tests of labs, methods and resuming."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import tombola as tb
from tombola.asked import draw_recipe
from tombola.draws import Draw, finish
from tombola.lab import Lab
from tombola.seeds import stream
from tombola.tasks.models import gaussian_glorot_


def toy_data(n: int = 330) -> tuple[Tensor, Tensor]:
    g = stream(7, "toy")
    x = torch.randn(n, 12, generator=g)
    y = (x @ torch.randn(12, 3, generator=g) + 0.3 * torch.randn(n, 3, generator=g)).argmax(dim=1)
    return x, y


def toy_net() -> nn.Module:
    """Every kind of state: batch statistics, dropout's random draws, plain weights."""
    layers = (nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, 3))
    return gaussian_glorot_(nn.Sequential(*layers))


def toy_task(**changes: Any) -> tb.Task:
    x, y = toy_data()
    recipe = {"steps": "60it", "batch": 32, "evaluate_every": "10it", "lr": 0.01} | changes.pop("recipe", {})
    fields: dict[str, Any] = {
        "model": toy_net,
        "train": (x[:250], y[:250]),
        "test": (x[250:], y[250:]),
        "name": "toy",
        "recipe": tb.Recipe(**recipe),
        "allocation": "layerwise",
        "rounds": 3,
    }
    return tb.Task(**(fields | changes))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two states have the same names and bits."""
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


def drawn(store: tb.Store, task: tb.Task | None = None, **options: Any) -> Draw:
    """A draw of a task (default: the toy) with its rounds and controls; ``options`` are fields of its recipe."""
    task = toy_task() if task is None else task
    recipe = draw_recipe(task, options)
    return finish(Draw(recipe, Lab(task, store, recipe=recipe.training)))
