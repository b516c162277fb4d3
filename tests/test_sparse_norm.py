from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sparse_tools import COUNTS, JUNK, allocated, assert_untouched_around, collect, run, shapes, spread
from torch import nn

from tombola.engines.sparse.norm import BatchNorm
from tombola.engines.sparse.parts import Activation

Array = NDArray[np.float32]


@dataclass
class Case:
    """One layer, drawn: geometry, options, numbers."""

    count: int
    shape: tuple[int, ...]
    halos: tuple[int, int]
    seed: int
    affine: bool
    relu: bool
    gated: bool
    accumulate: bool

    def __post_init__(self) -> None:
        generator = np.random.default_rng(self.seed)
        c = self.shape[0]
        size = (self.count, *self.shape, *[1] * (3 - len(self.shape)))
        self.x = (generator.normal(size=size) * 3 + generator.normal(size=(1, c, 1, 1)) * 5).astype(np.float32)
        if self.gated:
            self.x = np.maximum(self.x, 0)
        self.dy, self.old = (generator.normal(size=size).astype(np.float32) for _ in range(2))
        self.weight, self.bias, self.mean = (generator.normal(size=c).astype(np.float32) for _ in range(3))
        self.variance = generator.uniform(0.5, 2, c).astype(np.float32)

    def activations(self) -> tuple[Activation, Activation]:
        halos = self.halos if len(self.shape) == 3 else (0, 0)
        x = allocated(self.count, self.shape, halos[0], self.gated)
        y = allocated(self.count, self.shape, halos[1], self.relu)
        spread(x, x.value, self.x, JUNK)
        spread(x, x.gradient, self.old, np.float32(0))
        return x, y


@st.composite
def cases(draw: st.DrawFn) -> Case:
    halos = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    flags = [draw(st.booleans()) for _ in range(4)]
    return Case(draw(COUNTS), draw(shapes()), halos, draw(st.integers(0, 2**31)), *flags)


def torch_layer(case: Case, momentum: float | None, track: bool) -> nn.BatchNorm2d:
    """The layer of torch in float64, with the case's parameters and buffers."""
    layer = nn.BatchNorm2d(case.shape[0], 1e-3, momentum, case.affine, track, dtype=torch.float64)
    with torch.no_grad():
        for mine, there in zip(
            (case.weight, case.bias, case.mean, case.variance),
            (layer.weight, layer.bias, layer.running_mean, layer.running_var),
            strict=True,
        ):
            if there is not None:
                there.copy_(torch.tensor(mine))
    return layer


def our_layer(case: Case, x: Activation, y: Activation, momentum: float | None, track: bool) -> BatchNorm:
    layer = BatchNorm("b", x, y, eps=1e-3, momentum=momentum, affine=case.affine, track=track, relu=case.relu)
    for parameter, value in zip(layer.parameters, (case.weight, case.bias), strict=False):
        parameter.value[:] = value
    if track:
        layer.buffers["b.running_mean"][:] = case.mean
        layer.buffers["b.running_var"][:] = case.variance
    return layer


def close(found: NDArray[Any], expected: Any, scale: float = 1.0) -> None:
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5 * scale)


def compare(case: Case, momentum: float | None, track: bool, training: bool) -> None:
    """Output, gradients and buffers against torch, for 1 and 2 threads, which must give the same bits."""
    theirs = torch_layer(case, momentum, track).train(training)
    source = torch.tensor(case.x, dtype=torch.float64, requires_grad=True)
    plain = theirs(source)
    # Which side of 0 an output lies on, float64 decides for both.
    dy = np.where(plain.detach().numpy() > 0, case.dy, 0) if case.relu else case.dy
    plain.backward(torch.tensor(dy, dtype=torch.float64))
    expected = plain.detach().numpy()
    assert source.grad is not None
    slope = np.where(case.x > 0, source.grad, 0) if case.gated else source.grad.numpy()

    results = []
    for threads in (1, 2):
        x, y = case.activations()
        layer = our_layer(case, x, y, momentum, track)
        run(layer.forward(training), case.count, threads)
        spread(y, y.gradient, dy, np.float32(0))
        run(layer.backward(True, case.accumulate, training=training), case.count, threads)
        close(collect(y, y.value, case.count)[: case.count], np.maximum(expected, 0) if case.relu else expected, 3)
        assert not collect(y, y.value, case.count)[case.count :].any()
        found = collect(x, x.gradient, case.count)
        # The terms of the gradient may cancel: the error is relative to the largest of them.
        steep = 1 / np.sqrt(case.x.var((0, 2, 3), dtype=np.float64).min() + 1e-3)
        close(found[: case.count], case.old + slope if case.accumulate else slope, 10 * max(1, steep))
        assert not found[case.count :].any()
        for parameter, gradient in zip(layer.parameters, theirs.parameters(), strict=True):
            assert gradient.grad is not None
            close(parameter.gradient, gradient.grad, case.dy[:, 0].size)
        assert layer.buffers.keys() == {f"b.{name}" for name, _ in theirs.named_buffers()}
        for name, buffer in theirs.named_buffers():
            close(layer.buffers[f"b.{name}"], buffer)
        assert_untouched_around(x, x.gradient, case.count)
        assert_untouched_around(y, y.value, case.count)
        arrays = [y.value, x.gradient, *(p.gradient for p in layer.parameters), *layer.buffers.values()]
        results.append([a.tobytes() for a in arrays])
    assert results[0] == results[1]


