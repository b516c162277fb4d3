"""GraSP: Hessian times gradient by finite differences, its sign by hand, its sum where it cancels."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_nets import NETS, batches_of, cross_entropy, in_mode, joined, made, mean_loss
from torch import Tensor, nn

import tombola as tb
from tombola.criteria import Grasp, score
from tombola.errors import InputError
from tombola.mask import prunable

MODES = ("train", "eval")


def gradients(net: nn.Module, batches: Any, temperature: float) -> list[Tensor]:
    return list(torch.autograd.grad(mean_loss(net, batches, temperature), list(prunable(net).values())))


def moved(net: nn.Module, by: list[Tensor], scale: float) -> nn.Module:
    with torch.no_grad():
        for parameter, step in zip(prunable(net).values(), by, strict=True):
            parameter.add_(step, alpha=scale)
    return net


@pytest.mark.parametrize("temperature", [1.0, 7.0])
@pytest.mark.parametrize("sizes", [[6], [4, 2, 3]], ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", NETS)
def test_it_is_the_weight_times_the_gradients_change_along_itself(
    kind: str, mode: str, sizes: list[int], temperature: float
) -> None:
    net, batches = made(kind), batches_of(sizes)
    scores = score(net, Grasp(temperature), batches, cross_entropy, mode=mode)
    twin = in_mode(net, mode)
    flow = gradients(twin, batches, temperature)
    h = 1e-4 / float(torch.cat([g.flatten() for g in flow]).norm())
    ahead, behind = (gradients(moved(copy.deepcopy(twin), flow, s * h), batches, temperature) for s in (1, -1))
    for (name, weight), after, before in zip(prunable(net).items(), ahead, behind, strict=True):
        expected = weight.detach() * (after - before) / (2 * h)
        torch.testing.assert_close(scores[name], expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
        assert scores[name].any()


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(sorted(NETS)), sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4))
def test_batches_of_any_sizes_are_as_one_in_evaluation_mode(kind: str, sizes: list[int]) -> None:
    net, batches = made(kind), batches_of(sizes)
    parts = score(net, "grasp", batches, cross_entropy, mode="eval")
    whole = score(net, "grasp", [joined(batches)], cross_entropy, mode="eval")
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-8, atol=1e-10 * float(whole[name].abs().max()))


# A quadratic by hand: L = ((w1 - 4)^2 + (2 w2)^2) / 4 at w = (2, -1), so g = (-1, -2) and H = diag(1/2, 2).

TWO = [(torch.tensor([[1.0, 0.0], [0.0, 2.0]]).double(), torch.tensor([[4.0], [0.0]]).double())]


def half_square(model: nn.Module, batch: Any) -> Tensor:
    found: Tensor = ((model(batch[0]) - batch[1]) ** 2).mean() / 2
    return found


def quadratic(w1: float = 2.0, w2: float = -1.0) -> nn.Linear:
    layer = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    layer.weight = nn.Parameter(torch.tensor([[w1, w2]], dtype=torch.float64))
    return layer


def flow_norm(net: nn.Linear) -> float:
    return float(torch.autograd.grad(half_square(net, TWO[0]), [net.weight])[0].square().sum())


def test_its_sign_by_hand() -> None:
    """``w * Hg`` is (2 * -1/2, -1 * -4)."""
    for batches in (TWO, [(x[None], y[None]) for x, y in zip(*TWO[0], strict=True)]):
        assert score(quadratic(), Grasp(1.0), batches, half_square)["weight"].tolist() == [[-1, 4]]


def test_what_it_removes_harms_the_gradient_flow_least() -> None:
    """The highest ``S = -w Hg`` goes: (1, -4), so the first weight. The flow is then 8, up from 5; without the second
    it would be 1. ``2 S`` is the change to first order: 2 of 3, and -8 of -4, each with the square of ``w H`` on it."""
    mask = tb.prune_at_init(quadratic(), Grasp(1.0), 0.5, TWO, half_square)
    assert mask["weight"].tolist() == [[False, True]]
    assert (flow_norm(quadratic()), flow_norm(quadratic(w1=0)), flow_norm(quadratic(w2=0))) == (5, 8, 1)
    turned = tb.prune_at_init(quadratic(), _wrong_sign, 0.5, TWO, half_square)
    assert turned["weight"].tolist() == [[True, False]], "the wrong sign keeps the other one"


def _wrong_sign(weights: tb.Weights) -> dict[str, Tensor]:
    return {name: -s for name, s in Grasp(1.0)(weights).items()}


@pytest.mark.parametrize("kind", NETS)
def test_a_wrong_sign_would_keep_other_weights(kind: str) -> None:
    net, batches = made(kind), batches_of([9])
    kept = tb.prune_at_init(net, Grasp(1.0), 0.3, batches, cross_entropy, mode="eval")
    turned = tb.prune_at_init(net, _wrong_sign, 0.3, batches, cross_entropy, mode="eval")
    assert kept.overlap(turned) == 0, "the lowest three tenths share nothing with the highest"


def test_the_temperature_divides_the_logits_by_hand() -> None:
    """At 2 the quadratic is ((w1 / 2 - 4)^2 + w2^2) / 4: g = (-3/4, -1/2), H = diag(1/8, 1/2)."""
    assert score(quadratic(), Grasp(2.0), TWO, half_square)["weight"].tolist() == [[-3 / 16, 1 / 4]]


def test_the_default_temperature_is_200() -> None:
    net, batches = made("conv"), batches_of([4])
    default, given_ = (score(net, by, batches, cross_entropy) for by in ("grasp", Grasp(200.0)))
    assert all(torch.equal(default[n], given_[n]) for n in default)
    cold = score(net, Grasp(1.0), batches, cross_entropy)
    assert any(not torch.allclose(default[n], cold[n]) for n in default)


@pytest.mark.parametrize("sizes", [[8], [5, 3]], ids=str)
def test_a_loss_sees_the_net_itself(sizes: list[int]) -> None:
    """Its parameters, modules, type and mode, not those of something put around it."""
    net, batches, seen = made("batch_norm"), batches_of(sizes), []

    def penalised(model: nn.Module, batch: Any) -> Tensor:
        seen.append((model is net, model.training))
        return cross_entropy(model, batch) + 0.3 * torch.stack([p.pow(4).sum() for p in model.parameters()]).sum()

    with_penalty = score(net, Grasp(1.0), batches, penalised, mode="eval")
    assert set(seen) == {(True, False)}
    twin = in_mode(net, "eval")

    def along(point: nn.Module) -> list[Tensor]:
        penalty = 0.3 * torch.stack([p.pow(4).sum() for p in point.parameters()]).sum()
        return list(torch.autograd.grad(mean_loss(point, batches) + penalty, list(prunable(point).values())))

    flow, h = along(twin), 1e-6
    ahead, behind = (along(moved(copy.deepcopy(twin), flow, s * h)) for s in (1, -1))
    for (name, weight), after, before in zip(prunable(net).items(), ahead, behind, strict=True):
        expected = weight.detach() * (after - before) / (2 * h)
        torch.testing.assert_close(with_penalty[name], expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_the_sum_of_scale_invariant_layers_is_minus_the_squared_gradient() -> None:
    """Normalised by its batch, a layer's scale changes nothing: ``Hw = -g``, so the scores sum to ``-g g``."""
    torch.manual_seed(0)
    norms = (nn.BatchNorm1d(5, eps=1e-14, affine=False), nn.BatchNorm1d(3, eps=1e-14, affine=False))
    net = nn.Sequential(nn.Linear(4, 5, bias=False), norms[0], nn.Tanh(), nn.Linear(5, 3, bias=False), norms[1])
    net.double()
    batches = [(torch.randn(9, 4).double(), torch.randint(3, (9,)))]
    scores = score(net, Grasp(1.0), batches, cross_entropy)
    flow = torch.cat([g.flatten() for g in gradients(in_mode(net, "train"), batches, 1.0)])
    assert sum(float(s.sum()) for s in scores.values()) == pytest.approx(-float(flow @ flow), rel=1e-8)


