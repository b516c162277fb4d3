"""``tombola draw --list-tasks`` and ``--list-methods``: what there is to draw, and by what."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import click

from tombola.cli import output

if TYPE_CHECKING:
    from tombola.tasks import Task
    from tombola.tasks.pretrained.bert import Family

_UNITS = ((365 * 86_400, "years"), (86_400, "days"), (3_600, "hours"), (60, "minutes"), (1, "seconds"))
_HEADS = ("task", "needs", "one core", "GPU", "recipe of a draw")


def tasks(as_json: bool) -> None:
    """Print the tasks: name, needs, rough times and recipe in short, and in a line of its own network and data."""
    from tombola.task_times import GPU_FLOPS, GPU_LEAST, known

    found = _tasks()
    if as_json:
        output.document(found)
        return
    rows = [_HEADS, *(_row(task) for task in found)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEADS))]
    lines = []
    for row, about in zip(rows, ["network and data", *(task["description"] for task in found)], strict=True):
        cells = (
            cell.rjust(w) if head in ("one core", "GPU") else cell.ljust(w)
            for head, cell, w in zip(_HEADS, row, widths, strict=True)
        )
        lines += ["  ".join(cells).rstrip(), f"    {about}"]
    output.sentence("\n".join(output.inert(line) for line in lines))
    measured = known().machines.get("cpu", {}).get("machine", "unknown")
    click.echo()
    output.sentence(
        "Times are of a whole draw of one seed, every round at the speed of the dense net, so an upper end; two seeds "
        f"take as long on two cores (-j 2). One core: from steps and evaluations measured on one of {measured}. GPU: "
        f"with ~ not measured but reckoned, for one that does {GPU_FLOPS / 1e12:g} TFLOP/s in practice and takes "
        f"{1000 * GPU_LEAST:g} ms for a step at least; decoding image files on the CPU may take longer. Games are "
        "played on the CPU, which bounds their steps: more cores help, a GPU little."
    )
    output.sentence("[NAME] is an extra: pip install 'tombola[NAME]'.")
    output.sentence(
        "CHECKPOINT is a folder of Transformers or a name on the Hugging Face hub; times are those of BERT base, of "
        "the -small ones those of the net that tombola train wikitext2-mlm-small makes."
    )


def _tasks() -> list[dict[str, Any]]:
    """All that is known of each task; a task that begins with a checkpoint is one of any."""
    from tombola.tasks import TASKS
    from tombola.tasks.pretrained import FROM_A_CHECKPOINT

    found = [
        _about(name, task) | {"allocation": task.allocation, "relative_rates": dict(task.relative_rates)}
        for name, task in TASKS.items()
    ]
    return found + [_about(f"{name}:CHECKPOINT", family) for name, family in FROM_A_CHECKPOINT.items()]


def _about(name: str, task: Task | Family) -> dict[str, Any]:
    from tombola.task_times import known
    from tombola.tasks.data.sources import SOURCES

    recipe = task.recipe
    data = [SOURCES[own] for own in task.data_sets]
    about: dict[str, Any] = {
        "name": name,
        "description": task.description,
        "in_short": f"{task.rounds} rounds of {recipe.steps}, batch {recipe.batch}, {recipe.optimizer} {recipe.lr:g}",
        "data": [
            {"name": s.name, "title": s.title, "downloaded": bool(s.files), "bytes": s.size, "size": s.size_in_words}
            for s in data
        ],
        "extra": task.extra and {"name": task.extra.name, "missing": task.extra.missing, "command": task.extra.command},
        **dict.fromkeys(("one_core_seconds", "gpu_seconds", "gpu_is", "training_flops", "steps")),
        "rounds": task.rounds,
        "recipe": recipe.model_dump(mode="json"),
    }
    times = known().tasks.get(name.removesuffix("CHECKPOINT"))
    if times is None:
        return about
    gpu = times.cuda or times.reckoned(recipe)
    how = None if gpu is None else "reckoned" if times.cuda is None else "measured"
    trainings = task.rounds + 1
    return about | {
        "one_core_seconds": times.cpu and round(trainings * times.seconds(recipe, times.cpu), 1),
        "gpu_seconds": gpu and round(trainings * times.seconds(recipe, gpu), 1),
        "gpu_is": "bound by games on the CPU" if times.plays and gpu is None else how,
        "training_flops": times.training_flops(recipe),
        "steps": times.steps(recipe),
    }


def _row(task: dict[str, Any]) -> tuple[str, ...]:
    """A task's cells under ``_HEADS``."""
    gpu = _roughly(task["gpu_seconds"]) if task["gpu_seconds"] else "plays on CPU" if task["gpu_is"] else ""
    mark = "~" if task["gpu_is"] == "reckoned" else ""
    return task["name"], _needs(task), _roughly(task["one_core_seconds"]), f"{mark}{gpu}", task["in_short"]


def _needs(task: dict[str, Any]) -> str:
    """Data with the size of their download, and the extra."""
    needs = [f"{s['title']}, {s['size'] if s['downloaded'] else 'put in place by you'}" for s in task["data"]]
    if (extra := task["extra"]) is not None:
        needs.append(f"[{extra['name']}]{' missing' if extra['missing'] else ''}")
    return "; ".join(needs) or "-"


def _roughly(seconds: float | None) -> str:
    """One or two digits and a unit: ``20 minutes``."""
    if seconds is None:
        return "not measured"
    size, unit = next((pair for pair in _UNITS if seconds >= 2 * pair[0]), _UNITS[-1])
    return f"{float(f'{seconds / size:.1g}' if seconds / size < 10 else f'{seconds / size:.2g}'):,.0f} {unit}"


def methods(as_json: bool) -> None:
    """Print the methods, criteria and controls, each with a line, the settings of methods with their
    defaults, and what each control changes."""
    from tombola.audits.controls import CONTROLS
    from tombola.criteria import CRITERIA
    from tombola.methods import METHODS

    found = {
        kind: {name: _first_line(function) for name, function in known.items()}
        for kind, known in (("methods", METHODS), ("criteria", CRITERIA), ("controls", CONTROLS))
    }
    settings = {name: dict(method.settings) for name, method in METHODS.items()}
    changes = {name: control.changes for name, control in CONTROLS.items()}
    if as_json:
        output.document(found | {"settings": settings, "changes": changes})
        return
    for kind, lines in found.items():
        click.echo(f"{kind}:")
        width = max(map(len, lines))
        for name, line in lines.items():
            changed = f" Changes: {changes[name]}." if kind == "controls" else ""
            click.echo(f"  {name:{width}}  {line}{changed}".rstrip())
            if kind == "methods" and settings[name]:
                own = ", ".join(f"{setting}={default:g}" for setting, default in settings[name].items())
                click.echo(f"  {'':{width}}  settings: {own}")


def _first_line(function: Any) -> str:
    text = getattr(function, "description", None) or inspect.getdoc(function) or ""
    return str(text).partition("\n\n")[0].replace("\n", " ").replace("``", "")
