"""Controls that keep the mask and change the values that its survivors start from."""

from __future__ import annotations

import torch
from torch import Tensor

from tombola.audits.controls.base import Control, Subject, own_stream, trained
from tombola.durations import Duration
from tombola.lab import Run
from tombola.seeds import stream


def reinit(subject: Subject, draw: int, arm: str = "reinit", first: Duration | None = None) -> Run:
    """A fresh draw of the whole initial state from the seed's control stream.

    Schedule and data order begin where the ticket's do: at the start of a fine-tuning, or in the middle of the recipe
    where a ticket is rewound or an Early-Bird ticket was drawn; or at ``first``.
    """
    run = subject.round.run
    fresh = run.lab.task.build(run.seed, *own_stream(run, "reinit", draw)).state_dict()
    return trained(subject, arm, draw, start=dict(fresh), first=first)


def values_shuffled(subject: Subject, draw: int) -> Run:
    """The ticket's own values, permuted among the survivors of each layer (Zhou et al. 2019).

    As with ``Mask.shuffled``, a permutation that happens to change nothing is drawn again. Biases and whatever else is
    no weight stay as they are.
    """
    run, mask = subject.round.run, subject.round.mask
    random = stream(run.seed, *own_stream(run, "values_shuffled", draw))
    start = dict(run.start)
    for name in subject.weights():
        start[name] = _permuted(start[name], mask[name], random)
    return trained(subject, "values_shuffled", draw, start=start)


def signed_reinit(subject: Subject, draw: int) -> Run:
    """The magnitudes of a fresh initial draw, with the signs of the ticket's values (Zhou et al. 2019).

    A survivor that the ticket starts at 0 has no sign, and stays there. Biases and whatever else is no weight stay.
    """
    run = subject.round.run
    fresh = run.lab.task.build(run.seed, *own_stream(run, "signed_reinit", draw)).state_dict()
    start = dict(run.start)
    for name in subject.weights():
        start[name] = fresh[name].abs() * start[name].sign()
    return trained(subject, "signed_reinit", draw, start=start)


def signed_constant(subject: Subject, draw: int) -> Run:
    """Every survivor at its sign times the standard deviation of its layer (Zhou et al. 2019).

    The deviation is that of all initial values of the layer in this seed, pruned ones included, whatever the survivors
    start from. A layer whose initial values are all the same has none, and keeps the ticket's values.
    """
    run = subject.round.run
    initial = run.lab.task.build(run.seed).state_dict()
    start = dict(run.start)
    for name in subject.weights():
        if _differ(initial[name]):
            start[name] = initial[name].std(correction=0) * start[name].sign()
    return trained(subject, "signed_constant", draw, start=start)


def _permuted(values: Tensor, kept: Tensor, random: torch.Generator) -> Tensor:
    survivors = values[kept]
    drawn = survivors
    while _differ(survivors) and torch.equal(drawn, survivors):
        drawn = survivors[torch.randperm(len(survivors), generator=random)]
    out = values.clone()
    out[kept] = drawn
    return out


def _differ(values: Tensor) -> bool:
    """Whether not all values are the same."""
    return bool((values != values.flatten()[:1]).any())


VALUES = (
    Control("reinit", "Fresh initial values under the same mask.", "values", reinit, channels=True),
    Control(
        "values_shuffled",
        "The surviving values permuted among the survivors of their layer.",
        "values",
        values_shuffled,
        channels=True,
    ),
    Control(
        "signed_reinit",
        "Fresh magnitudes with the signs of the surviving values.",
        "magnitudes",
        signed_reinit,
        channels=True,
    ),
    Control(
        "signed_constant",
        "The signs of the surviving values, all of a layer at its initial standard deviation.",
        "magnitudes",
        signed_constant,
        draws=False,
        channels=True,
    ),
)
