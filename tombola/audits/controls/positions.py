"""Controls that keep the values and change at random which weights the mask keeps."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tombola.audits.controls.base import Control, Subject, own_stream, trained
from tombola.early_bird import scales
from tombola.engines.slimming import slim_mask
from tombola.lab import Run
from tombola.mask import Mask
from tombola.pruning import prune
from tombola.seeds import stream


def shuffled(subject: Subject, draw: int) -> Run:
    """Kept positions shuffled within each layer, so that layer densities stay (Frankle et al. 2021).

    Of a ticket made of whole channels, channels are shuffled among those of their batch normalisation; in a residual
    net, where several feed one sum, that may leave some layer a few weights more or less. Where values
    are trained ones, a position that an earlier round has pruned starts at the 0 that it has.
    """
    random = stream(subject.round.run.seed, *own_stream(subject.round.run, "shuffled", draw))
    mask = _channels_shuffled(subject, random)
    mask = subject.round.mask.shuffled(random) if mask is None else mask
    return trained(subject, "shuffled", draw, mask=mask)


def _channels_shuffled(subject: Subject, random: torch.Generator) -> Mask | None:
    """The mask of a net with as many channels of each batch normalisation, but others; None where it has weights."""
    mask, lab, seed = subject.round.mask, subject.round.run.lab, subject.round.run.seed
    model = lab.task.build(seed)
    if mask.keys() <= lab.task.prunable(model).keys():
        return None
    channels = Mask({name: mask[name] for name in scales(model)})
    slim = slim_mask(model, channels.shuffled(random), lab.example(seed))
    return Mask({name: slim[name] for name in mask})


def random_mask(name: str, allocation: str) -> Callable[[Subject, int], Run]:
    """The training of the control ``name``: as many weights, drawn at random, layer densities by an allocation."""

    def train(subject: Subject, draw: int) -> Run:
        mask = subject.round.mask
        random = stream(subject.round.run.seed, *own_stream(subject.round.run, name, draw))
        scores = {layer: torch.rand(kept.shape, generator=random) for layer, kept in mask.items()}
        return trained(subject, name, draw, mask=prune(scores, mask.density, allocation))

    return train


def _random(name: str, allocation: str, rule: str) -> Control:
    text = f"A random mask of as many weights, {rule}."
    return Control(name, text, "layer densities", random_mask(name, allocation))


POSITIONS = (
    Control(
        "shuffled",
        "The mask's positions shuffled within each layer, initial values kept.",
        "positions",
        shuffled,
        channels=True,
    ),
    _random("random_uniform", "uniform", "every layer at the same density"),
    _random("random_erk", "erk", "layer densities by Erdos-Renyi-Kernel (Evci et al. 2020)"),
    _random("random_smart_ratio", "smart_ratio", "layer densities by smart ratio (Su et al. 2020)"),
)
