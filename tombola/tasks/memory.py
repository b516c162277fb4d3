"""Labelled data that lie in memory as plain arrays, for an engine that gathers its own batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tombola.tasks.data.arrays import Arrays
from tombola.tasks.data.augment import Augmented
from tombola.tasks.task import Examples, _Part, _Tensors


@dataclass(frozen=True)
class InMemory:
    """``rows`` (examples, features), uint8 or float32; a batch is ``rows[i] * scale + shift``; ``y`` int64 classes."""

    rows: NDArray[Any]
    scale: NDArray[np.float32]
    shift: NDArray[np.float32]
    y: NDArray[np.int64]


def in_memory(data: Examples) -> InMemory | None:
    """The arrays behind labelled examples, not copied where possible; None where there are none, or not on the CPU."""
    if isinstance(data, Augmented):  # as they are: what varies them is in the indices
        return in_memory(data.plain)
    if isinstance(data, Arrays) and data.x.device.type == "cpu":
        one = torch.ones((1, *data.x.shape[1:]))
        scale, shift = ((one * value).reshape(-1).numpy() for value in data._affine)
        return InMemory(data.x.reshape(len(data), -1).numpy(), scale, shift, data.y.contiguous().numpy())
    if isinstance(data, _Tensors) and _labelled(data.tensors):
        x, y = data.tensors
        rows = x.detach().flatten(1).contiguous().numpy()
        features = rows.shape[1]
        return InMemory(rows, np.ones(features, np.float32), np.zeros(features, np.float32), y.contiguous().numpy())
    if isinstance(data, _Part) and (whole := in_memory(data.whole)) is not None:
        index = data.index.numpy()
        return InMemory(whole.rows[index], whole.scale, whole.shift, whole.y[index])
    return None


def _labelled(tensors: tuple[torch.Tensor, ...]) -> bool:
    if len(tensors) != 2 or any(t.device.type != "cpu" for t in tensors):
        return False
    x, y = tensors
    return x.dtype == torch.float32 and x.dim() > 1 and y.dtype == torch.int64 and y.dim() == 1
