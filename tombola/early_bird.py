"""Early-Bird tickets (You et al. 2020): channel masks by the scales of batch normalisation, and the rule that draws.

While a net trains, the mask of its channels is looked at again and again; as soon as it has stopped changing the ticket
is drawn, long before the training is over. A channel mask is a ``Mask`` of vectors: for the scale (gamma) of each batch
normalisation, by parameter name, which channels are kept. ``tombola.engines.slimming`` makes a mask of weights of it.

What is meant here by the rule is what the authors' code does, where their words differ: the newest mask is compared
with each of the others in the queue, and a ticket is drawn where no distance exceeds the threshold; one that equals it
draws. The code takes its first look before the first epoch, when all scales are alike and its mask is empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tombola.errors import InputError
from tombola.mask import Mask
from tombola.pruning import prune

WINDOW = 5
"""Masks in the queue, as in the paper."""
DISTANCE = 0.1
"""The largest distance at which masks have settled, as in the paper."""

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def scales(model: nn.Module) -> dict[str, Tensor]:
    """|gamma| of every affine batch normalisation, by parameter name, in the model's order: vectors, on the CPU.

    The authors' code takes ``BatchNorm2d`` only; this takes ``BatchNorm1d`` and ``BatchNorm3d`` as well.

    Raises ``InputError`` for a net without.
    """
    normed = {id(m.weight) for m in model.modules() if isinstance(m, _BATCH_NORMS) and m.affine}
    found = {name: p.detach().abs().cpu() for name, p in model.named_parameters() if id(p) in normed}
    if not found:
        raise InputError("Early-Bird ranks channels by the scales of batch normalisation, and this net has none")
    return found


def channel_mask(scales: Mapping[str, Tensor], density: float) -> Mask:
    """Keep the channels with the largest scales: exactly ``round(density * channels)``, in one ranking over the net.

    Of equal scales the one that comes first is kept, as in ``prune``. Every layer keeps its best channel, whatever its
    rank, as a net cut in two gives no answer; the worst of the others go in its stead. The authors' masks have no such
    care, and keep what is larger than the sorted scale at ``int((1 - density) * channels)``: one channel less.

    Raises ``InputError`` for scales that are not finite, a density outside 0 to 1, and one that keeps fewer channels
    than there are layers.
    """
    for name, scale in scales.items():
        if not bool(scale.isfinite().all()):
            raise InputError(f"scales must be finite, but those of {name!r} are not: did the training diverge?")
    ranks = {name: scale.detach().to("cpu", torch.float64, copy=True) for name, scale in scales.items()}
    layers = [rank for rank in ranks.values() if len(rank)]
    for rank in layers:
        rank[rank.argmax()] = torch.inf  # above all others; the first of equal ones
    mask = prune(ranks, density)
    if mask.kept < len(layers):
        raise InputError(
            f"every layer keeps a channel, and there are {len(layers)} of them, "
            f"but density {density:g} keeps {mask.kept} of {mask.total} channels: raise it"
        )
    return mask


def settled(masks: Sequence[Mask], window: int = WINDOW, distance: float = DISTANCE) -> bool:
    """Whether a ticket is drawn after the newest of ``masks``, the channel masks of all looks so far, oldest first.

    It is as soon as there have been ``window`` looks and the newest mask's normalised Hamming distance to each of the
    ``window - 1`` before it is at most ``distance``.

    Raises ``InputError`` for a window below 2, a distance outside 0 to 1, and masks of different nets.
    """
    check_rule(window, distance)
    if len(masks) < window:
        return False
    return all(masks[-1].distance(other) <= distance for other in masks[-window:-1])


def drawn_at(masks: Sequence[Mask], window: int = WINDOW, distance: float = DISTANCE) -> int | None:
    """The number (from 0) of the first look after which a ticket is drawn; None where none is. See ``settled``."""
    check_rule(window, distance)
    return next((n for n in range(len(masks)) if settled(masks[: n + 1], window, distance)), None)


def distances(masks: Sequence[Mask]) -> Tensor:
    """The normalised Hamming distance of each mask to each: a float64 matrix, symmetric, 0 on its diagonal.

    Raises ``InputError`` for masks of different nets.
    """
    for mask in masks[1:]:
        masks[0].distance(mask)  # refuses what doesn't fit
    rows = [torch.cat([mask[name].flatten() for name in masks[0]]) for mask in masks if mask.total]
    if not rows:
        return torch.zeros(len(masks), len(masks), dtype=torch.float64)
    kept = torch.stack(rows).double()
    counts = kept.sum(dim=1)
    return (counts[:, None] + counts - 2 * kept @ kept.T) / kept.shape[1]


def check_rule(window: int, distance: float) -> None:
    """``InputError`` for a window below 2 and for a distance outside 0 to 1."""
    if window < 2:
        raise InputError(f"masks are compared in a window of 2 or more, but got {window!r}")
    if not 0 <= distance <= 1:
        raise InputError(f"the distance at which masks have settled must be between 0 and 1, but got {distance!r}")
