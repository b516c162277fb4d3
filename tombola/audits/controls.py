"""Controls: each trains a ticket's net again with exactly one thing changed.

That needs a net that was trained from its ticket's values, under its mask, as those of most methods are. Where a search
has trained the very net that is its ticket (survivors ``keep``, and the shared values of Deep Compression) there is no
training to repeat, and controls are refused: survivors ``reset`` train the mask that was found, and have them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from tombola.early_bird import scales
from tombola.engines.slimming import slim_mask
from tombola.errors import InputError, suggestion
from tombola.lab import Run
from tombola.mask import Mask, prunable
from tombola.methods.base import Round
from tombola.seeds import stream


def reinit(round: Round, draw: int) -> Run:
    """The same mask, other values: a fresh draw of initial weights from the seed's control stream.

    Schedule and data order begin where the ticket's do: at the start of a fine-tuning, or in the middle of the recipe
    where an Early-Bird ticket was drawn.
    """
    lab, run = round.run.lab, _trained(round)
    fresh = lab.task.build(run.seed, "control", "reinit", draw).state_dict()
    return lab.train(run.seed, start=dict(fresh), mask=round.mask, recipe=run.recipe, arm="reinit")


def shuffled(round: Round, draw: int) -> Run:
    """The same values, another mask: kept positions shuffled within each layer, so that layer densities stay.

    Of a ticket made of whole channels, channels are shuffled among those of their batch normalisation; in a residual
    net, where several feed one sum, that may leave some layer a few weights more or less. Where values
    are trained ones, a position that an earlier round has pruned starts at the 0 that it has.
    """
    lab, run = round.run.lab, _trained(round)
    random = stream(run.seed, "control", "shuffled", draw)
    mask = _channels_shuffled(round, random)
    mask = round.mask.shuffled(random) if mask is None else mask
    return lab.train(run.seed, start=round.values, mask=mask, recipe=run.recipe, arm="shuffled")


def _trained(round: Round) -> Run:
    run = round.run
    if not run.recipe.is_plain:
        raise InputError(
            "a control trains a ticket's net again with one thing changed, but this ticket is what the search for it "
            "has trained: train it anew from initial values (survivors 'reset'), where the method can"
        )
    return run


def _channels_shuffled(round: Round, random: torch.Generator) -> Mask | None:
    """The mask of a net with as many channels of each batch normalisation, but others; None where it has weights."""
    lab, seed = round.run.lab, round.run.seed
    model = lab.task.build(seed)
    if round.mask.keys() <= prunable(model).keys():
        return None
    channels = Mask({name: round.mask[name] for name in scales(model)})
    slim = slim_mask(model, channels.shuffled(random), lab.example(seed))
    return Mask({name: slim[name] for name in round.mask})


Control = Callable[[Round, int], Run]
CONTROLS: dict[str, Control] = {"reinit": reinit, "shuffled": shuffled}


def get_control(name: str) -> Control:
    """The control of that name; ``InputError`` with the nearest one for a name that is not known."""
    if name not in CONTROLS:
        raise InputError(f"unknown control {name!r}.{suggestion(name, CONTROLS)}")
    return CONTROLS[name]
