"""OBS: its score and compensation against numpy, brute force and least squares; what a layer takes in, by hand."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_nets import NETS, batches_of, cross_entropy, joined, made
from torch import Tensor, nn

import tombola as tb
from tombola.criteria import Obs, Weights, compensated, score
from tombola.criteria.kfac import damped
from tombola.criteria.obs import _patterns
from tombola.errors import InputError
from tombola.mask import Mask, prunable

TINY = Obs(1e-12)
Array = np.ndarray[Any, Any]


def outputs(model: nn.Module, batch: Any) -> Tensor:
    """A loss that no more than calls the model."""
    found: Tensor = model(batch[0]).sum()
    return found


def layer(columns: int, rows: int, seed: int = 0, bias: bool = False) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(columns, rows, bias=bias, dtype=torch.float64)


def mixed(examples: int, columns: int, seed: int = 0) -> Tensor:
    """Correlated inputs."""
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(examples, columns, generator=g) @ torch.randn(columns, columns, generator=g)).double()


def error(w: Tensor, new: Tensor, x: Tensor, damping: float = 0.0) -> float:
    """Half the mean squared change of a linear layer's outputs, and the damping's share."""
    hessian = damped((x.T @ x / len(x))[None], damping)[0] if damping else x.T @ x / len(x)
    return float(((new - w) @ hessian * (new - w)).sum() / 2)


def masks(shape: tuple[int, ...], share: float, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def of(weight: Tensor) -> Mask:
    return Mask({"weight": weight})


# The score.


@settings(max_examples=25, deadline=None)
@given(columns=st.integers(1, 7), rows=st.integers(1, 4), seed=st.integers(0, 2**31), damping=st.floats(1e-6, 1.0))
def test_it_is_the_papers_formula_by_numpy(columns: int, rows: int, seed: int, damping: float) -> None:
    net, x = layer(columns, rows, seed), mixed(9, columns, seed)
    found = score(net, Obs(damping), [(x,)], outputs)["weight"]
    hessian = (x.T @ x / len(x)).numpy()
    hessian = hessian + damping * np.eye(columns) * hessian.diagonal().mean()
    inverse = np.linalg.inv(hessian).diagonal()
    np.testing.assert_allclose(found.numpy(), net.weight.detach().numpy() ** 2 / (2 * inverse), rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), share=st.floats(0.2, 1.0))
def test_within_a_mask_it_is_the_error_of_a_single_removal_at_its_best(seed: int, share: float) -> None:
    """Each score is what is left of a least-squares fit, by numpy, of what the row gave with what stays of it."""
    net, x = layer(6, 3, seed), mixed(12, 6, seed)
    mask = masks((3, 6), share, seed)
    found = score(net, TINY, [(x,)], outputs, of(mask))["weight"]
    w = net.weight.detach() * mask
    for row, q in itertools.product(range(3), range(6)):
        if not mask[row, q]:
            assert float(found[row, q]) == 0
            continue
        stays = mask[row].clone()
        stays[q] = False
        target = (x @ w[row]).numpy()
        fit = np.linalg.lstsq(x[:, stays].numpy(), target, rcond=None)[0]
        left = ((x[:, stays].numpy() @ fit - target) ** 2).sum() / len(x) / 2
        assert float(found[row, q]) == pytest.approx(left, rel=1e-5, abs=1e-9)


def test_its_lowest_is_the_best_single_removal_where_magnitude_and_obd_err() -> None:
    """The first two inputs are nearly the same, so either's weight can take over the other's, though both are large."""
    g = torch.Generator().manual_seed(0)
    base = torch.randn(50, 4, generator=g).double()
    x = torch.stack([base[:, 0], base[:, 0] + 0.05 * base[:, 1], base[:, 2], base[:, 3]], dim=1)
    net = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    net.weight.data = torch.tensor([[3.0, 2.0, 0.5, 0.4]]).double()
    scores = score(net, TINY, [(x,)], outputs)["weight"][0]
    errors = []
    for q in range(4):
        kept = torch.arange(4)[None] != q
        new = compensated(net, TINY, of(kept), [(x,)], outputs) or {}
        errors.append(error(net.weight.detach(), new["weight"], x))
    assert scores.tolist() == pytest.approx(errors, rel=1e-6)
    assert int(scores.argmin()) == int(np.argmin(errors)) == 1
    assert int(net.weight.abs().argmin()) == 3
    target = net(x).detach()
    by_diagonal = score(net, "obd", [(x,)], lambda m, b: (m(b[0]) - target).square().mean() / 2)["weight"][0]
    assert int(by_diagonal.argmin()) == 3


# Compensation.


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), q=st.integers(0, 5), damping=st.floats(1e-6, 1.0))
def test_one_removed_weight_gives_the_papers_step(seed: int, q: int, damping: float) -> None:
    net, x = layer(6, 2, seed), mixed(9, 6, seed)
    kept = torch.ones(2, 6, dtype=torch.bool)
    kept[1, q] = False
    found = compensated(net, Obs(damping), of(kept), [(x,)], outputs) or {}
    inverse = np.linalg.inv(damped((x.T @ x / len(x))[None], damping)[0].numpy())
    w = net.weight.detach().numpy()[1]
    step = -w[q] / inverse[q, q] * inverse[:, q]
    np.testing.assert_allclose(found["weight"][1].numpy(), w + step, rtol=1e-7, atol=1e-9)
    assert float(found["weight"][1, q]) == 0
    assert torch.equal(found["weight"][0], net.weight.detach()[0]), "a row that loses nothing stays as it is"
    score_of_it = float(score(net, Obs(damping), [(x,)], outputs)["weight"][1, q])
    assert error(net.weight.detach(), found["weight"], x, damping) == pytest.approx(score_of_it, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), before=st.floats(0.4, 1.0), after=st.floats(0.0, 0.9))
def test_a_whole_removed_set_gives_the_least_squares_solution(seed: int, before: float, after: float) -> None:
    net, x = layer(6, 4, seed), mixed(15, 6, seed)
    mask = masks((4, 6), before, seed)
    kept = mask & masks((4, 6), after, seed + 1)
    found = compensated(net, TINY, of(kept), [(x,)], outputs, of(mask)) or {}
    new, w = found["weight"], net.weight.detach() * mask
    assert not new[~kept].any()
    for row in range(4):
        design, target = x[:, kept[row]].numpy(), (x @ w[row]).numpy()
        fit = np.linalg.lstsq(design, target, rcond=None)[0]
        np.testing.assert_allclose(new[row, kept[row]].numpy(), fit, rtol=1e-4, atol=1e-6)
    assert error(w, new, x) <= error(w, w * kept, x) + 1e-12, "never worse than leaving the others as they are"


def test_no_other_values_of_the_survivors_do_better() -> None:
    net, x = layer(8, 3), mixed(20, 8)
    kept = masks((3, 8), 0.5, 3)
    found = compensated(net, Obs(0.01), of(kept), [(x,)], outputs) or {}
    w, least = net.weight.detach(), error(net.weight.detach(), found["weight"], x, 0.01)
    g = torch.Generator().manual_seed(1)
    for scale in (1e-3, 1e-1, 1.0):
        other = found["weight"] + scale * torch.randn(3, 8, generator=g) * kept
        assert error(w, other, x, 0.01) > least


def test_one_after_the_other_comes_to_the_same() -> None:
    """Removed singly, each compensated for within what is left, as in the paper: the same end as all at once."""
    net, x, by = layer(6, 1), mixed(20, 6), Obs(1e-10)
    mask, stepwise = torch.ones(1, 6, dtype=torch.bool), copy.deepcopy(net)
    for _ in range(3):
        scores = score(stepwise, by, [(x,)], outputs, of(mask))
        kept = tb.prune(scores, (int(mask.sum()) - 1) / 6, within=of(mask))
        new = compensated(stepwise, by, kept, [(x,)], outputs, of(mask)) or {}
        stepwise.weight.data, mask = new["weight"], kept["weight"]
    at_once = compensated(net, by, of(mask), [(x,)], outputs) or {}
    torch.testing.assert_close(stepwise.weight.detach(), at_once["weight"], rtol=1e-5, atol=1e-8)


def test_all_or_nothing() -> None:
    net, x = layer(4, 3).float(), mixed(5, 4).float()
    nothing = compensated(net, "obs", of(torch.zeros(3, 4, dtype=torch.bool)), [(x,)], outputs) or {}
    everything = compensated(net, "obs", of(torch.ones(3, 4, dtype=torch.bool)), [(x,)], outputs) or {}
    assert not nothing["weight"].any()
    assert torch.equal(everything["weight"], net.weight)
    assert nothing["weight"].dtype == everything["weight"].dtype == torch.float32
    zero = score(net, "obs", [(x,)], outputs, of(torch.zeros(3, 4, dtype=torch.bool)))
    assert not zero["weight"].any()


def test_dead_inputs_do_no_harm() -> None:
    """Their weights go first, the smallest of them first, and those of others are as if they weren't there."""
    net, x = layer(5, 2), mixed(9, 5)
    x[:, [1, 3]] = 0
    found = score(net, Obs(1e-9), [(x,)], outputs)["weight"]
    assert bool(found.isfinite().all())
    dead, live = found[:, [1, 3]].flatten(), found[:, [0, 2, 4]]
    assert float(dead.max()) < 1e-6 * float(live.min())
    assert torch.equal(dead.argsort(), net.weight[:, [1, 3]].abs().flatten().argsort())
    alone = layer(3, 2)
    alone.weight.data = net.weight.data[:, [0, 2, 4]]
    torch.testing.assert_close(
        live, score(alone, Obs(1e-9), [(x[:, [0, 2, 4]],)], outputs)["weight"], rtol=1e-5, atol=0
    )
    for gone in ([0], [1, 2]):
        kept = ~torch.isin(torch.arange(5), torch.tensor(gone)).expand(2, 5)
        new = compensated(net, "obs", of(kept), [(x,)], outputs) or {}
        assert bool(new["weight"].isfinite().all())
    nothing_at_all = score(net, "obs", [(torch.zeros(4, 5).double(),)], outputs)["weight"]
    assert float(nothing_at_all.max()) < 1e-100
    assert torch.equal(nothing_at_all.flatten().argsort(), net.weight.abs().flatten().argsort())


