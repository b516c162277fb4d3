"""What trainings cost in floating-point operations."""

from __future__ import annotations

import torch
from torch import nn

from tombola.batches import tensors
from tombola.costs import Cost, cost
from tombola.criteria.base import untouched
from tombola.errors import InputError
from tombola.mask import Mask
from tombola.recipe import Recipe
from tombola.tasks.acting import acts
from tombola.tasks.task import Examples


def training_cost(model: nn.Module, mask: Mask, train: Examples) -> Cost | None:
    """What a net costs on these examples; None where it can't be run on the first part of a batch."""
    parts = tensors(train.take(torch.zeros(2, dtype=torch.int64)))  # one has no statistics to normalise by
    if not parts:
        return None
    try:
        with untouched(model, "eval"):
            return cost(model, mask, example=parts[0])
    except InputError:
        return None


def flops_of_steps(cost: Cost, train: Examples, recipe: Recipe, done: int, more: int) -> int:
    """Operations of ``more`` steps of a training that has taken ``done`` before, under one mask.

    Beside those of the batches, one pass of the kept weights for each example that acting takes.
    """
    played = train.forward_passes(done + more, recipe) - train.forward_passes(done, recipe) if acts(train) else 0
    return cost.training_flops(more * min(recipe.batch, len(train))) + cost.kept_flops * played
