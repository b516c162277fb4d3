"""Draws together that a report shows as one: those of one recipe over its seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tombola.store import DrawRecord, RunRecord, Store


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


def with_seeds(store: Store, draw: DrawRecord) -> list[DrawRecord]:
    """The draw, and the newest draw of each other seed that differs from it in the seed alone, by seed."""
    shared = _shared(draw)
    same = [other for other in store.draws() if _shared(other) == shared]
    return sorted(({seed_of(other): other for other in same} | {seed_of(draw): draw}).values(), key=seed_of)