# What layers take in.


def test_a_plain_convolution_by_unfold() -> None:
    torch.manual_seed(0)
    net, x = nn.Conv2d(2, 3, 3, stride=2, padding=1).double(), torch.randn(4, 2, 5, 5).double()
    patches = F.unfold(x, 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1)
    linear = nn.Linear(18, 3, bias=False).double()
    linear.weight.data = net.weight.detach().flatten(1)
    kept = masks((3, 18), 0.4, 0)
    spatial = kept.view(3, 2, 3, 3)
    # Positions are examples for it, nine for each of the convolution's.
    assert len(patches) == 36
    by_conv = score(net, "obs", [(x,)], outputs, of(spatial))["weight"]
    by_linear = score(linear, "obs", [(patches,)], outputs, of(kept))["weight"]
    torch.testing.assert_close(by_conv.flatten(1), by_linear * 9)
    survivors = of(spatial & masks((3, 2, 3, 3), 0.5, 1))
    new_conv = compensated(net, "obs", survivors, [(x,)], outputs, of(spatial)) or {}
    flat = of(survivors["weight"].flatten(1))
    new_linear = compensated(linear, "obs", flat, [(patches,)], outputs, of(kept)) or {}
    torch.testing.assert_close(new_conv["weight"].flatten(1), new_linear["weight"])


