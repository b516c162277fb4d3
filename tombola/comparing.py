"""Compare methods: a draw of each at the same densities and with the same training, and what each of them cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tombola.asked import draw_recipe
from tombola.draws import stored_rows, tell_found
from tombola.errors import InputError, TicketError, TombolaError
from tombola.events import Event, Watcher
from tombola.execution import Watched, carry_out, fill_store
from tombola.lab import Lab
from tombola.methods import METHODS, Method, get_method
from tombola.recipe import DrawRecipe, Recipe
from tombola.report.comparison import DENSE
from tombola.schedules import exponential
from tombola.store import Store, is_there
from tombola.tasks import Task, get_task

ALL = "all"
_NO_NAME = ("at_init",)  # it is another one for each criterion, and those have names of their own


@dataclass(frozen=True)
class Done:
    """A draw that is in the store: its rows, those of ``Draw.rows``, and whether they tell of test data."""

    rows: list[dict[str, Any]]
    tested: bool


Outcome = Done | InputError
"""What came of a recipe, or why the method can't be had with the task."""


@dataclass(frozen=True)
class LeftOut:
    """A method that is not compared, and why, for these seeds."""

    method: str
    reason: str
    seeds: tuple[int, ...]


_RUN = ("run", "status", "density", "stop_step", "stop_metric", "end_metric", "validation_metric")
_SPENT = ("find_seconds", "find_flops", "train_seconds", "train_flops", "bytes")


def methods_named(names: Sequence[str]) -> list[str]:
    """The methods of these names; ``all`` stands for every one but ``at_init``, whose criteria have names of their own,
    and ``given``, which searches for nothing.

    Raises ``InputError`` for no name, for an unknown one with the nearest, and for one that is there twice.
    """
    if not names:
        raise InputError("name the methods to compare, e.g. --method imp,snip,rigl, or --method all")
    if ALL in names and len(names) > 1:
        raise InputError("method 'all' stands for every method: leave out the others")
    for name in names:
        if name != ALL:
            get_method(name)
        if names.count(name) > 1:
            raise InputError(f"methods must be named once each, but {name!r} is there {names.count(name)} times")
    return [n for n, m in METHODS.items() if n not in _NO_NAME and not m.given] if ALL in names else list(names)


def ladder(densities: Sequence[float], rate: float) -> list[float]:
    """A ladder from the dense net that meets each density, the densest first, and prunes about ``rate`` a round.

    From a density a to the next b go ``max(1, round(log(b / a) / log(1 - rate)))`` rounds, each of which keeps the same
    share of what is left. Densities between are rounded to 6 digits after the point, or to 4 that count where that is
    more.
    """
    found, above = [], 1.0
    for density in densities:
        rounds = max(1, round(math.log(density / above) / math.log(1 - rate)))
        between = [above * share for share in exponential(density / above, rounds)[:-1]]
        found += [round(d, max(6, 3 - math.floor(math.log10(d)))) for d in between] + [density]
        above = density
    return found


def recipes(
    task: Task,
    methods: Sequence[str],
    *,
    seeds: Sequence[int],
    densities: Sequence[float],
    channel_densities: Sequence[float] | None = None,
    options: Mapping[str, Any],
) -> tuple[list[DrawRecipe], list[LeftOut]]:
    """A recipe for each method and seed, the seeds of a method together; and the methods that refuse theirs.

    A method whose rounds build on each other goes down the ``ladder``, another straight to the densities. Those of
    ``early_bird`` are shares of channels, ``channel_densities`` (default: its own); ``supermask`` finds its own. The
    ``options`` are fields of ``DrawRecipe`` for all of them.

    Raises the first ``InputError`` where every method refuses.
    """
    found: list[DrawRecipe] = []
    refused: dict[str, InputError] = {}
    for name in methods:
        method = get_method(name)
        ending: dict[str, Sequence[float]] = {}
        own = {key: value for key, value in options.items() if key != "rate" or _goes_down(method)}
        if _goes_down(method):
            rate = options.get("rate", DrawRecipe.model_fields["rate"].default)
            ending = {"densities": ladder(densities, rate)}
        elif method.of_channels:
            ending = {"densities": channel_densities} if channel_densities else {}
        elif method.densities:
            ending = {"densities": densities}
        try:
            found += [draw_recipe(task, {**own, **ending, "method": name, "seed": seed}) for seed in seeds]
        except InputError as error:
            refused[name] = error
    if not found:
        raise next(iter(refused.values()))
    return found, [LeftOut(name, str(error), tuple(seeds)) for name, error in refused.items()]


def _goes_down(method: Method) -> bool:
    return method.cumulative and not method.straight


def carry_out_each(
    wanted: Sequence[DrawRecipe],
    *,
    store: str,
    data_root: Path | None = None,
    jobs: int = 1,
    watcher: Watcher | None = None,
) -> list[Outcome]:
    """What comes of each recipe, in order: see ``tombola.execution.carry_out``.

    A method that the task can't have, such as Early-Bird for a net without batch normalisation, gives the
    ``InputError`` that says so, and the others go on. Raises that error where nothing else is left, and every other
    error.
    """
    whole = _whole(wanted, store, data_root)
    tell_found((row for there in whole if there is not None for row in there.rows), watcher)
    missing = [recipe for recipe, there in zip(wanted, whole, strict=True) if there is None]
    known: list[Outcome | None] = [*whole]
    if jobs > 1 and missing:
        failures = fill_store(missing, store=store, data_root=data_root, jobs=jobs, follower=Watched(watcher))
        left = {place: _refusal(error) for place, error in failures.items()}
        watcher = None  # the others are in the store by now, and are only read
        made = iter(left.get(place, there) for place, there in enumerate(_whole(missing, store, data_root)))
        known = [next(made) if there is None else there for there in known]
    found = [
        _outcome(recipe, store, data_root, watcher) if there is None else there
        for recipe, there in zip(wanted, known, strict=True)
    ]
    refused = [outcome for outcome in found if isinstance(outcome, InputError)]
    if len(refused) == len(found):
        raise refused[0]
    return found


