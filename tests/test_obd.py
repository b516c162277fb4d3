"""OBD: the Hessian's diagonal against the whole Hessian and by hand, its estimates, the Fisher by a plain loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_nets import NETS, batches_of, cross_entropy, in_mode, joined, made, mean_loss
from torch import Tensor, nn

import tombola as tb
from tombola.criteria import Obd, score
from tombola.criteria import obd as obd_module
from tombola.errors import InputError
from tombola.mask import Mask, prunable


def small(seed: int = 0) -> nn.Module:
    """40 weights, with everything that a net has."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 4), nn.Softplus()).double()


def few(sizes: list[int], seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 4, generator=g).double(), torch.randint(4, (n,), generator=g)) for n in sizes]


def whole_hessian(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Of the prunable weights, by torch."""
    twin = in_mode(net, "eval")
    names, shapes = list(prunable(twin)), [p.shape for p in prunable(twin).values()]

    def of(flat: Tensor) -> Tensor:
        parts = torch.split(flat, [s.numel() for s in shapes])
        values = {n: part.view(s) for n, part, s in zip(names, parts, shapes, strict=True)}
        x, y = joined(batches)
        return F.cross_entropy(torch.func.functional_call(twin, values, (x,)), y)

    point = torch.cat([p.detach().flatten() for p in prunable(twin).values()])
    found: Tensor = torch.autograd.functional.hessian(of, point)  # type: ignore[no-untyped-call]
    return found


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors.values()])


@pytest.mark.parametrize("sizes", [[7], [3, 1, 5]], ids=str)
def test_exact_is_the_diagonal_of_the_whole_hessian(sizes: list[int]) -> None:
    net, batches = small(), few(sizes)
    expected = whole_hessian(net, batches).diagonal() * flat(prunable(net)).square() / 2
    for by in (Obd("exact"), "obd"):
        torch.testing.assert_close(flat(score(net, by, batches, cross_entropy)), expected, rtol=1e-9, atol=1e-14)
    assert bool((expected < 0).any()), "negative curvature stays negative"


@pytest.mark.parametrize("kind", NETS)
def test_exact_is_the_loss_bent_by_finite_differences(kind: str) -> None:
    net, batches = made(kind), batches_of([5, 3])
    scores = score(net, Obd("exact"), batches, cross_entropy)
    twin, h = in_mode(net, "eval"), 1e-4
    for name, weight in prunable(twin).items():
        entries = weight.data.view(-1)
        for place in range(0, len(entries), max(1, len(entries) // 6)):
            losses, value = [], float(entries[place])
            for step in (h, 0, -h):
                entries[place] = value + step
                losses.append(float(mean_loss(twin, batches).detach()))
            entries[place] = value
            bent = (losses[0] - 2 * losses[1] + losses[2]) / h**2 * value**2 / 2
            assert float(scores[name].view(-1)[place]) == pytest.approx(bent, rel=1e-4, abs=1e-7)


# By hand.


def neuron(*weights: float) -> nn.Linear:
    layer = nn.Linear(len(weights), 1, bias=False, dtype=torch.float64)
    layer.weight = nn.Parameter(torch.tensor([weights], dtype=torch.float64))
    return layer


def half_square(model: nn.Module, batch: Any) -> Tensor:
    found: Tensor = (model(batch[0]) - batch[1]).square().sum(1).mean() / 2
    return found


def test_linear_regression_by_hand() -> None:
    """The Hessian is the mean of ``x x'``: its diagonal (5, 2) for (3, 0) and (-1, 2); half of that times (4, 9)."""
    x, y = torch.tensor([[3.0, 0.0], [-1.0, 2.0]]).double(), torch.zeros(2, 1).double()
    for batches in ([(x, y)], [(x[:1], y[:1]), (x[1:], y[1:])]):
        assert score(neuron(2, 3), "obd", batches, half_square)["weight"].tolist() == [[10, 9]]
    # The residual is 6 for the first and 4 for the second example: gradients (18, 0) and (-4, 8).
    assert score(neuron(2, 3), "obd_fisher", [(x, y)], half_square)["weight"].tolist() == [[340, 144]]


def test_a_logistic_unit_by_hand() -> None:
    """``h = mean p (1 - p) x^2``, whatever the labels."""
    torch.manual_seed(2)
    x, y = torch.randn(9, 3).double(), torch.randint(2, (9, 1)).double()
    net = neuron(0.5, -1.0, 2.0)
    p = net(x).detach().sigmoid()
    expected = (p * (1 - p) * x.square()).mean(0) * net.weight.detach().square() / 2
    found = score(net, "obd", [(x, y)], lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]), b[1]))
    torch.testing.assert_close(found["weight"], expected)


