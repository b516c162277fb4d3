"""Pruning at initialisation: rounds against ``prune`` one by one, what the model is left like, and what is refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_nets import random_mask, random_net
from scoring_nets import NETS, batches_of, cross_entropy, images, made
from test_criteria import everything
from torch import Tensor, nn

import tombola as tb
from tombola.criteria import Criterion, Scores, Traits, Weights, score
from tombola.errors import InputError
from tombola.mask import Mask, prunable
from tombola.pruning import Layerwise, kth_smallest, rest, top
from tombola.schedules import to_target

BUILT_IN = ("snip", "grasp", "synflow", "force", "magnitude", "random")
SEEDS = st.integers(0, 10**6)


def out_sum(model: nn.Module, batch: Tensor) -> Tensor:
    """A loss whose Hessian isn't 0, for outputs of any width."""
    found: Tensor = torch.softmax(model(batch), dim=-1)[..., :1].square().mean() + model(batch).square().mean()
    return found


def one_by_one(net: nn.Module, by: Any, ladder: list[float], whole: Mask, *batches: Any, **options: Any) -> Mask:
    """What ``prune_at_init`` should give: apply, score, prune, and again."""
    net, mask = copy.deepcopy(net), whole
    for density in ladder:
        mask.apply_(net)
        scores = score(net, by, *batches, mask=mask, mode=options.get("mode"), generator=options.get("generator"))
        mask = tb.prune(scores, density, options.get("allocation", "global"), within=mask)
    return mask


def rounded(digits: int) -> Criterion:
    """``|w|`` to so many digits: many ties."""

    def tied(weights: Weights) -> Scores:
        return {n: (w.double().abs() * 10**digits).round() for n, w in weights.final.items()}

    return tied


def unreachable(weights: Weights) -> Scores:
    """Infinities of both signs."""
    return {
        n: torch.where(w.abs() < 0.7, -math.inf, torch.where(w > 1.4, math.inf, w)) for n, w in weights.final.items()
    }


CRITERIA: list[Any] = ["snip", "synflow", "magnitude", rounded(0), rounded(1), unreachable]


@settings(max_examples=40, deadline=None)
@given(
    seed=SEEDS,
    by=st.sampled_from(CRITERIA),
    density=st.one_of(st.floats(0.001, 1), st.sampled_from([0.5, 1.0])),
    rounds=st.integers(1, 7),
    schedule=st.sampled_from(["exponential", "linear", "cubic"]),
)
def test_rounds_are_prune_within_the_last_mask(seed: int, by: Any, density: float, rounds: int, schedule: str) -> None:
    net, x = random_net(seed)
    found = tb.prune_at_init(net, by, density, [x], out_sum, rounds, schedule=schedule)
    whole = Mask.full(net)
    assert found == one_by_one(net, by, to_target(schedule, density, rounds), whole, [x], out_sum)
    assert found.kept == round(density * whole.total)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, by=st.sampled_from(CRITERIA), share=st.floats(0, 1), rounds=st.integers(1, 6))
def test_rounds_within_a_mask_go_from_its_density_down(seed: int, by: Any, share: float, rounds: int) -> None:
    net, x = random_net(seed)
    within = random_mask(net, seed)
    density = within.density * share
    if density == 0:
        return
    found = tb.prune_at_init(net, by, density, [x], out_sum, rounds, within=within)
    ladder = [within.density * share ** (k / rounds) for k in range(1, rounds)] + [density]
    assert found == one_by_one(net, by, ladder, within, [x], out_sum)
    assert found <= within
    assert found.kept == round(density * within.total)


@settings(max_examples=30, deadline=None)
@given(
    seed=SEEDS,
    by=st.sampled_from(CRITERIA),
    allocation=st.sampled_from(["layerwise", "uniform", "erk", Layerwise(0.3)]),
    rounds=st.integers(1, 4),
)
def test_rounds_layer_by_layer(seed: int, by: Any, allocation: Any, rounds: int) -> None:
    net, x = random_net(seed)
    found = tb.prune_at_init(net, by, 0.3, [x], out_sum, rounds, allocation=allocation)
    ladder = to_target("exponential", 0.3, rounds)
    assert found == one_by_one(net, by, ladder, Mask.full(net), [x], out_sum, allocation=allocation)


