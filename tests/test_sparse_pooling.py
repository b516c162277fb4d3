from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sparse_tools import COUNTS, JUNK, allocated, assert_untouched_around, collect, drawn, run, spread

from tombola.engines.sparse.parts import Activation
from tombola.engines.sparse.pooling import AveragePool, MaxPool, pooled

Pair = tuple[int, int]
PAIRS = st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def windows(draw: st.DrawFn) -> tuple[Pair, Pair, Pair, Pair, bool]:
    """Height and width, then kernel, stride, padding and ceil_mode of a pooling that torch accepts."""
    if draw(st.integers(0, 3)) == 0:  # the windows that have a kernel of their own
        size = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
        return (2 * size[0], 2 * size[1]), (2, 2), (2, 2), (0, 0), draw(st.booleans())
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    kernel, stride = draw(PAIRS), draw(PAIRS)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    assume(all(n + 2 * p >= k for n, k, p in zip(size, kernel, padding, strict=True)))
    return size, kernel, stride, padding, draw(st.booleans())  # type: ignore[return-value]


@settings(max_examples=200, deadline=None)
@given(
    COUNTS,
    st.integers(1, 3),
    windows(),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.sampled_from(["max", "average", "average of what is there"]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_pooling_as_in_torch(
    count: int,
    channels: int,
    drawn_windows: tuple[Pair, Pair, Pair, Pair, bool],
    halos: Pair,
    kind: str,
    gated: bool,
    accumulate: bool,
    seed: int,
) -> None:
    size, kernel, stride, padding, ceil_mode = drawn_windows
    value, old = drawn(seed, count, (channels, *size), 2)  # small whole numbers: ties in almost every window
    theirs = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    if kind == "max":
        expected = F.max_pool2d(theirs, kernel, stride, padding, 1, ceil_mode)
    else:
        expected = F.avg_pool2d(theirs, kernel, stride, padding, ceil_mode, kind == "average")
    dy = np.random.default_rng(seed).integers(-3, 4, expected.shape).astype(np.float32)
    (slope,) = torch.autograd.grad(expected, theirs, torch.tensor(dy, dtype=torch.float64))
    gradient = np.where(value > 0, slope, 0) if gated else slope.numpy()

    results = []
    for threads in (1, 2):
        x = allocated(count, (channels, *size), halos[0], gated)
        y = allocated(count, tuple(expected.shape[1:]), halos[1])
        spread(x, x.value, value, JUNK)
        spread(x, x.gradient, old, np.float32(0))
        spread(y, y.gradient, dy, np.float32(0))
        if kind == "max":
            layer: MaxPool | AveragePool = MaxPool(x, y, kernel, stride, padding, ceil_mode)
        else:
            layer = AveragePool(x, y, kernel, stride, padding, ceil_mode, kind == "average")
        run(layer.forward(True) + layer.backward(True, accumulate), count, threads)
        np.testing.assert_allclose(collect(y, y.value, count)[:count], expected.detach(), rtol=1e-6, atol=1e-6)
        found = collect(x, x.gradient, count)
        np.testing.assert_allclose(found[:count], old + gradient if accumulate else gradient, rtol=1e-5, atol=1e-5)
        assert not found[count:].any()
        assert_untouched_around(x, x.gradient, count)
        assert_untouched_around(y, y.value, count)
        results.append((y.value.tobytes(), x.gradient.tobytes()))
    assert results[0] == results[1]


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 7), st.data(), st.booleans())
def test_number_of_windows(size: int, kernel: int, stride: int, data: st.DataObject, ceil_mode: bool) -> None:
    padding = data.draw(st.integers(0, kernel // 2))
    assume(size + 2 * padding >= kernel)
    there = F.max_pool1d(torch.zeros(1, 1, size), kernel, stride, padding, 1, ceil_mode)
    assert pooled(size, kernel, stride, padding, ceil_mode) == there.shape[-1]


def test_global_average() -> None:
    (value,) = drawn(1, 17, (3, 5, 6), 1)
    x, y = allocated(17, (3, 5, 6), 1), allocated(17, (3, 1, 1))
    spread(x, x.value, value, JUNK)
    spread(y, y.gradient, np.full((17, 3), 30.0), np.float32(0))
    layer = AveragePool(x, y, (5, 6), (5, 6))
    run(layer.forward(False) + layer.backward(True, False), 17)
    np.testing.assert_allclose(collect(y, y.value, 17)[:17, :, 0, 0], value.mean((2, 3)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(collect(x, x.gradient, 17)[:17], 1, rtol=1e-6)


def test_nan_is_the_maximum_and_gets_the_gradient() -> None:
    value = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    value[0, 0, 1, 2] = np.nan
    theirs = torch.tensor(value, requires_grad=True)
    expected = F.max_pool2d(theirs, 3, 1)
    (slope,) = torch.autograd.grad(expected, theirs, torch.ones_like(expected))
    x, y = allocated(1, (1, 4, 4)), allocated(1, (1, 2, 2))
    spread(x, x.value, value, np.float32(0))
    spread(y, y.gradient, np.ones((1, 4)), np.float32(0))
    layer = MaxPool(x, y, (3, 3), (1, 1))
    run(layer.forward(True) + layer.backward(True, False), 1)
    assert np.array_equal(collect(y, y.value, 1)[:1], expected.detach(), equal_nan=True)
    assert np.array_equal(collect(x, x.gradient, 1)[:1], slope)


def test_padding_never_wins() -> None:
    x, y = allocated(3, (1, 2, 2), halo=1), allocated(3, (1, 2, 2))
    spread(x, x.value, np.full((3, 4), -5.0), JUNK)
    run(MaxPool(x, y, (3, 3), (1, 1), (1, 1)).forward(True), 3)
    assert (collect(y, y.value, 3)[:3] == -5).all()


def test_an_output_of_the_wrong_size_is_refused() -> None:
    x = Activation(4, 3, 8, 8, images=True)
    for y in (Activation(4, 3, 4, 5, images=True), Activation(4, 2, 4, 4, images=True), Activation(4, 3)):
        with pytest.raises(ValueError, match=r"3 channels and \[4, 4\] pixels"):
            MaxPool(x, y, (2, 2), (2, 2))
    assert MaxPool(x, Activation(4, 3, 4, 4, images=True), (2, 2), (2, 2)).backward(False, False) == []
