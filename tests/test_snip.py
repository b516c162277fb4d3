"""SNIP and FORCE: the loss's derivative in a gate on each weight, by finite differences and by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_nets import NETS, batches_of, cross_entropy, in_mode, joined, made, mean_loss
from torch import Tensor, nn

from tombola.criteria import Force, Snip, score
from tombola.errors import InputError
from tombola.mask import Mask, prunable

MODES = ("train", "eval")


def squares(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def neuron(*weights: float) -> nn.Linear:
    layer = nn.Linear(len(weights), 1, bias=False, dtype=torch.float64)
    layer.weight = nn.Parameter(torch.tensor([weights], dtype=torch.float64))
    return layer


def example(x: list[float], y: float) -> tuple[Tensor, Tensor]:
    return torch.tensor([x], dtype=torch.float64), torch.tensor([[y]], dtype=torch.float64)


def test_by_hand() -> None:
    """The output is 1 - 4 - 3 = -6 and its target -5, so dL/dw = 2 * -1 * x = (-2, -4, 2)."""
    scores = score(neuron(1, -2, 3), "snip", [example([1, 2, -1], -5)], squares)
    assert scores["weight"].tolist() == [[2, 8, 6]]


def test_by_hand_over_two_examples() -> None:
    """The second has output 2 and target 1: dL/dw = 2 * (2, 0, 0). The mean of the gradients is (1, -2, 1)."""
    two = [example([1, 2, -1], -5), example([2, 0, 0], 1)]
    assert score(neuron(1, -2, 3), "snip", two, squares)["weight"].tolist() == [[1, 4, 3]]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", NETS)
def test_it_is_the_derivative_in_a_gate(kind: str, mode: str) -> None:
    net, batches = made(kind), batches_of([5, 3])
    scores = score(net, "snip", batches, cross_entropy, mode=mode)
    twin, h = in_mode(net, mode), 1e-5
    assert scores.keys() == prunable(net).keys()
    for name, weight in prunable(twin).items():
        flat = weight.data.view(-1)
        for place in range(0, len(flat), max(1, len(flat) // 7)):
            losses, value = [], float(flat[place])
            for gate in (1 + h, 1 - h):
                flat[place] = gate * value
                losses.append(float(mean_loss(twin, batches).detach()))
            flat[place] = value
            by_difference = abs(losses[0] - losses[1]) / (2 * h)
            assert float(scores[name].view(-1)[place]) == pytest.approx(by_difference, rel=1e-5, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(sorted(NETS)), sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_batches_of_any_sizes_are_as_one_batch(kind: str, sizes: list[int]) -> None:
    net, batches = made(kind), batches_of(sizes)
    parts = score(net, "snip", batches, cross_entropy)
    whole = score(net, "snip", [joined(batches)], cross_entropy)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("kind", NETS)
def test_normalised_is_divided_by_the_sum_over_the_net(kind: str) -> None:
    net, batches = made(kind), batches_of([6])
    raw, normalised = (score(net, by, batches, cross_entropy) for by in (Snip(), Snip(normalised=True)))
    total = sum(float(s.sum()) for s in raw.values())
    assert sum(float(s.sum()) for s in normalised.values()) == pytest.approx(1, rel=1e-12)
    for name in raw:
        torch.testing.assert_close(normalised[name], raw[name] / total, rtol=1e-12, atol=0)


def test_normalised_scores_of_a_flat_loss_are_zero() -> None:
    found = score(neuron(1, 2), Snip(normalised=True), [example([0, 0], 3)], squares)
    assert found["weight"].tolist() == [[0, 0]]


def test_only_batch_normalisation_tells_the_modes_apart() -> None:
    for kind in NETS:
        net, batches = made(kind), batches_of([6])
        train, evaluated = (score(net, "snip", batches, cross_entropy, mode=mode) for mode in MODES)
        default = score(net, "snip", batches, cross_entropy)
        same = all(torch.equal(train[n], evaluated[n]) for n in train)
        assert same == (kind != "batch_norm"), kind
        assert all(torch.equal(default[n], evaluated[n]) for n in default), "evaluation mode is SNIP's own"


class Drops(nn.Module):
    """A net with dropout of one kind."""

    def __init__(self, kind: str, p: float) -> None:
        super().__init__()
        self.kind, self.p = kind, p
        self.first, self.last = nn.Linear(16, 8), nn.Linear(8, 3)
        self.module = {
            "module": nn.Dropout(p),
            "alpha": nn.AlphaDropout(p),
            "lstm": nn.LSTM(8, 8, num_layers=2, dropout=p, batch_first=True),
            "attention": nn.MultiheadAttention(8, 2, dropout=p, batch_first=True),
        }.get(kind, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x.flatten(2)))
        if self.kind == "functional":
            x = F.dropout(x, self.p)
        elif self.kind == "torch":
            x = torch.dropout(x, self.p, True)
        elif self.kind == "in place":
            x = torch.dropout_(x.clone(), self.p, True)
        elif self.kind == "features":
            x = torch.feature_dropout(x, self.p, True)
        elif self.kind == "sdpa":
            x = F.scaled_dot_product_attention(x, x, x, None, self.p)
        elif self.kind == "lstm":
            x = self.module(x)[0]
        elif self.kind == "attention":
            x = self.module(x, x, x)[0]
        else:
            x = self.module(x)
        found: Tensor = self.last(x.mean(1))
        return found


@pytest.mark.parametrize(
    "kind", ["module", "alpha", "functional", "torch", "in place", "features", "sdpa", "lstm", "attention"]
)
@pytest.mark.parametrize("mode", MODES)
def test_dropout_never_matters(kind: str, mode: str) -> None:
    torch.manual_seed(0)
    without = Drops(kind, 0.0).double()
    net = Drops(kind, 0.7).double()
    net.load_state_dict(without.state_dict())
    found = [score(n, "snip", batches_of([5]), cross_entropy, mode=mode) for n in (net, net, without)]
    for name in found[0]:
        assert torch.equal(found[0][name], found[1][name])
        torch.testing.assert_close(found[0][name], found[2][name], rtol=1e-12, atol=1e-15)


def test_frozen_unused_and_shared_weights() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.again = nn.Linear(2, 2, bias=False), nn.Linear(2, 2), nn.Linear(2, 2)
            self.again.weight = self.used.weight

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.again(torch.tanh(self.used(x)))
            return found

    torch.manual_seed(0)
    net, batch = Odd().double(), (torch.randn(4, 2).double(), torch.tensor([0, 1, 1, 0]))
    expected = torch.autograd.grad(cross_entropy(net, batch), [net.used.weight])[0] * net.used.weight
    net.used.weight.requires_grad_(False)
    scores = score(net, "snip", [batch], cross_entropy)
    assert list(scores) == ["used.weight", "unused.weight"]
    torch.testing.assert_close(scores["used.weight"], expected.abs().detach())
    assert not scores["unused.weight"].any()
    assert not net.used.weight.requires_grad


def test_inside_no_grad_too() -> None:
    net, batches = made("conv"), batches_of([4])
    outside = score(net, "snip", batches, cross_entropy)
    with torch.no_grad():
        inside = score(net, "snip", batches, cross_entropy)
    assert all(torch.equal(outside[n], inside[n]) for n in outside)


# FORCE.


@pytest.mark.parametrize("kind", NETS)
def test_force_on_the_whole_net_is_snip(kind: str) -> None:
    net, batches = made(kind), batches_of([4, 2])
    force = score(net, "force", batches, cross_entropy, initial=net.state_dict())
    snip = score(net, "snip", batches, cross_entropy)
    assert all(torch.equal(force[n], snip[n]) for n in snip)


def test_force_is_the_gradient_of_the_pruned_net_at_the_initial_value_by_hand() -> None:
    """Without its second weight the net of ``test_by_hand`` gives -2: dL/dw = 2 * 3 * x = (6, 12, -6)."""
    initial, pruned = neuron(1, -2, 3), neuron(1, 0, 3)
    batch = [example([1, 2, -1], -5)]
    scores = score(pruned, Force(), batch, squares, initial=initial.state_dict())
    assert scores["weight"].tolist() == [[6, 24, 18]], "the pruned weight is the highest: it may come back"
    assert score(pruned, Snip(), batch, squares)["weight"].tolist() == [[6, 0, 18]], "SNIP's never does"


def test_force_asks_for_the_initial_weights() -> None:
    with pytest.raises(InputError, match="initial="):
        score(neuron(1), "force", [example([1], 1)], squares)


# Refusals.


def test_bad_input_is_refused() -> None:
    net, batches = made("linear"), batches_of([3])
    diverged = copy.deepcopy(net)
    prunable(diverged)["1.weight"].data[0, 0] = math.nan
    exhausted = iter(batches)
    list(exhausted)
    cases: list[tuple[nn.Module, Any, Any, str]] = [
        (net, None, cross_entropy, "pass batches=, and loss="),
        (net, batches, None, "pass batches=, and loss="),
        (net, [], cross_entropy, "snip got no batches: .*pass a list"),
        (net, exhausted, cross_entropy, "snip got no batches: .*pass a list"),
        (net, 5, cross_entropy, "batches must be a list of batches, or a loader, but got a int"),
        (net, batches, lambda m, b: m(b[0]).sum(1), r"must be a scalar tensor .* but got shape \(3,\)"),
        (net, batches, lambda m, b: 1.0, "must be a scalar tensor .* but got float"),
        (net, batches, lambda m, b: torch.zeros(()), "computed from the weights"),
        (diverged, batches, cross_entropy, "scored some of '1.weight' NaN: are the weights finite?"),
        (nn.Flatten(), batches, cross_entropy, "nothing to score: the model has no prunable parameter"),
    ]
    for model, given_batches, loss, message in cases:
        for by in ("snip", "force", "grasp"):
            with pytest.raises(InputError, match=message.replace("snip", by)):
                score(model, by, given_batches, loss, initial=model.state_dict())


def test_parameters_outside_the_mask_are_not_scored() -> None:
    net, batches = made("linear"), batches_of([3])
    scores = score(net, "snip", batches, cross_entropy, mask=Mask({"3.weight": torch.ones(4, 5, dtype=torch.bool)}))
    assert torch.equal(scores["3.weight"], score(net, "snip", batches, cross_entropy)["3.weight"])
    assert list(scores) == ["3.weight"]
