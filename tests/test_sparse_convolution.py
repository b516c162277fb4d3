from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sparse_tools import JUNK, allocated, assert_untouched_around, collect, run, spread

from tombola.engines.sparse.conv_kernels import PAIRS
from tombola.engines.sparse.conv_tiles import Places, tile_tables
from tombola.engines.sparse.convolution import Axis, Convolution, halos, least_halos
from tombola.engines.sparse.parts import Activation, aligned
from tombola.errors import InputError

Pair = tuple[int, int]
COUNTS = st.sampled_from([1, 15, 16, 17, 60, 100])


@dataclass(frozen=True)
class Case:
    """A convolution and what it is given. All numbers are small and whole, so that sums come out exact in any order."""

    count: int
    inputs: int
    outputs: int
    size: Pair
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    density: float = 0.3
    more_halo: Pair = (0, 0)
    bias: bool = True
    relu: bool = False
    gated: bool = False
    accumulate: bool = False
    onto: bool = False
    """With ``accumulate``: what is added to lies elsewhere, and hasn't been gated."""
    seed: int = 0

    def numbers(self, *shape: int) -> NDArray[np.float32]:
        generator = np.random.default_rng([self.seed, *shape])
        return generator.integers(-3, 4, shape).astype(np.float32)

    @property
    def mask(self) -> NDArray[np.bool_]:
        shape = (self.outputs, self.inputs // self.groups, *self.kernel)
        return np.random.default_rng(self.seed).random(shape) < self.density


def sizes_fit(case: Case) -> bool:
    return all(
        n + 2 * p > d * (k - 1) for n, k, p, d in zip(case.size, case.kernel, case.padding, case.dilation, strict=True)
    )


def output_size(case: Case) -> Pair:
    x, weight = torch.zeros(1, case.inputs, *case.size), torch.zeros(case.mask.shape)
    shape = F.conv2d(x, weight, None, case.stride, case.padding, case.dilation, case.groups).shape
    return shape[2], shape[3]


def pairs(low: int, high: int) -> st.SearchStrategy[Pair]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups = draw(st.sampled_from([1, 1, 1, 2, 4]))
    return Case(
        count=draw(COUNTS),
        inputs=groups * draw(st.integers(1, 4)),
        outputs=groups * draw(st.integers(1, 4)),
        size=draw(pairs(1, 11)),
        kernel=draw(st.one_of(st.sampled_from([(1, 1), (3, 3)]), pairs(1, 5))),
        stride=draw(st.one_of(st.just((1, 1)), pairs(1, 3))),
        padding=draw(pairs(0, 3)),
        dilation=draw(st.one_of(st.just((1, 1)), pairs(1, 3))),
        groups=groups,
        density=draw(st.sampled_from([0.0, 0.05, 0.3, 1.0])),
        more_halo=draw(pairs(0, 2)),
        bias=draw(st.booleans()),
        relu=draw(st.booleans()),
        gated=draw(st.booleans()),
        accumulate=draw(st.booleans()),
        onto=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31)),
    )


def layer_of(case: Case, height: int, width: int) -> Convolution:
    """The layer, its parameters filled, between activations with the halos it needs and more where the case says so."""
    x = allocated(case.count, (case.inputs, *case.size), rectified=case.gated)
    y = allocated(case.count, (case.outputs, height, width))
    sizes = zip(case.size, (height, width), case.kernel, case.stride, case.padding, case.dilation, strict=True)
    rows, columns = (Axis(*size) for size in sizes)
    least = least_halos(rows, columns)
    for activation, halo, more in zip((x, y), least, case.more_halo, strict=True):
        activation.halo = halo + more
        activation.allocate(gradient=True)
    options: dict[str, Any] = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}
    layer = Convolution("c", case.mask, x, y, **options, groups=case.groups, bias=case.bias, relu=case.relu)
    assert layer.weight.order is not None
    layer.weight.value[:] = case.numbers(*case.mask.shape).ravel()[layer.weight.order]
    if layer.bias is not None:
        layer.bias.value[:] = case.numbers(case.outputs)
    return layer


