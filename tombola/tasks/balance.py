"""A few examples of each class, for scores that take gradients on training data."""

from __future__ import annotations

import torch
from torch import Tensor

from tombola.batches import tensors
from tombola.tasks.task import Examples

_AT_ONCE = 4096


def balanced(data: Examples, per_class: int, generator: torch.Generator) -> Tensor:
    """The numbers of ``per_class`` examples of each class, drawn at random and in random order (1-D int64).

    Fewer of a class that has no more. Of data without classes (batches other than inputs and int64 labels), ten times
    ``per_class`` examples at random.
    """
    order = torch.randperm(len(data), generator=generator)
    labels = _labels(data, order)
    if labels is None:
        return order[: 10 * per_class]
    labels = torch.unique(labels, return_inverse=True)[1]  # classes may have any numbers
    # Stable: within a class in the random order; then each example's place in its class.
    by_class = labels.argsort(stable=True)
    counts = labels.bincount()
    place = torch.empty_like(by_class)
    place[by_class] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    return order[place < per_class]


def _labels(data: Examples, order: Tensor) -> Tensor | None:
    """The class of each example, in this order; None for data without classes."""
    known = getattr(data, "y", None)
    if isinstance(known, Tensor) and _are_classes(known):
        return known.cpu()[order]
    # A first look at a few tells whether there are classes at all.
    if _classes(data.take(order[:2])) is None:
        return None
    found = [_classes(data.take(part)) for part in torch.split(order, _AT_ONCE)]
    return torch.cat([part.cpu() for part in found if part is not None])


def _classes(batch: object) -> Tensor | None:
    """The labels of a batch of inputs and classes; None for another batch."""
    found = tensors(batch)
    return found[1] if len(found) == 2 and _are_classes(found[1]) else None


def _are_classes(labels: Tensor) -> bool:
    return labels.dtype == torch.int64 and labels.dim() == 1 and not bool((labels < 0).any())
