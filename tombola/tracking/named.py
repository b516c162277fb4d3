"""Trackers by name: ours, and those of one's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path

from tombola.errors import InputError, suggestion
from tombola.tracking.base import Tracker
from tombola.tracking.jsonlines import EVENTS, JsonLines
from tombola.tracking.mlflow import Mlflow
from tombola.tracking.tensorboard import TensorBoard
from tombola.tracking.wandb import Wandb

TRACKERS: dict[str, Callable[[Path], Tracker]] = {
    "tensorboard": lambda folder: TensorBoard(folder / "tensorboard"),
    "wandb": lambda folder: Wandb(),
    "mlflow": lambda folder: Mlflow(),
}
"""What makes each tracker, given the folder of results."""


def trackers_for(folder: Path, names: Iterable[str]) -> list[Tracker]:
    """Lines of JSON in a folder of results, and the trackers of these names. Raises as ``get_tracker``."""
    return [JsonLines(folder / EVENTS), *(get_tracker(name, folder) for name in names)]


def get_tracker(name: str, folder: Path) -> Tracker:
    """The tracker of that name, or of ``"package.module:Class"``, which is called without arguments.

    Raises ``InputError`` for a name that is not known, a class that can't be imported or made, or that is no
    ``Tracker``, and for a package that is not installed.
    """
    module, colon, own = name.partition(":")
    if name not in TRACKERS and (not (module and colon and own) or module.startswith(".")):
        raise InputError(
            f"unknown tracker {name!r}.{suggestion(name, TRACKERS)} One of your own is given as package.module:Class."
        )
    try:
        made = TRACKERS[name](folder) if name in TRACKERS else getattr(importlib.import_module(module), own)()
    except InputError:
        raise
    except Exception as error:  # other people's code may raise anything
        raise InputError(f"the tracker {name!r} can't be made: {type(error).__name__}: {error}") from error
    if not isinstance(made, Tracker):
        raise InputError(
            f"the tracker {name!r} must have the methods start, log, finish and close, but is a {type(made).__name__}"
        )
    return made
