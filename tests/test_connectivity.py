"""Linear mode connectivity: barriers of closed form, batch statistics on the line, and instability of trainings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import same, toy_data, toy_net, toy_task

import tombola as tb
from tombola.diagnostics.connectivity import (
    barriers,
    estimate_statistics,
    instability,
    interpolated,
    linear_path,
)
from tombola.engines import evaluate
from tombola.errors import InputError, TombolaError
from tombola.events import Event
from tombola.lab import Lab
from tombola.mask import Mask
from tombola.tasks.task import examples

START = [tb.Duration(0)]


def regression(net: Any, x: Tensor, y: Tensor) -> tb.Task:
    """A task of squared errors, whose metric is the loss."""
    square = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()  # noqa: E731
    metrics = lambda model, batch: {"loss": square(model, batch)}  # noqa: E731
    return tb.Task(net, (x, y), loss=square, metrics=metrics, metric="loss", higher_is_better=False, name="regression")


def test_the_ends_are_the_two_nets_and_the_middle_is_their_mean() -> None:
    first, second = toy_net().state_dict(), toy_net().state_dict()
    second["1.num_batches_tracked"] += 9
    second["1.running_mean"] += 1
    assert same(interpolated(first, second, 0.0), first)
    assert same(interpolated(first, second, 1.0), second)
    middle = interpolated(first, second, 0.25)
    torch.testing.assert_close(middle["0.weight"], 0.75 * first["0.weight"] + 0.25 * second["0.weight"])
    torch.testing.assert_close(middle["1.running_mean"], torch.full((24,), 0.25))
    assert int(middle["1.num_batches_tracked"]) == 0
    assert interpolated(first, second, 0.5).keys() == first.keys()


@pytest.mark.parametrize("change", [{"0.weight": torch.ones(2)}, {"5.weight": torch.ones(2)}])
def test_states_of_different_nets_are_refused(change: dict[str, Tensor]) -> None:
    first = toy_net().state_dict()
    with pytest.raises(InputError, match=f"differ at '{next(iter(change))}'"):
        interpolated(first, {**first, **change}, 0.5)


def test_swapped_hidden_units_are_the_same_net_with_a_barrier_of_closed_form() -> None:
    # relu(x) - relu(-x) = x whichever unit is which; halfway between, both units' weights are 0, and so is the output.
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    one = {"0.weight": torch.tensor([[1.0], [-1.0]]), "2.weight": torch.tensor([[1.0, -1.0]])}
    two = {"0.weight": -one["0.weight"], "2.weight": -one["2.weight"]}
    x = torch.randn(200, 1)
    task = regression(lambda: net, x, x)
    path = linear_path(task, net, one, two, {"train": examples((x, x))}, points=5)
    assert [row["alpha"] for row in path] == [0, 0.25, 0.5, 0.75, 1]
    # At a quarter both factors are half of what they were.
    squares = float(x.square().mean())
    expected = [0, (3 / 4) ** 2 * squares, squares, (3 / 4) ** 2 * squares, 0]
    assert [row["loss"] for row in path] == pytest.approx(expected, abs=1e-6)
    assert [row["error"] for row in path] == [row["loss"] for row in path]
    (found,) = barriers(path)
    assert found["loss_ends"] == pytest.approx(0, abs=1e-12)
    assert found["loss_barrier"] == pytest.approx(squares)
    assert same(dict(net.state_dict()), two)


def test_a_convex_loss_has_no_barrier_but_half_the_difference_of_its_ends() -> None:
    x = torch.randn(100, 4)
    y = x @ torch.ones(4, 1)
    net = nn.Linear(4, 1, bias=False)
    one, two = {"weight": torch.ones(1, 4)}, {"weight": torch.full((1, 4), 3.0)}
    (found,) = barriers(linear_path(regression(lambda: net, x, y), net, one, two, {"train": examples((x, y))}))
    squares = float((x.sum(dim=1) * 2).square().mean())
    assert found["loss_highest"] == pytest.approx(squares)
    assert found["loss_barrier"] == pytest.approx(squares / 2)


def test_barriers_keep_seeds_steps_and_data_apart() -> None:
    def path(errors: list[float], **names: Any) -> list[dict[str, Any]]:
        alphas = (0.0, 0.5, 1.0)
        return [{**names, "alpha": a, "error": e, "loss": 2 * e} for a, e in zip(alphas, errors, strict=True)]

    rows = path([0.1, 0.5, 0.3], seed=0, rewind=5, data="train") + path([0.2, 0.1, 0.2], seed=0, rewind=5, data="a")
    rows += path([0.0, 0.4, 0.2], seed=1, rewind=0, data="train")
    found = {(b["seed"], b["rewind"], b["data"]): b for b in barriers(rows[::-1])}
    assert {key: b["error_barrier"] for key, b in found.items()} == pytest.approx(
        {(0, 5, "train"): 0.3, (0, 5, "a"): 0.0, (1, 0, "train"): 0.3}
    )
    assert found[1, 0, "train"]["loss_barrier"] == pytest.approx(0.6)
    assert barriers([]) == []


def test_statistics_are_means_over_batches_and_nothing_else_changes() -> None:
    net = toy_net()
    before = {n: v.clone() for n, v in net.state_dict().items()}
    x, y = toy_data(700)
    assert estimate_statistics(toy_task(), net, examples((x, y)))
    after = net.state_dict()
    with torch.no_grad():
        halves = [net[0](part) for part in (x[:350], x[350:])]
    torch.testing.assert_close(after["1.running_mean"], torch.stack([h.mean(dim=0) for h in halves]).mean(dim=0))
    torch.testing.assert_close(after["1.running_var"], torch.stack([h.var(dim=0) for h in halves]).mean(dim=0))
    changed = {n for n in after if not torch.equal(after[n], before[n])}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert net[1].momentum == 0.1
    assert not any(module.training for module in net.modules())
    assert not estimate_statistics(toy_task(), nn.Sequential(nn.Linear(12, 3)), examples((x, y)))


def test_on_the_line_statistics_are_estimated_anew_or_interpolated() -> None:
    task, (x, y) = toy_task(), toy_data(100)
    one, two = toy_net().state_dict(), toy_net().state_dict()
    data = {"validation": examples((x, y))}
    plain = linear_path(task, toy_net(), one, two, data, points=3)
    net = toy_net()
    net.load_state_dict(interpolated(one, two, 0.5))
    assert plain[1]["loss"] == evaluate(task, net, data["validation"])["loss"]
    anew = linear_path(task, toy_net(), one, two, data, points=3, statistics=data["validation"])
    estimate_statistics(task, net, data["validation"])
    values = evaluate(task, net, data["validation"])
    assert (anew[1]["loss"], anew[1]["error"]) == (values["loss"], 1 - values["accuracy"])
    assert anew[0]["loss"] != plain[0]["loss"]  # at the ends too


def watched(store: tb.Store, **changes: Any) -> tuple[Lab, list[Event]]:
    events: list[Event] = []
    return Lab(toy_task(**changes), store, watcher=events.append), events


def trained(events: list[Event]) -> list[str]:
    return [event.arm for event in events if event.kind == "start"]


def test_two_copies_go_on_from_each_step_and_nothing_is_trained_twice(store: tb.Store) -> None:
    lab, events = watched(store)
    steps = [tb.Duration(0), tb.Duration(25)]
    rows = instability(lab, 0, steps, points=3)
    copies = [f"copy {order} from step {step}" for step in (0, 25) for order in (1, 2)]
    assert trained(events) == ["dense", *copies]
    assert [(row["rewind"], row["alpha"], row["data"]) for row in rows] == [
        (step, alpha, data) for step in (0, 25) for alpha in (0, 0.5, 1) for data in ("train", "validation")
    ]
    assert {row["density"] for row in rows} == {1.0}
    recipe = lab.recipe.model_copy(update={"start": steps[1], "order": 2})
    copy = lab.train(0, start=lab.train(0).at(steps[1]), recipe=recipe)
    net = copy.model()
    splits = lab.splits(0)
    estimate_statistics(lab.task, net, splits.train)
    for row in rows[-2:]:
        values = evaluate(lab.task, net, getattr(splits, row["data"]))
        assert (row["loss"], row["error"]) == (values["loss"], 1 - values["accuracy"])
    again, later = watched(store)
    assert instability(again, 0, steps, points=3) == rows
    assert trained(later) == []


def test_a_ticket_trains_under_its_mask_from_the_dense_nets_state(store: tb.Store) -> None:
    lab, events = watched(store)
    mask = tb.prune(tb.score(lab.task.build(0), "magnitude"), 0.3)
    rows = instability(lab, 0, [tb.Duration(20)], mask, points=2, estimate=False)
    assert {row["density"] for row in rows} == {mask.density}
    state = lab.train(0).at(tb.Duration(20))
    events.clear()
    for order, alpha in ((1, 0.0), (2, 1.0)):
        recipe = lab.recipe.model_copy(update={"start": tb.Duration(20), "order": order})
        end = lab.train(0, start=state, mask=mask, recipe=recipe)
        assert all(not end.final[name][~mask[name]].any() for name in mask)
        (loss,) = [r["loss"] for r in rows if (r["alpha"], r["data"]) == (alpha, "validation")]
        assert loss == end.summary["end"]["validation_loss"]
    assert trained(events) == []


def test_without_noise_from_the_data_order_there_is_no_barrier(store: tb.Store) -> None:
    def plain() -> nn.Module:
        return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))

    # One batch has all examples: their order can change rounding and no more.
    whole, _ = watched(store, name="whole", model=plain, recipe={"batch": 1000, "optimizer": "sgd", "lr": 0.1})
    still = barriers(instability(whole, 0, START))
    assert max(row["loss_barrier"] for row in still) < 1e-4
    noisy, _ = watched(store, name="noisy", model=plain, recipe={"batch": 4, "lr": 0.3})
    moved = barriers(instability(noisy, 0, START))
    assert min(row["loss_barrier"] for row in moved) > 0.01


def test_from_step_0_the_dense_net_need_not_be_trained(store: tb.Store) -> None:
    lab, events = watched(store)
    instability(lab, 0, START, points=2)
    assert trained(events) == ["copy 1 from step 0", "copy 2 from step 0"]


def test_test_data_are_not_touched(store: tb.Store) -> None:
    lab, _ = watched(store)
    lab.train(0)
    other, _ = watched(store, test=None)
    rows = [instability(one, 0, START, points=2) for one in (lab, other)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("rewinds", "changes", "words"),
    [
        ([], {}, "name one step to rewind to"),
        ([tb.Duration(60)], {}, "training ends at step 60, so two copies can't go on from 60it"),
        (START, {"points": 1}, "2 or more"),
        (START, {"mask": Mask({"other": torch.ones(2, dtype=torch.bool)})}, "the mask covers 'other'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(
    rewinds: list[tb.Duration], changes: dict[str, Any], words: str, store: tb.Store
) -> None:
    lab, _ = watched(store)
    with pytest.raises(InputError, match=words):
        instability(lab, 0, rewinds, **changes)
    assert not store.runs()


def test_a_copy_that_diverges_is_named(store: tb.Store) -> None:
    lab, _ = watched(store, recipe={"optimizer": "sgd", "lr": 1e30})
    with pytest.raises(TombolaError, match="copy 1 from step 0 of seed 0 diverged"):
        instability(lab, 0, START)