def test_it_prunes_what_costs_a_quadratic_loss_least() -> None:
    """Without correlations the score is the growth of the loss from its minimum, and magnitude would err."""
    x = torch.diag(torch.tensor([4.0, 1.0, 0.5, 2.0])).double()
    net = neuron(0.5, 1.5, 2.0, -1.0)
    batch = (x, net(x).detach())
    scores = score(net, "obd", [batch], half_square)["weight"][0]
    for q in range(4):
        twin = copy.deepcopy(net)
        twin.weight.data[0, q] = 0
        assert float(half_square(twin, batch).detach()) == pytest.approx(float(scores[q]), rel=1e-12)
    assert tb.prune({"weight": scores[None]}, 0.75)["weight"].tolist() == [[True, True, False, True]]


# Estimates.


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), probes=st.integers(1, 3))
def test_any_probe_is_exact_without_curvature_across_weights(seed: int, probes: int) -> None:
    """Each weight has a square of its own for a loss."""
    net = neuron(1, -2, 3, 0.5)
    bend = torch.tensor([[1.0, -2.0, 3.0, 0.25]]).double()

    def quartic(model: nn.Module, batch: Any) -> Tensor:
        weight = next(model.parameters())
        value: Tensor = (bend * weight.square() / 2).sum() * batch.mean() + weight.sum()
        return value

    generator = torch.Generator().manual_seed(seed)
    found = score(net, Obd("hutchinson", probes), [torch.ones(2), torch.zeros(2)], quartic, generator=generator)
    torch.testing.assert_close(found["weight"], bend * net.weight.detach().square() / 4)


def test_all_sign_vectors_together_are_exact() -> None:
    """The mean over every one of the 2^n probes is the expectation: that is the diagonal, so there is no bias."""
    net, batches = neuron(1, -2, 3), [(torch.randn(6, 3).double(), torch.zeros(6, 1).double())]
    value = half_square(net, batches[0])
    product = obd_module._product(value, list(net.parameters()))
    total = torch.zeros(1, 3).double()
    for number in range(8):
        signs = torch.tensor([[1 - 2 * (number >> i & 1) for i in range(3)]]).double()
        total += signs * product([signs])[0] / 8
    x = batches[0][0]
    torch.testing.assert_close(total[0], x.square().mean(0))


def test_the_estimate_comes_within_its_error() -> None:
    """The variance of an entry is the sum of its row's other squares, by the number of probes."""
    net, batches, probes = small(), few([8]), 500
    hessian, w = whole_hessian(net, batches), flat(prunable(net))
    error = ((hessian.square().sum(1) - hessian.diagonal().square()) / probes).sqrt() * w.square() / 2
    expected = hessian.diagonal() * w.square() / 2
    found = flat(score(net, Obd("hutchinson", probes), batches, cross_entropy))
    assert bool(((found - expected).abs() < 5 * error + 1e-12).all())
    coarse = flat(score(net, Obd("hutchinson", 20), batches, cross_entropy))
    assert float((found - expected).norm()) < float((coarse - expected).norm())


def test_probes_stay_on_the_kept_weights() -> None:
    """With one kept weight there is no curvature across: a single probe is exact."""
    net, batches = small(), few([5, 3])
    exact = score(net, Obd("exact"), batches, cross_entropy)["0.weight"]
    for row, column in ((0, 0), (3, 2)):
        kept = torch.zeros(5, 4, dtype=torch.bool)
        kept[row, column] = True
        found = score(net, Obd("hutchinson", 1), batches, cross_entropy, Mask({"0.weight": kept}))["0.weight"]
        torch.testing.assert_close(found, exact * kept)


def test_probes_are_drawn_from_the_generator() -> None:
    net, batches, by = small(), few([8]), Obd("hutchinson", 2)
    seeded = [torch.Generator().manual_seed(s) for s in (3, 3, 4)]
    first, again, other = (flat(score(net, by, batches, cross_entropy, generator=g)) for g in seeded)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    state = torch.get_rng_state()
    assert torch.equal(flat(score(net, by, batches, cross_entropy)), flat(score(net, by, batches, cross_entropy)))
    assert torch.equal(state, torch.get_rng_state())


