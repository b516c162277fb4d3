"""``tombola draw --list-tasks`` and ``--list-methods``: what there is to draw, and by what."""

from __future__ import annotations

import inspect
from typing import Any

import click

from tombola.cli import output

# Seconds of a training of the dense net with its evaluations, on one core of an AMD EPYC (Zen 4; Zen 5 for LeNet-5 and
# the Conv nets). Later rounds are faster on engines that leave out pruned work: what is computed from these is an upper
# end.
_TRAINING = {
    "digits-mlp": 0.4,
    "digits-conv": 1.0,
    "mnist-lenet300": 70.0,
    "fashion-lenet300": 70.0,
    "mnist-lenet5": 1_200.0,
    **dict.fromkeys(("mnist-lenet300-quick", "fashion-lenet300-quick"), 10.0),
    **dict.fromkeys(("cifar10a-lenet300-quick", "cifar10b-lenet300-quick"), 30.0),
    **dict.fromkeys(("mnist-vgg11-quick", "fashion-vgg11-quick"), 65.0),
    **dict.fromkeys(("cifar10a-vgg11-quick", "cifar10b-vgg11-quick"), 80.0),
    "cifar10-conv2": 3_800.0,
    "cifar10-conv4": 7_750.0,
    "cifar10-conv6": 14_400.0,
    "cifar10-vgg11-quick": 120.0,
    "cifar10-resnet20-quick": 150.0,
    "wikitext2-lstm-small": 130.0,
    "multi30k-transformer-small": 180.0,
    "cartpole": 50.0,
    "cartpole-ppo": 23.0,
    "acrobot": 90.0,
    "acrobot-ppo": 47.0,
}
_UNITS = ((86_400, "days"), (3_600, "hours"), (60, "minutes"), (1, "seconds"))


def tasks(as_json: bool) -> None:
    """Print the tasks: name, network and data, recipe in short, rough time."""
    from tombola.tasks import TASKS, Task
    from tombola.tasks.pretrained import FROM_A_CHECKPOINT

    def about(task: Task) -> dict[str, Any]:
        recipe = task.recipe
        seconds = None
        if task.name in _TRAINING:
            seconds = round(_TRAINING[task.name] * (task.rounds + 1), 1)
        short = f"{task.rounds} rounds of {recipe.steps}, batch {recipe.batch}, {recipe.optimizer} {recipe.lr:g}"
        full = recipe.model_dump(mode="json")
        return {
            "name": task.name,
            "description": task.description,
            "in_short": short,
            "rough_seconds": seconds,
            "rounds": task.rounds,
            "allocation": task.allocation,
            "relative_rates": dict(task.relative_rates),
            "recipe": full,
        }

    found = [about(task) for task in TASKS.values()]
    if as_json:
        output.document(found)
        return
    header = {"task": "left", "network and data": "left", "recipe": "left", "rough time": "right"}
    rows = [[t["name"], t["description"], t["in_short"], _roughly(t["rough_seconds"])] for t in found]
    output.table(output.columns(header, rows))
    output.sentence("Rough time: a whole draw on one core, every round at the speed of the dense net.")
    families = ", ".join(f"{name}:CHECKPOINT" for name in FROM_A_CHECKPOINT)
    output.sentence(f"From a pre-trained net, a folder of Transformers or a name on the Hugging Face hub: {families}.")


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
