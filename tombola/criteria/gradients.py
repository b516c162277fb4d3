"""Gradients of the loss for criteria: over any number of batches, with respect to the prunable weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tombola.batches import size_of
from tombola.criteria.base import Loss, Weights
from tombola.errors import InputError


def wanted(weights: Weights) -> dict[str, nn.Parameter]:
    """The prunable parameters, and they alone, set to want a gradient; ``score`` puts the others back.

    ``InputError`` where there are none.
    """
    if not weights.final:
        raise InputError("there is nothing to score: the model has no prunable parameter")
    own = dict(weights.model.named_parameters())
    for name, parameter in own.items():
        parameter.requires_grad_(name in weights.final)
    return {name: own[name] for name in weights.final}


def data(weights: Weights, who: str) -> tuple[Iterable[Any], Loss]:
    """The batches and the loss; ``InputError`` where the caller gave none."""
    if weights.batches is None or weights.loss is None:
        raise InputError(
            f"{who} takes gradients of a loss on data: pass batches=, and loss=, a function of model and batch"
        )
    return iterable(weights.batches), weights.loss


def iterable(batches: Any) -> Iterable[Any]:
    """The batches; ``InputError`` for what can't be gone through."""
    if not isinstance(batches, Iterable):
        raise InputError(f"batches must be a list of batches, or a loader, but got a {type(batches).__name__}")
    return batches


def loss_of(loss: Loss, model: nn.Module, batch: Any) -> Tensor:
    """The loss of one batch; ``InputError`` where it is no scalar that depends on the weights."""
    value = loss(model, batch)
    if not isinstance(value, Tensor) or value.dim() or not value.requires_grad:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"the loss must be a scalar tensor computed from the weights, but got {got}")
    return value


def mean_gradients(weights: Weights, who: str) -> dict[str, Tensor]:
    """For each prunable weight the gradient of the mean loss over all examples of all batches."""
    batches, loss = data(weights, who)
    parameters = wanted(weights)
    total: dict[str, Tensor] = {}
    examples = 0
    for batch in batches:
        value = loss_of(loss, weights.model, batch)
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        size = size_of(batch)
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is not None and name in total:
                total[name].add_(gradient, alpha=size)
            elif gradient is not None:
                total[name] = gradient * size  # a copy: one gradient may serve several parameters
        del value, found
        examples += size
    if not examples:
        raise InputError(f"{who} got no batches: an iterator gives its batches only once, so pass a list")
    return {
        name: total[name].div_(examples) if name in total else torch.zeros_like(p) for name, p in parameters.items()
    }
