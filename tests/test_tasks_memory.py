"""Which data lie in memory as plain arrays, and that these give the same batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tombola.tasks.data.arrays import Arrays
from tombola.tasks.memory import in_memory
from tombola.tasks.task import Examples, _Part, examples

Y = torch.tensor([2, 0, 1, 1, 0])


def assert_same_batches(data: Examples) -> None:
    held = in_memory(data)
    assert held is not None
    assert held.y.dtype == np.int64
    assert held.scale.dtype == held.shift.dtype == np.float32
    for index in ([0], [3, 1, 1, 4], list(range(len(data)))):
        x, y = data.take(torch.tensor(index))
        assert np.array_equal(held.rows[index] * held.scale + held.shift, x.flatten(1).numpy())
        assert np.array_equal(held.y[index], y.numpy())


@pytest.mark.parametrize("shape", [(5, 7), (5, 3, 4, 2), (5, 3, 1, 1)])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("channels", [True, False])
def test_arrays(shape: tuple[int, ...], whole: bool, channels: bool) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, shape, generator=g).byte() if whole else torch.randn(shape, generator=g)
    number = shape[1] if channels else 1
    mean, std = (tuple((0.2 + torch.rand(number, generator=g)).tolist()) for _ in range(2))
    data = Arrays(x, Y, mean, std)
    assert_same_batches(data)
    held = in_memory(data)
    assert held is not None
    assert held.rows.dtype == (np.uint8 if whole else np.float32)
    assert np.shares_memory(held.rows, x.numpy())
    assert_same_batches(_Part(data, torch.tensor([4, 2, 2, 0, 1])))


def test_tensors_and_parts_of_parts() -> None:
    x = torch.randn(5, 2, 3)
    assert_same_batches(examples((x, Y)))
    assert_same_batches(examples([x.transpose(1, 2), Y]))  # not contiguous
    part = _Part(examples((x, Y)), torch.tensor([4, 0, 1, 2, 3]))
    assert_same_batches(_Part(part, torch.tensor([1, 0, 0, 3, 4])))
    held = in_memory(examples((x, Y)))
    assert held is not None
    assert np.shares_memory(held.rows, x.numpy())


def test_examples_without_features_are_held_too() -> None:
    held = in_memory(examples((torch.zeros(5, 0), Y)))
    assert held is not None
    assert held.rows.shape == (5, 0)


class Own:
    """Examples of someone's own."""

    digest = ""

    def __len__(self) -> int:
        return 5

    def take(self, index: Tensor) -> Any:
        return torch.zeros(len(index), 3), Y[index]

    def batches(self, size: int) -> Any:
        yield self.take(torch.arange(5))

    def to(self, device: str) -> Own:
        return self


@pytest.mark.parametrize(
    "data",
    [
        Own(),
        _Part(Own(), torch.arange(3)),
        [(torch.zeros(3), 1)] * 5,
        (torch.zeros(5, 3, dtype=torch.float64), Y),
        (torch.zeros(5, 3, dtype=torch.uint8), Y),
        (torch.zeros(5), Y),
        (torch.zeros(5, 3), Y.float()),
        (torch.zeros(5, 3), Y[:, None]),
        (torch.zeros(5, 3), Y, Y),
        (torch.zeros(5, 3),),
        (torch.zeros(5, 3, device="meta"), Y),
    ],
    ids=lambda data: type(data).__name__,
)
def test_anything_else_is_not(data: Any) -> None:
    assert in_memory(examples(data)) is None
