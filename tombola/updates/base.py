"""What a rule that changes the mask during training sees and gives, and what the rules have in common.

A rule is a pure function: the same moment gives the same change, whatever came before. All that it carries over from
one update to the next is the ``memory`` it asks for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from tombola.errors import InputError
from tombola.mask import Mask
from tombola.pruning import marked


@dataclass(frozen=True)
class Moment:
    """What a rule sees between two steps of a training."""

    step: int
    """Number of the step that is about to be taken."""
    steps: int
    """Steps of the whole training."""
    every: int
    """Steps between two updates."""
    until: int
    """Updates end before this step."""
    rate: float
    """Learning rate of the step."""
    mask: Mask
    """What is kept now."""
    weights: Mapping[str, Tensor]
    """Current values of the covered parameters, on the CPU; pruned ones are exactly 0. Not to be written to."""
    gradients: Callable[[], Mapping[str, Tensor]]
    """Dense gradients of the loss on this step's batch with respect to the weights; computed only when called."""
    generator: torch.Generator
    """For whatever is drawn at random at this step."""
    memory: Mapping[str, Tensor]
    """What the rule wanted remembered at the last update; empty at first."""


@dataclass(frozen=True)
class Change:
    """What an update does."""

    mask: Mask
    """What is kept from now on."""
    values: Mapping[str, Tensor] = field(default_factory=dict)
    """Whole tensors of covered parameters whose values change beyond pruning; entries outside the mask are 0.

    Elsewhere, what stays kept keeps its value and what is newly kept starts at 0.
    """
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    """What the rule is to see again at the next update."""
    replaces_step: bool = False
    """Whether the update takes the place of the step's training."""


class Rule(Protocol):
    """How a mask changes during training: a frozen dataclass whose fields are its settings, with their defaults.

    Weights or gradients that aren't finite are those of a training that has diverged: a rule then changes nothing, and
    leaves it to the training to end.
    """

    description: ClassVar[str]
    """One line for people."""
    allocation: ClassVar[str]
    """How the first mask's density is spread over layers: a name of ``tombola.pruning.ALLOCATIONS``."""
    every: ClassVar[str]
    """Usual time between two updates, as a duration: ``"1ep"``, ``"100it"``."""
    until: ClassVar[float]
    """Usual end of the updates, as a share of the training."""
    asks_gradients: ClassVar[bool]
    """Whether an update may ask for dense gradients."""

    def update(self, moment: Moment) -> Change:
        """The mask after this moment, and what changes with it."""
        ...


def no_change(moment: Moment) -> Change:
    """Everything stays as it is."""
    return Change(moment.mask, memory=moment.memory)


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether no entry is infinite or NaN."""
    # Extremes carry a NaN on, and finding them is far faster than asking every entry.
    extremes = (torch.stack(torch.aminmax(value.detach())) for value in tensors.values() if value.numel())
    return all(bool(extreme.isfinite().all()) for extreme in extremes)


def magnitudes(values: Tensor) -> Tensor:
    """Absolute values, flat, in a type that can be ranked."""
    flat = values.detach().abs().flatten()
    return flat if flat.dtype in (torch.float32, torch.float64) else flat.float()


def draw_places(taken: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` places at which the bool vector ``taken`` is false, any such set of them as likely as any other.

    They are in no particular order. ``taken`` has at least so many.
    """
    free = len(taken) - int(taken.count_nonzero())
    assert count <= free
    if 2 * count > free:
        chosen = torch.randperm(free, generator=generator)[:count]
    else:  # the few that collide are drawn anew: faster than to put all in a random order
        chosen = torch.empty(0, dtype=torch.int64)
        while len(chosen) < count:
            more = torch.randint(free, (count - len(chosen),), generator=generator)
            chosen = torch.cat([chosen, more]).unique()  # type: ignore[no-untyped-call]
    return marked(~taken)[chosen]


def regrown(survivors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The bool vector ``survivors``, and ``count`` places more at random among all others."""
    kept = survivors.clone()
    kept[draw_places(survivors, count, generator)] = True
    return kept


def with_redrawn_at_zero(moment: Moment, survivors: Mapping[str, Tensor], mask: Mask) -> Change:
    """The change to ``mask``, in which everything but the flat ``survivors`` starts at 0.

    That needs values only for layers in which something was dropped and drawn again at once.
    """
    values = {}
    for name, survive in survivors.items():
        weights = moment.weights[name]
        lost = ~survive.reshape(weights.shape)
        if bool((weights[lost & mask[name]] != 0).any()):
            values[name] = weights.masked_fill(lost, 0.0)
    return Change(mask, values)


def check_setting(name: str, value: float, low: float, high: float = math.inf, *, above: bool = False) -> None:
    """``InputError`` unless ``value`` is a finite number from ``low`` (with ``above``: more than it) to ``high``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (above and value == low):
        least = f"more than {low:g}" if above else f"{low:g} or more"
        most = "" if high == math.inf else f" and at most {high:g}"
        raise InputError(f"{name} must be a number, {least}{most}, but got {value!r}")
