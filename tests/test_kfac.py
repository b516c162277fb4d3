"""K-FAC's factors against direct sums over examples and classes, what layers take in by patches and outputs."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tombola.criteria import Weights
from tombola.criteria.base import untouched
from tombola.criteria.kfac import Factors, factors, second_moments
from tombola.mask import prunable


def outputs(model: nn.Module, batch: Any) -> Tensor:
    """A loss that no more than calls the model."""
    found: Tensor = model(batch[0]).sum()
    return found


# What layers take in.


def moments(net: nn.Module, batches: Any, loss: Any = outputs) -> dict[str, Tensor]:
    weights = Weights(net, {n: p.detach() for n, p in prunable(net).items()}, batches=batches, loss=loss)
    with torch.no_grad():
        return second_moments(weights, "obs")


CONVOLUTIONS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv1d(2, 3, 3, stride=2, padding=1, dilation=2), (2, 9)),
    (nn.Conv2d(4, 6, 2, groups=2), (4, 4, 5)),
    (nn.Conv2d(4, 4, (3, 1), stride=(1, 2), padding=(2, 0), groups=4, bias=False), (4, 4, 5)),
    (nn.Conv2d(2, 3, 3, padding="same", padding_mode="circular"), (2, 4, 4)),
    (nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(1, 2)), (2, 5, 5)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 4, 4)),
    (nn.Conv3d(2, 4, 2, stride=(1, 2, 1), groups=2, padding=1, padding_mode="replicate"), (2, 3, 4, 3)),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(("net", "shape"), CONVOLUTIONS, ids=lambda v: str(v) if isinstance(v, nn.Module) else "")
def test_a_convolution_is_its_linear_layer_of_patches(net: nn.Module, shape: tuple[int, ...]) -> None:
    """The error in its outputs for any change of its weights is the quadratic form of its moments."""
    torch.manual_seed(0)
    net = copy.deepcopy(net).double()
    assert isinstance(net, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    x = torch.randn(5, *shape).double()
    found = moments(net, [(x[:2],), (x[2:],)])["weight"]
    groups = net.groups
    assert found.shape == (groups, *2 * (net.weight[0].numel(),))
    for _ in range(3):
        change = torch.randn_like(net.weight)
        other = copy.deepcopy(net)
        other.weight.data += change
        by_outputs = float((other(x) - net(x)).detach().square().sum()) / 5
        matrix = change.reshape(groups, net.out_channels // groups, -1)
        assert float((matrix @ found * matrix).sum()) == pytest.approx(by_outputs, rel=1e-10)


def test_a_plain_convolution_by_unfold() -> None:
    torch.manual_seed(0)
    net, x = nn.Conv2d(2, 3, 3, stride=2, padding=1).double(), torch.randn(4, 2, 5, 5).double()
    patches = F.unfold(x, 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(moments(net, [(x,)])["weight"][0], patches.T @ patches / 4)


def test_many_examples_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = nn.Conv2d(2, 3, 3).double(), torch.randn(7, 2, 5, 5).double()
    whole = moments(net, [(x,)])["weight"]
    monkeypatch.setattr("tombola.criteria.kfac._ROOM", 1000)
    torch.testing.assert_close(moments(net, [(x,)])["weight"], whole)


def test_positions_of_linear_layers_and_tied_weights_add_up() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.second(input=torch.tanh(self.first(x)))
            return found

    torch.manual_seed(0)
    net, x = Tied().double(), torch.randn(4, 5, 3).double()
    inner = torch.tanh(net.first(x)).detach()
    expected = (x.flatten(0, 1).T @ x.flatten(0, 1) + inner.flatten(0, 1).T @ inner.flatten(0, 1)) / 4
    torch.testing.assert_close(moments(net, [(x,)])["first.weight"][0], expected)


# The factors.


def kfac(net: nn.Module, batches: Any, loss: Any = outputs, mode: str = "eval", **options: Any) -> dict[str, Factors]:
    with untouched(net, mode):
        generator = torch.Generator().manual_seed(options.pop("seed", 0))
        final = {n: p.detach() for n, p in prunable(net).items()}
        weights = Weights(net, final, batches=batches, loss=loss, generator=generator)
        return factors(weights, "mlprune", **options)


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def inputs(examples: int, seed: int = 0) -> Tensor:
    return torch.randn(examples, 4, generator=torch.Generator().manual_seed(seed)).double()


def full_fisher(net: nn.Module, x: Tensor, name: str) -> Tensor:
    """Of one layer's weights, row-major, by the gradient of every example's every label."""
    total: Any = 0
    weight = prunable(net)[name]
    for example in x:
        likelihood = net(example[None])[0].log_softmax(0)
        for label in likelihood:
            g = torch.autograd.grad(label, weight, retain_graph=True)[0].flatten()
            total = total + label.detach().exp() * torch.outer(g, g) / len(x)
    found: Tensor = total
    return found


def test_of_a_linear_softmax_net_by_hand() -> None:
    """``A = mean x x'`` and ``S = mean (diag(p) - p p')``."""
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3).double(), inputs(7)
    found = kfac(net, [(x[:3],), (x[3:],)])["weight"]
    p = net(x).detach().softmax(1)
    torch.testing.assert_close(found.inputs, (x.T @ x / 7)[None])
    expected = torch.stack([row.diag() - torch.outer(row, row) for row in p]).mean(0)
    torch.testing.assert_close(found.outputs, expected[None])


def test_two_classes_by_hand() -> None:
    """Logits 0 and log 3: p = (1/4, 3/4), so S = 3/16 (1, -1; -1, 1)."""
    net = nn.Linear(1, 2, bias=False).double()
    net.weight.data = torch.tensor([[0.0], [math.log(3)]], dtype=torch.float64)
    found = kfac(net, [(torch.ones(2, 1).double(),)])["weight"]
    assert found.inputs.tolist() == [[[1]]]
    np.testing.assert_allclose(found.outputs[0], np.array([[3, -3], [-3, 3]]) / 16, rtol=1e-12)


def test_of_an_inner_layer_by_sums_over_examples_and_classes() -> None:
    net, x = mlp(), inputs(6)
    found = kfac(net, [(x,)])["0.weight"]
    expected = torch.zeros(5, 5).double()
    for example in x:
        inner = net[0](example).detach().requires_grad_(True)
        likelihood = net[2](net[1](inner)).log_softmax(0)
        for label in likelihood:
            g = torch.autograd.grad(label, inner, retain_graph=True)[0]
            expected += label.detach().exp() * torch.outer(g, g) / 6
    torch.testing.assert_close(found.outputs[0], expected)
    inner = torch.tanh(net[0](x)).detach()
    torch.testing.assert_close(kfac(net, [(x,)])["2.weight"].inputs[0], inner.T @ inner / 6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), name=st.sampled_from(["0.weight", "2.weight"]))
def test_their_product_is_the_fisher_information_of_one_example(seed: int, name: str) -> None:
    net, x = mlp(seed), inputs(1, seed)
    found = kfac(net, [(x,)])[name]
    torch.testing.assert_close(torch.kron(found.outputs[0], found.inputs[0]), full_fisher(net, x, name))


def test_their_product_is_the_fisher_information_where_gradients_do_not_depend_on_inputs() -> None:
    """With weights of 0 every label is as likely for every input."""
    net, x = nn.Linear(4, 3).double(), inputs(8)
    nn.init.zeros_(net.weight)
    found = kfac(net, [(x,)])["weight"]
    torch.testing.assert_close(torch.kron(found.outputs[0], found.inputs[0]), full_fisher(net, x, "weight"))
    other = mlp()
    apart = torch.kron(*(getattr(kfac(other, [(x,)])["2.weight"], f)[0] for f in ("outputs", "inputs")))
    assert not torch.allclose(apart, full_fisher(other, x, "2.weight")), "elsewhere it is an approximation"


@pytest.mark.parametrize("layer", [nn.Conv1d(2, 4, 2, stride=2), nn.Conv2d(2, 3, 2, padding=1)], ids=str)
def test_of_a_convolution_by_its_patches(layer: nn.Conv1d | nn.Conv2d) -> None:
    """``A`` sums over positions, ``S`` is their mean, every position's patch and gradient by a loop."""
    torch.manual_seed(0)
    net = nn.Sequential(copy.deepcopy(layer), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).double()
    x = torch.randn(4, *((2, 6) if isinstance(layer, nn.Conv1d) else (2, 3, 3))).double()
    net(x)
    found = kfac(net, [(x[:1],), (x[1:],)])["0.weight"]
    wide = x if isinstance(layer, nn.Conv2d) else x[:, :, None]
    kernel, stride, padding = (2, 2), 1, 1
    if isinstance(layer, nn.Conv1d):
        kernel, stride, padding = (1, 2), 2, 0
    patches = F.unfold(wide, kernel, stride=stride, padding=padding)
    expected_in = torch.einsum("nct,ndt->cd", patches, patches) / 4
    torch.testing.assert_close(found.inputs[0], expected_in)
    expected = torch.zeros_like(found.outputs[0])
    inner = net[0](x).detach().requires_grad_(True)
    for label in range(3):
        likelihood = net[1:](inner).log_softmax(1)[:, label]
        g = torch.autograd.grad(likelihood.sum(), inner)[0].flatten(2)
        assert g.shape[2] == patches.shape[2]
        expected += torch.einsum("n,nit,njt->ij", likelihood.detach().exp(), g, g) / (4 * g.shape[2])
    torch.testing.assert_close(found.outputs[0], expected)


