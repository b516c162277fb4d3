"""Mistakes found in public code of these methods, each with a test that would show it here."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_nets import NETS, Batch, batches_of, cross_entropy, images, made
from torch import Tensor, nn

import tombola as tb
from tombola.criteria import Grasp, Scores, SynFlow, Traits, Weights, score, traits
from tombola.mask import Mask, prunable
from tombola.seeds import stream
from tombola.tasks.models import resnet, vgg

SMALL = images(3, 32, 32)
BATCH: list[Batch] = [(torch.randn(40, 3, 32, 32, generator=stream(0, "images")), torch.arange(40) % 10)]


def of(model: Any, seed: int = 0, **sizes: int) -> nn.Module:
    depth = sizes.pop("depth")
    torch.manual_seed(seed)
    net: nn.Module = model(depth, **sizes)
    return net


def empty(mask: Mask) -> int:
    return len(mask.collapsed())


# SynFlow.


@pytest.mark.parametrize("depth", [20, 32, 44])
def test_synflow_in_float32_overflows_on_deep_residual_nets(depth: int) -> None:
    net = of(resnet, depth=depth)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    scores = score(net, "synflow", SMALL)
    whole = float(scores["fc.weight"].sum())
    assert whole > (1e22 if depth == 20 else 3e38), "beyond what float32 holds, but for ResNet-20"
    assert tb.prune_at_init(net, "synflow", 0.01, SMALL, rounds=3).kept == round(0.01 * Mask.full(net).total)


class Hasty(SynFlow):
    """SynFlow in 10 rounds of its own, at will without the ones in between."""

    traits: ClassVar[Traits] = replace(SynFlow.traits, rounds=10)


class Careless(Hasty):
    traits: ClassVar[Traits] = replace(Hasty.traits, cautious=False)


def test_a_fixed_number_of_synflow_rounds_empties_vgg16_at_the_maximal_compression() -> None:
    net = of(vgg, depth=16, width=3)
    most = len(prunable(net)) / Mask.full(net).total
    assert empty(tb.prune_at_init(net, Careless(), most, SMALL)) > 0, "each of these rounds takes too much"
    careful = tb.prune_at_init(net, Hasty(), most, SMALL)
    assert [layer.kept for layer in careful.layers()] == [1] * len(careful)


def test_one_shot_synflow_starves_the_shortcuts() -> None:
    net = of(resnet, depth=20, width=8)
    once = tb.prune_at_init(net, "synflow", 0.01, SMALL, rounds=1)
    assert any("shortcut" in name for name in once.collapsed())
    assert tb.prune_at_init(net, "synflow", 0.01, SMALL).collapsed() == []


def test_synflow_leaves_the_signs_and_statistics_of_the_net_alone() -> None:
    """The authors' code takes absolute values of the whole state in place, and multiplies the signs back: a zero's is
    lost, and so is a pruned weight's."""
    net = made("batch_norm")
    prunable(net)["0.weight"].data.view(-1)[:2] = torch.tensor([-0.0, 0.0])
    before = copy.deepcopy(net.state_dict())
    tb.prune_at_init(net, "synflow", 0.1, images(3, 4, 4), rounds=5)
    for name, value in net.state_dict().items():
        assert torch.equal(torch.signbit(value), torch.signbit(before[name]))
        assert torch.equal(value, before[name])


# Modes, and what is scored.


def test_the_mode_of_batch_normalisation_is_the_criterions_not_the_nets() -> None:
    for by, own in (("snip", "eval"), ("grasp", "train"), ("synflow", "eval"), ("force", "eval")):
        assert traits(tb.criteria.CRITERIA[by]).mode == own
        net, batches = made("batch_norm"), batches_of([8])
        masks = [tb.prune_at_init(n, by, 0.2, batches, cross_entropy, 2) for n in (net.train(), net.eval())]
        assert masks[0] == masks[1]


def test_snip_in_training_mode_empties_layers_of_a_residual_net() -> None:
    net = of(resnet, depth=20, width=8)
    train, evaluated = (tb.prune_at_init(net, "snip", 0.01, BATCH, cross_entropy, mode=m) for m in ("train", "eval"))
    assert empty(train) > empty(evaluated)


@pytest.mark.parametrize("by", ["snip", "grasp", "force", "synflow"])
def test_linear_layers_are_drawn_anew_in_the_scored_copy(by: str) -> None:
    """GraSP's code does so, and so does a port of SNIP: their scores are of weights that are never trained."""
    net = made("linear")
    other = copy.deepcopy(net)
    for layer in other.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
    before, seen = copy.deepcopy(net.state_dict()), []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        found = cross_entropy(model, batch)
        seen.append(all(torch.equal(v, before[n]) for n, v in net.state_dict().items()))
        return found

    torch.manual_seed(0)
    first = tb.prune_at_init(net, by, 0.1, batches_of([6]), loss, 1)
    torch.manual_seed(1)
    assert first == tb.prune_at_init(net, by, 0.1, batches_of([6]), loss, 1)
    assert all(seen)
    assert first != tb.prune_at_init(other, by, 0.1, batches_of([6]), cross_entropy, 1)


@pytest.mark.parametrize("kind", NETS)
def test_biases_and_normalisation_scales_are_pruned_by_the_name_weight(kind: str) -> None:
    net = made(kind)
    owners = {
        n: net.get_submodule(n.rpartition(".")[0])
        for n in tb.prune_at_init(net, "snip", 0.5, batches_of([4]), cross_entropy)
    }
    assert all(isinstance(m, nn.Linear | nn.Conv2d) for m in owners.values())
    assert all(name.endswith(".weight") for name in owners)
    assert len(owners) == sum(isinstance(m, nn.Linear | nn.Conv2d) for m in net.modules())


