"""Gradient flow: how long the gradient of the loss at the kept weights is, on the way of a training.

To first order a small step along the gradient lowers the loss by its squared norm times the step's length. Wang et al.
(2020) prune so as to keep it, and draw it over training; Evci et al. (2022) explain by it how sparse nets train.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tombola.asked import draw_recipe
from tombola.batches import size_of
from tombola.criteria import Loss, Weights
from tombola.criteria.base import untouched
from tombola.criteria.gradients import mean_gradients
from tombola.diagnostics.trajectory import PER_CLASS, KeepingLab, chosen_steps, fixed_batches, holding, states
from tombola.draws import Draw, rounds
from tombola.durations import Duration
from tombola.engines import check_device
from tombola.errors import InputError
from tombola.events import Watcher
from tombola.lab import Run
from tombola.mask import Mask, prunable
from tombola.store import Store
from tombola.tasks import Task, get_task

Row = dict[str, Any]


@dataclass(frozen=True)
class Flow:
    """The gradient of the mean loss over all examples, with respect to the kept weights."""

    squared_norm: float
    """Squared Euclidean norm over all kept weights."""
    loss: float
    kept: int
    """How many weights that is."""


def gradient_flow(
    model: nn.Module, batches: Iterable[Any], loss: Loss, mask: Mask | None = None, mode: str | None = "train"
) -> Flow:
    """The squared norm of the gradient with respect to the kept weights; the model comes back bit for bit.

    Parameters
    ----------
    model
        Any ``nn.Module``. What ``mask`` prunes is taken to be 0. Dropout is off.
    batches, loss
        Data, and ``loss(model, batch)``, the mean over the batch.
    mask
        The weights in question, by default every prunable one. Biases and normalisation parameters never count.
    mode
        Of batch normalisation: ``"train"``, as training sees it, by the statistics of each batch; ``"eval"``, by the
        running ones, which say nothing of an untrained net; None, as the model stands.

    Raises ``InputError`` for a mask of another net, no batches, or a loss that is no scalar.
    """
    total = 0.0
    examples = 0

    def noted(net: nn.Module, batch: Any) -> Tensor:
        nonlocal total, examples
        value = loss(net, batch)
        if isinstance(value, Tensor) and not value.dim():
            total, examples = total + float(value.detach()) * size_of(batch), examples + size_of(batch)
        return value

    covered = prunable(model) if mask is None else mask.parameters(model)
    with untouched(model, mode):
        if mask is not None:
            mask.apply_(model)
        final = {name: p.detach() for name, p in covered.items()}
        found = mean_gradients(Weights(model, final, mask, batches, noted), "gradient flow")
        kept = [g.double() if mask is None else g[mask[name].to(g.device)].double() for name, g in found.items()]
    squares = math.fsum(float(g.square().sum()) for g in kept)
    return Flow(squares, total / examples, sum(g.numel() for g in kept))


def flow_rows(run: Run, steps: Sequence[int], batches: Sequence[Any], mode: str | None = "train") -> list[Row]:
    """Gradient flow of a run at those of the steps that it came to: ``step``, ``squared_norm``, ``gradient_norm``
    (its root), ``loss``, ``kept``."""
    rows = []
    for step, state in states(run, steps).items():
        flow = gradient_flow(holding(run.lab, run.seed, state), batches, run.lab.task.loss, run.mask, mode)
        norms = {"squared_norm": flow.squared_norm, "gradient_norm": math.sqrt(flow.squared_norm)}
        rows.append({"step": step, **norms, "loss": flow.loss, "kept": flow.kept})
    return rows


def gradient_flows(
    task: str | Task,
    methods: Sequence[str],
    density: float,
    seed: int = 0,
    *,
    at: Sequence[Duration] | None = None,
    per_class: int = PER_CLASS,
    mode: str | None = "train",
    store: str | Path | Store = "runs",
    data_root: str | Path | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> list[Row]:
    """Gradient flow over training, of the dense net and of the net that each method finds at a density.

    Every net is looked at with the same training examples. All of it is trained through the store, so that what is
    there is not trained again.

    Parameters
    ----------
    methods
        Names of methods. One that comes to the density in rounds, as ``"imp"`` does, goes through them.
    density
        Kept / all prunable entries, above 0 and below 1.
    at
        Steps of the training. Default: ten from first to last, the early ones closer.
    per_class, mode
        Training examples of each class (ten times as many in all for data without classes); as for ``gradient_flow``.
    store, data_root, watcher, options
        As for ``draw``.

    Returns rows with ``method`` (``"dense"``, or its name), ``seed``, ``density``, ``status`` (``finished`` or
    ``diverged``, after which there are no rows) and what ``flow_rows`` gives.

    Raises ``InputError`` for an unknown task, method or option and for steps outside of the training.
    """
    known = task if isinstance(task, Task) else get_task(task)
    wanted = list(dict.fromkeys(methods))
    if not wanted:
        raise InputError("name one method or more, like snip or grasp")
    recipes = [draw_recipe(known, {**options, "method": m, "density": density, "seed": seed}) for m in wanted]
    training = recipes[0].training
    check_device(training)
    opened = store if isinstance(store, Store) else Store(store)
    root = None if data_root is None else Path(data_root)
    lab = KeepingLab(known, opened, recipe=training, data_root=root, watcher=watcher)
    steps = chosen_steps(lab, seed, training, at)
    lab.keep_steps(steps, density)
    batches = fixed_batches(lab, seed, per_class)
    runs: dict[str, Run] = {}
    for recipe in recipes:
        found = Draw(recipe, lab)
        for _ in rounds(found):
            pass
        runs.setdefault("dense", found.rounds[0].run)
        runs[recipe.method] = found.rounds[-1].run
    return [
        {"method": name, "seed": seed, "density": run.mask.density, "status": run.record.status, **row}
        for name, run in runs.items()
        for row in flow_rows(run, steps, batches, mode)
    ]
