"""SynFlow: its closed form, the conservation of flow, and that no layer collapses before the others."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_nets import random_net
from scoring_nets import Residual, images
from torch import Tensor, nn

import tombola as tb
from tombola.criteria import score
from tombola.criteria.unfolded import Unfolded
from tombola.errors import InputError
from tombola.mask import Mask, prunable
from tombola.tasks.models import resnet, vgg


def sums(scores: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(s.sum()) for name, s in scores.items()}


def alike(values: Iterable[float], rel: float = 1e-6) -> bool:
    first, *others = values
    return first > 0 and all(math.isclose(first, v, rel_tol=rel) for v in others)


def chain(*matrices: list[list[float]]) -> nn.Sequential:
    layers = []
    for rows in matrices:
        layer = nn.Linear(len(rows[0]), len(rows), bias=False)
        layer.weight = nn.Parameter(torch.tensor(rows, dtype=torch.float32))
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_a_chain_by_hand() -> None:
    """``R = 1 (1 + 2) + 2 (3 + 4) = 17``: what flows through a weight is a product of absolute values."""
    scores = score(chain([[1, -2], [3, -4]], [[-1, 2]]), "synflow", images(2))
    assert scores["0.weight"].tolist() == [[1, 2], [6, 8]]
    assert scores["2.weight"].tolist() == [[3, 14]]


@settings(max_examples=30, deadline=None)
@given(widths=st.lists(st.integers(1, 6), min_size=2, max_size=6), seed=st.integers(0, 10**6))
def test_a_linear_chains_scores_are_products_of_absolute_values(widths: list[int], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    pairs = pairwise(widths)
    matrices = [torch.randn(out, given_, generator=g).double() for given_, out in pairs]
    scores = score(chain(*(m.tolist() for m in matrices)).double(), "synflow", images(widths[0]))
    for place, found in enumerate(scores.values()):
        ahead, behind = torch.ones(widths[0]).double(), torch.ones(widths[-1]).double()
        for m in matrices[:place]:
            ahead = m.float().double().abs() @ ahead
        for m in reversed(matrices[place + 1 :]):
            behind = m.float().double().abs().T @ behind
        expected = behind[:, None] * matrices[place].float().double().abs() * ahead
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


# Conservation (theorems 1 and 2).


def normalised(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    nn.init.normal_(layer.weight)
    layer.running_var.uniform_(0.1, 3)  # type: ignore[union-attr]
    return layer


SEQUENTIAL: dict[str, Callable[[], nn.Sequential]] = {
    "linear": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 9, bias=False), nn.LeakyReLU(0.1), nn.Linear(9, 4, bias=False)
    ),
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 6, 2, groups=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 5, bias=False),
    ),
    "pooling": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.Conv2d(4, 6, 2, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3, bias=False),
    ),
    "dropout and normalisation": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        normalised(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 5, 3, stride=2, bias=False),
        normalised(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 3, bias=False),
    ),
    "transposed": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 2, 2, stride=2, bias=False),
        nn.Flatten(),
        nn.Linear(288, 3, bias=False),
    ),
}


@pytest.mark.parametrize("density", [1.0, 0.3])
@pytest.mark.parametrize("name", SEQUENTIAL)
def test_every_layer_of_a_sequential_net_carries_the_whole_flow(name: str, density: float) -> None:
    torch.manual_seed(1)
    net = SEQUENTIAL[name]()
    tb.prune_at_init(net, "synflow", density, images(3, 8, 8), rounds=5).apply_(net)
    assert alike(sums(score(net, "synflow", images(3, 8, 8))).values(), rel=1e-9)


def test_every_cut_of_a_residual_net_carries_the_whole_flow() -> None:
    torch.manual_seed(2)
    relu = nn.ReLU
    blocks = (Residual(4, 4, act=relu), relu(), Residual(4, 6, stride=2, act=relu), relu())
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), relu(), *blocks, nn.Flatten(), nn.Linear(54, 3, bias=False))
    found = sums(score(net, "synflow", images(3, 8, 8)))
    cuts = [found["0.weight"], found["7.weight"]]
    for block in ("2", "4"):
        cuts += [found[f"{block}.{conv}.weight"] + found[f"{block}.shortcut.weight"] for conv in ("conv1", "conv2")]
    assert alike(cuts, rel=1e-9)


def test_each_neuron_gives_what_it_gets_and_its_bias_gives_too() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3, bias=False))
    names = ("0.weight", "0.bias", "2.weight")
    mask = Mask({n: torch.ones(net.get_parameter(n).shape, dtype=torch.bool) for n in names})
    found = score(net, "synflow", images(5), mask=mask)
    torch.testing.assert_close(found["0.weight"].sum(1) + found["0.bias"], found["2.weight"].sum(0), rtol=1e-12, atol=0)
    assert found["0.bias"].all()


# No data, no signs, no overflow.


def test_values_of_the_batches_do_not_matter() -> None:
    torch.manual_seed(4)
    net = SEQUENTIAL["pooling"]()
    first = score(net, "synflow", [torch.empty(1, 3, 8, 8)])
    batches: list[Any] = [
        [torch.full((7, 3, 8, 8), math.nan)],
        [(torch.randn(3, 3, 8, 8), torch.tensor([0, 1, 2]))],
        [{"x": torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "y": torch.zeros(2)}],
        torch.randn(4, 1, 3, 8, 8),
        iter([torch.randn(4, 3, 8, 8), torch.randn(1, 1)]),
    ]
    for given_ in batches:
        again = score(net, "synflow", given_)
        assert all(torch.equal(first[n], again[n]) for n in first)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_signs_do_not_matter_and_no_score_is_negative(seed: int) -> None:
    net, x = random_net(seed)
    first = score(net, "synflow", [x])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(torch.where(torch.rand(parameter.shape) < 0.5, -1, 1))
    again = score(net, "synflow", [x])
    for name, s in first.items():
        assert torch.equal(s, again[name])
        assert bool((s >= 0).all())
        assert s.dtype == torch.float64


def test_scores_are_absolute_where_a_layer_subtracts() -> None:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    found = score(net, "synflow", images(6))
    assert all(bool((s >= 0).all()) for s in found.values())
    assert found["0.weight"].any()


def flow32(net: nn.Module) -> float:
    twin = copy.deepcopy(net).eval()
    with torch.no_grad():
        for value in twin.state_dict().values():
            value.abs_()
        return float(twin(torch.ones(1, 3, 32, 32)).sum())


@pytest.mark.parametrize(("depth", "width"), [(110, 16), (32, 32), (44, 16)])
def test_float64_holds_what_float32_does_not(depth: int, width: int) -> None:
    torch.manual_seed(0)
    net = resnet(depth, width=width)
    assert not math.isfinite(flow32(net))
    scores = score(net, "synflow", images(3, 32, 32))
    assert all(bool(s.isfinite().all()) and bool(s.any()) for s in scores.values())
    assert alike((sums(scores)["conv.weight"], sums(scores)["fc.weight"]))


# No layer collapses before it must.


@pytest.mark.parametrize("width", [2, 4])
def test_vgg16_keeps_a_weight_in_every_layer_at_the_maximal_compression(width: int) -> None:
    torch.manual_seed(0)
    net = vgg(16, width=width)
    layers, total = len(prunable(net)), Mask.full(net).total
    mask = tb.prune_at_init(net, "synflow", layers / total, images(3, 32, 32))
    assert mask.kept == layers
    assert mask.collapsed() == []
    mask.apply_(net)
    assert alike(sums(score(net, "synflow", images(3, 32, 32))).values()), "the weights left form a path"


@settings(max_examples=8, deadline=None)
@given(widths=st.lists(st.integers(1, 9), min_size=3, max_size=6), spare=st.integers(0, 5), seed=st.integers(0, 10**6))
def test_no_layer_collapses_in_any_sequential_net(widths: list[int], spare: int, seed: int) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(widths)))
    total, layers = Mask.full(net).total, len(widths) - 1
    kept = min(total, layers + spare)
    mask = tb.prune_at_init(net, "synflow", kept / total, images(widths[0]))
    assert (mask.kept, mask.collapsed()) == (kept, [])


def test_rounds_asked_for_by_number_are_as_many() -> None:
    """Collapse is then possible: a single round empties layers of a VGG-16 at 1 %."""
    torch.manual_seed(0)
    net, calls = vgg(16, width=4), []
    own = tb.criteria.SynFlow()

    class Counted:
        traits = own.traits

        def __call__(self, weights: tb.Weights) -> dict[str, Tensor]:
            calls.append(1)
            return own(weights)

    once = tb.prune_at_init(net, Counted(), 0.01, images(3, 32, 32), rounds=1)
    assert (len(calls), len(once.collapsed()) > 0) == (1, True)
    tb.prune_at_init(net, Counted(), 0.01, images(3, 32, 32), rounds=7)
    assert len(calls) == 8
    assert tb.prune_at_init(net, Counted(), 0.01, images(3, 32, 32)).collapsed() == []
    assert len(calls) >= 108


# Refusals.


class Two(nn.Linear):
    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return (super().forward(x), x) if y is None else super().forward(x + y)


class Cut(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Needs(nn.Linear):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) + y


@pytest.mark.parametrize(
    ("net", "batches", "message"),
    [
        (nn.Linear(3, 1), None, "must know the shape of the input: pass batches="),
        (nn.Linear(3, 1), [], "must know the shape of the input"),
        (nn.Linear(3, 1), [torch.tensor(1.0)], "must know the shape of the input"),
        (nn.Linear(3, 1), ["text"], "must know the shape of the input"),
        (nn.Linear(3, 1), 3, "batches must be a list of batches, or a loader, but got a int"),
        (nn.Linear(3, 1), images(4), r"one input of ones, of shape \(1, 4\) .* doesn't take it: "),
        (nn.Sequential(nn.Embedding(9, 2), nn.Linear(2, 1)), [torch.tensor([[1, 2]])], "type float64, .* doesn't take"),
        (Needs(3, 1), images(3), "doesn't take it: .*missing 1 required positional argument"),
        (Two(3, 1), images(3), "a tensor computed from the weights, but this one gave a tuple"),
        (Cut(3, 1), images(3), "computed from the weights, but this one gave one without weights in it"),
        (nn.BatchNorm1d(3), images(3), "nothing to score: the model has no prunable parameter"),
    ],
)
def test_what_it_can_not_score_is_refused(net: nn.Module, batches: Any, message: str) -> None:
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InputError, match=message):
        score(net, "synflow", batches)
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    net = chain([[1, value]], [[2]])
    with pytest.raises(InputError, match="flow through the net is not finite: some weight isn't, or they are too larg"):
        score(net, "synflow", images(2))


def test_batch_normalisation_in_training_mode_is_refused_where_one_example_is_too_few() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    with pytest.raises(InputError, match="doesn't take it: Expected more than 1 value per channel"):
        score(net, "synflow", images(3), mode="train")
    score(net.train(), "synflow", images(3))
    assert net.training


@pytest.mark.parametrize("kernel", [1, 3, (3, 2)])
@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize("padding", [0, 1, (0, 2), "same"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_convolutions_of_small_images_are_torchs(kernel: Any, stride: Any, padding: Any, dilation: Any) -> None:
    if padding == "same" and (stride != 1 or kernel == (3, 2)):
        return
    g = torch.Generator().manual_seed(1)
    layer = nn.Conv2d(4, 6, kernel, stride, padding, dilation).double()
    x = torch.rand(1, 4, 7, 8, dtype=torch.float64, generator=g, requires_grad=True)
    own = layer(x)
    slopes = torch.autograd.grad(own.square().sum(), (x, layer.weight, layer.bias))
    with Unfolded():
        found = layer(x)
    assert found.shape == own.shape
    torch.testing.assert_close(found, own, rtol=1e-13, atol=1e-13)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), (x, layer.weight, layer.bias)), slopes, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
