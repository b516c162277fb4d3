"""Tasks: what to train, on what, judged by what. The registry of the built-in ones, and ``Task`` for your own."""

from __future__ import annotations

from tombola.errors import InputError, suggestion
from tombola.tasks.adapting import AT, adapted
from tombola.tasks.control import CONTROL
from tombola.tasks.deep import DEEP
from tombola.tasks.language import LANGUAGE
from tombola.tasks.pretrained import FROM_A_CHECKPOINT, MADE_HERE, from_checkpoint
from tombola.tasks.quick import QUICK
from tombola.tasks.task import Examples, Splits, Task, accuracy, cross_entropy
from tombola.tasks.vision import SMALL

__all__ = ["TASKS", "Examples", "Splits", "Task", "accuracy", "cross_entropy", "get_task", "in_net_of", "is_known"]

TASKS: dict[str, Task] = {task.name: task for task in (*SMALL, *QUICK, *DEEP, *LANGUAGE, *MADE_HERE, *CONTROL)}
_ADAPTED: dict[str, tuple[Task, Task, Task]] = {}


def get_task(name: str) -> Task:
    """The built-in task of that name.

    Of ``TARGET@SOURCE`` it is the data of one in the net of another (see ``adapting``), of ``FAMILY:CHECKPOINT`` one
    that begins with a pre-trained net (see ``pretrained``). ``InputError`` with the nearest one for a name that is not
    known, and for two that don't go together.
    """
    if name in TASKS:
        return TASKS[name]
    target, at, source = name.partition(AT)
    if not at and (found := from_checkpoint(name)) is not None:
        return found
    if not at:
        raise InputError(f"unknown task {name!r}.{suggestion(name, {*TASKS, *FROM_A_CHECKPOINT})}")
    own, other = get_task(target), get_task(source)
    known = _ADAPTED.get(name)
    if known is None or known[0] is not own or known[1] is not other:
        known = _ADAPTED[name] = (own, other, adapted(own, other))
    return known[2]


def in_net_of(source: Task, target: Task) -> Task:
    """``TARGET@SOURCE`` of two tasks: the one that ``get_task`` gives by that name, where it knows both."""
    if AT not in target.name and is_known(target) and is_known(source):
        return get_task(f"{target.name}{AT}{source.name}")
    return adapted(target, source)


def is_known(task: Task) -> bool:
    """Whether ``get_task`` gives this very task by its name, in every process."""
    try:
        return get_task(task.name) is task
    except InputError:
        return False
