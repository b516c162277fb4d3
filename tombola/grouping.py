"""Draws together that a report shows as one: those of one recipe over its seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tombola.store import DrawRecord, RunRecord, Store

_TOLD, _LONG = 3, 32  # fields that tell recipes of one method apart, at most; letters of a value that is shown whole


def task_of(draw: DrawRecord) -> str:
    """The name of a draw's task; empty where its record lacks one."""
    return str(draw.about.get("task", ""))


def heading_of(task: str) -> str:
    """A task's name as it is read in a heading or a sentence: of the path to a checkpoint its last two parts."""
    return re.sub(r":/[^@]*/([^/@]+/[^/@]+)", r":\1", task)


def seed_of(draw: DrawRecord) -> int:
    """The seed of a draw; 0 where its record lacks one."""
    seed = draw.about.get("seed")
    return seed if isinstance(seed, int) else 0


def task_of_run(run: RunRecord) -> str:
    """The name of a run's task; empty where its record lacks one."""
    task = run.about.get("task")
    return str(task.get("name", "") if isinstance(task, Mapping) else task or "")


def recipe_of(draw: DrawRecord) -> dict[str, Any]:
    """The recipe of a draw without its seed; empty where its record lacks one."""
    recipe = draw.about.get("recipe")
    return {k: v for k, v in recipe.items() if k != "seed"} if isinstance(recipe, Mapping) else {}


def _shared(draw: DrawRecord) -> str:
    """What draws that differ in their seed alone have in common."""
    return json.dumps([task_of(draw), draw.about.get("metric"), recipe_of(draw)], sort_keys=True)


def by_recipe(draws: Sequence[DrawRecord]) -> list[list[DrawRecord]]:
    """Draws that differ in their seed alone together, by seed; two of one seed (of other data, say) apart."""
    groups: dict[tuple[str, int], list[DrawRecord]] = {}
    for draw in draws:
        shared, number = _shared(draw), 0
        while any(seed_of(other) == seed_of(draw) for other in groups.get((shared, number), ())):
            number += 1
        groups.setdefault((shared, number), []).append(draw)
    return [sorted(group, key=seed_of) for group in groups.values()]


def labels(groups: Sequence[Sequence[DrawRecord]]) -> list[str]:
    """The method of each group; with the task where there are several, and numbered where a method occurs again."""
    tasks = {task_of(group[0]) for group in groups}
    found: list[str] = []
    for group in groups:
        method = str(recipe_of(group[0]).get("method", "draw"))
        name = method if len(tasks) == 1 else f"{heading_of(task_of(group[0]))}, {method}"
        again = sum(label == name or label.startswith(f"{name}, recipe ") for label in found)
        found.append(f"{name}, recipe {again + 1}" if again else name)
    return found


def differing(groups: Sequence[Sequence[DrawRecord]]) -> list[str]:
    """What tells each group from the others of its task and method: fields of their recipes that differ, at most three,
    those with short values first; empty where there are no others."""
    recipes = [flat(recipe_of(group[0])) for group in groups]
    kinds = [(task_of(group[0]), recipe.get("method")) for group, recipe in zip(groups, recipes, strict=True)]
    alike: dict[Any, list[dict[str, str]]] = {}
    for kind, recipe in zip(kinds, recipes, strict=True):
        alike.setdefault(kind, []).append(recipe)
    told = {}
    for kind, same in alike.items():
        names = dict.fromkeys(name for recipe in same for name in recipe)
        several = [name for name in names if len({recipe.get(name) for recipe in same}) > 1]
        told[kind] = sorted(several, key=lambda name: max(len(recipe.get(name, "")) > _LONG for recipe in same))
    return [
        ", ".join(f"{name.removeprefix('training.')} {_short(recipe.get(name))}" for name in told[kind][:_TOLD])
        for kind, recipe in zip(kinds, recipes, strict=True)
    ]


def flat(found: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one, every value as text; what is None or empty is left out."""
    made: dict[str, str] = {}
    for key, value in found.items():
        if isinstance(value, Mapping):
            made |= flat(value, f"{prefix}{key}.")
        elif value not in (None, "", [], ()):
            listed = isinstance(value, (list, tuple))
            made[f"{prefix}{key}"] = ", ".join(map(str, value)) if listed else str(value)
    return made


def _short(value: str | None) -> str:
    """Both ends of a long value."""
    half = _LONG // 2
    return "none" if value is None else value if len(value) <= _LONG else f"{value[:half]} ... {value[-half:]}"


def with_seeds(store: Store, draw: DrawRecord) -> list[DrawRecord]:
    """The draw, and the newest draw of each other seed that differs from it in the seed alone, by seed."""
    shared = _shared(draw)
    same = [other for other in store.draws() if _shared(other) == shared]
    return sorted(({seed_of(other): other for other in same} | {seed_of(draw): draw}).values(), key=seed_of)
