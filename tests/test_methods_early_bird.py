"""Early-Bird tickets as a method: where the search ends, what is cut away, what is trained on, and the ablations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_methods import drawn
from torch import Tensor, nn
from toy import same, toy_task

import tombola as tb
from tombola.asked import draw_recipe
from tombola.audits.controls import CONTROLS, Subject
from tombola.diagnostics.masks import masks_at
from tombola.early_bird import channel_mask, drawn_at, scales
from tombola.engines.slimming import slim_mask
from tombola.lab import Lab, Run
from tombola.mask import Mask

RECIPE = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "steps": "100it", "evaluate_every": "20it"}
QUICK: dict[str, Any] = {"method": "early_bird", "settings": {"window": 3, "distance": 0.3}}


def net() -> nn.Module:
    """Twenty channels of two batch normalisations."""
    first = (nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    second = (nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))


def task(**changes: Any) -> tb.Task:
    recipe = RECIPE | changes.pop("recipe", {})
    return toy_task(**{"model": net, "recipe": recipe, "allocation": "global"} | changes)


def masked(values: dict[str, Tensor], mask: Mask) -> dict[str, Tensor]:
    return {n: v * mask[n] if n in mask else v for n, v in values.items()}


def test_the_search_ends_at_the_epoch_at_which_masks_have_settled(store: tb.Store) -> None:
    found = drawn(store, task(), density=0.5, **QUICK)
    (dense, round), lab = found.rounds, found.lab
    (search,) = round.search
    per_epoch = lab.steps_per_epoch(0, found.recipe.training)
    steps = search.summary["steps"]
    assert steps % per_epoch == 0
    assert 3 <= steps // per_epoch < 100 // per_epoch
    # the same training without the rule that ends it, looked at after each epoch
    whole = lab.train(0, recipe=found.recipe.training.model_copy(update={"scale_l1": 1e-4}))
    looks = []
    for epoch in range(1, 100 // per_epoch + 1):
        model = net()
        model.load_state_dict(whole.at(tb.Duration(epoch * per_epoch)))
        looks.append(channel_mask(scales(model), 0.5))
    assert drawn_at(looks, 3, 0.3) == steps // per_epoch - 1
    assert same(search.final, whole.at(tb.Duration(steps)))
    assert round.mask == slim_mask(search.model(), looks[steps // per_epoch - 1], torch.zeros(2, 12))
    assert sum(int(round.mask[name].sum()) for name in scales(net())) == 10, "half of the channels"
    assert found.rows()[1]["find_seconds"] == search.seconds
    assert found.rows()[1]["find_flops"] == search.flops == 3 * 2 * (9 * 12 * 8 + 9 * 12 * 8 * 12 + 36) * steps * 32
    assert found.rows()[0]["find_flops"] == 0
    assert dense.run.recipe == found.recipe.training, "the dense net has no penalty"


def test_survivors_go_on_from_there_in_schedule_and_data_order(store: tb.Store) -> None:
    found = drawn(store, task(), density=0.5, **QUICK)
    round = found.rounds[1]
    (search,) = round.search
    steps = search.summary["steps"]
    assert same(dict(round.values), search.final), "inherited values"
    assert same(round.run.start, masked(search.final, round.mask))
    assert round.run.recipe == found.recipe.training.model_copy(update={"start": tb.Duration(steps)})
    assert round.run.history[0]["step"] == steps
    assert round.run.history[-1]["step"] == 100
    assert round.run.summary["steps"] == 100 - steps
    ticket = found.ticket(round)
    assert same(dict(ticket.values), round.run.start)


def test_the_beginning_of_a_recipe_may_be_in_epochs(store: tb.Store) -> None:
    one = task(recipe={"start": "1ep"})
    found = drawn(store, one, density=0.5, **QUICK)
    per_epoch = found.lab.steps_per_epoch(0, found.recipe.training)
    (search,) = found.rounds[1].search
    assert found.rounds[1].run.history[0]["step"] == per_epoch + search.summary["steps"]


def test_what_is_left_trains_on_the_compact_engine(store: tb.Store) -> None:
    asked = drawn(store, task(), density=0.3, training={"engine": "compact"}, **QUICK)
    round = asked.rounds[1]
    assert round.run.summary["engine"] == "compact"
    assert round.search[0].summary["engine"] == "masked", "the search is dense"
    masks = drawn(store, task(), density=0.3, training={"engine": "masked"}, **QUICK).rounds[1]
    assert masks.mask == round.mask
    for name, value in masks.run.final.items():
        of_channels = round.mask.get(f"{name.rpartition('.')[0]}.weight")
        # A channel that is removed has no statistics to gather.
        seen = of_channels if "running" in name and of_channels is not None else torch.ones_like(value).bool()
        torch.testing.assert_close(round.run.final[name][seen], value[seen], rtol=1e-3, atol=1e-4)
    for name, kept in round.mask.items():
        assert not bool(round.run.final[name][~kept].any())


def test_the_ablation_resets_and_trains_the_whole_recipe(store: tb.Store) -> None:
    found = drawn(store, task(), density=0.5, survivors="reset", **QUICK)
    kept = drawn(store, task(), density=0.5, **QUICK)
    round = found.rounds[1]
    assert round.mask == kept.rounds[1].mask
    assert round.search[0].id == kept.rounds[1].search[0].id
    assert same(round.run.start, masked(found.rounds[0].run.start, round.mask))
    assert round.run.recipe == found.recipe.training


@pytest.mark.filterwarnings("ignore:the channel masks")
def test_masks_that_do_not_settle_give_no_round_and_a_warning(store: tb.Store) -> None:
    rule = {"window": 12, "distance": 0.0}
    with pytest.warns(UserWarning, match="have not settled in 100 steps: there is no ticket. Train longer, or allow"):
        found = drawn(store, task(), method="early_bird", density=0.5, settings=rule)
    assert [r.number for r in found.rounds] == [0]
    assert found.ticket().mask.density == 1
    recipe = draw_recipe(task(), {"method": "early_bird", "settings": rule})
    with pytest.raises(tb.TombolaError, match=r"has found no mask of density 0\.5 for seed 0"):
        list(masks_at(Lab(task(), store), recipe, (0.5,)))


def test_masks_that_settle_at_the_very_end_have_nothing_left_to_train(store: tb.Store) -> None:
    short = task(recipe={"steps": "3ep"})
    rule = {"window": 3, "distance": 1.0}
    with pytest.warns(UserWarning, match="have settled only at the end"):
        found = drawn(store, short, method="early_bird", density=0.5, settings=rule)
    assert len(found.rounds) == 1
    reset = drawn(store, short, method="early_bird", density=0.5, settings=rule, survivors="reset")
    assert len(reset.rounds) == 2, "from initial values there is"


def test_a_search_that_diverges_says_so(store: tb.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "diverged", property(lambda run: run.recipe.until_settled is not None))
    with pytest.warns(UserWarning, match="the search diverged in"):
        found = drawn(store, task(), method="early_bird", density=0.5)
    assert len(found.rounds) == 1


def test_low_precision_is_that_of_search_and_training(store: tb.Store) -> None:
    found = drawn(store, task(), density=0.5, training={"precision": "bfloat16"}, **QUICK)
    round = found.rounds[1]
    assert [r.recipe.precision for r in (*round.search, round.run)] == ["bfloat16", "bfloat16"]
    plain = drawn(store, task(), density=0.5, **QUICK).rounds[1]
    assert not same(plain.search[0].final, round.search[0].final)


def test_layers_left_unpruned_are_not_in_the_mask(store: tb.Store) -> None:
    found = drawn(store, task(unpruned=("4.weight",)), density=0.5, **QUICK)
    whole = drawn(store, task(), density=0.5, **QUICK)
    assert set(whole.rounds[1].mask) - set(found.rounds[1].mask) == {"4.weight"}
    for name, kept in found.rounds[1].mask.items():
        assert torch.equal(kept, whole.rounds[1].mask[name])


def test_controls_change_values_or_which_channels(store: tb.Store) -> None:
    found = drawn(store, task(), density=0.5, controls=["reinit", "shuffled"], control_draws=2, **QUICK)
    ticket = found.rounds[1]
    assert [c.arm for c in found.controls] == ["reinit", "reinit", "shuffled", "shuffled"]
    for control in found.controls:
        assert control.run.recipe == ticket.run.recipe, "from the step at which the ticket was drawn"
    for control in found.controls[:2]:
        assert control.run.mask == ticket.mask
        for name in ("1.weight", "4.weight", "9.weight"):
            kept = ticket.mask[name]
            assert bool((control.run.start[name][kept] != ticket.run.start[name][kept]).all())
    for control in found.controls[2:]:
        mask = control.run.mask
        assert mask != ticket.mask
        assert [x.kept for x in mask.layers()] == [x.kept for x in ticket.mask.layers()]
        channels = Mask({name: mask[name] for name in scales(net())})
        assert mask == slim_mask(net(), channels, torch.zeros(2, 12)), "whole channels"
        assert same(control.run.start, masked(ticket.search[0].final, mask))
    assert CONTROLS["shuffled"].train(Subject(ticket), 1).id == found.controls[3].run.id


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: task(model=lambda: nn.Sequential(nn.Linear(12, 3))), {}, "this net has none"),
        (task, {"density": 0.05}, "density 0.05 keeps 1 of 20 channels"),
        (task, {"settings": {"window": 1}}, "window: .*greater than or equal to 2"),
        (task, {"settings": {"window": 2.5}}, "window: .*integer"),
        (task, {"settings": {"distance": 1.5}}, "distance: .*less than or equal to 1"),
        (task, {"settings": {"l1": -1}}, "scale_l1: .*greater than or equal to 0"),
        (task, {"settings": {"l2": 1}}, "has no setting 'l2', but these: l1, window, distance"),
        (task, {"survivors": "keep"}, "takes survivors continue or reset"),
        (task, {"allocation": "erk"}, "spreads a density in its own way, 'global'"),
        (task, {"criterion": "snip"}, "scores no weights"),
        (task, {"update_every": "5it"}, "updates no mask during training"),
        (task, {"unpruned": ("nothing*",)}, "no prunable parameter fits the pattern"),
    ],
)
def test_bad_options_are_refused_before_any_training(
    store: tb.Store, make: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(tb.InputError, match=message):
        tb.draw(make(), method="early_bird", store=store, **options)
    assert store.runs() == []


def test_densities_are_by_default_those_of_the_paper() -> None:
    recipe = draw_recipe(task(), {"method": "early_bird"})
    assert recipe.densities == (0.7, 0.5, 0.3)