def test_a_groups_rows_see_their_own_inputs_alone() -> None:
    """A grouped convolution scores as the convolutions that it is made of."""
    torch.manual_seed(0)
    net, x = nn.Conv2d(4, 6, 2, groups=2).double(), torch.randn(6, 4, 4, 4).double()
    parts = []
    for g in range(2):
        part = nn.Conv2d(2, 3, 2).double()
        part.weight.data = net.weight.data[3 * g : 3 * g + 3]
        parts.append(score(part, "obs", [(x[:, 2 * g : 2 * g + 2],)], outputs)["weight"])
    torch.testing.assert_close(score(net, "obs", [(x,)], outputs)["weight"], torch.cat(parts))


@settings(max_examples=15, deadline=None)
@given(kind=st.sampled_from(sorted(NETS)), sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_batches_of_any_sizes_are_as_one(kind: str, sizes: list[int]) -> None:
    net, batches = made(kind), batches_of(sizes)
    parts, whole = (score(net, "obs", b, cross_entropy) for b in (batches, [joined(batches)]))
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-7, atol=0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), share=st.floats(0, 1), copies=st.integers(1, 3))
def test_rows_alike_share_an_inverse(seed: int, share: float, copies: int) -> None:
    kept = masks((2, 3, 4), share, seed).repeat(1, copies, 1)
    seen = torch.zeros_like(kept)
    groups = 0
    for group, rows, columns in _patterns(kept):
        assert bool(kept[group, rows, columns].all())
        seen[group, rows, columns] = True
        groups += 1
    assert torch.equal(seen, kept)
    assert groups == sum(len({tuple(r) for r in g.tolist() if any(r)}) for g in kept)


