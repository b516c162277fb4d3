"""Methods and draws: what survives, where a search ends, which ticket is chosen, what a control changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy import drawn, same, toy_task

import tombola as tb
from tombola.asked import draw_recipe
from tombola.draws import Draw, controls, rounds
from tombola.events import Event
from tombola.lab import Lab


def test_imp_prunes_what_the_round_before_trained(store: tb.Store) -> None:
    found = drawn(store, rounds=3, allocation="global")
    dense = found.rounds[0]
    assert [round(r.mask.density, 2) for r in found.rounds] == [1.0, 0.8, 0.64, 0.51]
    for before, now in zip(found.rounds, found.rounds[1:], strict=False):
        assert now.mask <= before.mask
        by_hand = tb.prune({n: before.run.final[n].abs() for n in now.mask}, 0.8**now.number, within=before.mask)
        assert now.mask == by_hand
        start = {n: v * now.mask[n] if n in now.mask else v for n, v in dense.run.start.items()}
        assert same(now.run.start, start), "reset gives the initial values under the mask, bit for bit"


def test_one_shot_prunes_the_dense_net_and_shares_it_with_imp(store: tb.Store) -> None:
    iterative = drawn(store, rounds=2, allocation="global")
    at_once = drawn(store, method="one_shot", rounds=2, allocation="global")
    assert at_once.rounds[0].run.id == iterative.rounds[0].run.id
    assert at_once.rounds[1].run.id == iterative.rounds[1].run.id, "the first cut is the same"
    dense = at_once.rounds[0].run.final
    assert at_once.rounds[2].mask == tb.prune({n: dense[n].abs() for n in at_once.rounds[2].mask}, 0.64)
    assert at_once.rounds[2].mask != iterative.rounds[2].mask


def test_more_rounds_continue_where_the_last_stopped(store: tb.Store) -> None:
    drawn(store, rounds=2)
    events: list[Event] = []
    task = toy_task()
    found = Draw(draw_recipe(task, {"rounds": 4}), Lab(task, store, watcher=events.append))
    list(rounds(found))
    assert [e.kind for e in events if e.kind != "step"] == ["found"] * 3 + ["start", "done"] * 2


def test_rewinding_returns_to_early_values_and_starts_there(store: tb.Store) -> None:
    found = drawn(store, rounds=1, survivors="rewind", back_to="20it")
    run, dense = found.rounds[1].run, found.rounds[0].run
    early = dense.at(tb.Duration(20))
    for name, kept in found.rounds[1].mask.items():
        assert torch.equal(run.start[name], early[name] * kept)
    assert torch.equal(run.start["1.running_mean"], early["1.running_mean"]), "statistics of that step too"
    assert [row["step"] for row in run.history] == [20, 30, 40, 50, 60]


def test_lr_rewinding_keeps_final_values_and_replays_the_schedule(store: tb.Store) -> None:
    found = drawn(store, rounds=2, survivors="lr-rewind", back_to="20it")
    one, two = found.rounds[1], found.rounds[2]
    for name, kept in two.mask.items():
        assert torch.equal(two.run.start[name], one.run.final[name] * kept)
    assert two.run.recipe == found.recipe.training.model_copy(update={"start": tb.Duration(20)})


def test_fine_tuning_keeps_final_values_at_the_last_learning_rate(store: tb.Store) -> None:
    task = toy_task(recipe={"lr_schedule": "steps", "milestones": ("30it",), "warmup": "5it"})
    found = drawn(store, task, rounds=1, survivors="fine-tune", fine_tune="25it")
    run, dense = found.rounds[1].run, found.rounds[0].run
    assert run.recipe.lr == pytest.approx(0.001)
    assert run.recipe.lr_schedule == "constant"
    assert run.recipe.warmup == tb.Duration(0)
    assert run.summary["steps"] == 25
    for name, kept in found.rounds[1].mask.items():
        assert torch.equal(run.start[name], dense.final[name] * kept)


def test_strategy_2_prunes_a_net_that_goes_on_training(store: tb.Store) -> None:
    one, two = drawn(store, rounds=2), drawn(store, rounds=2, strategy=2)
    assert two.rounds[1].run.id == one.rounds[1].run.id, "until a second cut there is no difference"
    lab, dense = two.lab, two.rounds[0].run
    searched = lab.train(0, start=dense.final, mask=two.rounds[1].mask)
    allocation = tb.Layerwise(0.2, two.recipe.relative_rates)
    scores = {n: searched.final[n].abs() for n in two.rounds[2].mask}
    assert two.rounds[2].mask == tb.prune(scores, two.rounds[2].mask.density, allocation, within=two.rounds[1].mask)
    for name, kept in two.rounds[2].mask.items():
        assert torch.equal(two.rounds[2].run.start[name], dense.start[name] * kept)


def test_criteria_of_initial_and_final_values_and_ones_own(store: tb.Store) -> None:
    found = drawn(store, rounds=1, criterion="movement", allocation="global")
    dense = found.rounds[0].run
    moved = {n: (dense.final[n] - dense.start[n]).abs() for n in found.rounds[1].mask}
    assert found.rounds[1].mask == tb.prune(moved, 0.8)
    own = drawn(store, rounds=1, criterion="test_methods:smallest", allocation="global")
    assert own.rounds[1].mask == tb.prune({n: -dense.final[n].abs() for n in moved}, 0.8)


def test_a_function_in_place_of_a_criterions_name(store: tb.Store) -> None:
    ticket = tb.draw(toy_task(), rounds=1, criterion=lambda w: {n: -v.abs() for n, v in w.final.items()}, store=store)
    assert ticket.origin["recipe"]["criterion"].startswith("test_methods:")


def smallest(weights: tb.Weights) -> dict[str, torch.Tensor]:
    return {name: -w.abs() for name, w in weights.final.items()}


def test_random_pruning_depends_on_seed_and_round_only(store: tb.Store) -> None:
    a = drawn(store, method="one_shot", rounds=2, criterion="random", allocation="global")
    b = drawn(store, method="one_shot", rounds=2, criterion="random", allocation="global", margin=0.1)
    c = drawn(store, method="one_shot", rounds=2, criterion="random", allocation="global", seed=1)
    assert [r.mask for r in a.rounds] == [r.mask for r in b.rounds]
    assert a.rounds[1].mask != c.rounds[1].mask


def test_a_target_density_is_met_exactly_by_the_last_round(store: tb.Store) -> None:
    found = drawn(store, density=0.3, allocation="global", rate=0.4)
    assert [r.mask.kept for r in found.rounds] == [360, 216, 130, 108]
    found = drawn(store, density=0.25, rounds=3, schedule="linear", allocation="uniform")
    assert [round(r.mask.density, 2) for r in found.rounds] == [1.0, 0.75, 0.5, 0.25]


def judged(values: list[float | None], task: tb.Task, **options: Any) -> Draw:
    """A draw whose rounds have these validation metrics."""

    class Stub:
        def __init__(self, number: int, value: float | None) -> None:
            self.number, self.run, self.value = number, self, value
            self.diverged = value is None

        def metric(self, when: str, data: str) -> float | None:
            assert (when, data) == ("stop", "validation"), "test data never select"
            return self.value

    lab: Any = type("StubLab", (), {"task": task})()
    found = Draw(draw_recipe(task, options), lab)
    found.rounds = [Stub(number, value) for number, value in enumerate(values)]  # type: ignore[misc]
    return found


def test_the_chosen_ticket_is_the_sparsest_inside_the_margin() -> None:
    task = toy_task()
    assert judged([0.9, 0.91, 0.85, 0.895, 0.8], task, margin=0.01).chosen.number == 3
    assert judged([0.9, 0.88, 0.85], task, margin=0.01).chosen.number == 0
    assert judged([0.9, 0.9, None], task, margin=0.01).chosen.number == 1
    lower = toy_task(metric="loss", higher_is_better=False)
    assert judged([0.5, 0.4, 0.52, 0.505], lower, margin=0.01).chosen.number == 3


def test_a_search_can_end_at_the_margin(store: tb.Store) -> None:
    found = drawn(store, stop_at_margin=True, margin=0.02, rate=0.7)
    inside = [found.inside(r) for r in found.rounds]
    assert inside == [True] * (len(inside) - 1) + [False], "it ends at the first ticket outside"
    assert found.chosen.number == len(inside) - 2


def test_controls_change_exactly_one_thing(store: tb.Store) -> None:
    found = drawn(store, rounds=2, controls=["reinit", "shuffled"], control_draws=2, control_rounds=[2])
    ticket = found.rounds[2]
    reinits = [c.run for c in found.controls if c.arm == "reinit"]
    shuffles = [c.run for c in found.controls if c.arm == "shuffled"]
    assert len(reinits) == len(shuffles) == 2
    for run in (*reinits, *shuffles):
        about, reference = run.record.about, ticket.run.record.about
        assert all(about[k] == reference[k] for k in ("task", "data", "seed", "recipe"))
    for run in reinits:
        assert run.mask == ticket.mask
        for name, kept in ticket.mask.items():
            assert bool((run.start[name][kept] != ticket.run.start[name][kept]).all())
    dense = found.rounds[0].run.start
    for run in shuffles:
        assert run.mask != ticket.mask
        assert [x.kept for x in run.mask.layers()] == [x.kept for x in ticket.mask.layers()]
        for name, kept in run.mask.items():
            assert torch.equal(run.start[name], dense[name] * kept)
    assert len({c.run.id for c in found.controls}) == 4


def test_parts_of_the_controls_are_all_of_them(store: tb.Store) -> None:
    options = {"rounds": 2, "controls": ["reinit"], "control_draws": 2}
    whole = drawn(store, **options)
    parts = []
    for part in range(3):
        task = toy_task()
        found = Draw(draw_recipe(task, options), Lab(task, store))
        list(rounds(found))
        parts += list(controls(found, part, 3))
    assert {c.run.id for c in parts} == {c.run.id for c in whole.controls}


def test_a_dense_net_that_diverges_ends_the_draw_with_a_word(store: tb.Store) -> None:
    with pytest.raises(tb.TombolaError, match="diverged"):
        drawn(store, toy_task(recipe={"optimizer": "sgd", "lr": 1e30}))


def test_the_catalogue_knows_the_draw_and_its_choice(store: tb.Store) -> None:
    found = drawn(store, rounds=2, controls=["reinit"])
    (record,) = store.draws()
    assert record.id == found.id
    assert record.status == "finished"
    assert [row["round"] for row in record.rounds if row.get("chosen")] == [found.chosen.number]
    assert len(record.rounds) == 5


def test_draw_returns_the_chosen_ticket_with_its_origin(store: tb.Store) -> None:
    ticket = tb.draw(toy_task(), rounds=2, margin=0.5, store=store)
    assert ticket.origin["task"] == "toy"
    assert ticket.origin["round"] == 2
    assert ticket.mask.density == pytest.approx(0.64, abs=0.01)
    net = ticket.model(toy_task().model)
    for name, kept in ticket.mask.items():
        assert bool((net.get_parameter(name)[~kept] == 0).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "impp"}, "Did you mean 'imp'"),
        ({"criterion": "magnitud"}, "Did you mean 'magnitude'"),
        ({"rate": 1.5}, "rate: .*less than 1.*1.5"),
        ({"rounds": 2, "density": 0.1}, "give rounds or density, not both"),
        ({"schedule": "cubic", "rounds": 3}, "needs both density"),
        ({"survivors": "rewind"}, "needs back_to"),
        ({"back_to": "5it"}, "back_to belongs to"),
        ({"training": {"lr": -1}}, "training.lr"),
        ({"training": {"momentum": 0.9}}, "momentum belongs to"),
        ({"training": 3}, "training must be a mapping"),
        ({"rounds": 2, "control_rounds": [3], "controls": ["reinit"]}, "round 3, but the rounds go from 1 to 2"),
        ({"relative_rates": {"nothing": 0.5}}, "no prunable parameter fits"),
        ({"controls": ["reinit", "reinit"]}, "named once each"),
        ({"control_rounds": [1]}, "give both, or neither"),
        ({"training": {"start": "60it"}}, "begins at step 60 and ends at step 60"),
        ({"criterion": "os:getcwd"}, "criterion"),
        ({"density": 1e-30}, "isn't reached in 60 rounds"),
    ],
)
def test_bad_options_are_refused_before_any_training(options: dict[str, Any], message: str, store: tb.Store) -> None:
    with pytest.raises(tb.InputError, match=message):
        tb.draw(toy_task(), store=store, **options)
    assert store.runs() == []
