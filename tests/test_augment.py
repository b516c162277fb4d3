"""Random crops and flips: against one image at a time by hand, and what an index says."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from tombola.errors import InputError
from tombola.tasks.data.arrays import Arrays
from tombola.tasks.data.augment import Augmented
from tombola.tasks.task import Task


def images(n: int = 5, channels: int = 3, height: int = 6, width: int = 7, seed: int = 0) -> Arrays:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(1, 256, (n, channels, height, width), generator=generator).to(torch.uint8)
    mean, std = ((0.1, 0.2, 0.3), (0.5, 0.25, 2.0)) if channels == 3 else ((0.25,), (0.5,))
    return Arrays(x, torch.arange(n) % 3, mean, std)


def by_hand(image: NDArray[np.uint8], code: int, pad: int, flip: bool) -> NDArray[np.uint8]:
    """The variant of one image, by the rule: codes are crops row by row, then the flipped ones, and 0 the middle."""
    side = 2 * pad + 1
    number = (code + (side * side) // 2) % (side * side * (2 if flip else 1))
    flipped, crop = divmod(number, side * side)
    down, right = divmod(crop, side)
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    cropped = padded[:, down : down + image.shape[1], right : right + image.shape[2]]
    return cropped[:, :, ::-1] if flipped else cropped


@given(
    st.integers(1, 4),
    st.sampled_from([1, 3]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 5),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_rows_are_what_is_made_of_one_image_at_a_time(
    n: int, channels: int, height: int, width: int, pad: int, flip: bool, seed: int
) -> None:
    data = Augmented(images(n, channels, height, width), pad, flip)
    generator = torch.Generator().manual_seed(seed)
    index = data.vary(torch.randint(n, (9,), generator=generator), generator)
    rows = data.rows(index)
    assert rows.dtype == torch.uint8
    for row, i in zip(rows, index.tolist(), strict=True):
        code, example = divmod(i, n)
        assert np.array_equal(row.numpy(), by_hand(data.plain.x[example].numpy(), code, pad, flip))


@pytest.mark.parametrize("flip", [True, False])
def test_every_code_is_another_crop_or_flip_of_the_image(flip: bool) -> None:
    data = Augmented(images(2), 3, flip)
    assert data.codes == 49 * (2 if flip else 1)
    rows = data.rows(1 + 2 * torch.arange(data.codes))
    assert len({row.numpy().tobytes() for row in rows}) == data.codes
    middle = data.plain.x[1]
    assert torch.equal(rows[0], middle)
    # By hand: one pixel to the left in the padded image is a zero column on the left.
    assert any(torch.equal(row[:, :, 1:], middle[:, :, :-1]) and not row[:, :, 0].any() for row in rows)
    assert any(torch.equal(row, middle.flip(2)) for row in rows) == flip


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_the_rows_normalised_as_plain_images_are(channels: int) -> None:
    data = Augmented(images(channels=channels), 2)
    index = data.vary(torch.tensor([4, 0, 0, 3, 1, 2, 2]), torch.Generator().manual_seed(1))
    x, y = data.take(index)
    whole = Arrays(data.rows(index), data.plain.y[index % 5], data.plain.mean, data.plain.std)
    expected = whole.take(torch.arange(7))
    assert torch.equal(x, expected[0])
    assert torch.equal(y, expected[1])
    assert y.tolist() == [1, 0, 0, 0, 1, 2, 2]


def test_code_0_and_batches_are_the_plain_images() -> None:
    data = Augmented(images())
    index = torch.tensor([3, 1, 1, 4])
    assert all(map(torch.equal, data.take(index), data.plain.take(index)))
    for ours, theirs in zip(data.batches(2), data.plain.batches(2), strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert len(data) == 5
    assert torch.equal(data.y, data.plain.y)


@pytest.mark.parametrize("flip", [True, False])
def test_codes_are_drawn_uniformly_and_apart_from_the_example(flip: bool) -> None:
    data = Augmented(images(4), 1, flip)
    order = torch.arange(4).repeat(20_000)
    index = data.vary(order, torch.Generator().manual_seed(0))
    assert torch.equal(index % 4, order)
    found = Counter(index.tolist())
    cells = 4 * data.codes
    assert set(found) == set(range(cells))
    mean = len(order) / cells
    chi = sum((count - mean) ** 2 / mean for count in found.values())
    # Chi squared of cells - 1 degrees of freedom has this mean and twice as much variance.
    assert abs(chi - (cells - 1)) < 5 * (2 * (cells - 1)) ** 0.5


def test_the_generator_decides_the_draw() -> None:
    data, order = Augmented(images()), torch.randperm(5)

    def drawn(seed: int) -> Tensor:
        return data.vary(order, torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))
    generator = torch.Generator().manual_seed(3)
    first, second = data.vary(order, generator), data.vary(order, generator)
    assert torch.equal(first, drawn(3))
    assert not torch.equal(first, second)


def test_select_keeps_the_augmentation_and_the_digest_covers_it() -> None:
    data = Augmented(images(), 2, False)
    part = data.select(torch.tensor([4, 0]))
    assert (part.pad, part.flip, part.plain.y.tolist()) == (2, False, [1, 0])
    assert torch.equal(part.rows(torch.tensor([0 + 2 * 3])), data.rows(torch.tensor([4 + 5 * 3])))
    others = [Augmented(data.plain, 3, False), Augmented(data.plain, 2), Augmented(images(seed=1), 2, False)]
    assert len({data.digest, data.plain.digest, part.digest, *(other.digest for other in others)}) == 6
    assert data.digest == Augmented(images(), 2, False).digest == data.to("cpu").digest


def test_nothing_depends_on_values_so_that_a_step_can_be_recorded() -> None:
    """The meta device has no values: whatever asked for one would fail."""
    data = Augmented(images()).to("meta")
    x, y = data.take(torch.arange(4, device="meta"))
    assert (x.shape, y.shape) == ((4, 3, 6, 7), (4,))


def test_an_own_task_holds_out_plain_images_for_validation() -> None:
    task = Task(model=torch.nn.Identity, train=Augmented(images(20)), test=images(4))
    splits = task.splits(0)
    assert isinstance(splits.train, Augmented)
    assert isinstance(splits.validation, Arrays)
    assert (len(splits.train), len(splits.validation)) == (18, 2)
    rows = torch.cat([splits.train.plain.x, splits.validation.x]).flatten(1).tolist()
    assert sorted(rows) == sorted(images(20).x.flatten(1).tolist())


@pytest.mark.parametrize(
    ("x", "pad", "rule"),
    [
        (torch.zeros(2, 3, 4, 4), 4, "uint8"),
        (
            torch.zeros(2, 4, 4, dtype=torch.uint8),
            4,
            r"\(N, C, height, width\), but got torch.uint8 of shape \(2, 4, 4\)",
        ),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), -1, "0 pixels or more before cropping, but got -1"),
    ],
)
def test_what_cannot_be_augmented_is_refused(x: Tensor, pad: int, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        Augmented(Arrays(x, torch.zeros(2, dtype=torch.int64), (0.5,), (1.0,)), pad)