def _refusal(error: TombolaError) -> InputError:
    """The error that leaves a method out; every other is raised."""
    if isinstance(error, InputError) and not isinstance(error, TicketError):
        return error
    raise error


def _outcome(recipe: DrawRecipe, store: str, data_root: Path | None, watcher: Watcher | None) -> Outcome:
    """Carry out one draw. What it holds in memory, nets and data, goes with it, as a comparison may have hundreds."""
    try:
        (draw,) = carry_out([recipe], store=store, data_root=data_root, watcher=_naming(recipe.method, watcher))
    except InputError as error:
        return _refusal(error)
    return Done(draw.rows(), draw.lab.splits(recipe.seed).test is not None)


def _whole(wanted: Sequence[DrawRecipe], store: str, data_root: Path | None) -> list[Done | None]:
    """The draws that the store has whole."""
    if not is_there(store):
        return [None] * len(wanted)
    found: list[Done | None] = []
    with Store(store) as opened:
        labs: dict[tuple[str, Recipe], Lab] = {}
        for recipe in wanted:
            key = (recipe.task, recipe.training)
            lab = labs.setdefault(key, Lab(get_task(recipe.task), opened, recipe=recipe.training, data_root=data_root))
            rows = stored_rows(recipe, lab)
            found.append(None if rows is None else Done(rows, lab.splits(recipe.seed).test is not None))
    return found


def _naming(method: str, watcher: Watcher | None) -> Watcher | None:
    """A watcher that is told the method as well, but of dense nets, which all methods share."""
    if watcher is None:
        return None

    def tell(event: Event) -> None:
        shared = event.arm == DENSE or event.kind == "download"
        arm = method if event.arm == "ticket" else f"{method} · {event.arm}"
        watcher(event if shared else replace(event, arm=arm))

    return tell


def left_out(wanted: Sequence[DrawRecipe], outcomes: Sequence[Outcome]) -> list[LeftOut]:
    """The methods that the task can't have."""
    found: dict[tuple[str, str], list[int]] = {}
    for recipe, outcome in zip(wanted, outcomes, strict=True):
        if isinstance(outcome, InputError):
            found.setdefault((recipe.method, str(outcome)), []).append(recipe.seed)
    return [LeftOut(method, reason, tuple(seeds)) for (method, reason), seeds in found.items()]


def rows(wanted: Sequence[DrawRecipe], outcomes: Sequence[Outcome], densities: Sequence[float]) -> list[dict[str, Any]]:
    """One row for each run that is compared: the dense net of each seed, then each method at each density.

    Fields are those of ``Draw.rows``, and ``method``, ``prunes`` (before, during, after), ``asked`` (the density that
    was asked for; None where the method has its own), ``channels`` (the share of channels asked for) and
    ``find_times``, ``train_times``, the operations as multiples of those of the seed's dense training. A round that a
    method gave no result of has ``status`` missing. Rungs of a ladder between the densities are left out.
    """
    dense: dict[int, dict[str, Any]] = {}
    found: list[dict[str, Any]] = []
    whole = {r.method for r, outcome in zip(wanted, outcomes, strict=True) if not isinstance(outcome, InputError)}
    for recipe, outcome in zip(wanted, outcomes, strict=True):
        given = [] if isinstance(outcome, InputError) else [r for r in outcome.rows if r["arm"] == "ticket"]
        own = {row["round"]: row for row in given}
        if own:
            dense.setdefault(recipe.seed, _row(DENSE, "", recipe.seed, own[0]))
        if recipe.method in whole:
            prunes = get_method(recipe.method).prunes
            found += [
                _row(recipe.method, prunes, recipe.seed, own.get(number), **asked)
                for number, asked in _asked(recipe, densities).items()
            ]
    everything = [*(dense[seed] for seed in sorted(dense)), *found]
    for row in everything:
        training = dense.get(row["seed"], {}).get("train_flops")
        for part in ("find", "train"):
            flops = row[f"{part}_flops"]
            row[f"{part}_times"] = flops / training if training and flops is not None else None
    return everything


def _asked(recipe: DrawRecipe, densities: Sequence[float]) -> dict[int, dict[str, float | None]]:
    """The rounds of a draw that are compared, by number, with the density or share of channels asked for."""
    if recipe.densities is None:
        return {1: {}}
    rungs = enumerate(recipe.densities, start=1)
    if get_method(recipe.method).of_channels:
        return {number: {"channels": share} for number, share in rungs}
    return {number: {"asked": density} for number, density in rungs if density in densities}


def _row(
    method: str,
    prunes: str,
    seed: int,
    run: Mapping[str, Any] | None,
    asked: float | None = None,
    channels: float | None = None,
) -> dict[str, Any]:
    known = {"status": "missing"} if run is None else run
    return {
        **{"method": method, "prunes": prunes, "seed": seed, "asked": asked, "channels": channels},
        **{name: known.get(name) for name in (*_RUN, *_SPENT)},
    }
