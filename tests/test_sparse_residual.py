from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sparse_nets import Kinks
from torch import Tensor, nn

import tombola as tb
from tombola.engines.sparse.layout import room, share, spans
from tombola.engines.sparse.parts import Call, aligned, names
from tombola.engines.sparse.translate import translate
from tombola.engines.tracing import trace

Way = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Layers for every way of going through them. ``big`` and ``small`` halve the image, ``dead`` has no weights."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way = way
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.one, self.two, self.three, self.dead = (nn.Conv2d(6, 6, 3, padding=1, bias=False) for _ in range(4))
        self.a, self.b, self.c, self.d, self.e = (nn.BatchNorm2d(6) for _ in range(5))
        self.big, self.small = nn.Conv2d(6, 6, 3, 2, padding=1), nn.Conv2d(6, 6, 1, 2, bias=False)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.way(self, x).mean((2, 3)))  # type: ignore[no-any-return]


def identity(n: Net, x: Tensor) -> Tensor:
    x = F.relu(n.stem(x))
    return F.relu(n.b(n.two(F.relu(n.a(n.one(x))))) + x)


def two_blocks(n: Net, x: Tensor) -> Tensor:
    x = n.b(n.one(n.stem(x)))
    x = F.relu(n.a(n.two(x)) + x)
    return F.relu(n.c(n.three(x)) + x)


def projected(n: Net, x: Tensor) -> Tensor:
    x = F.relu(n.a(n.stem(x)))
    return F.relu(n.b(n.big(x)) + n.c(n.small(x)))


def dead_branch(n: Net, x: Tensor) -> Tensor:
    x = F.relu(n.stem(x))
    return F.relu(n.a(n.dead(x)) + x)


def dead_projection(n: Net, x: Tensor) -> Tensor:
    x = F.relu(n.a(n.stem(x)))
    x = F.relu(n.b(n.dead(x)) + n.c(n.one(x)))
    return F.relu(n.d(n.big(x)) + n.small(x))


def sum_of_sums(n: Net, x: Tensor) -> Tensor:
    x = F.relu(n.stem(x))
    y = n.a(n.one(x)) + x
    z = y + n.b(n.two(y))
    return F.relu((z + y) + n.c(n.three(z)))


def used_three_times(n: Net, x: Tensor) -> Tensor:
    x = F.relu(n.a(n.stem(x)))
    return F.relu(n.b(n.one(x)) + n.c(n.two(x))) + F.relu(n.d(n.three(x)) + x)


def read_twice(n: Net, x: Tensor) -> Tensor:
    """What is normalised is a summand, and read by a layer as well: before the sum, and after it."""
    x = n.a(n.stem(x))
    y = n.b(n.one(x))
    out: Tensor = n.c(n.two(F.relu(y + x))) + n.d(n.three(y))
    return out


def doubled(n: Net, x: Tensor) -> Tensor:
    x = n.a(n.stem(x))
    y = F.relu(x + x)
    return F.relu(y + n.b(n.one(y))) + y


def not_gated(n: Net, x: Tensor) -> Tensor:
    x = n.stem(x)
    x = n.one(x) + x
    out: Tensor = n.two(x) + F.max_pool2d(x, 3, 1, 1)
    return out


WAYS: list[Way] = [
    identity, two_blocks, projected, dead_branch, dead_projection, sum_of_sums, used_three_times, read_twice, doubled,
    not_gated,
]  # fmt: skip


def made(way: Way, seed: int) -> tuple[Net, tb.Mask]:
    """A net with numbers of its own and a mask that keeps a third of it, but nothing of ``dead``."""
    torch.manual_seed(seed)
    net = Net(way)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, -1.5, 1.5)
        nn.init.normal_(norm.bias)
    masks = {f"{name}.weight": torch.rand(m.weight.shape) < 0.33 for name, m in net.named_modules() if name in CONVS}
    masks["dead.weight"][:] = False
    return net, tb.Mask(masks)


CONVS = ("stem", "one", "two", "three", "dead", "big", "small")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@given(st.integers(0, 2**31), st.sampled_from([1, 5, 16, 19, 32]), st.sampled_from([8, 7, 5]), st.booleans())
@settings(max_examples=8, deadline=None)
def test_gradients_through_sums_are_those_of_torch(
    way: Way, seed: int, count: int, size: int, evaluating: bool
) -> None:
    net, mask = made(way, seed)
    if evaluating:  # statistics of its own for one layer, those of the batch for the others
        net.b.eval()
    exact = copy.deepcopy(net).double()
    mask.apply_(exact)
    x = torch.randn(count, 3, size, size)
    ours = tb.compile(net, mask, x[:1])
    mine, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    with Kinks() as kinks:
        expected = exact(theirs)
    assume(kinks.margin > 1e-5)
    found = ours(mine)
    slope = torch.randn(found.shape)
    found.backward(slope)
    expected.backward(slope.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert mine.grad is not None
    assert theirs.grad is not None
    near(mine.grad, theirs.grad)
    gradients = {name: p.grad for name, p in exact.named_parameters()}
    for name, p in ours.named_parameters():
        full = gradients[name]
        assert (p.grad is None) == (full is None)
        if p.grad is None or full is None:
            continue
        kept = mask[name].reshape(-1) if name in mask else torch.ones(full.numel(), dtype=torch.bool)
        near(p.grad.reshape(-1), full.reshape(-1)[kept])
    for name, buffer in exact.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name).double(), buffer.double(), rtol=1e-4, atol=1e-5)


