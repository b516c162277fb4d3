"""Loss and metrics of a net over a whole set of examples, in ordinary torch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tombola.batches import size_of
from tombola.tasks.task import Examples, Task

EVALUATION_BATCH = 1000


@torch.no_grad()
def evaluate(
    task: Task, model: nn.Module, data: Examples, state: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """The task's loss and metrics over all examples, in evaluation mode, weighted by the size of batches.

    With ``state`` they are those of another state_dict; the net has its own again afterwards.
    """
    if state is not None:
        now = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(state)
        try:
            return evaluate(task, model, data)
        finally:
            model.load_state_dict(now)
    model.eval()
    totals: dict[str, float] = {}
    seen = 0
    for batch in data.batches(EVALUATION_BATCH):
        values = dict(task.metrics(model, batch))
        if "loss" not in values:
            values["loss"] = task.loss(model, batch)
        size = size_of(batch)
        for name, value in values.items():
            totals[name] = totals.get(name, 0.0) + float(value) * size
        seen += size
    means = {name: total / seen for name, total in totals.items()}
    return means if task.conclude is None else dict(task.conclude(means))