def test_auto_is_exact_up_to_a_number_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    net, batches = small(), few([6])
    exact, estimated = (flat(score(net, Obd(h), batches, cross_entropy)) for h in ("exact", "gauss_newton"))
    assert torch.equal(flat(score(net, "obd", batches, cross_entropy)), exact)
    monkeypatch.setattr(obd_module, "MOST_EXACT", 39)
    assert torch.equal(flat(score(net, "obd", batches, cross_entropy)), estimated)
    with pytest.raises(InputError, match="at most 39 weights, but 40 are kept: ask for hessian='gauss_newton' or 'h"):
        score(net, Obd("exact"), batches, cross_entropy)
    mask = Mask({n: torch.arange(20).view(p.shape) != 7 for n, p in prunable(net).items()})  # 38 of 40
    for by, expected in (("obd", estimated), (Obd("exact"), exact)):
        found = flat(score(net, by, batches, cross_entropy, mask))
        torch.testing.assert_close(found, expected * flat(mask), rtol=1e-12, atol=0)


# The Fisher information.


def squared_gradients(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    twin = in_mode(net, "eval")
    total, count = torch.zeros(sum(p.numel() for p in prunable(twin).values())).double(), 0
    for x, y in batches:
        for n in range(len(y)):
            value = F.cross_entropy(twin(x[n : n + 1]), y[n : n + 1])
            total += flat(dict(enumerate(torch.autograd.grad(value, list(prunable(twin).values()))))).square()
            count += 1
    return total / count


@pytest.mark.parametrize("room", [obd_module._ROOM, 700, 1], ids=["at once", "in parts", "one by one"])
@pytest.mark.parametrize("sizes", [[6], [4, 1, 3]], ids=str)
@pytest.mark.parametrize("kind", NETS)
def test_fisher_is_the_mean_of_squared_gradients(
    kind: str, sizes: list[int], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obd_module, "_ROOM", room)
    net, batches = made(kind), batches_of(sizes)
    expected = squared_gradients(net, batches) * flat(prunable(net)).square() / 2
    found = flat(score(net, "obd_fisher", batches, cross_entropy))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-16)
    assert bool((found >= 0).all())


class Branching(nn.Linear):
    """A way through the net that depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if float(out.detach().sum()) > 0 else 2 * out


def test_what_cannot_be_taken_at_once_is_taken_one_by_one() -> None:
    torch.manual_seed(0)
    net, batches = nn.Sequential(Branching(4, 3), nn.Tanh(), nn.Linear(3, 4)).double(), few([5, 4])
    calls = []

    def counted(model: nn.Module, batch: Any) -> Tensor:
        calls.append(len(batch[1]))
        return cross_entropy(model, batch)

    found = flat(score(net, "obd_fisher", batches, counted))
    expected = squared_gradients(net, batches) * flat(prunable(net)).square() / 2
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-16)
    assert set(calls) == {1}, "an example at a time"
    assert len(calls) == (1 + 1 + 4) + (1 + 1 + 3), "after trying to take all but the first at once"
    calls.clear()
    assert score(small(), "obd_fisher", few([9]), counted)["0.weight"].any()
    assert len(calls) == 2, "which is done where it can be"


class Named(NamedTuple):
    x: Tensor
    y: Tensor
    flag: Tensor
    shared: Tensor


@pytest.mark.parametrize("form", ["mapping", "nested", "named"])
def test_batches_of_any_form_are_cut_into_examples(form: str) -> None:
    net, (x, y), flag = small(), few([6])[0], torch.tensor(2.0).double()
    shared = torch.linspace(0.5, 1.5, 4).double()

    forms: dict[str, tuple[Any, Callable[[Any], list[Any]]]] = {
        "mapping": ({"x": x, "y": y, "a": flag, "b": shared, "c": "none"}, lambda b: [b[n] for n in "xyab"]),
        "nested": (([x, y], flag, shared), lambda b: [*b[0], *b[1:]]),
        "named": (Named(x, y, flag, shared), lambda b: [b.x, b.y, b.flag, b.shared]),
    }
    batch, read = forms[form]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        images, labels, factor, scale = read(batch)
        value: Tensor = F.cross_entropy(model(images) * scale, labels) * factor
        return value

    found = flat(score(net, "obd_fisher", [batch], loss))
    twin, total = in_mode(net, "eval"), torch.zeros(40).double()
    for n in range(6):
        value = F.cross_entropy(twin(x[n : n + 1]) * shared, y[n : n + 1]) * flag
        total += flat(dict(enumerate(torch.autograd.grad(value, list(prunable(twin).values()))))).square() / 6
    torch.testing.assert_close(found, total * flat(prunable(net)).square() / 2)


def test_fisher_is_the_hessian_in_expectation_where_the_model_is_right() -> None:
    """Linear logits: the mean over labels drawn from the model, each as often as it is likely, is the Hessian's."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2, bias=False).double()
    # Equal logits make both labels as likely: one example of each.
    net.weight.data[1] = net.weight.data[0]
    x = torch.randn(5, 3).double()
    batch = (torch.cat([x, x]), torch.arange(2).repeat_interleave(5))
    fisher, hessian = (score(net, by, [batch], cross_entropy)["weight"] for by in ("obd_fisher", "obd"))
    torch.testing.assert_close(fisher, hessian)