# What a criterion promises.


@pytest.mark.parametrize("kind", NETS)
def test_the_model_is_untouched_and_masks_restrict(kind: str) -> None:
    net, batches = made(kind).train(), batches_of([4, 3])
    before = {n: t.clone() for n, t in net.state_dict().items()}
    everywhere = score(net, "obs", batches, cross_entropy)
    assert everywhere.keys() == prunable(net).keys()
    last = list(everywhere)[-1]
    mask = Mask({last: masks(tuple(everywhere[last].shape), 0.6, 0)})
    found = score(net, "obs", batches, cross_entropy, mask)
    assert list(found) == [last]
    assert not found[last][~mask[last]].any()
    assert bool((found[last][mask[last]] >= everywhere[last][mask[last]] * (1 - 1e-9)).all()), (
        "fewer can make up for it"
    )
    new = compensated(net, "obs", mask, batches, cross_entropy) or {}
    assert list(new) == [last]
    assert new[last].shape == everywhere[last].shape
    assert net.training
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_compensation_brings_a_nets_outputs_closer() -> None:
    net, batches = made("conv"), batches_of([60, 40])
    kept = tb.prune(score(net, "obs", batches, cross_entropy), 0.5, "uniform")
    new = compensated(net, "obs", kept, batches, cross_entropy) or {}
    plain, better = copy.deepcopy(net), copy.deepcopy(net)
    kept.apply_(plain)
    better.load_state_dict(new, strict=False)
    x = joined(batches)[0]
    errors = [float((n(x) - net(x)).detach().square().sum()) for n in (better, plain)]
    assert errors[0] < 0.5 * errors[1]


def test_evaluation_mode_is_its_own() -> None:
    net, batches = made("batch_norm").train(), batches_of([6])
    default, evaluated, trained = (score(net, "obs", batches, cross_entropy, mode=m) for m in (None, "eval", "train"))
    assert all(torch.equal(default[n], evaluated[n]) for n in default)
    assert not torch.allclose(default["5.weight"], trained["5.weight"])
    kept = Mask({"5.weight": masks((5, 16), 0.5, 0)})
    values = [compensated(net, "obs", kept, batches, cross_entropy, mode=m) for m in (None, "eval", "train")]
    default, evaluated, trained = (v or {} for v in values)
    assert torch.equal(default["5.weight"], evaluated["5.weight"])
    assert not torch.allclose(default["5.weight"], trained["5.weight"])


def test_a_criterion_without_compensation_gives_none() -> None:
    net = layer(3, 2)
    criteria: list[Any] = ["magnitude", "snip", "mlprune", lambda weights: {}]
    for by in criteria:
        assert compensated(net, by, Mask.full(net)) is None


