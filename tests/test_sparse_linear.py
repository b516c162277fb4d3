"""Sparse linear layers against dense products. Numbers are small and whole, so that sums are exact in any order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sparse_tools import JUNK, allocated, assert_untouched_around, collect, run, spread

from tombola.engines.sparse.linear import Linear
from tombola.engines.sparse.parts import Activation

DENSITIES = st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.7, 1.0])


@dataclass(frozen=True)
class Case:
    count: int
    inputs: int
    outputs: int
    density: float
    bias: bool = True
    relu: bool = False
    gated: bool = False
    accumulate: bool = False
    seed: int = 0

    def whole(self, *shape: int) -> NDArray[np.float32]:
        return np.random.default_rng([self.seed, *shape]).integers(-3, 4, shape).astype(np.float32)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Rows and columns may be empty, and the first ones full."""
        draw = np.random.default_rng(self.seed)
        mask = draw.random((self.outputs, self.inputs)) < self.density
        mask[draw.random(self.outputs) < 0.2] = False
        mask[:, draw.random(self.inputs) < 0.2] = False
        if self.seed % 3 == 1 and mask.size:
            mask[0], mask[:, 0] = True, True
        return mask

    def layer(self) -> tuple[Linear, Activation, Activation]:
        x = allocated(self.count, (self.inputs,), rectified=self.gated)
        y = allocated(self.count, (self.outputs,), rectified=self.relu)
        layer = Linear("fc", self.mask, x, y, bias=self.bias, relu=self.relu)
        layer.weight.value[:] = self.whole(self.outputs, self.inputs).ravel()[layer.weight.order]
        if layer.bias is not None:
            layer.bias.value[:] = self.whole(self.outputs)
        spread(x, x.value, self.x, JUNK)
        spread(x, x.gradient, self.old, np.float32(0))
        spread(y, y.gradient, self.dy, np.float32(0))
        return layer, x, y

    @property
    def x(self) -> NDArray[np.float32]:
        drawn = self.whole(self.count, self.inputs)
        return np.maximum(drawn, 0) if self.gated else drawn

    @property
    def dy(self) -> NDArray[np.float32]:
        return self.whole(self.count, self.outputs)

    @property
    def old(self) -> NDArray[np.float32]:
        return self.whole(self.count, self.inputs, 2)[:, :, 0]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    # Wide enough to be cut into blocks of columns, in one direction or the other, or small.
    sizes = st.one_of(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.sampled_from([(400, 9), (7, 350)]))
    inputs, outputs = draw(sizes)
    bias, relu, gated, accumulate = (draw(st.booleans()) for _ in range(4))
    count, density, seed = draw(st.integers(1, 200)), draw(DENSITIES), draw(st.integers(0, 2**31))
    return Case(count, inputs, outputs, density, bias, relu, gated, accumulate, seed)


def results(case: Case, threads: int) -> dict[str, NDArray[Any]]:
    layer, x, y = case.layer()
    run(layer.forward(True) + layer.backward(True, case.accumulate), case.count, threads)
    for activation, array in ((x, x.gradient), (y, y.value)):
        assert_untouched_around(activation, array, case.count)
    dx = collect(x, x.gradient, case.count)[:, :, 0, 0]
    assert not dx[case.count :].any()
    weight = np.zeros(case.outputs * case.inputs, np.float32)
    assert layer.weight.order is not None
    weight[layer.weight.order] = layer.weight.gradient
    found = {"y": collect(y, y.value, case.count)[: case.count, :, 0, 0], "dx": dx[: case.count]}
    found |= {"weight": weight.reshape(case.outputs, case.inputs)}
    return found if layer.bias is None else found | {"bias": layer.bias.gradient.copy()}


@settings(max_examples=150, deadline=None)
@given(cases())
@example(Case(130, 400, 9, 1.0, seed=1))  # blocks of columns, forward
@example(Case(130, 7, 350, 1.0, gated=True, accumulate=True, seed=1))  # blocks of rows, backward
@example(Case(64, 1, 1, 0.0))
def test_a_layer_and_its_gradients_are_the_dense_products(case: Case) -> None:
    weight = np.where(case.mask, case.whole(case.outputs, case.inputs), 0).astype(np.float64)
    x, dy = case.x.astype(np.float64), case.dy.astype(np.float64)
    y = x @ weight.T + (case.whole(case.outputs) if case.bias else 0)
    dx = np.where(x > 0, dy @ weight, 0) if case.gated else dy @ weight
    expected = {
        "y": np.maximum(y, 0) if case.relu else y,
        "dx": case.old + dx if case.accumulate else dx,
        "weight": np.where(case.mask, dy.T @ x, 0),
    }
    if case.bias:
        expected["bias"] = dy.sum(0)
    for threads in (1, 2, 3):
        found = results(case, threads)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert np.array_equal(value, expected[name]), name


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.sampled_from([(400, 30), (30, 400), (40, 40)]), DENSITIES, st.integers(0, 2**31))
def test_bits_do_not_depend_on_threads_and_stay_near_float64(
    count: int, size: tuple[int, int], density: float, seed: int
) -> None:
    class Real(Case):
        def whole(self, *shape: int) -> NDArray[np.float32]:
            return np.random.default_rng([self.seed, *shape]).normal(size=shape).astype(np.float32)

    case = Real(count, *size, density, seed=seed)
    one = results(case, 1)
    for threads in (2, 5):
        assert all(np.array_equal(value, one[name]) for name, value in results(case, threads).items())
    x, weight, dy = (array.astype(np.float64) for array in (case.x, case.whole(size[1], size[0]), case.dy))
    weight = np.where(case.mask, weight, 0)
    # Within the rounding of sums of this length, by the sizes of what is added.
    for found, product, sizes, terms in (
        (one["y"], x @ weight.T + case.whole(size[1]), abs(x) @ abs(weight.T) + abs(case.whole(size[1])), size[0]),
        (one["dx"], dy @ weight, abs(dy) @ abs(weight), size[1]),
        (one["weight"], np.where(case.mask, dy.T @ x, 0), abs(dy.T) @ abs(x), count),
        (one["bias"], dy.sum(0), abs(dy).sum(0), count),
    ):
        assert (abs(found - product) <= (4 + np.sqrt(terms)) * 6e-8 * sizes).all()


@pytest.mark.parametrize("blocked", [(9, 400), (400, 9)])
def test_long_rows_are_cut_into_blocks_and_short_ones_are_not(blocked: tuple[int, int]) -> None:
    outputs, inputs = blocked
    layer = Linear("fc", np.ones(blocked, bool), Activation(16, inputs), Activation(16, outputs), bias=False, relu=True)
    assert (layer._blocks, layer._blocks_t) == ((4, 1) if inputs == 400 else (1, 4))
    thin = np.zeros(blocked, bool)
    thin[0] = True
    layer = Linear("fc", thin, Activation(16, inputs), Activation(16, outputs), bias=False, relu=True)
    assert layer._blocks_t == 1
    assert layer.parameters == [layer.weight]


def test_it_tells_its_size_and_what_is_kept() -> None:
    mask = np.arange(2000).reshape(20, 100) % 2 == 0
    layer = Linear("fc", mask, Activation(16, 100), Activation(16, 20), bias=True, relu=False)
    assert layer.told == "20x100, 1,000 kept (50 %), sparse"
    assert [p.name for p in layer.parameters] == ["fc.weight", "fc.bias"]