def test_random_rounds_draw_anew_and_depend_on_the_generator_only() -> None:
    net = made("linear")
    masks = [
        tb.prune_at_init(net, "random", 0.3, rounds=4, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    ]
    assert masks[0] == masks[1] != masks[2]
    again = one_by_one(
        net,
        "random",
        to_target("exponential", 0.3, 4),
        Mask.full(net),
        generator=torch.Generator().manual_seed(1),
    )
    assert masks[0] == again


@pytest.mark.parametrize("by", BUILT_IN)
@pytest.mark.parametrize("kind", ["conv", "residual", "batch_norm"])
def test_the_memory_format_does_not_matter(kind: str, by: str) -> None:
    net, batches = made(kind), batches_of([6])
    other = copy.deepcopy(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = [tb.prune_at_init(n, by, 0.2, batches, cross_entropy, 6, mode="eval") for n in (net, other)]
    # Sums go in another order there, so a score may round to the other side of the cut.
    assert found[0].overlap(found[1]) >= 0.9
    assert not other[0].weight.is_contiguous() if kind == "conv" else True


def test_the_default_rounds_are_the_criterions_own() -> None:
    calls: list[int] = []

    class Own:
        traits = Traits(rounds=5)

        def __call__(self, weights: Weights) -> Scores:
            calls.append(sum(int((w != 0).sum()) for w in weights.final.values()))
            return {n: w.abs() for n, w in weights.final.items()}

    net = made("linear")
    total = Mask.full(net).total
    tb.prune_at_init(net, Own(), 0.1)
    assert calls == [total, *(round(0.1 ** (k / 5) * total) for k in range(1, 5))], "each round scores what is left"
    tb.prune_at_init(net, Own(), 0.1, rounds=2)
    assert len(calls) == 7


# FORCE.


def test_force_may_revive_and_others_never() -> None:
    net, batches = made("conv", seed=3), batches_of([8])
    nested = {
        by: [tb.prune_at_init(net, by, d, batches, cross_entropy, r) for d, r in LADDER] for by in ("force", "snip")
    }
    assert all(b <= a for a, b in zip(nested["snip"], nested["snip"][1:], strict=False))
    assert not all(b <= a for a, b in zip(nested["force"], nested["force"][1:], strict=False))


LADDER = [(0.1 ** (k / 6), k) for k in range(1, 7)]
"""The rounds 1 to 6 of a ladder to 0.1, each as the end of a shorter one."""


@pytest.mark.parametrize("kind", NETS)
def test_force_scores_the_pruned_net_at_the_initial_values(kind: str) -> None:
    net, batches = made(kind), batches_of([7])
    twin, mask = copy.deepcopy(net), Mask.full(net)
    for density in to_target("exponential", 0.1, 6):
        twin.load_state_dict(net.state_dict())
        mask.apply_(twin)
        mask = tb.prune(score(twin, "force", batches, cross_entropy, initial=net.state_dict()), density)
    assert tb.prune_at_init(net, "force", 0.1, batches, cross_entropy, 6) == mask


def test_force_revives_nothing_that_a_mask_leaves_out() -> None:
    net, batches = made("conv", seed=3), batches_of([8])
    within = Mask({n: torch.rand(p.shape) < 0.6 for n, p in prunable(net).items()})
    found = tb.prune_at_init(net, "force", 0.2, batches, cross_entropy, 6, within=within)
    assert found <= within
    assert found.kept == round(0.2 * within.total)


# Rounds that are cautious.


class Flows:
    """A cautious criterion of scores that never change: each layer's are given."""

    traits = Traits(rounds=3, cautious=True)

    def __init__(self, **scores: list[float]) -> None:
        self.scores, self.calls = scores, 0

    def net(self) -> nn.Module:
        layers = {name: nn.Linear(len(row), 1, bias=False) for name, row in self.scores.items()}
        for layer in layers.values():
            nn.init.ones_(layer.weight)
        return nn.ModuleDict(layers)

    def __call__(self, weights: Weights) -> Scores:
        self.calls += 1
        return {f"{name}.weight": torch.tensor([row]) for name, row in self.scores.items()}


def kept(mask: Mask) -> dict[str, list[int]]:
    return {n.removesuffix(".weight"): t.flatten().int().tolist() for n, t in mask.items()}


def test_a_cautious_round_stops_before_the_last_of_a_layer() -> None:
    """At one go all of ``a`` would leave. The round is cut before ``a``'s best, 3, and again before the ``b`` alone."""
    flows = Flows(a=[1.0, 2.0, 3.0], b=[4.0, 5.0, 6.0])
    assert kept(tb.prune_at_init(flows.net(), flows, 1 / 6, rounds=1)) == {"a": [0, 0, 0], "b": [0, 0, 1]}
    assert flows.calls == 1
    tb.prune_at_init(flows.net(), flows, 1 / 6)
    assert flows.calls > 1 + 3


def test_a_layer_whose_best_is_the_weakest_of_all_is_a_side_path_and_goes() -> None:
    flows = Flows(side=[0.1], main=[5.0, 6.0, 7.0])
    assert kept(tb.prune_at_init(flows.net(), flows, 0.5)) == {"side": [0], "main": [0, 1, 1]}


@pytest.mark.parametrize("value", [0.0, math.inf, -math.inf, 1.0])
@pytest.mark.parametrize("density", [1.0, 0.5, 0.2])
def test_cautious_rounds_end_where_all_scores_are_the_same(value: float, density: float) -> None:
    flows = Flows(a=[value] * 5, b=[value] * 5)
    mask = tb.prune_at_init(flows.net(), flows, density)
    first = round(density * 10)
    chosen = [entry for row in kept(mask).values() for entry in row]
    assert chosen == [1] * first + [0] * (10 - first), "of equal scores the earlier are kept"


@pytest.mark.parametrize("by", ["snip", "synflow", "force", "magnitude"])
@pytest.mark.parametrize("rounds", [None, 1, 9])
def test_a_density_that_rounds_to_nothing_keeps_nothing(by: str, rounds: int | None) -> None:
    net = made("linear")
    mask = tb.prune_at_init(net, by, 1e-5, batches_of([4]), cross_entropy, rounds)
    assert mask.kept == 0


# The model comes back as it was.


@settings(max_examples=40, deadline=None)
@given(
    seed=SEEDS,
    by=st.sampled_from(BUILT_IN),
    mode=st.sampled_from([None, "train", "eval"]),
    allocation=st.sampled_from(["global", "uniform"]),
    rounds=st.sampled_from([0, 1, 3]),
    fails=st.booleans(),
)
def test_the_model_is_untouched(
    seed: int, by: str, mode: str | None, allocation: str, rounds: int, fails: bool
) -> None:
    net, x = random_net(seed)
    net(x).sum().backward()  # gradients, and statistics of a batch
    g = torch.Generator().manual_seed(seed)
    for module in net.modules():
        module.training = bool(torch.rand((), generator=g) < 0.5)
    for parameter in net.parameters():
        parameter.requires_grad_(bool(torch.rand((), generator=g) < 0.5))
    prunable(net)[next(iter(prunable(net)))].data.view(-1)[0] = -0.0
    before, calls = everything(net), []

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        calls.append(1)
        if fails and len(calls) == 2:
            raise KeyError("stop here")
        torch.rand(3)
        return out_sum(model, batch)

    options: dict[str, Any] = {"mode": mode}
    try:
        if rounds:
            tb.prune_at_init(net, by, 0.3, [x, x[:2]], loss, rounds, allocation=allocation, **options)
        else:
            score(net, by, [x, x[:2]], loss, initial=net.state_dict(), **options)
    except (KeyError, InputError):
        assert fails or mode == "train", "one example is too few for batch statistics"
    assert everything(net) == before


@settings(max_examples=4, deadline=None)
@given(seed=SEEDS, by=st.sampled_from(["snip", "grasp", "magnitude", "synflow"]))
def test_the_net_that_was_scored_trains_on_as_if_it_had_not_been(seed: int, by: str) -> None:
    states = []
    for scored in (False, True):
        net, x = random_net(seed)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)  # whose steps are no larger than that
        for _ in range(3):
            if scored:
                tb.prune_at_init(net, by, 0.2, [x], out_sum, 2)
            optimizer.zero_grad()
            out_sum(net, x).backward()
            optimizer.step()
        states.append(net.state_dict())
    assert all(torch.equal(v, states[1][n]) for n, v in states[0].items())


# Selection.


@settings(max_examples=20, deadline=None)
@given(
    length=st.integers(1 << 17, 1 << 18),
    order=st.sampled_from(["random", "sorted", "reversed", "periodic", "tied", "constant", "infinite", "spike"]),
    where=st.floats(0, 1),
    seed=SEEDS,
)
def test_kth_smallest_is_that_of_the_sorted(length: int, order: str, where: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(length, generator=g, dtype=torch.float64)
    period = length // (1 << 14)
    values = {
        "sorted": lambda: values.sort().values,
        "reversed": lambda: values.sort(descending=True).values,
        "periodic": lambda: (torch.arange(length) % period).double(),
        "tied": lambda: torch.randint(3, (length,), generator=g).double(),
        "constant": lambda: torch.full((length,), 2.5).double(),
        "infinite": lambda: torch.where(values > 0.5, math.inf, torch.where(values < -0.5, -math.inf, values)),
        "spike": lambda: torch.where(torch.arange(length) % period == 0, 9.0, values),
    }.get(order, lambda: values)()
    k = 1 + round(where * (length - 1))
    assert kth_smallest(values, k) == values.sort().values[k - 1]
    assert torch.equal(rest(values, k), (~top(values, k)).nonzero().flatten())
    assert int(top(values, k).sum()) == k


# Refusals.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, "a target density must be above 0 and at most 1, but got 0.0"),
        ({"density": 1.5}, "above 0 and at most 1, but got 1.5"),
        ({"density": math.nan}, "above 0 and at most 1, but got nan"),
        ({"rounds": 0}, "a whole number of rounds, 1 or more, but got 0"),
        ({"rounds": -2}, "1 or more, but got -2"),
        ({"rounds": 2.5}, "a whole number of rounds, 1 or more, but got 2.5"),
        ({"schedule": "cubik"}, "unknown schedule 'cubik' .*Did you mean 'cubic'"),
        ({"allocation": "globl"}, "unknown allocation 'globl'.*Did you mean 'global'"),
        ({"mode": "test"}, "mode must be 'train' or 'eval', but got 'test'"),
        ({"by": "snap"}, "unknown criterion 'snap'.*Did you mean 'snip'"),
        ({"batches": None}, "snip takes gradients of a loss on data: pass batches="),
        ({"batches": []}, "snip got no batches"),
        ({"loss": None}, "pass batches=, and loss="),
        ({"model": nn.Flatten()}, "there is nothing to prune: the model has no prunable parameter"),
        ({"within": Mask({})}, "there is nothing to prune: .* or the mask covers none"),
        ({"within": Mask({"0.weight": torch.ones(2, dtype=torch.bool)})}, "which the model doesn't have"),
        ({"density": 0.9, "within": "sparse"}, "density 0.9 is more than the mask to stay within keeps, 0.099"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    net = made("linear")
    if options.get("within") == "sparse":
        options = options | {"within": tb.prune(score(net, "magnitude"), 0.1)}
    before = everything(net)
    known = {"model": net, "by": "snip", "density": 0.5, "batches": batches_of([3]), "loss": cross_entropy} | options
    with pytest.raises(InputError, match=message):
        tb.prune_at_init(**known)
    assert everything(net) == before


@pytest.mark.parametrize("by", BUILT_IN)
def test_batches_from_an_iterator_serve_every_round(by: str) -> None:
    net, batches = made("linear"), batches_of([4, 3])
    listed, iterated = (tb.prune_at_init(net, by, 0.2, b, cross_entropy, 3) for b in (batches, iter(batches)))
    assert listed == iterated


def test_inside_no_grad_and_with_a_tensor_for_batches() -> None:
    net = made("batch_norm").float()
    expected = tb.prune_at_init(net, "synflow", 0.2, images(3, 4, 4), rounds=4)
    with torch.no_grad():
        assert tb.prune_at_init(net, "synflow", 0.2, torch.zeros(2, 5, 3, 4, 4), rounds=4) == expected
