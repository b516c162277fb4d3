"""MLPrune: its score against the whole inverse of a Kronecker product, and what its layers, labels and masks are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_nets import NETS, batches_of, cross_entropy, in_mode, joined, made
from torch import Tensor, nn

from tombola.criteria import MLPrune, Weights, score
from tombola.criteria.base import untouched
from tombola.criteria.kfac import Factors, factors
from tombola.errors import InputError
from tombola.mask import Mask, prunable


def outputs(model: nn.Module, batch: Any) -> Tensor:
    """A loss that no more than calls the model."""
    found: Tensor = model(batch[0]).sum()
    return found


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


def weights_of(net: nn.Module) -> list[Tensor]:
    return [p.detach() for p in prunable(net).values()]


def test_a_convolution_of_the_whole_image_is_its_linear_layer() -> None:
    torch.manual_seed(0)
    conv, x = (
        nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Tanh(), nn.Linear(5, 3)).double(),
        torch.randn(6, 2, 3, 3),
    )
    plain = nn.Sequential(nn.Flatten(), nn.Linear(18, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    states = conv.state_dict()
    plain.load_state_dict({"1.weight": states["0.weight"].flatten(1), "1.bias": states["0.bias"]}, strict=False)
    plain[3].load_state_dict(conv[3].state_dict())
    by_conv = score(conv, "mlprune", [(x.double(),)], outputs)
    by_linear = score(plain, "mlprune", [(x.double(),)], outputs)
    torch.testing.assert_close(by_conv["0.weight"].flatten(1), by_linear["1.weight"])
    torch.testing.assert_close(by_conv["3.weight"], by_linear["3.weight"])


class Split(nn.Module):
    """A grouped convolution written out."""

    def __init__(self, conv: nn.Conv2d, last: nn.Linear) -> None:
        super().__init__()
        self.parts, self.last = nn.ModuleList(), last
        states = conv.state_dict()
        for weight, bias in zip(states["weight"].chunk(2), states["bias"].chunk(2), strict=True):
            part = nn.Conv2d(2, 3, 2).double()
            part.load_state_dict({"weight": weight, "bias": bias})
            self.parts.append(part)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.cat([part(half) for part, half in zip(self.parts, x.chunk(2, 1), strict=True)], 1)
        made: Tensor = self.last(torch.tanh(found).mean((2, 3)))
        return made


def test_each_group_of_a_convolution_is_a_layer() -> None:
    torch.manual_seed(0)
    conv, last, x = nn.Conv2d(4, 6, 2, groups=2).double(), nn.Linear(6, 3).double(), torch.randn(5, 4, 3, 3).double()

    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = conv, last

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.last(torch.tanh(self.conv(x)).mean((2, 3)))
            return found

    grouped = score(Grouped(), "mlprune", [(x,)], outputs)
    split = score(Split(conv, last), "mlprune", [(x,)], outputs)
    torch.testing.assert_close(grouped["conv.weight"], torch.cat([split["parts.0.weight"], split["parts.1.weight"]]))


def test_an_activation_in_place_changes_nothing() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)).double()
    twin = nn.Sequential(net[0], nn.ReLU(), net[2])
    found, expected = (score(n, "mlprune", [(inputs(9),)], outputs) for n in (net, twin))
    assert all(torch.equal(found[n], expected[n]) for n in expected)


@settings(max_examples=15, deadline=None)
@given(kind=st.sampled_from(sorted(NETS)), sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_batches_of_any_sizes_are_as_one(kind: str, sizes: list[int]) -> None:
    net, batches = made(kind), batches_of(sizes)
    parts, whole = (score(net, "mlprune", b, cross_entropy) for b in (batches, [joined(batches)]))
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-7, atol=0)


# Labels.


def test_neither_labels_nor_the_loss_matter_but_only_the_models_output() -> None:
    net, (x, y) = made("conv"), batches_of([6])[0]
    first = score(net, "mlprune", [(x, y)], cross_entropy)
    other = score(net, "mlprune", [(x, 2 - y)], lambda m, b: 7 * outputs(m, b))
    logarithms = score(nn.Sequential(net, nn.LogSoftmax(1)), "mlprune", [(x, y)], outputs)
    assert all(torch.equal(first[n], other[n]) for n in first)
    for name in first:
        torch.testing.assert_close(logarithms[f"0.{name}"], first[name])


def test_labels_are_drawn_from_the_generator() -> None:
    net, x, by = mlp(), inputs(6), MLPrune(classes=2)
    state = torch.get_rng_state()
    seeded = [torch.Generator().manual_seed(s) for s in (3, 3, 4)]
    first, again, other = (score(net, by, [(x,)], outputs, generator=g)["0.weight"] for g in seeded)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())
    exact = [score(net, "mlprune", [(x,)], outputs, generator=g)["0.weight"] for g in seeded]
    assert torch.equal(exact[0], exact[2]), "three classes are gone through"


# The score.


def damped_fisher(found: Factors, damping: float, rows: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
    """The Kronecker product, each factor with its share of the damping ``lambda``, by ``pi`` of the trace norms."""
    a = found.inputs[0] if columns is None else found.inputs[0][columns][:, columns]
    s = found.outputs[0] if rows is None else found.outputs[0][rows][:, rows]
    means = float(a.trace()) / len(a), float(s.trace()) / len(s)
    lam, pi = damping * means[0] * means[1], math.sqrt(means[0] / means[1])
    a = a + pi * math.sqrt(lam) * torch.eye(len(a)).double()
    return torch.kron(s + math.sqrt(lam) / pi * torch.eye(len(s)).double(), a)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), damping=st.floats(1e-6, 10.0), name=st.sampled_from(["0.weight", "2.weight"]))
def test_it_is_the_papers_formula_with_the_whole_inverse(seed: int, damping: float, name: str) -> None:
    net, x = mlp(seed), inputs(12, seed)
    scores = score(net, MLPrune(damping), [(x,)], outputs)[name]
    inverse = torch.linalg.inv(damped_fisher(kfac(net, [(x,)])[name], damping)).diagonal()
    weight = prunable(net)[name].detach()
    torch.testing.assert_close(scores, weight.square() / (2 * inverse.view(weight.shape)), rtol=1e-5, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.sets(st.integers(0, 4), min_size=1),
    columns=st.sets(st.integers(0, 3), min_size=1),
)
def test_pruned_units_are_out_of_the_matrix(seed: int, rows: set[int], columns: set[int]) -> None:
    """Exact where whole rows and columns are pruned; entries that go by themselves change nothing else."""
    net, x = mlp(seed), inputs(12, seed)
    r, c = torch.tensor(sorted(rows)), torch.tensor(sorted(columns))
    kept = torch.zeros(5, 4, dtype=torch.bool)
    kept[r[:, None], c] = True
    scores = score(net, MLPrune(0.01), [(x,)], outputs, Mask({"0.weight": kept}))["0.weight"]
    inverse = torch.linalg.inv(damped_fisher(kfac(net, [(x,)])["0.weight"], 0.01, r, c)).diagonal()
    expected = weights_of(net)[0][r[:, None], c].square() / (2 * inverse.view(len(r), len(c)))
    torch.testing.assert_close(scores[r[:, None], c], expected, rtol=1e-6, atol=1e-12)
    assert not scores[~kept].any()
    if len(r) > 1 and len(c) > 1:
        holed = kept.clone()
        holed[r[0], c[0]] = False
        found = score(net, MLPrune(0.01), [(x,)], outputs, Mask({"0.weight": holed}))["0.weight"]
        torch.testing.assert_close(found, scores * holed)


def test_dead_inputs_and_dead_units_do_no_harm() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    net.state_dict()["0.bias"][2] = -100
    x = inputs(30)
    x[:, 1] = 0
    found = score(net, MLPrune(1e-9), [(x,)], outputs)
    assert all(bool(s.isfinite().all()) for s in found.values())
    alive = torch.ones(5, 4, dtype=torch.bool)
    alive[2], alive[:, 1] = False, False
    assert float(found["0.weight"][~alive].max()) < 1e-3 * float(found["0.weight"][alive].median())
    nothing = score(net, "mlprune", [(0 * x,)], outputs)["0.weight"]
    assert float(nothing.max()) < 1e-100
    assert torch.equal(nothing.argsort(1), weights_of(net)[0].abs().argsort(1)), "within a row by magnitude"


def test_a_layer_that_the_output_does_not_depend_on_goes_first() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle, self.cut = (nn.Linear(4, 3).double() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            self.idle(x)
            with torch.no_grad():
                shift = self.cut(x)
            found: Tensor = self.used(x) + shift
            return found

    torch.manual_seed(0)
    found = score(Idle(), "mlprune", [(inputs(6),)], outputs)
    assert float(found["idle.weight"].max()) < 1e-100 < float(found["used.weight"].min())
    assert float(found["cut.weight"].max()) < 1e-100


@pytest.mark.parametrize("kind", NETS)
def test_the_model_is_untouched_and_masks_restrict(kind: str) -> None:
    net, batches = made(kind).train(), batches_of([4, 3])
    frozen = next(iter(prunable(net).values()))
    frozen.requires_grad_(False)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    everywhere = score(net, "mlprune", batches, cross_entropy)
    assert everywhere.keys() == prunable(net).keys()
    assert all(bool((s >= 0).all()) and s.any() for s in everywhere.values()), "frozen weights, too"
    last = list(everywhere)[-1]
    kept = torch.rand(everywhere[last].shape, generator=torch.Generator().manual_seed(0)) < 0.7
    found = score(net, "mlprune", batches, cross_entropy, Mask({last: kept}))
    assert list(found) == [last]
    assert not found[last][~kept].any()
    assert bool((found[last][kept] > 0).all())
    assert net.training
    assert not frozen.requires_grad
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_evaluation_mode_is_its_own() -> None:
    net, batches = made("batch_norm").train(), batches_of([6])
    default, trained = (score(net, "mlprune", batches, cross_entropy, mode=m)["5.weight"] for m in (None, "train"))
    torch.testing.assert_close(
        kfac(net, batches)["5.weight"].outputs, kfac(in_mode(net, "eval"), batches)["5.weight"].outputs
    )
    assert torch.equal(default, score(net, "mlprune", batches, cross_entropy, mode="eval")["5.weight"])
    assert not torch.allclose(default, trained)


# Refusals.


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class PairOf(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x, x


def test_bad_input_is_refused() -> None:
    net, x = mlp(), inputs(5)
    recurrent = nn.LSTM(4, 3).double()
    unused = nn.ModuleDict({"a": mlp(), "b": mlp()})
    logits = "takes the model's output for logits, a tensor of shape .examples, classes. with 2 classes or more"
    cases: list[tuple[nn.Module, Any, Any, str]] = [
        (net, None, outputs, "mlprune takes gradients of a loss on data: pass batches=, and loss="),
        (net, [], outputs, "mlprune got no batches: .*pass a list"),
        (nn.Tanh(), [(x,)], outputs, "nothing to score: the model has no prunable parameter"),
        (recurrent, [(x,)], outputs, "'weight_ih_l0' is not one: it belongs to a LSTM"),
        (nn.Sequential(*net, nn.Linear(3, 1).double()), [(x,)], outputs, rf"{logits}.*of shape \(5, 1\)"),
        (net, [(x.view(5, 1, 4),)], outputs, rf"{logits}.*for 5 examples got one of shape \(5, 1, 3\)"),
        (nn.Sequential(net, nn.Flatten(0)), [(x,)], outputs, rf"{logits}.*got one of shape \(15,\)"),
        (nn.Sequential(net, nn.Flatten(0), nn.Unflatten(0, (3, 5))), [(x,)], outputs, rf"{logits}.*got one of"),
        (Pair(4, 3).double(), [(x,)], lambda m, b: m(b[0])[0].sum(), "of 'weight', a Pair, doesn't. Leave it out"),
        (nn.Sequential(net, PairOf()), [(x,)], lambda m, b: m(b[0])[0].sum(), rf"{logits}.*got a tuple"),
        (net, [(x,)], lambda m, b: m(b[0]).sum() + m(b[0]).sum(), "once for a batch, but it did 2 times"),
        (unused, [(x,)], lambda m, b: m["a"](b[0]).sum(), "once for a batch, but it did 0 times"),
        (net, [(x / 0,)], outputs, "mlprune found (inputs|gradients) of the layer of '0.weight' not finite"),
    ]
    for model, batches, loss, message in cases:
        with pytest.raises(InputError, match=message):
            score(model, "mlprune", batches, loss)
        assert not model._forward_hooks
    with pytest.raises(InputError, match="drawn from outputs that are not finite"):
        score(net, MLPrune(classes=2), [(x / 0,)], outputs)
    attention = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Flatten()).double()
    inside = Mask({"0.self_attn.out_proj.weight": torch.ones(4, 4, dtype=torch.bool)})
    with pytest.raises(InputError, match=r"mlprune sees no input of the layer of '0\.self_attn\.out_proj\.weight'"):
        score(attention, "mlprune", [(x.view(5, 1, 4),)], outputs, inside)
    for damping in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="the damping of mlprune must be more than 0, but got"):
            MLPrune(damping)
    for samples in (0, 1.5):
        with pytest.raises(InputError, match="a whole number of samples, 1 or more, but got"):
            MLPrune(samples=samples)  # type: ignore[arg-type]
