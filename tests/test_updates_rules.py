"""Each rule that changes masks during training, on small cases worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from moments import after, kept, moment_of

from tombola.errors import InputError
from tombola.mask import Mask
from tombola.updates.base import all_finite
from tombola.updates.deep_r import AWAKE, DeepR
from tombola.updates.dsr import DSR, shared_out
from tombola.updates.gradual import Gradual
from tombola.updates.rigl import RigL
from tombola.updates.sparse_evolution import SparseEvolution


def test_gradual_density_falls_by_the_cube_to_the_last_update() -> None:
    rule = Gradual(density=0.2)
    # updates at 10, 20, 30, 40, 50: x = 1/5, 2/5, ...
    expected = {10: 0.2 + 0.8 * 0.512, 20: 0.2 + 0.8 * 0.216, 30: 0.2 + 0.8 * 0.064, 40: 0.2 + 0.8 * 0.008, 50: 0.2}
    for until in (51, 55, 60):
        for step, density in expected.items():
            assert rule.density_at(step, 100, 10, until) == pytest.approx(density, abs=1e-15)
        assert rule.density_at(50, 100, 10, until) == 0.2


def test_gradual_begins_where_it_is_told_to() -> None:
    rule = Gradual(density=0.1, first=0.2)
    assert [rule.density_at(step, 100, 10, 81) for step in (10, 20)] == [1.0, 1.0]
    assert rule.density_at(50, 100, 10, 81) == pytest.approx(0.1 + 0.9 / 8)  # half the way from 20 to 80
    assert rule.density_at(80, 100, 10, 81) == 0.1
    late = Gradual(density=0.1, first=0.9)
    assert [late.density_at(step, 100, 10, 81) for step in (70, 80)] == [1.0, 0.1]


def test_gradual_prunes_the_smallest_of_every_layer() -> None:
    a, b = torch.tensor([[5.0, -4, 3, -2, 1], [0, 6, -7, 8, 9]]), torch.arange(10.0) + 100
    moment = moment_of({"a": a, "b": b}, Mask({"a": a > -99, "b": b > 0}), step=10, steps=100, every=10, until=51)
    change = Gradual(density=0.2).update(moment)
    # density 0.6096 of 20 is 12, six in each layer, though all of b is larger than all of a
    assert torch.equal(change.mask["a"], kept(1, 1, 0, 0, 0, 0, 1, 1, 1, 1).reshape(2, 5))
    assert torch.equal(change.mask["b"], kept(0, 0, 0, 0, 1, 1, 1, 1, 1, 1))
    assert not change.values
    assert not change.replaces_step
    globally = Gradual(density=0.2, allocation="global").update(moment)
    assert [layer.kept for layer in globally.mask.layers()] == [2, 10]


def test_gradual_ends_on_the_exact_count_and_never_takes_back() -> None:
    g = torch.Generator().manual_seed(1)
    mask, total = Mask({"a": torch.ones(7, 11).bool(), "b": torch.ones(123).bool(), "c": torch.ones(1).bool()}), 201
    rule = Gradual(density=0.037)
    for step in range(10, 95, 10):
        weights = {name: torch.randn(tensor.shape, generator=g) * tensor for name, tensor in mask.items()}
        change = rule.update(moment_of(weights, mask, step=step, steps=100, every=10, until=95))
        assert change.mask.kept == round(rule.density_at(step, 100, 10, 95) * total)
        assert change.mask <= mask
        mask = change.mask
    assert mask.kept == round(0.037 * total) == 7


def test_gradual_leaves_a_mask_that_is_sparser_already() -> None:
    mask = Mask({"a": kept(1, 1, 0, 0, 0, 0, 0, 0, 0, 0)})
    moment = moment_of({"a": torch.ones(10) * mask["a"]}, mask, step=10, steps=100, every=10, until=51)
    assert Gradual(density=0.2).update(moment).mask is mask


def test_set_drops_each_sign_by_itself_and_what_is_zero() -> None:
    #                 positive: 2 of 5 go (round 1.5)   negative: 1 of 4 goes       a kept 0    pruned
    weights = torch.tensor([0.3, 0.1, 0.5, 0.2, 0.4] + [-0.1, -0.2, -0.4, -0.3] + [0.0] + [0.0] * 6)
    mask = Mask({"a": torch.arange(16) < 10})
    drawn = set()
    for seed in range(60):
        moment = moment_of({"a": weights}, mask, seed=seed)
        change = SparseEvolution().update(moment)
        assert change.mask.kept == 10
        assert bool(change.mask["a"][[0, 2, 4, 6, 7, 8]].all())
        now = after(moment, change)["a"]
        assert torch.equal(now[[0, 2, 4, 6, 7, 8]], weights[[0, 2, 4, 6, 7, 8]])
        assert not now[[1, 3, 5, *range(9, 16)]].any()
        drawn |= set(change.mask["a"].nonzero().flatten().tolist())
    assert drawn == set(range(16))  # also those just dropped


def test_set_restarts_the_smallest_of_a_full_layer() -> None:
    moment = moment_of({"a": torch.tensor([1.0, 2, -3, -4])}, Mask({"a": kept(1, 1, 1, 1)}))
    change = SparseEvolution(fraction=0.5).update(moment)
    assert change.mask == moment.mask
    assert torch.equal(change.values["a"], torch.tensor([0.0, 2, 0, -4]))


def test_rigl_trades_the_smallest_for_the_largest_gradients() -> None:
    weights = torch.tensor([[4.0, -3, 2], [-1, 0, 0]])
    moment = moment_of(
        {"a": weights},
        Mask({"a": kept(1, 1, 1, 1, 0, 0).reshape(2, 3)}),
        gradients={"a": torch.tensor([[9.0, 9, 0.1], [-0.4, 0.3, 0]])},
        step=0,
        until=100,
    )
    change = RigL(fraction=0.5).update(moment)
    # 2 and -1 go; among them and the pruned, the gradients are 0.1, -0.4, 0.3, 0
    assert torch.equal(change.mask["a"], kept(1, 1, 0, 1, 1, 0).reshape(2, 3))
    assert change.replaces_step
    assert torch.equal(after(moment, change)["a"], torch.tensor([[4.0, -3, 0], [-1, 0, 0]]))  # -1 is back as it was


def test_rigl_fraction_falls_by_the_cosine() -> None:
    rule = RigL()
    assert rule.fraction_at(0, 300) == 0.3
    assert rule.fraction_at(100, 300) == pytest.approx(0.225)  # cos(60 degrees) = 1/2
    assert rule.fraction_at(150, 300) == pytest.approx(0.15)
    assert rule.fraction_at(200, 300) == pytest.approx(0.075)
    assert rule.fraction_at(300, 300) == rule.fraction_at(400, 300) == 0.0


def test_rigl_leaves_full_and_empty_layers() -> None:
    weights = {"full": torch.tensor([1.0, 2, 3, 4]), "empty": torch.zeros(5), "one": torch.tensor([1.0, 0])}
    mask = Mask({"full": kept(1, 1, 1, 1), "empty": kept(0, 0, 0, 0, 0), "one": kept(1, 0)})
    gradients = {name: torch.arange(1.0, len(value) + 1) for name, value in weights.items()}
    change = RigL(fraction=1.0).update(moment_of(weights, mask, gradients=gradients, step=0))
    assert [layer.kept for layer in change.mask.layers()] == [4, 0, 1]
    assert torch.equal(change.mask["one"], kept(0, 1))
    assert not change.values


def test_dsr_regrows_where_most_survived() -> None:
    weights = {"a": torch.zeros(10), "b": torch.zeros(5)}
    weights["a"][:4] = torch.tensor([0.5, -0.4, 0.001, -0.002])
    weights["b"][:2] = torch.tensor([-0.3, 0.0005])
    mask = Mask({"a": torch.arange(10) < 4, "b": torch.arange(5) < 2})
    moment = moment_of(weights, mask)
    change = DSR(threshold=0.01, fraction=0.5).update(moment)
    # three dropped; survivors 2 to 1, so two grow in a and one in b
    assert [layer.kept for layer in change.mask.layers()] == [4, 2]
    now = after(moment, change)
    assert torch.equal(now["a"], torch.tensor([0.5, -0.4] + [0.0] * 8))
    assert torch.equal(now["b"], torch.tensor([-0.3] + [0.0] * 4))
    assert float(change.memory["threshold"]) == 0.01  # 3 of 6, as wanted


def test_dsr_moves_weights_between_layers() -> None:
    weights = {"large": torch.full((20,), 0.5), "small": torch.full((20,), 0.001)}
    masks = {name: torch.arange(20) < 10 for name in weights}
    moment = moment_of({name: weights[name] * masks[name] for name in weights}, Mask(masks))
    change = DSR(threshold=0.01).update(moment)
    # one weight stays in small, nine go; 9 * 10 / 11 = 8.18 grow in large, 0.82 in small
    assert [layer.kept for layer in change.mask.layers()] == [18, 2]
    assert float(change.memory["threshold"]) == 0.005  # nine of twenty, two wanted


def test_dsr_passes_on_what_a_layer_has_no_room_for() -> None:
    assert shared_out(10, {"a": 8, "b": 1, "c": 1}, {"a": 2, "b": 100, "c": 100}) == {"a": 2, "b": 4, "c": 4}
    assert shared_out(10, {"a": 8, "b": 1, "c": 1}, {"a": 2, "b": 3, "c": 100}) == {"a": 2, "b": 3, "c": 5}
    assert shared_out(7, {"a": 3, "b": 0, "c": 4}, {"a": 9, "b": 9, "c": 9}) == {"a": 3, "b": 0, "c": 4}
    assert shared_out(5, {"a": 1, "b": 1}, {"a": 2, "b": 3}) == {"a": 2, "b": 3}
    assert shared_out(0, {"a": 0}, {"a": 4}) == {"a": 0}


@pytest.mark.parametrize(("dropped", "then"), [(0, 2.0), (17, 2.0), (18, 1.0), (20, 1.0), (22, 1.0), (23, 0.5)])
def test_dsr_threshold_doubles_and_halves_outside_the_tolerance(dropped: int, then: float) -> None:
    sizes = torch.tensor([0.5, 3.0])
    assert DSR(fraction=0.2, tolerance=0.1).adapted(1.0, dropped, 100, sizes) == then


def test_dsr_threshold_moves_only_where_that_matters() -> None:
    rule = DSR(fraction=0.5)
    assert rule.adapted(1.0, 1, 100, torch.tensor([0.3, 0.9])) == 1.0  # all are below it as it is
    assert rule.adapted(1.0, 99, 100, torch.tensor([0.0, 0.0, 2.0])) == 1.0  # what is below it is 0
    assert rule.adapted(1.0, 99, 100, torch.tensor([0.0, 1e-9, 2.0])) == 0.5


def test_dsr_remembers_its_threshold() -> None:
    weights, mask = {"a": torch.full((10,), 0.02)}, Mask({"a": torch.ones(10).bool()})
    first = DSR(threshold=0.01).update(moment_of(weights, mask))
    assert first.mask == mask
    second = DSR(threshold=0.01).update(moment_of(weights, mask, memory=first.memory))
    assert [float(change.memory["threshold"]) for change in (first, second)] == [0.02, 0.04]
    third = DSR(threshold=0.01).update(moment_of(weights, mask, memory=second.memory))
    assert torch.equal(third.values["a"], torch.tensor([0.02] + [0.0] * 9))  # nine dropped, and grown again


def test_deep_r_shrinks_and_replaces_what_crosses_zero() -> None:
    weights = torch.tensor([0.5, -0.05, -0.3, 0.1, 0.0, 0.0])
    moment = moment_of({"a": weights}, Mask({"a": torch.arange(6) < 4}), rate=0.1, every=1)
    change = DeepR(l1=0.8, temperature=0.0).update(moment)  # thetas lose 0.08
    kept_values, positive = change.values["a"], change.memory["a"]
    assert positive[[0, 1, 2, 3]].tolist() == [True, False, False, True]
    torch.testing.assert_close(kept_values[[0, 2, 3]], torch.tensor([0.42, -0.22, 0.02]))
    (woken,) = [place for place in (1, 4, 5) if change.mask["a"][place]]
    assert kept_values[woken].item() == pytest.approx(AWAKE if positive[woken] else -AWAKE)
    assert [kept_values[place].item() for place in (1, 4, 5) if place != woken] == [0.0, 0.0]
    assert change.mask.kept == 4


def test_deep_r_takes_the_drift_of_all_steps_between_two_updates() -> None:
    moment = moment_of({"a": torch.tensor([0.5, -0.5])}, Mask({"a": kept(1, 1)}), rate=0.1, every=3)
    change = DeepR(l1=1.0, temperature=0.0).update(moment)
    torch.testing.assert_close(change.values["a"], torch.tensor([0.2, -0.2]))


def test_deep_r_goes_by_the_remembered_sign() -> None:
    # the first and the last have crossed zero in training
    memory = {"a": kept(1, 1, 0, 0)}
    moment = moment_of({"a": torch.tensor([-0.2, 0.2, -0.2, 0.2])}, Mask({"a": kept(1, 1, 1, 1)}), memory=memory)
    change = DeepR(l1=0.0, temperature=0.0).update(moment)
    torch.testing.assert_close(change.values["a"], torch.tensor([AWAKE, 0.2, -0.2, -AWAKE]), rtol=1e-6, atol=0)
    assert torch.equal(change.memory["a"], memory["a"])


def test_deep_r_keeps_what_is_not_below_zero() -> None:
    memory = {"a": kept(1, 0, 1, 0, 1, 1)}
    weights = torch.tensor([AWAKE, -AWAKE, 0.0, 0.0, 0.0, 0.0])
    moment = moment_of({"a": weights}, Mask({"a": kept(1, 1, 1, 1, 0, 0)}), memory=memory)
    change = DeepR(l1=0.0, temperature=0.0).update(moment)
    assert change.mask is moment.mask
    assert torch.equal(change.values["a"], weights)


def test_deep_r_wakes_dormant_connections_uniformly() -> None:
    weights, memory = torch.zeros(12), {"a": torch.arange(12) % 2 == 0}
    weights[:2] = torch.tensor([-0.1, -0.1])  # connection 0 has crossed zero
    counts = torch.zeros(12)
    for seed in range(2200):
        moment = moment_of({"a": weights}, Mask({"a": torch.arange(12) < 2}), memory=memory, seed=seed)
        counts += DeepR(l1=0.0, temperature=0.0).update(moment).mask["a"]
    assert counts[1] == 2200
    others = counts[[0, *range(2, 12)]]  # 200 each expected, with a deviation of 13.5
    assert others.sum() == 2200
    assert bool(((others - 200).abs() < 5 * math.sqrt(200 * 10 / 11)).all())


def test_gradual_says_where_a_sparse_start_lacks_entries() -> None:
    mask = Mask({"a": torch.arange(10) < 2, "b": torch.ones(10).bool()})
    weights = {name: torch.ones(10) * tensor for name, tensor in mask.items()}
    with pytest.raises(InputError, match="'a' can keep at most 2 entries"):
        Gradual(density=0.5).update(moment_of(weights, mask, step=740))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_entry_that_is_not_finite_is_found(dtype: torch.dtype, value: float) -> None:
    tensors = {"a": torch.randn(3, 4).to(dtype), "empty": torch.zeros(0, 4)}
    assert all_finite(tensors)
    tensors["a"][1, 2] = value
    assert not all_finite(tensors)
