"""The control that keeps what the criterion scores lowest."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tombola.at_init import prune_at_init
from tombola.audits.controls.base import Control, Subject, trained
from tombola.audits.controls.pruned import chosen_from, values_after
from tombola.criteria import Criterion, Scores, Traits, Weights, criterion, score, traits
from tombola.criteria.base import checked, refuse_nan
from tombola.errors import InputError
from tombola.lab import Run
from tombola.mask import Mask
from tombola.methods import AtInit, Method, Search
from tombola.pruning import Layerwise, prune
from tombola.seeds import stream

TRAINED = ("lr-rewind", "fine-tune")
"""Survivors whose values are those of the net that was pruned, which may depend on what is kept."""


@dataclass(frozen=True)
class Lowest:
    """A criterion upside down: each layer's order of scores, and of ties, reversed."""

    by: str | Criterion

    @property
    def traits(self) -> Traits:
        """Those of the criterion, but for the care to leave every layer its best score."""
        return replace(traits(criterion(self.by)), cautious=False)

    def __call__(self, weights: Weights) -> Scores:
        """For each entry, how many of its layer rank above it."""
        scores = checked(criterion(self.by)(weights), weights, self.by)
        refuse_nan(scores, self.by)
        return {name: _places(score) for name, score in scores.items()}


def _places(scores: Tensor) -> Tensor:
    order = scores.flatten().argsort(descending=True, stable=True)  # of equal ones the earlier is kept first
    places = torch.empty(len(order), dtype=torch.float64, device=order.device)
    places[order] = torch.arange(len(order), dtype=torch.float64, device=order.device)
    return places.reshape(scores.shape)


def inverted(subject: Subject, draw: int) -> Run:
    """As many weights of each layer as the ticket has, but those that score lowest (Frankle et al. 2021).

    All else is the search's own: the net that is scored, the data, the weights to choose from. After training these are
    the ones that the round before has left, so that only the last pruning is upside down. Before training each round of
    scoring keeps the lowest, and every layer's density falls geometrically to the ticket's own; rounds that a criterion
    puts in between by itself are left out.
    """
    search, method = subject.found_by("inverted")
    if (reason := _unscored(method)) is not None:
        raise InputError(f"control 'inverted' {reason}: leave it out")
    if isinstance(method, AtInit):
        return trained(subject, "inverted", draw, mask=_at_init(subject, search, method))
    pruned, within = subject.round.search[-1], chosen_from(subject)
    by, number = search.criterion, subject.round.number
    scores = score(
        pruned.model().to(search.lab.recipe.device),
        Lowest(by),
        mask=within,
        initial=subject.round.search[0].start,
        generator=stream(search.seed, "criterion", number),
        **search.for_gradients(by),
    )
    mask = prune(scores, allocation={layer.name: layer.density for layer in subject.round.mask.layers()}, within=within)
    values = values_after(subject, search, mask) if search.survivors.kind in TRAINED else None
    return trained(subject, "inverted", draw, start=values, mask=mask)


def _at_init(subject: Subject, search: Search, method: AtInit) -> Mask:
    mask, by = subject.round.mask, search.criterion
    model = search.lab.task.build(search.seed).to(search.lab.recipe.device)
    return prune_at_init(
        model,
        Lowest(by),
        mask.density,
        rounds=search.scoring.rounds or method.rounds,
        allocation=_falling(mask),
        within=search.whole(model),
        generator=stream(search.seed, "criterion", subject.round.number),
        **search.for_gradients(by),
    )


def _falling(mask: Mask) -> Layerwise:
    """Layer densities that are the mask's own at its density, and powers of them on the way there."""
    lost = {layer.name: min(1 - layer.density, 1 - 1e-12) for layer in mask.layers()}
    return Layerwise(0.5, {name: 2 * share for name, share in lost.items()})


def _unscored(method: Method) -> str | None:
    return None if method.scores else "keeps the weights that a criterion scores lowest, but this method scores none"


SCORES = (
    Control(
        "inverted",
        "In each layer as many weights, but those that the criterion scores lowest.",
        "scores",
        inverted,
        draws=False,
        reason=lambda asked: _unscored(asked.method),
    ),
)
