"""Controls: each trains a ticket's net again with exactly one thing changed."""

from __future__ import annotations

from collections.abc import Callable

from tombola.errors import InputError, suggestion
from tombola.lab import Run
from tombola.methods.base import Round
from tombola.seeds import stream


def reinit(round: Round, draw: int) -> Run:
    """The same mask, other values: a fresh draw of initial weights from the seed's control stream."""
    lab, run = round.run.lab, round.run
    fresh = lab.task.build(run.seed, "control", "reinit", draw).state_dict()
    return lab.train(run.seed, start=dict(fresh), mask=round.mask, recipe=run.recipe, arm="reinit")


def shuffled(round: Round, draw: int) -> Run:
    """The same values, another mask: kept positions shuffled within each layer, so that layer densities stay."""
    lab, run = round.run.lab, round.run
    mask = round.mask.shuffled(stream(run.seed, "control", "shuffled", draw))
    return lab.train(run.seed, start=round.values, mask=mask, recipe=run.recipe, arm="shuffled")


Control = Callable[[Round, int], Run]
CONTROLS: dict[str, Control] = {"reinit": reinit, "shuffled": shuffled}


def get_control(name: str) -> Control:
    """The control of that name; ``InputError`` with the nearest one for a name that is not known."""
    if name not in CONTROLS:
        raise InputError(f"unknown control {name!r}.{suggestion(name, CONTROLS)}")
    return CONTROLS[name]