def test_drawn_labels_come_to_the_expectation_within_their_error() -> None:
    net, x, samples = nn.Linear(4, 3).double(), inputs(6), 400
    exact = kfac(net, [(x,)])["weight"].outputs[0]
    drawn = kfac(net, [(x,)], classes=2, samples=samples)["weight"].outputs[0]
    p = net(x).detach().softmax(1)
    g = torch.eye(3).double()[None] - p[:, None]  # (examples, labels, rows)
    products = torch.einsum("nki,nkj->nkij", g, g)
    mean = torch.einsum("nk,nkij->nij", p, products)
    spread = torch.einsum("nk,nkij->nij", p, (products - mean[:, None]).square())
    error = (spread.sum(0) / samples).sqrt() / 6
    torch.testing.assert_close(exact, mean.mean(0))
    assert bool(((drawn - exact).abs() < 5 * error).all())
    assert not torch.allclose(drawn, exact), "it is an estimate"


def test_hooks_that_change_a_layers_output_come_after() -> None:
    """The factor is of what the weights give, not of what a hook makes of it."""
    net, x = mlp(), inputs(6)
    net[0].register_forward_hook(lambda layer, args, output: 3 * output)
    found = kfac(net, [(x,)])["0.weight"]
    inner = net[0](x).detach().requires_grad_(True)  # three times what the weights give
    likelihood = net[2](net[1](inner)).log_softmax(1)
    expected = torch.zeros(5, 5).double()
    for label in range(3):
        g = 3 * torch.autograd.grad(likelihood[:, label].sum(), inner, retain_graph=True)[0]
        expected += torch.einsum("n,ni,nj->ij", likelihood[:, label].detach().exp(), g, g) / 6
    torch.testing.assert_close(found.outputs[0], expected)
