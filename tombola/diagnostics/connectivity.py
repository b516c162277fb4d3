"""Linear mode connectivity, and how stable training is to the order of its data (Frankle et al. 2020).

Two nets are connected where the error does not rise along the straight line between their weights. A net is stable
from step k on where two trainings that go on from its state at k, with different data orders, end connected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from tombola.diagnostics.trajectory import states
from tombola.durations import Duration
from tombola.engines import check_device, evaluate
from tombola.errors import InputError, TombolaError, suggestion
from tombola.lab import Lab, Run
from tombola.mask import Mask
from tombola.seeds import stream
from tombola.tasks.task import Examples, State, Task, _Part

Row = dict[str, Any]

POINTS = 11
MOST_TRAIN = 10_000
"""Training examples that errors and batch statistics are taken on, at most."""
_STATISTICS_BATCH = 500
_ORDERS = (1, 2)


def interpolated(first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float) -> State:
    """The state_dict ``(1 - alpha) first + alpha second``, entry by entry; at 0 and 1 it is theirs bit for bit.

    Running statistics of batch normalisation are interpolated like all else. Whole numbers (the count of batches seen)
    are those of the nearer end. Raises ``InputError`` for states of different nets.
    """
    for name in (*first, *second):
        if name not in first or name not in second or first[name].shape != second[name].shape:
            raise InputError(f"only states of one net can be interpolated, but they differ at {name!r}")
    found: State = {}
    for name, value in first.items():
        end = second[name]
        if alpha in (0, 1) or not value.is_floating_point():
            found[name] = (value if alpha < 0.5 else end).clone()
        else:
            found[name] = torch.lerp(value, end, alpha)
    return found


@torch.no_grad()
def estimate_statistics(task: Task, model: nn.Module, data: Examples) -> bool:
    """Estimate the running statistics of batch normalisation anew, as plain means over batches of at most 500 examples.

    Everything else, dropout too, is as in evaluation, and stays so. Returns whether the net has any such statistics.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats]
    if not layers:
        return False
    model.eval()
    rates = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean
        layer.train()
    try:
        count = max(1, -(-len(data) // _STATISTICS_BATCH))
        for part in torch.arange(len(data)).tensor_split(count):
            task.loss(model, data.take(part))
    finally:
        for layer, rate in zip(layers, rates, strict=True):
            layer.momentum = rate
        model.eval()
    return True


def linear_path(
    task: Task,
    model: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    data: Mapping[str, Examples],
    *,
    points: int = POINTS,
    statistics: Examples | None = None,
) -> list[Row]:
    """Error and loss along the straight line between two nets, both ends included.

    Parameters
    ----------
    task
        Says what error is: 1 - metric where higher is better, else the metric itself.
    model
        A net of these names and shapes, on the data's device. It comes back with the values of ``second``.
    first, second
        The state_dicts of the two nets.
    data
        By name, the examples to evaluate on.
    points
        How many nets, evenly spaced; 2 or more.
    statistics
        Training examples from which batch statistics are estimated anew at every point, the ends included; None
        leaves them interpolated.

    Returns rows ``alpha`` (0 is the first net), ``data``, ``error``, ``loss``.
    """
    if points < 2:
        raise InputError(f"a path has its two ends and points between, so 2 or more, but got {points!r}")
    rows = []
    for number in range(points):
        alpha = number / (points - 1)
        model.load_state_dict(interpolated(first, second, alpha))
        if statistics is not None:
            estimate_statistics(task, model, statistics)
        for name, examples in data.items():
            values = evaluate(task, model, examples)
            if task.metric not in values:
                raise InputError(f"the task has no metric {task.metric!r}.{suggestion(task.metric, values)}")
            metric = values[task.metric]
            error = 1 - metric if task.higher_is_better else metric
            rows.append({"alpha": alpha, "data": name, "error": error, "loss": values["loss"]})
    model.load_state_dict(dict(second))
    return rows


def barriers(rows: Sequence[Row]) -> list[Row]:
    """For each path, that is for each ``seed``, ``density``, ``rewind`` and ``data`` among the rows: the mean of its
    ends, its highest value, and the barrier between, which is the one less the other, for ``error`` and ``loss``.

    A barrier is 0 or more, as the ends are on the path. Below 2 % Frankle et al. (2020) call a net stable.
    """
    names = ("seed", "density", "rewind", "data")

    def key(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in names if name in row)

    found = []
    for _, group in groupby(sorted(rows, key=key), key=key):
        path = sorted(group, key=lambda row: row["alpha"])
        barrier: Row = {name: path[0][name] for name in names if name in path[0]}
        for what in ("error", "loss"):
            ends, highest = (path[0][what] + path[-1][what]) / 2, max(row[what] for row in path)
            barrier |= {f"{what}_ends": ends, f"{what}_highest": highest, f"{what}_barrier": highest - ends}
        found.append(barrier)
    return found


def instability(
    lab: Lab,
    seed: int,
    rewinds: Sequence[Duration],
    mask: Mask | None = None,
    *,
    points: int = POINTS,
    estimate: bool = True,
) -> list[Row]:
    """Error and loss between two nets trained from one state at step k with different data orders, for several k.

    The state is that of the dense net of the seed at k (all of it, batch statistics too), with ``mask`` applied, as
    Frankle et al. (2020) rewind; both copies train under the mask from there to the end of the lab's recipe, with
    ``order`` 1 and 2, and the optimiser's state begins afresh. Errors are those on validation data and on training data
    as they are, not augmented, of which at most 10,000 at random (stream ``connectivity``); test data are not touched.

    Parameters
    ----------
    rewinds
        The steps k, each from 0 to below the end of the training.
    mask
        Of a ticket; default: the dense net.
    points
        As for ``linear_path``.
    estimate
        Whether batch statistics are estimated anew at every point, from those training data; else interpolated.

    Returns the rows of ``linear_path``, ``data`` being ``"train"`` or ``"validation"``, with ``seed``, ``density`` and
    ``rewind`` (k). Raises ``InputError`` for steps outside of the training, ``TombolaError`` where a net diverges.
    """
    check_device(lab.recipe)
    steps = _rewind_steps(lab, seed, rewinds)
    if points < 2:
        raise InputError(f"a path has its two ends and points between, so 2 or more, but got {points!r}")
    mask = Mask.full(lab.task.build(seed)) if mask is None else mask
    mask.parameters(lab.task.build(seed))  # a mask of another net is refused before anything is trained
    # Nothing of the dense training is wanted where only the start is: it is the seed's initial values.
    starts: dict[int, State] = {}
    if steps != [0]:
        whole = lab.recipe.model_copy(update={"start": Duration(0)})
        dense = lab.train(seed, arm="dense", recipe=whole, keep=[Duration(step) for step in steps])
        starts = states(dense, steps)
        _check_finite(dense, "the dense net")
    data = _data(lab, seed)
    model = lab.task.build(seed).to(lab.recipe.device)
    rows = []
    for step in steps:
        ends = [_copy(lab, seed, step, order, starts.get(step), mask).final for order in _ORDERS]
        first, second = ({name: value.to(lab.recipe.device) for name, value in end.items()} for end in ends)
        statistics = data["train"] if estimate else None
        path = linear_path(lab.task, model, first, second, data, points=points, statistics=statistics)
        rows += [{"seed": seed, "density": mask.density, "rewind": step, **row} for row in path]
    return rows


def _rewind_steps(lab: Lab, seed: int, rewinds: Sequence[Duration]) -> list[int]:
    per_epoch = lab.steps_per_epoch(seed, lab.recipe)
    last = lab.recipe.steps.steps(per_epoch)
    if not rewinds:
        raise InputError("name one step to rewind to or more, like 0it,100it")
    for when in rewinds:
        if when.steps(per_epoch) >= last:
            raise InputError(f"training ends at step {last}, so two copies can't go on from {when}: name earlier steps")
    return sorted({when.steps(per_epoch) for when in rewinds})


def _copy(lab: Lab, seed: int, step: int, order: int, start: State | None, mask: Mask) -> Run:
    recipe = lab.recipe.model_copy(update={"start": Duration(step), "order": order})
    run = lab.train(seed, start=start, mask=mask, recipe=recipe, arm=f"copy {order} from step {step}")
    _check_finite(run, f"copy {order} from step {step}")
    return run


def _check_finite(run: Run, name: str) -> None:
    if run.diverged:
        raise TombolaError(
            f"{name} of seed {run.seed} diverged after {run.summary['steps']} steps, so there is no path to it: "
            "lower the learning rate, or rewind elsewhere"
        )


def _data(lab: Lab, seed: int) -> dict[str, Examples]:
    """Training examples, at most ``MOST_TRAIN``, and validation examples, on the recipe's device."""
    splits = lab.splits(seed)
    train = splits.train
    order = torch.randperm(len(train), generator=stream(seed, "connectivity"))[:MOST_TRAIN]
    chosen = _Part(train, order.sort().values)
    return {"train": chosen.to(lab.recipe.device), "validation": splits.validation.to(lab.recipe.device)}