def test_training_mode_is_its_own_and_only_batch_normalisation_tells() -> None:
    for kind in NETS:
        net, batches = made(kind), batches_of([6])
        train, evaluated, default = (
            score(net, "grasp", batches, cross_entropy, mode=mode) for mode in ("train", "eval", None)
        )
        assert all(torch.equal(default[n], train[n]) for n in default)
        assert all(torch.equal(train[n], evaluated[n]) for n in train) == (kind != "batch_norm"), kind


def test_weights_that_the_loss_is_linear_in_score_zero() -> None:
    """Without curvature no removal changes the gradient."""
    net = quadratic()
    found = score(net, "grasp", TWO, lambda model, batch: model(batch[0]).sum())
    assert found["weight"].tolist() == [[0, 0]]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        found: Tensor = gradient * ctx.saved_tensors[0].exp()
        return found


class _NoSecond(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = _Once.apply(super().forward(x))
        return found


class _Pair(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


def test_refusals_leave_no_hook_behind() -> None:
    pair = _Pair(2, 1).double()
    with pytest.raises(InputError, match="grasp divides the logits by its temperature, but the net gave a tuple"):
        score(pair, "grasp", TWO, lambda model, batch: model(batch[0])[0].sum())
    assert isinstance(pair(TWO[0][0]), tuple)
    with pytest.raises(InputError, match="grasp needs second derivatives, and this net has a part without: "):
        score(_NoSecond(2, 1).double(), "grasp", TWO, half_square)
    net = quadratic()
    with pytest.raises(RuntimeError, match="own mistake"):
        score(net, "grasp", TWO, _failing)
    assert not net._forward_hooks
    assert net(torch.ones(1, 2).double()).item() == 1


def _failing(model: nn.Module, batch: Any) -> Tensor:
    model(batch[0])
    raise RuntimeError("own mistake")


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_is_above_0(temperature: float) -> None:
    with pytest.raises(InputError, match="the temperature of grasp must be more than 0, but got"):
        Grasp(temperature)


def test_batches_from_an_iterator_serve_both_derivatives() -> None:
    net, batches = made("linear"), batches_of([4, 3])
    listed, iterated = (score(net, "grasp", given_, cross_entropy) for given_ in (batches, iter(batches)))
    assert all(torch.equal(listed[n], iterated[n]) for n in listed)
