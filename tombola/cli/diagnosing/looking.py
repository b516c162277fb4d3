"""What the diagnostics of nets share: their options, and how they print numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from tombola.cli.options import OF_METHODS, all_of, data_root_option, option, recipe_options, seeds_option, store_option
from tombola.durations import Duration
from tombola.errors import InputError
from tombola.recipe import Recipe

Function = TypeVar("Function", bound=Callable[..., Any])

NET, TRAINING, EXAMPLES, RUNNING = "Which nets", "Training", "What is looked at", "Running"


def durations(ctx: click.Context, param: click.Parameter, text: str | None) -> list[Duration] | None:
    """A callback for an option: ``"0it,50it,2ep"`` as durations."""
    try:
        return None if text is None else [Duration.of(part) for part in text.split(",")]
    except InputError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def at_option(default: str) -> Callable[[Function], Function]:
    """``--at``."""
    return option(
        "--at",
        section=EXAMPLES,
        callback=durations,
        metavar="DURATION,...",
        help=f"steps of the training to look at  [default: {default}]",
    )


def examples_options(function: Function) -> Function:
    """``--per-class`` and ``--mode``."""
    function = option(
        "--mode",
        section=EXAMPLES,
        default="train",
        type=click.Choice(["train", "eval"]),
        help="batch normalisation by each batch's statistics, or by the running ones  [default: train]",
    )(function)
    return option(
        "--per-class",
        section=EXAMPLES,
        default=50,
        type=click.IntRange(1, 1_000_000),
        metavar="INTEGER",
        help="training examples of each class that it is looked at with  [default: 50]",
    )(function)


def training_options(default_seed: str, default: str, skip: tuple[str, ...]) -> Callable[[Function], Function]:
    """``--seed``, the options of a training, ``--store`` and ``--data-root``."""
    parts = [
        seeds_option(NET, default_seed),
        recipe_options(Recipe, section=TRAINING, defaults=default, skip=(*skip, *OF_METHODS)),
        store_option(RUNNING),
        data_root_option(RUNNING),
    ]
    return all_of(parts)


def changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with other values in some fields. ``InputError`` for what doesn't go together."""
    from tombola.recipe import checked

    return checked(Recipe, {**recipe.model_dump(), **changes})


def mean(values: Iterable[float]) -> str:
    """The mean of what is there, in four digits; a dash where nothing is."""
    from tombola.report.tables import DASH, Spread

    spread = Spread.of(values)
    return DASH if spread is None else f"{spread.mean:.4g}"