# What a criterion promises.


@pytest.mark.parametrize("by", [Obd("exact"), Obd("hutchinson", 2), Obd("fisher"), Obd("gauss_newton")], ids=str)
def test_the_model_is_untouched_and_masks_restrict(by: Obd) -> None:
    net, batches = made("batch_norm").train(), batches_of([4, 3])
    first, last = prunable(net)["0.weight"], prunable(net)["5.weight"]
    first.grad = torch.ones_like(first)
    last.requires_grad_(False)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    everywhere = score(net, by, batches, cross_entropy)
    assert everywhere["5.weight"].any(), "frozen weights, too"
    assert not last.requires_grad
    assert net.training
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert torch.equal(first.grad, torch.ones_like(first))
    assert last.grad is None

    g = torch.Generator().manual_seed(0)
    mask = Mask({n: torch.rand(everywhere[n].shape, generator=g) < 0.5 for n in ("5.weight", "0.weight")})
    found = score(net, by, batches, cross_entropy, mask)
    assert list(found) == ["5.weight", "0.weight"]
    for name, kept in mask.items():
        assert not found[name][~kept].any()
        if by.hessian != "hutchinson":
            torch.testing.assert_close(found[name][kept], everywhere[name][kept])


def test_weights_that_the_loss_is_linear_in_score_zero() -> None:
    x = torch.ones(2, 2).double()
    for hessian in ("exact", "hutchinson"):
        found = score(neuron(2, 3), Obd(hessian), [(x, x)], lambda m, b: m(b[0]).sum())
        assert found["weight"].tolist() == [[0, 0]]


def test_evaluation_mode_is_its_own() -> None:
    net, batches = made("batch_norm").train(), batches_of([6])
    default, evaluated, trained = (score(net, "obd", batches, cross_entropy, mode=m) for m in (None, "eval", "train"))
    assert torch.equal(flat(default), flat(evaluated))
    assert not torch.allclose(flat(trained), flat(evaluated))


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
        found: Tensor = _Once.apply(super().forward(x))  # type: ignore[no-untyped-call]
        return found


def test_bad_input_is_refused() -> None:
    net, batches = small(), few([3])
    exhausted = iter(batches)
    list(exhausted)
    cases: list[tuple[Any, Any, Any, str]] = [
        (net, None, cross_entropy, "obd takes gradients of a loss on data: pass batches=, and loss="),
        (net, [], cross_entropy, "obd got no batches: .*pass a list"),
        (net, exhausted, cross_entropy, "obd got no batches: .*pass a list"),
        (net, batches, lambda m, b: m(b[0]).sum(1), r"must be a scalar tensor .* but got shape \(\d,\)"),
        (nn.Tanh(), batches, cross_entropy, "nothing to score: the model has no prunable parameter"),
    ]
    for model, given_batches, loss, message in cases:
        for by in ("obd", "obd_fisher", Obd("hutchinson", 1)):
            with pytest.raises(InputError, match=message):
                score(model, by, given_batches, loss)
    for by in (Obd("exact"), Obd("hutchinson")):
        with pytest.raises(InputError, match="obd needs second derivatives, and this net has a part without: "):
            score(_NoSecond(4, 4).double(), by, batches, cross_entropy)
    assert score(_NoSecond(4, 4).double(), "obd_fisher", batches, cross_entropy)["weight"].any()
    with pytest.raises(InputError, match="example by example, but batch normalisation"):
        score(net, "obd_fisher", batches, cross_entropy, mode="train")
    with pytest.raises(InputError, match=r"unknown hessian 'fischer' for obd. Did you mean 'fisher'\?"):
        Obd("fischer")
    for probes in (0, 1.5):
        with pytest.raises(InputError, match="a whole number of probes, 1 or more, but got"):
            Obd(probes=probes)  # type: ignore[arg-type]


def test_no_warning_comes_of_taking_examples_at_once() -> None:
    net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4)).double()
    batch = (torch.randn(5, 2, 6).double(), torch.arange(5) % 4)
    assert score(net, "obd_fisher", [batch], cross_entropy)["0.weight"].any()
