"""Gradient flow: closed forms, autograd, and nets of methods followed over their training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from toy import same, toy_data, toy_net, toy_task

import tombola as tb
from tombola.diagnostics.gradient_flow import flow_rows, gradient_flow, gradient_flows
from tombola.diagnostics.trajectory import chosen_steps, fixed_batches, states
from tombola.errors import InputError
from tombola.events import Event
from tombola.lab import Lab
from tombola.mask import Mask
from tombola.tasks import cross_entropy

STEPS = [tb.Duration(step) for step in (0, 7, 60)]


def trained(events: list[Event]) -> list[str]:
    """What was trained, by what for."""
    return [event.arm for event in events if event.kind == "start"]


def test_linear_regression_has_a_gradient_of_closed_form_over_the_kept_weights() -> None:
    x, y = torch.randn(20, 6).double(), torch.randn(20, 1).double()
    net = nn.Linear(6, 1).double()
    mask = Mask({"weight": torch.tensor([[True, False, True, True, False, False]])})
    weight, bias = net.weight.detach() * mask["weight"], net.bias.detach()
    gradient = ((x @ weight.T + bias - y) * x).mean(dim=0)[mask["weight"][0]]
    loss = lambda model, batch: 0.5 * (model(batch[0]) - batch[1]).square().mean()  # noqa: E731
    batches = list(zip(x.split([3, 16, 1]), y.split([3, 16, 1]), strict=True))
    found = gradient_flow(net, batches, loss, mask)
    assert found.squared_norm == pytest.approx(float(gradient.square().sum()))
    assert found.loss == pytest.approx(float(0.5 * (x @ weight.T + bias - y).square().mean()))
    assert found.kept == 3
    assert not bool((net.weight == 0).any())  # what the mask prunes is 0 only meanwhile


def test_it_is_how_fast_a_small_step_along_the_gradient_lowers_the_loss() -> None:
    net = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    x, y = toy_data(60)
    batch = (x.double(), y)
    found = gradient_flow(net, [batch], cross_entropy)
    loss = cross_entropy(net, batch)
    loss.backward()
    rate = 1e-6
    with torch.no_grad():
        for p in tb.prunable(net).values():
            p -= rate * p.grad
        lowered = float(loss - cross_entropy(net, batch))
    assert lowered / rate == pytest.approx(found.squared_norm, rel=1e-4)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_mode_decides_about_batch_statistics_and_never_about_dropout(mode: str) -> None:
    net, batch = toy_net(), toy_data(50)
    before = {n: v.clone() for n, v in net.state_dict().items()}
    found = gradient_flow(net, [batch], cross_entropy, mode=mode)
    assert same(before, net.state_dict())
    assert net.training
    net.train(mode == "train")
    net[3].eval()
    gradients = torch.autograd.grad(cross_entropy(net, batch), list(tb.prunable(net).values()))
    assert found.squared_norm == pytest.approx(sum(float(g.square().sum()) for g in gradients), rel=1e-5)


def test_nothing_kept_has_no_gradient_and_no_batches_are_refused() -> None:
    net = toy_net()
    nothing = Mask({n: torch.zeros(p.shape, dtype=torch.bool) for n, p in tb.prunable(net).items()})
    assert gradient_flow(net, [toy_data(20)], cross_entropy, nothing).squared_norm == 0
    with pytest.raises(InputError, match="got no batches"):
        gradient_flow(net, [], cross_entropy)
    with pytest.raises(InputError, match="must be a scalar"):
        gradient_flow(net, [toy_data(20)], lambda model, batch: model(batch[0]))


def test_methods_are_followed_beside_the_dense_net_and_nothing_is_trained_twice(store: tb.Store) -> None:
    events: list[Event] = []
    task = toy_task()

    def look() -> list[dict[str, Any]]:
        events.clear()
        return gradient_flows(
            task, ["snip", "grasp"], 0.2, 3, at=STEPS, per_class=20, store=store, watcher=events.append
        )

    rows = look()
    assert trained(events) == ["dense", "ticket", "ticket"]
    assert [(row["method"], row["step"]) for row in rows] == [
        (method, step) for method in ("dense", "snip", "grasp") for step in (0, 7, 60)
    ]
    assert {row["seed"] for row in rows} == {3}
    total = 12 * 24 + 24 * 3
    assert [row["kept"] for row in rows[::3]] == [total, round(0.2 * total), round(0.2 * total)]
    assert all(row["gradient_norm"] ** 2 == pytest.approx(row["squared_norm"]) for row in rows)
    assert look() == rows
    assert trained(events) == []
    lab = Lab(task, store)
    dense = lab.train(3)
    net = task.build(3)
    net.load_state_dict(dense.at(STEPS[1]))
    assert rows[1]["squared_norm"] == gradient_flow(net, fixed_batches(lab, 3, 20), task.loss).squared_norm


def test_a_method_with_rounds_goes_through_them_and_keeps_states_of_its_last_alone(store: tb.Store) -> None:
    rows = gradient_flows(toy_task(), ["imp"], 0.5, at=STEPS, per_class=20, store=store, rate=0.3)
    assert [row["density"] for row in rows] == [1, 1, 1, 0.5, 0.5, 0.5]
    kept = {run.about["density"]: {"at-7", "at-60"} & set(run.blobs) for run in store.runs()}
    assert len(kept) == 3
    assert all(bool(blobs) == (density in (1, 0.5)) for density, blobs in kept.items())


def test_states_that_are_lacking_come_from_one_more_training_with_the_same_bits(store: tb.Store, tmp_path: Any) -> None:
    events: list[Event] = []
    lab = Lab(toy_task(), store, watcher=events.append)
    run = lab.train(0)
    found = states(run, [0, 5, 12, 60])
    assert len(trained(events)) == 2
    assert list(found) == [0, 5, 12, 60]
    assert same(found[60], run.final)
    assert same(found[0], run.start)
    with tb.Store(tmp_path / "other") as other:
        kept = Lab(toy_task(), other).train(0, keep=[tb.Duration(5), tb.Duration(12)])
        assert same(found[5], kept.at(tb.Duration(5)))
        assert same(found[12], kept.at(tb.Duration(12)))
    states(lab.train(0), [5, 12])
    assert len(trained(events)) == 2


def test_a_net_that_diverges_is_followed_until_then(store: tb.Store) -> None:
    recipe = tb.Recipe(steps=tb.Duration(60), evaluate_every=tb.Duration(10), optimizer="sgd", lr=1e30)
    run = Lab(toy_task(), store, recipe=recipe).train(0)
    assert run.diverged
    rows = flow_rows(run, [0, 10, 20, 60], fixed_batches(run.lab, 0, 10))
    assert [row["step"] for row in rows] == [0]


def test_steps_are_chosen_from_the_first_to_the_last(store: tb.Store) -> None:
    lab = Lab(toy_task(), store)
    assert chosen_steps(lab, 0, lab.recipe) == [0, 1, 3, 6, 12, 21, 30, 45, 60]
    late = lab.recipe.model_copy(update={"start": tb.Duration(58)})
    assert chosen_steps(lab, 0, late) == [58, 59, 60]
    assert chosen_steps(lab, 0, lab.recipe, [tb.Duration(1, "ep"), tb.Duration(7), tb.Duration(0)]) == [0, 7]
    with pytest.raises(InputError, match="from step 0 to step 60, so it has no step 61it"):
        chosen_steps(lab, 0, lab.recipe, [tb.Duration(61)])
    with pytest.raises(InputError, match="name one step"):
        chosen_steps(lab, 0, lab.recipe, [])


def test_the_same_examples_of_each_class_in_equal_batches(store: tb.Store) -> None:
    lab = Lab(toy_task(), store)
    (batch,) = fixed_batches(lab, 0, 15)
    assert batch[1].bincount().tolist() == [15, 15, 15]
    assert torch.equal(batch[0], fixed_batches(lab, 0, 15)[0][0])
    assert not torch.equal(batch[0], fixed_batches(lab, 1, 15)[0][0])
    x, y = torch.randn(600, 12), torch.arange(600) % 3
    large = Lab(toy_task(train=(x, y), validation=(x[:9], y[:9])), store)
    assert [len(batch[1]) for batch in fixed_batches(large, 0, 10_000)] == [200, 200, 200]
    with pytest.raises(InputError, match="1 example of each class or more"):
        fixed_batches(lab, 0, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["snipp"]}, "unknown method 'snipp'. Did you mean 'snip'"),
        ({"methods": []}, "name one method"),
        ({"density": 1.5}, "density: Input should be less than 1"),
        ({"task": "digits-mpl"}, "unknown task"),
        ({"rate": 7}, "rate: "),
        ({"at": [tb.Duration(99)]}, "no step 99it"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(changes: dict[str, Any], words: str, store: tb.Store) -> None:
    given: dict[str, Any] = {"task": toy_task(), "methods": ["snip"], "density": 0.5, "store": store} | changes
    with pytest.raises(InputError, match=words):
        gradient_flows(**given)
    assert not store.runs()