def near(found: Tensor, exact: Tensor) -> None:
    """Equal to the rounding of float32: the terms of a gradient may cancel, so relative to the largest."""
    scale = max(1.0, float(exact.abs().max())) if exact.numel() else 1.0
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=2e-5 * scale)


@pytest.mark.parametrize(
    ("way", "copies", "sums"),
    [(identity, 0, 0), (projected, 0, 0), (dead_branch, 0, 0), (two_blocks, 0, 0), (not_gated, 0, 2)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_sums_cost_no_pass_of_their_own_where_their_neighbours_can_do_their_work(
    way: Way, copies: int, sums: int
) -> None:
    net, mask = made(way, 0)
    program = translate(trace(net, mask, torch.zeros(2, 3, 8, 8)), mask, 16)
    assert names(program.forward(True)).count("sum_forward") == sums
    assert names(program.backward()).count("sum_backward") == copies


def test_gradients_share_memory_and_the_input_and_output_keep_their_own() -> None:
    net, mask = made(used_three_times, 0)
    program = translate(trace(net, mask, torch.zeros(2, 3, 8, 8)), mask, 16)
    before = program.output.gradient
    program.backward()
    own = {s.output.gradient.ctypes.data for s in program.steps if s.output.images}
    assert len(own) < sum(s.output.images for s in program.steps) - 2
    assert program.output.gradient is before
    assert not program.input.gradient.size


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 2)), max_size=30))
def test_who_needs_a_place_at_the_same_time_does_not_share_it(drawn: list[tuple[int, int, int]]) -> None:
    needed, kinds = [(min(a, b), max(a, b)) for a, b, _ in drawn], [kind for *_, kind in drawn]
    places = share(needed, kinds)
    assert sorted(set(places)) == list(range(len(set(places))))
    for i, (first, last) in enumerate(needed):
        for j, (begin, end) in enumerate(needed[:i]):
            assert places[i] != places[j] or (kinds[i] == kinds[j] and (last < begin or end < first))
    for kind in set(kinds):  # no more places than are needed at some time
        together = max(
            sum(a <= t <= b and k == kind for (a, b), k in zip(needed, kinds, strict=True)) for t in range(21)
        )
        assert len({p for p, k in zip(places, kinds, strict=True) if k == kind}) == together


@given(st.lists(st.integers(1, 50), min_size=1, max_size=10))
def test_arrays_in_one_piece_are_apart_and_begin_at_cache_lines(sizes: list[int]) -> None:
    arrays = room(sizes)
    assert [a.size for a in arrays] == sizes
    assert all(a.ctypes.data % 64 == 0 and not a.any() and a.flags.c_contiguous for a in arrays)
    for a, b in itertools.pairwise(arrays):
        assert a.ctypes.data + a.nbytes < b.ctypes.data


def test_an_array_is_needed_from_the_first_call_that_touches_it_to_the_last() -> None:
    net, mask = made(identity, 0)
    (kernel, *_) = [c.kernel for c in translate(trace(net, mask, torch.zeros(2, 3, 8, 8)), mask, 16).forward(True)]
    a, b, c, other = aligned(32), aligned(16), aligned(16), aligned(16)
    times = [[Call(kernel, (1, other))], [Call(kernel, (a[3:],))], [], [Call(kernel, (b, 7)), Call(kernel, (a[31:],))]]
    assert spans(times, [a, b, c], [2, 2, 2]) == [(1, 3), (2, 3), (2, 2)]


@given(st.integers(0, 2**31), st.sampled_from([16, 32, 48]), st.sampled_from([0.0, 1e3]))
@settings(max_examples=10, deadline=None)
def test_statistics_that_a_convolution_tells_are_exact_however_far_the_mean_lies(
    seed: int, count: int, far: float
) -> None:
    """The stem's output, as the convolution leaves it, has the mean and variance that its normalisation takes in."""
    net, mask = made(lambda n, x: F.relu(n.a(n.stem(x))), seed)
    nn.init.constant_(net.stem.bias, far)  # type: ignore[arg-type]
    x = torch.randn(count, 3, 8, 8)
    told = copy.deepcopy(net)
    mask.apply_(told)
    y = told.stem(x).double()
    ours = tb.compile(net, mask, x[:1])
    ours(x)
    variance = y.var((0, 2, 3))
    torch.testing.assert_close(
        ours.get_buffer("a.running_mean").double(), 0.1 * y.mean((0, 2, 3)), rtol=1e-5, atol=1e-5
    )
    # A float32 of 1000 is rounded to 6e-5.
    torch.testing.assert_close(ours.get_buffer("a.running_var").double(), 0.9 + 0.1 * variance, rtol=1e-5, atol=1e-4)