def assert_as_in_torch(case: Case, padding: Pair | str | None = None) -> None:
    """Value and all gradients equal those of torch, exactly, with 1, 2 and 3 threads; padding and halo stay zero."""
    mask = case.mask
    x64 = torch.tensor(case.numbers(case.count, case.inputs, *case.size), dtype=torch.float64, requires_grad=True)
    weight = torch.tensor(case.numbers(*mask.shape) * mask, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(case.numbers(case.outputs), dtype=torch.float64, requires_grad=True) if case.bias else None
    expected = F.conv2d(
        x64, weight, bias, case.stride, case.padding if padding is None else padding, case.dilation, case.groups
    )
    dy = case.numbers(*expected.shape, 1)[..., 0]
    expected.backward(torch.tensor(dy, dtype=torch.float64))  # type: ignore[no-untyped-call]
    value = x64.detach().numpy()
    old = case.numbers(*value.shape, 2)[..., 0]
    assert x64.grad is not None
    assert weight.grad is not None
    slope = x64.grad.numpy() + old if case.accumulate else x64.grad.numpy()
    if case.gated:
        slope = np.where(value > 0, slope, 0)
    for threads in (1, 2, 3):
        layer = layer_of(case, *expected.shape[2:])
        x, y = layer.x, layer.y
        spread(x, x.value, value, JUNK)
        onto = aligned(x.size) if case.accumulate and case.onto else None
        if onto is None:
            spread(x, x.gradient, np.where(value > 0, old, 0) if case.gated else old, np.float32(0))
        else:
            spread(x, onto, old, np.float32(0))
        spread(y, y.gradient, dy, np.float32(0))
        run(layer.forward(True) + layer.backward(True, case.accumulate, onto=onto), case.count, threads)
        result = expected.detach().numpy()
        np.testing.assert_array_equal(
            collect(y, y.value, case.count)[: case.count], np.maximum(result, 0) if case.relu else result
        )
        found = collect(x, x.gradient, case.count)
        np.testing.assert_array_equal(found[: case.count], slope)
        assert not found[case.count :].any()
        np.testing.assert_array_equal(layer.weight.gradient, weight.grad.numpy().ravel()[layer.weight.order])
        if layer.bias is not None:
            assert bias is not None
            assert bias.grad is not None
            np.testing.assert_array_equal(layer.bias.gradient, bias.grad)
        assert_untouched_around(x, x.gradient, case.count)
        assert_untouched_around(y, y.value, case.count)


@settings(max_examples=150, deadline=None)
@given(cases().filter(sizes_fit))
def test_as_in_torch(case: Case) -> None:
    assert_as_in_torch(case)


@pytest.mark.parametrize(
    "case",
    [
        Case(60, 64, 48, (8, 8), padding=(1, 1), density=0.4, gated=True, relu=True),
        Case(60, 64, 48, (8, 8), padding=(1, 1), density=0.4, accumulate=True),
        Case(60, 64, 48, (8, 8), padding=(1, 1), density=0.4, accumulate=True, onto=True, gated=True),
        Case(17, 40, 96, (9, 7), padding=(1, 1), density=1.0, stride=(2, 1)),
    ],
)
def test_sums_put_aside_between_blocks(case: Case) -> None:
    layer = layer_of(case, *(len(range(0, n, s)) for n, s in zip(case.size, case.stride, strict=True)))
    assert layer._plan().blocks > 1
    assert_as_in_torch(case)


@pytest.mark.parametrize(
    "case",
    [
        Case(100, 3, 40, (16, 16), padding=(1, 1)),  # a result of 3 MB, written past the caches
        Case(128, 40, 3, (16, 16), padding=(1, 1), gated=True),
        Case(20, 3, 8, (23, 23), (7, 7), (2, 2), (3, 3)),
        Case(17, 2, 4, (12, 10), (5, 5), padding=(2, 2)),
        Case(33, 12, 12, (7, 7), padding=(1, 1), groups=12, density=1.0),
        Case(15, 8, 8, (9, 9), (1, 1), (2, 2), density=0.5),
        Case(60, 16, 16, (1, 1), (1, 1), density=0.5),
        Case(60, 16, 16, (2, 2), padding=(1, 1), density=0.1),
    ],
)
def test_usual_shapes(case: Case) -> None:
    assert_as_in_torch(case)


@pytest.mark.parametrize("kernel", [(2, 2), (4, 3), (3, 2)])
def test_padding_that_is_larger_at_the_end(kernel: Pair) -> None:
    before = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it makes a copy
        assert_as_in_torch(Case(17, 3, 4, (6, 5), kernel, padding=before), padding="same")


def test_numbers_that_are_not_whole() -> None:
    case = Case(60, 16, 24, (10, 12), padding=(1, 1))
    generator = torch.Generator().manual_seed(0)
    x64 = torch.randn(60, 16, 10, 12, generator=generator).double().requires_grad_()
    weight = (torch.randn(24, 16, 3, 3, generator=generator) * torch.tensor(case.mask)).double().requires_grad_()
    dy = torch.randn(60, 24, 10, 12, generator=generator)
    expected = F.conv2d(x64, weight, padding=1)
    dx, dw = torch.autograd.grad(expected, (x64, weight), dy.double())
    bits = set()
    for threads in (1, 2):
        layer = layer_of(case, 10, 12)
        assert layer.bias is not None
        layer.bias.value[:] = 0
        layer.weight.value[:] = weight.detach().numpy().ravel()[layer.weight.order]
        spread(layer.x, layer.x.value, x64.detach().numpy(), np.float32(0))
        spread(layer.y, layer.y.gradient, dy.numpy(), np.float32(0))
        run(layer.forward(True) + layer.backward(True, False), 60, threads)
        np.testing.assert_allclose(collect(layer.y, layer.y.value, 60)[:60], expected.detach(), rtol=2e-6, atol=5e-5)
        np.testing.assert_allclose(collect(layer.x, layer.x.gradient, 60)[:60], dx, rtol=2e-6, atol=5e-5)
        np.testing.assert_allclose(layer.weight.gradient, dw.numpy().ravel()[layer.weight.order], rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(layer.bias.gradient, dy.double().sum((0, 2, 3)), rtol=1e-4, atol=1e-3)
        arrays = (layer.y.value, layer.x.gradient, layer.weight.gradient, layer.bias.gradient)
        bits.add(b"".join(a.tobytes() for a in arrays))
    assert len(bits) == 1


def test_nan_spoils_only_what_meets_it() -> None:
    case = Case(1, 1, 1, (4, 4), (2, 2), density=1.0, bias=False)
    layer = layer_of(case, 3, 3)
    value = np.ones((1, 1, 4, 4))
    value[0, 0, 0, 0] = np.nan
    spread(layer.x, layer.x.value, value, np.float32(0))
    run(layer.forward(True), 1)
    assert np.isnan(collect(layer.y, layer.y.value, 1)[0, 0]).sum() == 1


def test_a_smaller_batch_after_a_larger_one() -> None:
    case = Case(60, 3, 4, (5, 5), padding=(1, 1))
    layer, fresh = layer_of(case, 5, 5), layer_of(case, 5, 5)
    value, dy = case.numbers(60, 3, 5, 5), case.numbers(60, 4, 5, 5)
    for one, counts in ((layer, (60, 17)), (fresh, (17,))):
        for count in counts:
            spread(one.x, one.x.value, value[:count], np.float32(0))
            spread(one.y, one.y.gradient, dy[:count], np.float32(0))
            run(one.forward(True) + one.backward(True, False), count)
    np.testing.assert_array_equal(layer.weight.gradient, fresh.weight.gradient)
    np.testing.assert_array_equal(collect(layer.x, layer.x.gradient, 17), collect(fresh.x, fresh.x.gradient, 17))


@given(cases().filter(sizes_fit))
@settings(max_examples=100, deadline=None)
def test_every_read_and_write_is_inside_the_arrays(case: Case) -> None:
    layer = layer_of(case, *output_size(case))
    phases = [layer._phase(row, column)[0] for row in layer.rows.phases for column in layer.columns.phases]
    for plan in (layer._plan(), *phases):
        table, sets = plan.tiles.table, plan.tiles.sets
        sides = ((0, plan.source, 4 * plan.offset), (1, plan.result, np.zeros(1, np.int64)))
        for side, images, offsets in sides:
            first = table[:, side * PAIRS : (side + 1) * PAIRS]
            places = np.stack([first, first + table[:, 2 * PAIRS + side, None]])
            if offsets.size:
                channels = images.channels if side else 1
                last = places.max() + offsets.max() + 4 * (channels - 1) * images.pitch[1]
                assert places.min() + offsets.min() >= 0
                assert last + 64 <= 4 * sets * images.pitch[2]


@given(st.integers(1, 16), st.integers(1, 13), st.integers(1, 13))
@settings(max_examples=100, deadline=None)
def test_tiles_hold_every_pixel_once(groups: int, height: int, width: int) -> None:
    places = Places(0, height * width, width, 1)
    tiles = tile_tables(groups, height, width, places, places)
    assert tiles.sets <= groups
    for n in range(1, tiles.sets + 1):
        table = tiles.table[tiles.starts[n - 1] : tiles.starts[n]]
        both = np.concatenate([table[:, :PAIRS], table[:, :PAIRS] + table[:, 2 * PAIRS, None]], axis=1)
        live = table[:, -1:] >> np.arange(2 * PAIRS) & 1 == 1
        assert sorted(both[live]) == list(range(n * height * width))
        for row, alive in zip(both, live, strict=True):  # so that two threads never write the same pixel
            assert set(row) == set(row[alive])


def test_order_of_the_weights() -> None:
    layer = layer_of(Case(16, 64, 64, (8, 8), padding=(1, 1)), 8, 8)
    assert layer.weight.order is not None
    np.testing.assert_array_equal(np.sort(layer.weight.order), np.flatnonzero(Case(16, 64, 64, (8, 8)).mask))


@pytest.mark.parametrize("shape", [(4, 3, 3), (4, 2, 3, 3), (5, 3, 3, 3)])
def test_a_mask_that_does_not_fit(shape: tuple[int, ...]) -> None:
    x, y = Activation(16, 3, 5, 5, True), Activation(16, 4, 3, 3, True)
    with pytest.raises(InputError, match=r"c: a mask of shape .* must be of shape \(4, 3, height, width\)"):
        Convolution("c", np.ones(shape, bool), x, y)


@given(cases().filter(sizes_fit))
@settings(max_examples=100, deadline=None)
def test_halos(case: Case) -> None:
    """What the program gives is what is needed, but never planes that all begin at the same sets of a cache."""
    layer = layer_of(case, *(output_size(case)))
    least = least_halos(layer.rows, layer.columns)
    given_ = halos(layer.x, layer.y, case.kernel, case.stride, case.padding, case.dilation)
    for images, halo, needed in zip((layer.x, layer.y), given_, least, strict=True):
        planes = [(images.height + 2 * h) * (images.width + 2 * h) for h in (needed, halo)]
        assert planes[1] % 64
        assert halo == needed or (planes[0] % 64 == 0 and halo > needed)


def test_halos_that_are_too_narrow() -> None:
    x, y = Activation(16, 3, 5, 5, True), Activation(16, 4, 5, 5, True, halo=1)
    layer = Convolution("c", np.ones((4, 3, 3, 3), bool), x, y, padding=(1, 1))
    with pytest.raises(InputError, match="c: its input has a halo of 0 pixels, but needs 1"):
        layer.forward(True)
