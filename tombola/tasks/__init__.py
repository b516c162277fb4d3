"""Tasks: what to train, on what, judged by what. The registry of the built-in ones, and ``Task`` for your own."""

from __future__ import annotations

from tombola.errors import InputError, suggestion
from tombola.tasks.deep import DEEP
from tombola.tasks.task import Examples, Splits, Task, accuracy, cross_entropy
from tombola.tasks.vision import SMALL

__all__ = ["TASKS", "Examples", "Splits", "Task", "accuracy", "cross_entropy", "get_task"]

TASKS: dict[str, Task] = {task.name: task for task in (*SMALL, *DEEP)}


def get_task(name: str) -> Task:
    """The built-in task of that name; ``InputError`` with the nearest one for a name that is not known."""
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}.{suggestion(name, TASKS)}")
    return TASKS[name]
