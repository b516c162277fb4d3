"""What holds for every rule that changes masks during training, and their registry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moments import after, moment_of, moments
from torch import Tensor

from tombola.durations import Duration
from tombola.errors import InputError
from tombola.mask import Mask
from tombola.pruning import ALLOCATIONS
from tombola.updates.base import Moment, draw_places, regrown
from tombola.updates.deep_r import DeepR
from tombola.updates.dsr import DSR
from tombola.updates.registry import RULES, make_rule, settings_of
from tombola.updates.rigl import RigL
from tombola.updates.sparse_evolution import SparseEvolution

NEEDED: dict[str, dict[str, float]] = {"gradual": {"density": 0.1}}
CONSTANT = sorted(set(RULES) - {"gradual"})
BY_LAYER = ("set", "rigl", "deep_r")


def counts(mask: Mask) -> list[int]:
    return [layer.kept for layer in mask.layers()]


@settings(deadline=None, max_examples=150)
@given(moments(), st.sampled_from(CONSTANT), st.sampled_from([0.1, 0.5, 1.0]))
def test_budgets_are_exact_and_nothing_outside_the_mask_has_a_value(moment: Moment, name: str, share: float) -> None:
    own = {"l1": share, "temperature": share} if name == "deep_r" else {"fraction": share}
    weights = {layer: value.clone() for layer, value in moment.weights.items()}
    change = make_rule(name, own).update(moment)
    assert change.mask.kept == moment.mask.kept
    if name in BY_LAYER:
        assert counts(change.mask) == counts(moment.mask)
    assert list(change.mask) == list(moment.mask)
    for layer, tensor in change.mask.items():
        assert tensor.shape == moment.mask[layer].shape
        assert bool(moment.mask[layer].any()) == bool(tensor.any())  # no layer dies out, and none comes from nothing
    for layer, value in change.values.items():
        assert value.shape == weights[layer].shape
        assert value.dtype == weights[layer].dtype
        assert not bool(value[~change.mask[layer]].any())
    assert all(torch.equal(value, moment.weights[layer]) for layer, value in weights.items())
    assert change.replaces_step == (name == "rigl")


@settings(deadline=None, max_examples=60)
@given(moments(), st.sampled_from(CONSTANT))
def test_the_same_moment_gives_the_same_change(moment: Moment, name: str) -> None:
    rule, state = make_rule(name), moment.generator.get_state()
    one = rule.update(moment)
    moment.generator.set_state(state)
    two = rule.update(moment)
    assert one.mask == two.mask
    for a, b in ((one.values, two.values), (one.memory, two.memory)):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


@settings(deadline=None, max_examples=100)
@given(moments(), st.sampled_from([0.1, 0.3, 0.9]))
def test_set_drops_the_smallest_of_each_sign_and_keeps_the_values_of_the_rest(moment: Moment, fraction: float) -> None:
    change = SparseEvolution(fraction).update(moment)
    now = after(moment, change)
    for layer, old in moment.mask.items():
        weights = moment.weights[layer]
        assert bool(((now[layer] == weights) | (now[layer] == 0)).all())
        for side in (old & (weights > 0), old & (weights < 0)):
            dropped, rest = side & (now[layer] == 0), side & (now[layer] != 0)
            assert int(dropped.sum()) == round(fraction * int(side.sum()))
            if bool(dropped.any()) and bool(rest.any()):
                assert weights[dropped].abs().max() <= weights[rest].abs().min()


@settings(deadline=None, max_examples=100)
@given(moments(step=0), st.sampled_from([0.1, 0.3, 0.9]))
def test_rigl_drops_the_smallest_and_grows_the_largest_gradients(moment: Moment, fraction: float) -> None:
    change = RigL(fraction).update(moment)
    for layer, old in moment.mask.items():
        new, size, gradient = change.mask[layer], moment.weights[layer].abs(), moment.gradients()[layer].abs()
        traded = math.floor(fraction * int(old.sum()) + 1e-9)
        gone, grown = old & ~new, new & ~old
        assert int(gone.sum()) == int(grown.sum()) <= traded
        if bool(gone.any()):
            assert size[gone].max() <= size[old].sort().values[traded - 1]
        if bool(grown.any()) and bool((~new).any()):
            assert gradient[grown].min() >= gradient[~new].max()
    assert not change.values


@settings(deadline=None, max_examples=60)
@given(moments(), st.sampled_from([1e-6, 0.2, 1.0, 100.0]))
def test_dsr_drops_what_is_below_the_threshold_and_nothing_else(moment: Moment, threshold: float) -> None:
    change = DSR(threshold=threshold).update(moment)
    now = after(moment, change)
    for layer, old in moment.mask.items():
        weights = moment.weights[layer]
        above = old & (weights.abs() >= threshold)
        assert torch.equal(now[layer][above], weights[above])
        # of a layer in which none is above it, the largest alone stays
        assert int(((now[layer] != 0) & ~above).sum()) <= (not bool(above.any()))


@pytest.mark.parametrize("name", CONSTANT)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_training_that_diverged_is_left_alone(name: str, value: float) -> None:
    mask = Mask({"a": torch.arange(20) < 10, "b": torch.ones(4).bool()})
    weights = {"a": torch.ones(20) * mask["a"], "b": torch.ones(4)}
    gradients = {layer: torch.ones_like(tensor) for layer, tensor in weights.items()}
    memory = {"threshold": torch.tensor(0.5, dtype=torch.float64)}
    broken = {**weights, "a": weights["a"].index_fill(0, torch.tensor([3]), value)}
    change = make_rule(name, NEEDED.get(name)).update(moment_of(broken, mask, memory=memory, gradients=gradients))
    assert change.mask is mask
    assert change.memory == memory
    assert not change.values
    assert not change.replaces_step
    if name == "rigl":
        gradients["b"] = gradients["b"] * value
        assert RigL().update(moment_of(weights, mask, gradients=gradients)).mask is mask


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(RULES))
def test_other_types_of_weights(name: str, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(3)
    mask = Mask({"a": torch.rand(6, 7, generator=g) < (1.0 if name == "gradual" else 0.5)})
    weights = {"a": (torch.randn(6, 7, generator=g) * mask["a"]).to(dtype)}
    gradients = {"a": torch.randn(6, 7, generator=g).to(dtype)}
    change = make_rule(name, NEEDED.get(name)).update(moment_of(weights, mask, gradients=gradients))
    assert all(value.dtype == dtype for value in change.values.values())
    assert name == "gradual" or change.mask.kept == mask.kept


def test_dsr_finds_a_threshold_that_drops_about_the_wanted_fraction() -> None:
    g = torch.Generator().manual_seed(0)
    mask = Mask({"a": torch.rand(100, 100, generator=g) < 0.2, "b": torch.rand(50, 10, generator=g) < 0.2})
    memory: Mapping[str, Tensor] = {}
    fractions = []
    for step in range(100, 4100, 100):
        weights = {name: torch.randn(kept.shape, generator=g) * kept for name, kept in mask.items()}
        moment = moment_of(weights, mask, step=step, memory=memory, seed=step)
        change = DSR(fraction=0.1, threshold=1e-5).update(moment)
        now = after(moment, change)
        fractions.append(1 - sum(int((v != 0).sum()) for v in now.values()) / mask.kept)
        mask, memory = change.mask, change.memory
    assert fractions[0] < 0.001
    assert all(0.045 < fraction < 0.22 for fraction in fractions[20:])  # doubling can't come closer than a factor of 2


def test_deep_r_drifts_and_makes_noise_as_it_should() -> None:
    n, every, rate = 200_000, 4, 0.05
    g = torch.Generator().manual_seed(5)
    signs = torch.randint(2, (n,), generator=g) * 2.0 - 1
    moment = moment_of({"a": 10 * signs}, Mask({"a": torch.ones(n).bool()}), every=every, rate=rate)
    change = DeepR(l1=0.3, temperature=0.1).update(moment)
    assert change.mask is moment.mask
    moved = (signs * change.values["a"] - 10).double()  # the thetas
    variance = 2 * rate * 0.1 * every
    assert abs(moved.mean() + every * rate * 0.3) < 5 * math.sqrt(variance / n)
    assert abs(moved.var() / variance - 1) < 5 * math.sqrt(2 / n)
    skewness = ((moved - moved.mean()) ** 3).mean() / variance**1.5
    assert abs(skewness) < 5 * math.sqrt(6 / n)


def test_deep_r_never_turns_a_sign_even_after_a_resume() -> None:
    g = torch.Generator().manual_seed(2)
    mask = Mask({"a": torch.rand(30, 20, generator=g) < 0.3, "b": torch.rand(50, generator=g) < 0.5})
    weights = {name: torch.randn(kept.shape, generator=g) * kept for name, kept in mask.items()}
    first, changed = {n: w.clone() for n, w in weights.items()}, 0
    memory: dict[str, Tensor] = {}
    for step in range(1, 41):
        memory = {name: memory[name].clone() for name in sorted(memory, reverse=True)}  # as a checkpoint gives it back
        moment = moment_of(weights, mask, step=step, every=1, memory=memory, seed=step)
        change = DeepR(l1=0.1, temperature=0.5).update(moment)
        assert counts(change.mask) == counts(mask)
        for name, value in change.values.items():
            assert bool(((value > 0) == change.memory[name])[value != 0].all())
        changed += change.mask != mask
        assert not memory or all(torch.equal(memory[name], change.memory[name]) for name in mask)
        weights, mask, memory = after(moment, change), change.mask, dict(change.memory)
        pull = {name: 0.05 * torch.randn(value.shape, generator=g) for name, value in weights.items()}
        weights = {name: (value + pull[name]) * mask[name] for name, value in weights.items()}
    assert changed > 10
    assert all(torch.equal(memory[n][first[n] != 0], (first[n] > 0)[first[n] != 0]) for n in first)
    tossed = torch.cat([memory[n][first[n] == 0] for n in first])
    assert 0.4 < tossed.double().mean() < 0.6


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 60), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32))
def test_places_are_drawn_among_the_free_ones(size: int, taken: float, share: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    before = torch.rand(size, generator=g) < taken
    count = int(share * int((~before).sum()))
    places = draw_places(before, count, g)
    assert len(places) == len(set(places.tolist())) == count
    assert not bool(before[places].any())
    grown = regrown(before, count, g)
    assert bool(grown[before].all())
    assert int(grown.sum()) == int(before.sum()) + count


@pytest.mark.parametrize("count", [1, 3, 4, 5, 7])
def test_every_free_place_is_as_likely_as_any_other(count: int) -> None:
    taken, g, rounds = torch.tensor([True, False] * 8), torch.Generator().manual_seed(0), 3000
    hits = torch.zeros(16)
    for _ in range(rounds):
        hits[draw_places(taken, count, g)] += 1
    share = count / 8
    assert bool(((hits[1::2] - rounds * share).abs() < 5 * math.sqrt(rounds * share * (1 - share))).all())


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_rule_says_how_it_is_used(name: str) -> None:
    rule = make_rule(name, NEEDED.get(name))
    for source in (rule, RULES[name]):
        assert source.allocation in ALLOCATIONS
        assert Duration.of(source.every).length > 0
        assert 0 < source.until <= 1
        assert len(source.description) > 20
    assert set(NEEDED.get(name, {})) == {setting for setting, default in settings_of(name).items() if default is None}
    with pytest.raises(FrozenInstanceError):
        rule.fraction = 0.5  # type: ignore[attr-defined]


def test_settings_are_taken() -> None:
    assert make_rule("rigl", {"fraction": 0.5}) == RigL(0.5)
    assert make_rule("gradual", {"density": 0.1, "allocation": "erk"}).allocation == "erk"
    assert settings_of("deep_r") == {"l1": 1e-5, "temperature": 2.5e-11}


@pytest.mark.parametrize(
    ("name", "given_settings", "says"),
    [
        ("rigl2", {}, "unknown rule 'rigl2'.*Did you mean 'rigl'"),
        ("set", {"fractoin": 0.1}, "set has no setting 'fractoin'. Did you mean 'fraction'"),
        ("set", {"fraction": 0}, "fraction must be a number, more than 0 and at most 1, but got 0"),
        ("set", {"fraction": 1.1}, "fraction must be"),
        ("set", {"fraction": "half"}, "fraction must be a number.*'half'"),
        ("set", {"fraction": True}, "fraction must be"),
        ("rigl", {"fraction": math.nan}, "fraction must be"),
        ("dsr", {"threshold": 0.0}, "threshold must be a number, more than 0, but got 0.0"),
        ("dsr", {"tolerance": -0.1}, "tolerance must be a number, 0 or more and at most 1"),
        ("deep_r", {"l1": math.inf}, "l1 must be a number, 0 or more, but got inf"),
        ("deep_r", {"temperature": -1}, "temperature must be"),
        ("gradual", {}, "gradual needs the setting 'density'"),
        ("gradual", {"density": 0}, "density must be"),
        ("gradual", {"density": 0.1, "first": 2}, "first must be"),
        ("gradual", {"density": 0.1, "allocation": "unifrom"}, "unknown allocation 'unifrom'. Did you mean 'uniform'"),
    ],
)
def test_what_is_wrong_is_said(name: str, given_settings: dict[str, float | str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make_rule(name, given_settings)
