from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_tools import COUNTS, JUNK, allocated, assert_untouched_around, collect, drawn, run, shapes, spread

from tombola.engines.sparse.elementwise import Flatten, Rectify, Sum, read_rows, write_rows
from tombola.engines.sparse.parts import Activation


@settings(max_examples=120, deadline=None)
@given(COUNTS, shapes(), st.tuples(*[st.integers(0, 2)] * 3), st.integers(0, 2**31), st.tuples(*[st.booleans()] * 7))
def test_sum_and_its_gradients(
    count: int, shape: tuple[int, ...], halos: tuple[int, int, int], seed: int, flags: tuple[bool, ...]
) -> None:
    relu, a_rectified, b_rectified, a_accumulate, b_accumulate, a_wanted, b_wanted = flags
    x_a, x_b, dy, old_a, old_b = drawn(seed, count, shape, 5)
    results = []
    for threads in (1, 2):
        if len(shape) == 1:
            halos = (0, 0, 0)
        a, b = (allocated(count, shape, halos[i], (a_rectified, b_rectified)[i]) for i in range(2))
        y = allocated(count, shape, halos[2])
        layer = Sum(a, b, y, relu=relu)
        for activation, value, gradient in ((a, x_a, old_a), (b, x_b, old_b)):
            spread(activation, activation.value, value, JUNK)
            spread(activation, activation.gradient, gradient, np.float32(0))
        spread(y, y.gradient, dy, np.float32(0))
        run(layer.forward(True), count, threads)
        run(layer.backward(a_wanted, a_accumulate, b_wanted, b_accumulate), count, threads)
        total = x_a + x_b
        assert np.array_equal(collect(y, y.value, count)[:count], np.maximum(total, 0) if relu else total)
        for activation, value, old, added, wanted in (
            (a, x_a, old_a, a_accumulate, a_wanted),
            (b, x_b, old_b, b_accumulate, b_wanted),
        ):
            gated = np.where(value > 0, dy, 0) if activation.rectified else dy
            expected = (old + gated if added else gated) if wanted else old
            found = collect(activation, activation.gradient, count)
            assert np.array_equal(found[:count], expected)
            assert not found[count:].any()
            assert_untouched_around(activation, activation.gradient, count)
        if len(shape) == 3:
            assert_untouched_around(y, y.value, count)
        results.append((y.value.tobytes(), a.gradient.tobytes(), b.gradient.tobytes()))
    assert results[0] == results[1]


def test_twice_the_same_input() -> None:
    x, y = allocated(20, (3, 2, 2), halo=1), allocated(20, (3, 2, 2))
    (value, dy) = drawn(0, 20, (3, 2, 2), 2)
    spread(x, x.value, value, JUNK)
    spread(y, y.gradient, dy, np.float32(0))
    layer = Sum(x, x, y)
    run(layer.forward(True) + layer.backward(True, False, True, True), 20)
    assert np.array_equal(collect(y, y.value, 20)[:20], 2 * value)
    assert np.array_equal(collect(x, x.gradient, 20)[:20], 2 * dy)


@settings(max_examples=60, deadline=None)
@given(COUNTS, shapes(), st.tuples(*[st.integers(0, 1)] * 2), st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_rectify(
    count: int, shape: tuple[int, ...], halos: tuple[int, int], gated: bool, accumulate: bool, seed: int
) -> None:
    halos = halos if len(shape) == 3 else (0, 0)
    x, y = allocated(count, shape, halos[0], gated), allocated(count, shape, halos[1], True)
    value, dy, old = drawn(seed, count, shape, 3)
    dy[value <= 0] = 0  # as whoever uses a rectified activation writes it
    spread(x, x.value, value, -JUNK)
    spread(x, x.gradient, old, np.float32(0))
    spread(y, y.gradient, dy, np.float32(0))
    layer = Rectify(x, y)
    run(layer.forward(True) + layer.backward(True, accumulate), count)
    assert np.array_equal(collect(y, y.value, count)[:count], np.maximum(value, 0))
    assert np.array_equal(collect(x, x.gradient, count)[:count], old + dy if accumulate else dy)
    assert layer.backward(False, False) == []


def test_a_relu_lets_nan_through() -> None:
    x, y = allocated(2, (2,)), allocated(2, (2,), rectified=True)
    spread(x, x.value, np.array([[np.nan, -1], [2, np.nan]], np.float32), np.float32(0))
    run(Rectify(x, y).forward(True), 2)
    assert np.array_equal(collect(y, y.value, 2)[:2, :, 0, 0], [[np.nan, 0], [2, np.nan]], equal_nan=True)


@settings(max_examples=80, deadline=None)
@given(
    COUNTS,
    st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7)),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_flattening_keeps_the_order_of_torch(
    count: int, shape: tuple[int, int, int], halo: int, gated: bool, accumulate: bool, seed: int
) -> None:
    value, dy, old = drawn(seed, count, shape, 3)
    gradient = np.where(value > 0, dy, 0) if gated else dy
    for threads in (1, 2):
        x, y = allocated(count, shape, halo, gated), allocated(count, (int(np.prod(shape)),))
        spread(x, x.value, value, JUNK)
        spread(x, x.gradient, old, np.float32(0))
        spread(y, y.gradient, dy.reshape(count, -1), np.float32(0))
        layer = Flatten(x, y)
        run(layer.forward(True) + layer.backward(True, accumulate), count, threads)
        assert np.array_equal(collect(y, y.value, count)[:count, :, 0, 0], value.reshape(count, -1))
        found = collect(x, x.gradient, count)
        assert np.array_equal(found[:count], old + gradient if accumulate else gradient)
        assert not found[count:].any()
        assert_untouched_around(x, x.gradient, count)
        assert layer.backward(False, False) == []


@settings(max_examples=120, deadline=None)
@given(COUNTS, shapes(), st.integers(0, 2), st.booleans(), st.sampled_from([1, 2, 3]), st.integers(0, 2**31))
def test_batches_in_the_layout_of_torch_and_back(
    count: int, shape: tuple[int, ...], halo: int, gated: bool, threads: int, seed: int
) -> None:
    x = allocated(count, shape, halo if len(shape) == 3 else 0, gated)
    batch, slope = drawn(seed, count, shape, 2)
    spread(x, x.gradient, batch * 0, JUNK)
    run([read_rows(batch, x)], count, threads)
    run([read_rows(slope.ctypes.data, x, gradient=True)], count, threads)
    for array, expected in ((x.value, batch), (x.gradient, np.where(batch > 0, slope, 0) if gated else slope)):
        found = collect(x, array, count)
        assert np.array_equal(found[:count], expected)
        assert not found[count:].any()
        assert_untouched_around(x, array, count)

    margin = 7
    spread(x, x.value, batch, JUNK)
    for gradient in (False, True):
        back = np.full(batch.size + margin, 99, np.float32)
        run([write_rows(back, x, gradient=gradient)], count, threads)
        assert np.array_equal(back[:-margin], collect(x, x.gradient if gradient else x.value, count)[:count].ravel())
        assert (back[-margin:] == 99).all()


def test_layouts_that_do_not_fit_are_refused() -> None:
    images, features = Activation(4, 3, 2, 2, images=True), Activation(4, 3)
    with pytest.raises(ValueError, match="same layout and size"):
        Sum(images, images, features)
    with pytest.raises(ValueError, match="same layout and size"):
        Rectify(images, Activation(4, 3, 2, 3, images=True))
    with pytest.raises(ValueError, match="12 features"):
        Flatten(images, features)
