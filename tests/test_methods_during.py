"""Methods that prune during training: exact densities, first masks, tickets that are what was trained, supermasks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cli_tools import call
from test_methods import drawn
from torch import nn
from toy import same, toy_task

import tombola as tb
from tombola.asked import draw_recipe
from tombola.audits.controls import CONTROLS, Subject
from tombola.diagnostics.masks import masks_at
from tombola.lab import Lab
from tombola.methods import METHODS

UPDATING = ("gradual", "set", "dsr", "deep_r", "rigl")
CONSTANT = UPDATING[1:]
EVERY = {"update_every": "5it"}


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 3))


# ---- masks that are updated


@pytest.mark.parametrize("name", UPDATING)
def test_the_ticket_is_the_net_that_was_trained(store: tb.Store, name: str) -> None:
    found = drawn(store, method=name, densities=(0.5, 0.2), **EVERY)
    dense = found.rounds[0].run
    for round, kept in zip(found.rounds[1:], (180, 72), strict=True):
        run = round.run
        assert round.mask.kept == kept, "the density is exact"
        assert round.mask == run.final_mask
        assert round.mask != run.mask, "the mask has changed on the way"
        assert same(dict(round.values), run.final)
        ticket = found.ticket(round)
        assert (ticket.mask, ticket.origin["run"]) == (round.mask, run.id)
        assert same(dict(ticket.values), run.final), "what is pruned is 0 already"
        start = {n: v * run.mask[n] if n in run.mask else v for n, v in dense.start.items()}
        assert same(run.start, start), "it begins at the initial values"
        assert run.recipe.updates is not None
        assert run.recipe.model_copy(update={"updates": None}) == found.recipe.training
    curve = [row["density"] for row in found.curves() if row["round"] == 2]
    assert set(curve) == {0.2}, "a curve goes by the density of its ticket"


@pytest.mark.parametrize("allocation", ["erk", "uniform", "global", None])
@pytest.mark.parametrize("name", CONSTANT)
def test_the_first_mask_is_the_one_at_random(store: tb.Store, name: str, allocation: str | None) -> None:
    task = toy_task(recipe={"steps": "10it"})
    options = {} if allocation is None else {"allocation": allocation}
    found = drawn(store, task, method=name, densities=(0.5, 0.2), **EVERY, **options)
    spread = found.recipe.allocation
    assert spread == (allocation or ("uniform" if name == "dsr" else "erk"))
    random = drawn(store, task, method="random_at_init", densities=(0.5, 0.2), allocation=spread)
    for one, other in zip(found.rounds[1:], random.rounds[1:], strict=True):
        assert one.run.mask == other.mask


def test_gradual_pruning_begins_dense_and_spreads_its_density_as_asked(store: tb.Store) -> None:
    shares = {}
    for allocation in ("uniform", "erk", "global"):
        found = drawn(store, method="gradual", density=0.2, allocation=allocation, **EVERY)
        round = found.rounds[1]
        assert round.run.mask.density == 1
        shares[allocation] = [layer.kept for layer in round.mask.layers()]
        densities = [row["density"] for row in round.run.history]
        assert densities == sorted(densities, reverse=True)
        assert len(set(densities)) > 3, "little by little"
    assert shares["uniform"] == [58, 14]
    assert shares["erk"] == [41, 31]
    assert shares["global"] not in (shares["uniform"], shares["erk"])
    assert drawn(store, method="gradual", density=0.2, **EVERY).recipe.allocation == "uniform"


@pytest.mark.parametrize("name", UPDATING)
def test_the_mask_that_was_found_can_be_trained_anew(store: tb.Store, name: str) -> None:
    options: dict[str, Any] = {"density": 0.3, "method": name, **EVERY}
    kept = drawn(store, **options)
    found = drawn(store, **options, survivors="reset", controls=["reinit", "shuffled"])
    again, first = found.rounds[1], kept.rounds[1]
    assert again.search[0].id == first.run.id, "the search is shared"
    assert again.mask == first.mask
    initial = found.rounds[0].run.start
    assert same(dict(again.values), initial)
    assert same(again.run.start, {n: v * again.mask[n] if n in again.mask else v for n, v in initial.items()})
    assert again.run.recipe == found.recipe.training, "under a mask that stays"
    assert [c.run.recipe for c in found.controls] == [again.run.recipe] * 2
    assert found.controls[0].run.mask == again.mask
    assert [x.kept for x in found.controls[1].run.mask.layers()] == [x.kept for x in again.mask.layers()]
    with pytest.raises(tb.InputError, match="what the search for it has trained"):
        CONTROLS["reinit"].train(Subject(first))


@pytest.mark.parametrize("name", UPDATING)
def test_finding_costs_nothing_but_the_training_itself(store: tb.Store, name: str) -> None:
    row = drawn(store, method=name, density=0.3, **EVERY).rows()[1]
    assert (row["find_seconds"], row["find_flops"]) == (0, 0)
    again = drawn(store, method=name, density=0.3, survivors="reset", **EVERY).rows()[1]
    assert (again["find_seconds"], again["find_flops"]) == (row["train_seconds"], row["train_flops"])
    assert again["train_flops"] == pytest.approx(0.3 * 3 * 2 * 360 * 60 * 32)
    assert row["train_flops"] > (0 if name != "gradual" else again["train_flops"])


def test_settings_reach_the_rule_and_defaults_change_nothing(store: tb.Store) -> None:
    task = toy_task(recipe={"steps": "20it"})
    default = drawn(store, task, method="rigl", density=0.3, **EVERY).rounds[1].run
    told = drawn(store, task, method="rigl", density=0.3, settings={"fraction": 0.3}, **EVERY).rounds[1].run
    other = drawn(store, task, method="rigl", density=0.3, settings={"fraction": 0.9}, **EVERY).rounds[1].run
    assert told.id == default.id
    assert other.id != default.id
    assert other.recipe.updates is not None
    assert other.recipe.updates.settings == {"fraction": 0.9}
    until = drawn(store, task, method="rigl", density=0.3, update_until="10it", **EVERY).rounds[1].run
    assert until.recipe.updates is not None
    assert (until.recipe.updates.every, until.recipe.updates.until) == (tb.Duration(5), tb.Duration(10))


def test_each_engine_that_cannot_change_masks_leaves_it_to_the_reference(store: tb.Store) -> None:
    task = toy_task(model=plain, recipe={"steps": "20it"})
    found = drawn(store, task, method="set", density=0.3, training={"engine": "compact"}, **EVERY)
    assert [r.run.summary["engine"] for r in found.rounds] == ["compact", "masked"]
    found = drawn(store, task, method="set", density=0.3, training={"engine": "sparse"}, **EVERY)
    assert [r.run.summary["engine"] for r in found.rounds] == ["sparse", "sparse"]


# ---- supermasks


def test_a_supermask_finds_its_density_over_weights_that_stay(store: tb.Store) -> None:
    found = drawn(store, toy_task(model=plain), method="supermask")
    (dense, round) = found.rounds
    assert 0 < round.mask.density < 1
    assert round.mask == round.run.final_mask
    for name, kept in round.mask.items():
        assert torch.equal(round.run.final[name], dense.run.start[name] * kept), "values and signs are the initial ones"
    assert torch.equal(round.run.final["0.bias"], dense.run.start["0.bias"])
    assert same(dict(round.values), round.run.final)
    assert round.run.recipe.optimizer == "sgd"
    assert (round.run.recipe.lr, round.run.recipe.momentum) == (100.0, 0.9)
    assert found.rows()[1]["find_flops"] == 0


def test_edge_popup_keeps_the_share_of_each_layer(store: tb.Store) -> None:
    found = drawn(store, toy_task(model=plain), method="edge_popup", densities=(0.5, 0.1), settings={"lr": 0.5})
    assert [[layer.kept for layer in r.mask.layers()] for r in found.rounds[1:]] == [[144, 36], [29, 7]]
    for round in found.rounds[1:]:
        assert round.run.recipe.lr == 0.5
        for name, kept in round.mask.items():
            assert torch.equal(round.run.final[name], found.rounds[0].run.start[name] * kept)


@pytest.mark.parametrize("name", ["supermask", "edge_popup"])
def test_a_supermask_can_be_trained_from_the_same_values(store: tb.Store, name: str) -> None:
    options = {} if name == "supermask" else {"density": 0.5}
    kept = drawn(store, method=name, **options).rounds[1]
    found = drawn(store, method=name, survivors="reset", controls=["reinit", "shuffled"], **options)
    again = found.rounds[1]
    assert again.mask == kept.mask
    assert again.search[0].id == kept.run.id
    for weight, covered in again.mask.items():
        assert torch.equal(again.run.start[weight], kept.run.final[weight])
        assert torch.equal(again.run.start[weight], found.rounds[0].run.start[weight] * covered)
    assert again.run.recipe == found.recipe.training
    assert len(found.controls) == 2
    with pytest.raises(tb.InputError, match="train it anew from initial values"):
        CONTROLS["shuffled"].train(Subject(kept))


def test_scores_that_find_nothing_give_no_ticket_and_a_word(store: tb.Store) -> None:
    with pytest.warns(UserWarning, match="no weight is more likely in the net than not"):
        found = drawn(store, method="supermask", settings={"lr": 1e-60, "momentum": 0})
    assert len(found.rounds) == 1
    assert found.ticket().mask.density == 1


def test_scores_train_on_the_reference_engine_whatever_is_asked_for(store: tb.Store) -> None:
    found = drawn(store, toy_task(model=plain), method="supermask", training={"engine": "sparse"})
    assert [r.run.summary["engine"] for r in found.rounds] == ["sparse", "masked"]


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "set", "settings": {"zeta": 0.3}}, "'set' has no setting 'zeta', but these: fraction"),
        ({"method": "set", "settings": {"fraction": 1.5}}, "fraction must be .* at most 1, but got 1.5"),
        ({"method": "dsr", "settings": {"threshold": 0}}, "threshold must be .* more than 0"),
        ({"method": "gradual", "settings": {"density": 0.1}}, "no setting 'density'"),
        ({"method": "gradual", "settings": {"first": 2}}, "first must be .* but got 2"),
        (
            {"method": "gradual", "allocation": "layerwise"},
            "must be global, uniform, erk or smart_ratio, but is 'layerwise'",
        ),
        ({"method": "rigl", "update_every": "60it"}, "rigl must update the mask at least once, but updates every 60"),
        ({"method": "rigl", "update_every": "5it", "update_until": "5it"}, "that end before step 5 never come"),
        ({"method": "rigl"}, "updates every 100 steps that end before step 45 never come"),
        ({"method": "set", "update_every": "9ep"}, "set must update the mask at least once"),
        ({"method": "set", "update_every": "0it"}, "update_every must be more than 0"),
        ({"method": "set", "survivors": "lr-rewind"}, "takes survivors keep or reset or rewind or fine-tune"),
        ({"method": "set", "criterion": "snip"}, "scores no weights, but criterion 'snip' is asked for"),
        ({"method": "set", "strategy": 2, "survivors": "reset"}, "which strategy 2 is about"),
        ({"method": "set", "controls": ["reinit"]}, "give survivors reset or rewind or fine-tune, or no controls"),
        ({"method": "supermask", "density": 0.5}, "finds a density of its own: leave out density"),
        ({"method": "supermask", "rounds": 2}, "finds a density of its own"),
        ({"method": "supermask", "stop_at_margin": True}, "finds a density of its own"),
        ({"method": "supermask", "settings": {"lr": -1}}, "lr: .*greater than 0, but got -1"),
        ({"method": "supermask", "settings": {"momentum": 1}}, "momentum: .*less than 1"),
        ({"method": "supermask", "controls": ["shuffled"]}, "give survivors reset, or no controls"),
        ({"method": "supermask", "allocation": "erk"}, "spreads a density in its own way"),
        ({"method": "edge_popup", "allocation": "erk"}, "in its own way, 'uniform', but allocation is 'erk'"),
        ({"method": "edge_popup", "settings": {"score_density": 0.1}}, "no setting 'score_density'"),
        ({"method": "set", "training": {"updates": {"rule": "set", "every": 1, "until": 5}}}, "business of methods"),
        ({"method": "set", "training": {"trains": "scores"}}, "a draw trains weights"),
    ],
)
def test_bad_options_are_refused_before_any_training(store: tb.Store, options: dict[str, Any], message: str) -> None:
    with pytest.raises(tb.InputError, match=message):
        tb.draw(toy_task(), store=store, **options)
    assert store.runs() == []


def test_the_diagnostics_of_masks_take_these_methods_too(store: tb.Store) -> None:
    task = toy_task(recipe={"steps": "20it"})
    recipe = draw_recipe(task, {"method": "set", "update_every": "5it"})
    found = list(masks_at(Lab(task, store), recipe, (0.2, 0.5)))
    assert [(one.density, one.mask.kept, one.round) for one in found] == [(0.5, 180, 1), (0.2, 72, 2)]
    recipe = draw_recipe(task, {"method": "supermask"})
    with pytest.raises(tb.InputError, match="finds a density of its own, so it has no mask at others"):
        list(masks_at(Lab(task, store), recipe, (0.5,)))


# ---- what is listed


def test_settings_are_listed_with_their_defaults() -> None:
    shown = call("draw", "--list-methods").out
    found = call("draw", "--list-methods", "--json").json
    assert found["settings"].keys() == METHODS.keys()
    assert found["settings"]["rigl"] == {"fraction": 0.3}
    assert found["settings"]["deep_r"] == {"l1": 1e-5, "temperature": 2.5e-11}
    assert found["settings"]["imp"] == {}
    assert "settings: fraction=0.1, threshold=0.001, tolerance=0.1\n" in shown
    for name, line in found["methods"].items():
        assert line.endswith(").") or METHODS[name].given, f"{name} has its source in brackets"


def test_a_method_goes_to_a_folder_of_its_own_and_takes_settings(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ("digits-mlp", "--steps", "40it", "--evaluate-every", "20it", "--no-figures", "--density", "0.1")
    done = call("draw", *args, "--method", "rigl", "--update-every", "10it", "--setting", "fraction=0.5", "--json")
    assert done.status == 0, done.err
    assert (tmp_path / "tombola-out" / "digits-mlp-rigl" / "digits-mlp-seed0.ticket").exists()
    assert [row["density"] for row in done.json["rounds"]] == [1.0, pytest.approx(0.1)]
    assert done.json["draws"][0]["recipe"]["settings"] == {"fraction": 0.5}
    assert call("draw", *args, "--method", "rigl", "--setting", "alpha=0.5").status == 2
    refused = call("draw", *args, "--method", "rigl", "--setting", "fraction=x")
    assert refused.status == 2
    assert "Traceback" not in refused.err