@settings(max_examples=100, deadline=None)
@given(cases(), st.sampled_from([0.0, 0.1, 1.0, None]), st.booleans())
def test_training_as_in_torch(case: Case, momentum: float | None, track: bool) -> None:
    assume(case.x[:, 0].size > 1)
    compare(case, momentum, track, training=True)


@settings(max_examples=60, deadline=None)
@given(cases(), st.booleans())
def test_evaluation_as_in_torch(case: Case, track: bool) -> None:
    assume(track or case.x[:, 0].size > 1)
    compare(case, 0.1, track, training=False)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_of_batches_of_different_sizes(momentum: float | None) -> None:
    x, y = allocated(40, (3, 2, 2)), allocated(40, (3, 2, 2))
    layer = BatchNorm("b", x, y, momentum=momentum)
    theirs = nn.BatchNorm2d(3, momentum=momentum, dtype=torch.float64)
    generator = np.random.default_rng(0)
    for count in (40, 33, 7):
        batch = generator.normal(2, 3, (count, 3, 2, 2)).astype(np.float32)
        spread(x, x.value, batch, JUNK)
        run(layer.forward(True), count)
        theirs(torch.tensor(batch, dtype=torch.float64))
    for name, buffer in theirs.named_buffers():
        close(layer.buffers[f"b.{name}"], buffer)
    assert layer.buffers["b.num_batches_tracked"].shape == ()
    before = [b.tobytes() for b in layer.buffers.values()]
    run(layer.forward(False), 7)
    assert [b.tobytes() for b in layer.buffers.values()] == before


@pytest.mark.parametrize("shape", [(2, 6, 5), (2,)])
def test_variance_far_from_zero_and_beside_outliers(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(3)
    batch = generator.normal(size=(130, *shape, *[1] * (3 - len(shape)))).astype(np.float32)
    batch[:, 0] += 10_000  # the square of the mean is 10 ** 8 times the variance
    batch[0, 1] = 1_000_000
    x, y = allocated(130, shape), allocated(130, shape)
    spread(x, x.value, batch, JUNK)
    layer = BatchNorm("b", x, y, momentum=1.0)
    run(layer.forward(True), 130)
    exact = batch.astype(np.float64)
    np.testing.assert_allclose(layer.buffers["b.running_mean"], exact.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(layer.buffers["b.running_var"], exact.var((0, 2, 3), ddof=1), rtol=1e-5)
    wanted = (exact - exact.mean((0, 2, 3), keepdims=True)) / np.sqrt(exact.var((0, 2, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(collect(y, y.value, 130)[:130], wanted, rtol=1e-5, atol=1e-5)

    dy = generator.normal(5, 1, exact.shape).astype(np.float32)
    spread(y, y.gradient, dy, np.float32(0))
    run(layer.backward(True, False), 130)
    theirs = nn.BatchNorm2d(2, dtype=torch.float64)
    source = torch.tensor(exact, requires_grad=True)
    theirs(source).backward(torch.tensor(dy, dtype=torch.float64))
    assert source.grad is not None
    assert theirs.weight.grad is not None
    np.testing.assert_allclose(layer.parameters[0].gradient, theirs.weight.grad, rtol=1e-4, atol=1e-5 * dy[:, 0].size)
    np.testing.assert_allclose(collect(x, x.gradient, 130)[:130, 0], source.grad[:, 0], rtol=1e-4, atol=1e-5)


def test_a_constant_channel_has_variance_zero() -> None:
    x, y = allocated(17, (1, 3, 3)), allocated(17, (1, 3, 3))
    spread(x, x.value, np.full((17, 9), 0.1, np.float32), JUNK)
    layer = BatchNorm("b", x, y)
    run(layer.forward(True), 17)
    np.testing.assert_allclose(collect(y, y.value, 17)[:17], 0, atol=1e-5)
    np.testing.assert_allclose(layer.buffers["b.running_var"], 0.9, rtol=1e-6)


def test_calls_only_for_what_is_wanted() -> None:
    x, y = allocated(16, (2,)), allocated(16, (2,))
    spread(x, x.value, np.arange(32, dtype=np.float32).reshape(16, 2), np.float32(0))
    spread(y, y.gradient, np.ones((16, 2)), np.float32(0))
    assert BatchNorm("b", x, y, affine=False).backward(False, False) == []
    layer = BatchNorm("b", x, y)
    run(layer.forward(True) + layer.backward(False, False), 16)
    assert (layer.parameters[1].gradient == 16).all()
    assert not x.gradient.any()
    assert [p.name for p in layer.parameters] == ["b.weight", "b.bias"]


def test_layouts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="same layout and size"):
        BatchNorm("b", Activation(4, 3, 2, 2, images=True), Activation(4, 3))


def test_nan_spoils_its_channel_only() -> None:
    batch = np.random.default_rng(0).normal(size=(20, 2, 2, 2)).astype(np.float32)
    batch[18, 1, 0, 1] = np.nan
    x, y = allocated(20, (2, 2, 2)), allocated(20, (2, 2, 2))
    spread(x, x.value, batch, JUNK)
    layer = BatchNorm("b", x, y, relu=True)
    run(layer.forward(True), 20)
    found = collect(y, y.value, 20)[:20]
    assert np.isfinite(found[:, 0]).all()
    assert np.isnan(found[:, 1]).all()
    for name in ("b.running_mean", "b.running_var"):
        assert np.array_equal(np.isnan(layer.buffers[name]), [False, True])