class Halving:
    """A criterion of one's own."""

    def __init__(self, make: Any = None) -> None:
        self.make = make

    def __call__(self, weights: Weights) -> dict[str, Tensor]:
        return {n: w.abs() for n, w in weights.final.items()}

    def compensate(self, weights: Weights, kept: Mask) -> Any:
        values = {n: w / 2 for n, w in weights.final.items()}
        return values if self.make is None else self.make(values["weight"])


def test_a_criterion_of_ones_own_compensates() -> None:
    net = layer(3, 2)
    kept = of(masks((2, 3), 0.5, 0))
    found = compensated(net, Halving(), kept) or {}
    assert torch.equal(found["weight"], net.weight.detach() / 2 * kept["weight"])
    bad = [
        lambda w: None,
        lambda w: {},
        lambda w: {"weight": w[:1]},
        lambda w: {"weight": w / 0},
        lambda w: {"weight": 1},
    ]
    for make in bad:
        with pytest.raises(InputError, match=r"must compensate with finite values of shape \(2, 3\) for 'weight'"):
            compensated(net, Halving(make), kept)


def test_bad_input_is_refused() -> None:
    x = mixed(3, 4)
    wrong = of(torch.ones(2, 2, dtype=torch.bool))
    infinite = layer(4, 2)
    recurrent, transposed = nn.LSTM(4, 3).double(), nn.ConvTranspose1d(1, 1, 2).double()
    attention = nn.MultiheadAttention(4, 2).double()
    unused = nn.ModuleDict({"a": layer(4, 2), "b": layer(4, 2)})
    cases: list[tuple[nn.Module, Any, Any, str]] = [
        (layer(4, 2), None, outputs, "obs takes gradients of a loss on data: pass batches=, and loss="),
        (layer(4, 2), [], outputs, "obs got no batches: .*pass a list"),
        (nn.Tanh(), [(x,)], outputs, "nothing to score: the model has no prunable parameter"),
        (recurrent, [(x,)], outputs, "'weight_ih_l0' is not one: it belongs to a LSTM. Leave it out of the mask"),
        (transposed, [(x,)], outputs, "'weight' is not one: it belongs to a ConvTranspose1d"),
        (attention, [(x,)], outputs, "'in_proj_weight' is not one: it belongs to a MultiheadAttention"),
        (unused, [(x,)], lambda m, b: m["a"](b[0]).sum(), "obs sees no input of the layer of 'b.weight'"),
        (infinite, [(x / 0,)], outputs, "obs found inputs of the layer of 'weight' not finite"),
    ]
    for net, batches, loss, message in cases:
        with pytest.raises(InputError, match=message):
            score(net, "obs", batches, loss)
        if prunable(net):
            with pytest.raises(InputError, match=message):
                compensated(net, "obs", Mask.full(net), batches, loss)
    net = layer(4, 2)
    with pytest.raises(InputError, match=r"has shape \(2, 2\), but the model's is \(2, 4\)"):
        compensated(net, "obs", wrong, [(x,)], outputs)
    with pytest.raises(InputError, match="must be within the mask"):
        compensated(net, "obs", Mask.full(net), [(x,)], outputs, of(masks((2, 4), 0.5, 0)))
    with pytest.raises(InputError, match="don't cover the same parameters"):
        compensated(net, "obs", Mask.full(net), [(x,)], outputs, wrong)
    with pytest.raises(InputError, match="mode must be 'train' or 'eval'"):
        compensated(net, "obs", Mask.full(net), [(x,)], outputs, mode="test")
    with pytest.raises(InputError, match=r"unknown criterion 'obz'\. Did you mean"):
        compensated(net, "obz", Mask.full(net))
    for damping in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="the damping of obs must be more than 0, but got"):
            Obs(damping)
    with pytest.raises(InputError, match="no inverse to rounding: raise its damping"):
        score(layer(9, 2), Obs(1e-300), [(mixed(2, 9),)], outputs)
