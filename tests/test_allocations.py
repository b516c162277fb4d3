"""How one density is spread over layers: shares, their rounding, and ladders of densities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import DENSITIES, SEEDS, SHAPES, Shape, counts, drawn, kept, total

from tombola.errors import InputError
from tombola.mask import Mask, prunable
from tombola.pruning import Allocation, Layerwise, apportion, erk_shares, prune, uniform_shares
from tombola.tasks.models import lenet300

LENET = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "fc3.weight": (10, 100)}


def test_largest_remainder_by_hand() -> None:
    assert apportion({"a": 1.5, "b": 2.25, "c": 0.25}, 4) == {"a": 2, "b": 2, "c": 0}
    assert apportion({"a": 1.5, "b": 2.25, "c": 0.25}, 3) == {"a": 1, "b": 2, "c": 0}
    assert apportion({"a": 0.4, "b": 0.9, "c": 0.7}) == {"a": 0, "b": 1, "c": 1}
    assert apportion({"a": 0.5, "b": 0.5, "c": 0.5}, 2) == {"a": 1, "b": 1, "c": 0}  # earlier first
    assert apportion({"a": 2.9999999999999996, "b": 1.0}, 4) == {"a": 3, "b": 1}


def test_largest_remainder_passes_on_what_a_full_layer_cannot_hold() -> None:
    shares = {"a": 3.9, "b": 4.6, "c": 0.5}
    assert apportion(shares, 9) == {"a": 4, "b": 5, "c": 0}
    assert apportion(shares, 9, {"a": 3, "b": 9, "c": 9}) == {"a": 3, "b": 5, "c": 1}
    assert apportion(shares, 9, {"a": 3, "b": 9, "c": 0}) == {"a": 3, "b": 6, "c": 0}
    with pytest.raises(InputError, match="the net can keep at most 8 entries here, but 9 are asked for: prune less"):
        apportion(shares, 9, {"a": 3, "b": 5, "c": 0})


def test_uniform_by_hand() -> None:
    shapes = {"a": (3,), "b": (3,), "c": (2, 2)}
    assert uniform_shares(0.5, shapes) == {"a": 1.5, "b": 1.5, "c": 2.0}
    scores = {n: torch.arange(float(math.prod(s))).reshape(s) for n, s in shapes.items()}
    assert kept(prune(scores, 0.5, "uniform")) == {"a": [0, 1, 1], "b": [0, 0, 1], "c": [0, 0, 1, 1]}


def test_erk_with_capping_by_hand() -> None:
    # Sums of dimensions 4, 20, 2; 52.5 entries. At 52.5 / 26 an entry of sum, a would get 8.1 of 4 and c 4.0 of 1: both
    # are kept whole, and b takes the 47.5 that are left.
    shapes = {"a": (2, 2), "b": (10, 10), "c": (1, 1)}
    assert erk_shares(0.5, shapes) == {"a": 4.0, "b": 47.5, "c": 1.0}
    assert counts(prune(drawn(shapes, 0), 0.5, "erk")) == [4, 47, 1]  # of 52.5, a half goes to the even 52


def test_erk_without_capping_is_the_formula_of_rigl() -> None:
    shapes = {"conv": (64, 32, 3, 3), "fc": (256, 512)}
    raw = {"conv": (32 + 64 + 3 + 3) / (32 * 64 * 3 * 3), "fc": (512 + 256) / (512 * 256)}
    sizes = {n: math.prod(s) for n, s in shapes.items()}
    scale = 0.05 * total(shapes) / sum(raw[n] * sizes[n] for n in shapes)
    shares = erk_shares(0.05, shapes)
    for n in shapes:
        assert shares[n] / sizes[n] == pytest.approx(scale * raw[n], rel=1e-12)
        assert scale * raw[n] < 1


def test_erk_of_numbers_and_empty_tensors() -> None:
    assert erk_shares(0.5, {"gain": (), "a": (2, 3)}) == pytest.approx({"gain": 3.5 / 6, "a": 5 * 3.5 / 6})
    assert erk_shares(1.0, {"gain": (), "a": (2, 3)}) == {"gain": 1.0, "a": 6.0}
    assert erk_shares(0.5, {"none": (0, 3), "nothing": (0,), "a": (2, 2)}) == {"none": 0.0, "nothing": 0.0, "a": 2.0}
    assert erk_shares(0.5, {"nothing": (0,)}) == {"nothing": 0.0}


@settings(deadline=None)
@given(SHAPES, DENSITIES, st.floats(0.01, 0.6), st.floats(0.01, 1.5))
def test_shares_add_up_and_fit(shapes: dict[str, Shape], density: float, rate: float, relative: float) -> None:
    for divide in (uniform_shares, erk_shares, Layerwise(rate, {"l0": relative}).shares):
        shares = divide(density, shapes)
        assert sum(shares.values()) == pytest.approx(density * total(shapes), rel=1e-9, abs=1e-9)
        for n, shape in shapes.items():
            assert -1e-9 <= shares[n] <= math.prod(shape) + 1e-9


def test_each_layers_own_density() -> None:
    scores = {"a": torch.arange(4.0), "b": torch.arange(10.0)}
    assert counts(prune(scores, allocation={"a": 1.0, "b": 0.2})) == [4, 2]
    assert counts(prune(scores, allocation={"b": 0.25, "a": 0.1})) == [0, 3]  # 0.4 and 2.5: 2.9 in all, rounded to 3
    with pytest.raises(InputError, match="either a density or every layer's own, not both"):
        prune(scores, 0.5, {"a": 1.0, "b": 0.2})
    for wrong, named in (({"a": 1.0}, "b"), ({"a": 1.0, "b": 1.0, "c": 1.0}, "c")):
        with pytest.raises(InputError, match=f"names every scored parameter and no other; they differ at '{named}'"):
            prune(scores, allocation=wrong)
    with pytest.raises(InputError, match=r"a density must be between 0 and 1, but got 1\.2"):
        prune(scores, allocation={"a": 1.0, "b": 1.2})


# Layer-wise rates.


def test_layerwise_by_hand() -> None:
    shapes = {"a": (10, 10), "b": (10,)}
    half = Layerwise(0.5, {"b": 0.5})
    assert half.rates(shapes) == {"a": 0.5, "b": 0.25}
    assert half.density_after(0, shapes) == 1.0
    assert half.density_after(1, shapes) == 57.5 / 110
    assert half.density_after(2, shapes) == (25 + 5.625) / 110
    assert half.shares(57.5 / 110, shapes) == {"a": 50.0, "b": 7.5}
    # The root of 2 between the rounds: a at 100 / sqrt(2).
    between = half.shares(half.density_after(0.5, shapes), shapes)
    assert between == pytest.approx({"a": 100 * 0.5**0.5, "b": 10 * 0.75**0.5}, rel=1e-12)


def test_the_first_pattern_that_fits_counts() -> None:
    layerwise = Layerwise(0.2, {"conv1*": 0.0, "conv*": 0.5, "*": 2.0})
    rates = layerwise.rates({"conv1.weight": (1,), "conv2.weight": (1,), "fc.weight": (1,)})
    assert rates == {"conv1.weight": 0.0, "conv2.weight": 0.1, "fc.weight": 0.4}


@settings(deadline=None)
@given(SHAPES.filter(lambda s: total(s) > 0), st.integers(0, 30), st.floats(0.01, 0.6), st.floats(0, 1.5))
def test_densities_of_whole_rounds_give_back_their_shares(
    shapes: dict[str, Shape], rounds: int, rate: float, relative: float
) -> None:
    layerwise = Layerwise(rate, {"l0": relative})
    shares = layerwise.shares(layerwise.density_after(rounds, shapes), shapes)
    for n, own in layerwise.rates(shapes).items():
        assert shares[n] == math.prod(shapes[n]) * (1 - own) ** rounds


def test_layers_of_rate_0_are_spared_and_named_when_they_keep_too_much() -> None:
    shapes = {"a": (80,), "b": (10,), "c": (10,)}
    spare = Layerwise(0.2, {"b": 0, "c": 0})
    assert spare.shares(0.2, shapes) == pytest.approx({"a": 0.0, "b": 10.0, "c": 10.0}, abs=1e-9)
    assert spare.shares(0.6, shapes) == pytest.approx({"a": 40.0, "b": 10.0, "c": 10.0})
    with pytest.raises(InputError, match=r"density 0\.1 can't be reached: the layers with rate 0 \(b, c\) keep more"):
        spare.shares(0.1, shapes)


@pytest.mark.parametrize("rate", [1e-7, 1e-3, 0.2, 0.999])
@pytest.mark.parametrize("density", [0.0, 1e-6, 0.5, 1.0])
def test_any_rate_reaches_any_density(rate: float, density: float) -> None:
    shares = Layerwise(rate).shares(density, {"a": (300, 100), "b": (100,)})
    assert shares == pytest.approx({"a": 30_000 * density, "b": 100 * density}, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, math.nan])
def test_rates_outside_0_and_1_are_refused(rate: float) -> None:
    with pytest.raises(InputError, match="a pruning rate must be between 0 and 1, both excluded, but got"):
        Layerwise(rate)


@pytest.mark.parametrize("factor", [5.0, -0.1, math.nan])
def test_relative_rates_that_prune_all_or_less_than_nothing_are_refused(factor: float) -> None:
    with pytest.raises(InputError, match=r"at least 0 and below 1, but 'fc3' has .* x 0\.2"):
        Layerwise(0.2, {"fc3": factor})


def test_a_pattern_that_fits_no_layer_is_refused() -> None:
    text = r"no prunable parameter fits the pattern 'fc4.weight'. Did you mean 'fc3.weight'\?"
    with pytest.raises(InputError, match=text):
        prune(drawn(LENET, 0), 0.5, Layerwise(0.2, {"fc4.weight": 0.5}))


# Ladders.

PRINTED = [
    *("100.00", "80.04", "64.06", "51.28", "41.05", "32.87", "26.32", "21.07", "16.88", "13.52", "10.83"),
    *("8.68", "6.95", "5.57", "4.47", "3.58", "2.87", "2.31", "1.85", "1.49", "1.19"),
]


def test_lenets_ladder_is_the_papers() -> None:
    model = lenet300()
    shapes: dict[str, Shape] = {n: tuple(p.shape) for n, p in prunable(model).items()}
    assert shapes == LENET
    scores = {n: p.detach().abs() for n, p in prunable(model).items()}
    layerwise, mask = Layerwise(0.2, {"fc3.weight": 0.5}), Mask.full(model)
    ladder = []
    for k in range(21):
        previous, mask = mask, prune(scores, layerwise.density_after(k, shapes), layerwise, within=mask)
        ladder.append(f"{100 * mask.density:.2f}")
        assert mask <= previous
        for layer in mask.layers():
            share = layer.total * (0.9 if layer.name == "fc3.weight" else 0.8) ** k
            assert abs(layer.kept - share) < 1
    assert ladder == PRINTED


@pytest.mark.parametrize(
    ("shapes", "printed"),
    [
        (
            {"conv1": (64, 3, 3, 3), "conv2": (64, 64, 3, 3), "fc1": (256, 16384), "fc2": (256, 256), "fc3": (10, 256)},
            {10: "11.0", 11: "8.8", 13: "5.7", 14: "4.6"},
        ),
        (
            {
                "conv1": (64, 3, 3, 3),
                "conv2": (64, 64, 3, 3),
                "conv3": (128, 64, 3, 3),
                "conv4": (128, 128, 3, 3),
                "fc1": (256, 8192),
                "fc2": (256, 256),
                "fc3": (10, 256),
            },
            {11: "11.1", 12: "9.2", 13: "7.7"},
        ),
    ],
    ids=["Conv-2", "Conv-4"],
)
def test_conv_ladders_are_the_papers(shapes: dict[str, Shape], printed: dict[int, str]) -> None:
    layerwise = Layerwise(0.2, {"conv*": 0.5, "fc3": 0.5})
    for k, percent in printed.items():
        density = layerwise.density_after(k, shapes)
        assert f"{100 * density:.1f}" == percent
        whole = apportion(layerwise.shares(density, shapes), round(density * total(shapes)))
        for n, shape in shapes.items():
            assert abs(whole[n] - math.prod(shape) * (0.8 if n in ("fc1", "fc2") else 0.9) ** k) < 1


@settings(deadline=None, max_examples=50)
@given(
    SHAPES.filter(lambda s: total(s) > 0),
    st.sampled_from([0.1, 0.2, 0.5]),
    st.sampled_from([0.5, 1.0]),
    st.sampled_from(["layerwise", "uniform", "erk", "global"]),
    SEEDS,
)
def test_a_ladder_can_be_climbed_down_step_by_step(
    shapes: dict[str, Shape], rate: float, relative: float, named: str, seed: int
) -> None:
    layerwise = Layerwise(rate, {"l0": relative})
    allocation: Allocation = layerwise if named == "layerwise" else named
    mask = Mask({n: torch.ones(shape, dtype=torch.bool) for n, shape in shapes.items()})
    for k in range(1, 25):
        density = layerwise.density_after(k, shapes)
        previous, mask = mask, prune(drawn(shapes, seed + k), density, allocation, within=mask)
        assert mask <= previous
        assert mask.kept == round(density * total(shapes))


def test_what_a_layer_lacks_within_a_mask_is_refused_by_name() -> None:
    scores = {"a": torch.arange(4.0), "b": torch.arange(4.0)}
    within = Mask({"a": scores["a"] > 2, "b": scores["b"] > -1})
    assert counts(prune(scores, 5 / 8, within=within)) == [1, 4]
    with pytest.raises(InputError, match="'a' can keep at most 1 entries here, but 2 are asked for: prune less"):
        prune(scores, 0.5, "uniform", within=within)