class Loader:
    """Other batches every time, as of a loader that shuffles and varies its images."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[Batch]:
        self.passes += 1
        yield from batches_of([5, 4], seed=self.passes)


@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize("by", ["snip", "grasp", "force"])
def test_gradient_and_hessian_and_rounds_see_different_images(by: str, rounds: int) -> None:
    loader, net = Loader(), made("conv")
    found = tb.prune_at_init(net, by, 0.2, loader, cross_entropy, rounds)
    assert loader.passes == 1
    assert found == tb.prune_at_init(net, by, 0.2, batches_of([5, 4], seed=1), cross_entropy, rounds)


# Scale, sign, ties, counts.


def test_grasps_normaliser_nearly_cancels_with_batch_normalisation() -> None:
    """Divided by their sum the scores would have any size and sign: it is a small part of what it sums."""
    net = of(resnet, depth=20, width=4)
    scores = score(net, Grasp(), BATCH, cross_entropy)
    values = torch.cat([s.double().flatten() for s in scores.values()])
    assert abs(float(values.sum())) < 0.01 * float(values.abs().sum())
    assert bool(values.isfinite().all())


@pytest.mark.parametrize("by", ["snip", "grasp", "force"])
@pytest.mark.parametrize("kind", NETS)
def test_the_scale_of_the_loss_changes_no_mask(kind: str, by: str) -> None:
    net, batches = made(kind), batches_of([7, 2])
    masks = [
        tb.prune_at_init(net, by, 0.3, batches, lambda m, b, c=c: c * cross_entropy(m, b), 3) for c in (1.0, 2.0, 2e-10)
    ]
    assert masks[0] == masks[1]
    assert masks[0].distance(masks[2]) < 0.02, "rounding alone"


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("by", ["snip", "grasp", "synflow"])
def test_repeated_scoring_revives_pruned_weights(kind: str, by: str) -> None:
    """A pruned weight scores 0, which is more than GraSP gives many that are kept."""
    net, batches, n = made(kind), batches_of([6]), 5
    scores = torch.cat([s.flatten() for s in score(net, by, batches, cross_entropy).values()])
    assert (by == "grasp") == bool((scores < 0).any())
    steps = [tb.prune_at_init(net, by, 0.9 ** (k / n), batches, cross_entropy, k) for k in range(1, n + 1)]
    for earlier, later in pairwise(steps):
        assert later <= earlier


@settings(max_examples=50, deadline=None)
@given(density=st.floats(0.01, 1), seed=st.integers(0, 999), by=st.sampled_from(["snip", "grasp", "synflow"]))
def test_one_too_many_is_kept_at_the_threshold(density: float, seed: int, by: str) -> None:
    """Whole numbers cut off, thresholds that ties share, the entry at the threshold itself: the count is exact."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.sign() * 0.5)  # ties everywhere
    batches = [(x.float(), y) for x, y in batches_of([4])]
    assert tb.prune_at_init(net, by, density, batches, cross_entropy, 1).kept == round(density * 204)


def test_a_product_that_binary_fractions_miss_is_not_cut_off() -> None:
    net = nn.Linear(10, 10)
    assert int(0.29 * 100) == 28
    assert tb.prune_at_init(net, "magnitude", 0.29).kept == 29


def test_masks_are_inferred_from_weights_that_are_not_zero() -> None:
    net = nn.Linear(10, 10)
    nn.init.zeros_(net.weight)
    mask = tb.prune_at_init(net, "random", 0.4, rounds=3)
    assert mask.kept == 40
    assert score(net, "random", mask=mask).keys() == mask.keys()


def test_negative_weights_are_pruned_first() -> None:
    """A criterion that forgets the absolute value never keeps a negative weight."""
    for kind in NETS:
        net, batches = made(kind), batches_of([6])
        for by in ("snip", "synflow", "magnitude", "force"):
            mask = tb.prune_at_init(net, by, 0.3, batches, cross_entropy, 1)
            kept = torch.cat([p.detach()[mask[n]] for n, p in prunable(net).items()])
            assert 0.25 < float((kept < 0).float().mean()) < 0.75, (kind, by)


# Controls.


@pytest.mark.parametrize("by", ["snip", "grasp", "synflow"])
def test_shuffling_is_a_no_op(by: str) -> None:
    net = made("conv")
    mask = tb.prune_at_init(net, by, 0.2, batches_of([6]), cross_entropy, 1)
    shuffled = mask.shuffled(stream(0, "shuffle"))
    assert [layer.kept for layer in shuffled.layers()] == [layer.kept for layer in mask.layers()]
    for name, kept in mask.items():
        assert torch.equal(kept, shuffled[name]) == (not 0 < int(kept.sum()) < kept.numel())


def test_inverting_scores_divides_by_zero() -> None:
    """Turned round by their sign, as here, or by a reciprocal that is infinite at 0: both are ranked."""

    def inverted(weights: Weights) -> Scores:
        return {n: 1 / w.abs() for n, w in weights.final.items()}

    def negated(weights: Weights) -> Scores:
        return {n: -w.abs() for n, w in weights.final.items()}

    net = nn.Linear(4, 1)
    net.weight = nn.Parameter(torch.tensor([[0.0, 3.0, -1.0, 2.0]]))
    assert math.isinf(float(score(net, inverted)["weight"].max()))
    for by in (inverted, negated):
        assert tb.prune_at_init(net, by, 0.5)["weight"].tolist() == [[True, False, True, False]]
