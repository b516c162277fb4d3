"""Controls that train a ticket's net from other values or under another mask, and the small dense net beside it."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toy import drawn, same, toy_task

import tombola as tb
from tombola.asked import draw_recipe
from tombola.auditing import controls_for
from tombola.audits.controls import CONTROLS, Subject, get_control
from tombola.audits.controls.architecture import nearest, weights
from tombola.audits.controls.base import Changed
from tombola.draws import Draw, controls, rounds
from tombola.events import Event
from tombola.lab import Lab
from tombola.mask import Mask, prunable
from tombola.methods.base import Round
from tombola.pruning import prune, smart_ratio_shares
from tombola.recipe import ControlName
from tombola.tasks import TASKS
from tombola.ticket import Ticket

VALUES = ["reinit", "values_shuffled", "signed_reinit", "signed_constant"]
POSITIONS = ["shuffled", "random_uniform", "random_erk", "random_smart_ratio"]
SEEDS = st.integers(0, 2**31)


class Asked:
    """What a control asks the lab of a ticket for: nothing is trained."""

    def __init__(
        self, name: str, kept: float, seed: int, draw: int = 0, task: tb.Task | None = None, order: int = 0
    ) -> None:
        self.task = toy_task() if task is None else task
        self.values = dict(self.task.build(seed).state_dict())
        scores = {n: self.values[n].abs() for n in prunable(self.task.build(seed))}
        self.mask = prune(scores, kept, "uniform")
        self.start = dict(Ticket(self.mask, self.values, {}).values)
        self.recipe = self.task.recipe.model_copy(update={"start": tb.Duration(7), "order": order})
        self.given: dict[str, Any] = {}
        run: Any = SimpleNamespace(lab=self, seed=seed, recipe=self.recipe, start=self.start)
        CONTROLS[name].train(Subject(Round(1, self.mask, self.values, run)), draw)
        self.survivors = self.given["mask"]
        self.begins = dict(Ticket(self.survivors, self.given["start"], {}).values)

    def train(self, seed: int, **given: Any) -> None:
        self.given = {"seed": seed, **given}


def counts(mask: Mask) -> list[int]:
    return [layer.kept for layer in mask.layers()]


# The registry.


def test_a_recipe_knows_every_control_and_each_says_what_it_changes() -> None:
    assert set(CONTROLS) == set(get_args(ControlName))
    for name, control in CONTROLS.items():
        assert get_control(name) is control
        assert control.name == name
        assert control.changes in get_args(Changed)
        assert control.description.endswith(".")
        assert "\n" not in control.description
    with pytest.raises(tb.InputError, match=r"unknown control 'reinitt'\. Did you mean 'reinit'"):
        get_control("reinitt")


# One thing changed.


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(VALUES), st.floats(0.05, 0.95), SEEDS, st.integers(0, 3))
def test_other_values_under_the_very_mask(name: str, kept: float, seed: int, draw: int) -> None:
    asked = Asked(name, kept, seed, draw)
    assert asked.survivors == asked.mask
    assert (asked.given["seed"], asked.given["recipe"]) == (seed, asked.recipe)
    assert (asked.given["arm"], asked.given["draw"]) == (name, draw)
    for layer, value in asked.begins.items():
        if layer not in asked.mask:
            assert name == "reinit" or torch.equal(value, asked.start[layer])
    changed = [bool((asked.begins[n] != asked.start[n])[k].any()) for n, k in asked.mask.items() if int(k.sum()) > 1]
    assert all(changed)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(POSITIONS), st.floats(0.05, 0.95), SEEDS, st.integers(0, 3))
def test_another_mask_of_as_many_of_the_very_values(name: str, kept: float, seed: int, draw: int) -> None:
    asked = Asked(name, kept, seed, draw)
    assert asked.survivors != asked.mask
    assert asked.survivors.kept == asked.mask.kept
    assert same(asked.begins, dict(Ticket(asked.survivors, asked.values, {}).values))
    assert (asked.given["seed"], asked.given["recipe"], asked.given["draw"]) == (seed, asked.recipe, draw)
    rule = name.removeprefix("random_")
    scores = {n: torch.rand(k.shape) for n, k in asked.mask.items()}
    expected = asked.mask if rule == "shuffled" else prune(scores, asked.mask.density, rule)
    assert counts(asked.survivors) == counts(expected)


EXCEPTION = "random_ticket"
"""The control of Morcos et al. (2019), which changes two things, kept out of audits unless it is named."""
WHOLE = {"reinit_whole": "reinit", "random_ticket_whole": EXCEPTION}
"""Controls of rewound tickets that train the whole recipe, and those whose masks and values they have."""


def test_every_control_changes_one_thing_but_random_tickets_and_those_trained_in_whole() -> None:
    several = [name for name, control in CONTROLS.items() if " and " in control.changes]
    assert several == [EXCEPTION, *WHOLE]
    task = tb.get_task("digits-mlp")
    assert not set(several) & set(controls_for(task, draw_recipe(task, {})))
    rewound = draw_recipe(task, {"survivors": "rewind", "back_to": "1ep"})
    assert set(several) & set(controls_for(task, rewound)) == {"reinit_whole"}
    assert "two things" in get_control(EXCEPTION).description


@pytest.mark.parametrize(("name", "other"), WHOLE.items())
def test_a_control_in_whole_is_another_from_the_first_step_on(name: str, other: str) -> None:
    whole, rest = Asked(name, 0.3, 5, 2), Asked(other, 0.3, 5, 2)
    assert whole.survivors == rest.survivors
    assert same(whole.given["start"], rest.given["start"])
    assert (whole.given["arm"], rest.given["arm"]) == (name, other)
    assert (whole.given["recipe"].start, rest.given["recipe"].start) == (tb.Duration(0), tb.Duration(7))
    assert whole.given["recipe"] == rest.recipe.model_copy(update={"start": tb.Duration(0)})


@pytest.mark.parametrize("name", WHOLE)
def test_a_control_in_whole_is_refused_where_no_ticket_is_rewound(name: str, tmp_path: Any) -> None:
    with tb.Store(tmp_path) as store, pytest.raises(tb.InputError, match="is for tickets that are rewound"):
        drawn(store, toy_task(), controls=(name,))


@settings(deadline=None, max_examples=25)
@given(st.floats(0.05, 0.95), SEEDS, st.integers(0, 3))
def test_the_random_ticket_has_other_positions_and_other_values(kept: float, seed: int, draw: int) -> None:
    asked = Asked(EXCEPTION, kept, seed, draw)
    assert asked.survivors != asked.mask
    assert counts(asked.survivors) == counts(asked.mask), "layer densities stay"
    assert (asked.given["seed"], asked.given["recipe"], asked.given["draw"]) == (seed, asked.recipe, draw)
    for name, positions in asked.survivors.items():
        both = positions & asked.mask[name]
        assert not bool((asked.given["start"][name] == asked.values[name])[both].any())
        assert not bool((asked.given["start"][name] == 0).any()), "what is kept elsewhere has a value to begin at"


@pytest.mark.parametrize("name", [*VALUES, *POSITIONS, EXCEPTION, *WHOLE])
def test_draws_are_the_seeds_own_and_differ(name: str) -> None:
    def drawing(seed: int, draw: int, order: int = 0) -> tuple[Mask, dict[str, Tensor]]:
        asked = Asked(name, 0.3, seed, draw, order=order)
        return asked.survivors, asked.begins

    (mask, start), again = drawing(5, 1), drawing(5, 1)
    assert again[0] == mask
    assert same(again[1], start)
    for other in (drawing(5, 2), drawing(5, 1, order=3)):  # a data order of the seed has draws of its own
        assert (other[0] == mask and same(other[1], start)) != CONTROLS[name].draws
    assert drawing(6, 1)[0] != mask


def test_a_control_draws_from_its_own_stream_and_leaves_torch_as_it_was() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    masks = [Asked(name, 0.5, 0).survivors for name in POSITIONS]
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(masks)) == len(masks)


# Values.


@settings(deadline=None, max_examples=20)
@given(st.floats(0.02, 0.95), SEEDS)
def test_shuffled_values_are_the_survivors_own(kept: float, seed: int) -> None:
    asked = Asked("values_shuffled", kept, seed)
    for layer, positions in asked.mask.items():
        own, shuffled = asked.start[layer][positions], asked.begins[layer][positions]
        assert torch.equal(own.sort().values, shuffled.sort().values)


def test_signed_values_have_the_tickets_signs_and_other_magnitudes() -> None:
    fresh, constant = Asked("signed_reinit", 0.3, 0), Asked("signed_constant", 0.3, 0)
    drawn = fresh.task.build(0, "control", "signed_reinit", 0).state_dict()
    for layer, kept in fresh.mask.items():
        signs = fresh.start[layer][kept].sign()
        assert bool(signs.abs().eq(1).all())
        assert torch.equal(fresh.begins[layer][kept], drawn[layer][kept].abs() * signs)
        whole = fresh.values[layer].double()
        deviation = float((whole - whole.mean()).square().mean().sqrt())
        assert torch.allclose(constant.begins[layer][kept].double(), deviation * signs.double(), rtol=1e-5)


def test_a_layer_that_begins_at_one_value_keeps_it() -> None:
    def make() -> nn.Module:
        net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        nn.init.constant_(net.get_parameter("2.weight"), 0.1)
        return net

    for name in ("signed_constant", "values_shuffled"):
        asked = Asked(name, 0.5, 0, task=toy_task(model=make))
        assert torch.equal(asked.begins["2.weight"], asked.start["2.weight"])
        assert not torch.equal(asked.begins["0.weight"], asked.start["0.weight"])


# Smart ratio.


def test_smart_ratio_by_hand() -> None:
    shapes = {"a": (10, 10), "b": (20, 10), "c": (10, 20), "fc": (5, 20)}
    # Of 600, 60 are kept; the last layer keeps 30 of its 100. Weights are 20, 12 and 6 an entry: 2000, 2400 and 1200.
    expected = {"a": 30 * 2000 / 5600, "b": 30 * 2400 / 5600, "c": 30 * 1200 / 5600, "fc": 30.0}
    assert smart_ratio_shares(0.1, shapes) == pytest.approx(expected)
    # Of 12, half; and of 450, 100 of the first layer, 320 in proportion 2 to 1 but no more than 200, 30 of the last.
    assert smart_ratio_shares(0.02, shapes)["fc"] == pytest.approx(6)
    assert smart_ratio_shares(0.75, shapes) == pytest.approx({"a": 100, "b": 200, "c": 120, "fc": 30})
    assert smart_ratio_shares(0.95, shapes) == pytest.approx({"a": 100, "b": 200, "c": 200, "fc": 70})
    assert smart_ratio_shares(0.5, {"a": (4, 4, 1)}) == {"a": 8}, "no linear layer"
    assert smart_ratio_shares(0.5, {"a": (4, 4)}) == {"a": 8}, "nothing else"


# The small dense net.


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(0, 6_000))
def test_the_nearest_count_is_found(widths: list[int], wanted: int) -> None:
    def count(factor: float) -> int:
        whole = [7, *(max(1, round(w * factor)) for w in widths), 3]
        return sum(a * b for a, b in pairwise(whole))

    # Each width changes at its own halves: what lies between two such factors gives one count.
    ends = sorted({0.0, 1.0, *((i + 0.5) / w for w in widths for i in range(w))})
    inside = min(abs(count(factor) - wanted) for factor in (0.0, 1.0, *((a + b) / 2 for a, b in pairwise(ends))))
    found = abs(count(nearest(count, wanted)) - wanted)
    # At a half itself two widths may be rounded in different directions: one factor alone gives such a count.
    assert min(inside, *(abs(count(end) - wanted) for end in ends)) <= found <= inside


@pytest.mark.parametrize("name", TASKS)
def test_every_task_scales_its_net(name: str) -> None:
    task = tb.get_task(name)
    assert task.scaled is not None
    with torch.device("meta"):
        whole, same_net, small, least = task.model(), task.scaled(1.0), task.scaled(0.3), task.scaled(1e-9)
    shapes = [{n: v.shape for n, v in net.state_dict().items()} for net in (whole, same_net)]
    assert shapes[0] == shapes[1]
    assert weights(prunable(whole)) > weights(prunable(small)) > weights(prunable(least)) > 0
    assert "scaled" not in str(task.identity())
    if "mlm" not in name and "transformer" not in name:  # whose output layer is the embedding
        last = [list(prunable(net).values())[-1] for net in (whole, small, least)]
        assert len({len(p) for p in last}) == 1, "as many classes"


def test_scaled_nets_compute() -> None:
    task = tb.get_task("digits-conv")
    assert task.scaled is not None
    assert task.scaled(1e-9).eval()(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert tb.tasks.models.imagenet_resnet(50, 1e-9).eval()(torch.rand(1, 3, 64, 64)).shape == (1, 1000)


SHORT = {"steps": "20it", "evaluate_every": "10it"}


def test_a_small_dense_net_has_the_tickets_size_and_the_dense_nets_training(store: tb.Store) -> None:
    task = tb.get_task("digits-mlp")
    options: dict[str, Any] = {"survivors": "rewind", "back_to": "5it", "training": SHORT}
    found = drawn(store, task, rounds=1, rate=0.9, controls=["small_dense"], control_draws=3, **options)
    (control,), ticket, dense = found.controls, found.rounds[1], found.rounds[0].run
    run = control.run
    assert run.recipe == dense.recipe, "the whole training, whatever the ticket is rewound to"
    assert run.record.about["arm"] == f"small_dense of {run.mask.kept:,} weights"
    assert run.mask.density == 1
    assert abs(run.mask.kept - ticket.mask.kept) < 64 + 10 + 2 * 100, "one unit more or less"
    assert same(dict(run.start), dict(run.lab.task.build(0).state_dict()))
    row = next(r for r in found.rows() if r["arm"] == "small_dense")
    assert row["density"] == run.mask.kept / ticket.mask.total
    assert run.record.about["data"] == dense.record.about["data"]
    assert run.model()(torch.rand(2, 1, 8, 8)).shape == (2, 10)


# What they share, and what is refused.


def test_nothing_is_trained_again_for_a_control(store: tb.Store) -> None:
    drawn(store, rounds=2)
    events: list[Event] = []
    recipe = draw_recipe(toy_task(), {"rounds": 2, "controls": VALUES + POSITIONS, "control_rounds": [2]})
    found = Draw(recipe, Lab(toy_task(), store, watcher=events.append))
    list(rounds(found))
    assert [e.kind for e in events if e.kind != "step"] == ["found"] * 3
    list(controls(found))
    assert [e.arm for e in events if e.kind == "start"] == VALUES + POSITIONS
    assert [c.run.lab for c in found.controls] == [found.lab] * 8


def test_only_what_is_random_is_drawn_several_times(store: tb.Store) -> None:
    found = drawn(store, rounds=1, controls=["signed_constant", "signed_reinit"], control_draws=3)
    assert [(c.arm, c.draw) for c in found.controls] == [
        ("signed_constant", 0),
        *(("signed_reinit", d) for d in range(3)),
    ]
    assert len({c.run.id for c in found.controls}) == 4
    assert [c.density for c in found.controls] == [found.rounds[1].mask.density] * 4


def norm_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def of_channels() -> tb.Task:
    x = torch.randn(300, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return toy_task(model=norm_net, train=(x, x.flatten(1)[:, :3].argmax(1)), test=None)


SINGLE = "is made for masks of single weights, but method 'early_bird' prunes whole channels: leave it out"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"controls": ["small_dense"]}, "control 'small_dense' trains a smaller net .* the task names none: leave"),
        ({"method": "early_bird", "controls": ["random_erk"]}, SINGLE),
        ({"method": "early_bird", "controls": ["inverted"]}, SINGLE),
        ({"method": "early_bird", "controls": ["half_data"]}, SINGLE),
        ({"method": "early_bird", "controls": ["fine_tune"]}, SINGLE),
    ],
)
def test_what_a_control_cannot_be_asked_for_is_refused_before_any_training(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(tb.InputError, match=message):
        draw_recipe(of_channels(), options)


def test_channels_have_the_controls_that_make_sense(store: tb.Store) -> None:
    task = of_channels()
    run = Lab(task, store).train(0)
    channels = torch.tensor([True, False, True, True])
    shapes = {n: tuple(p.shape) for n, p in run.model().named_parameters() if n in ("0.weight", "1.weight", "1.bias")}
    mask = Mask.of_channels(shapes, dict.fromkeys(shapes, channels))
    ticket = Round(1, mask, run.final, Lab(task, store).train(0, start=run.final, mask=mask))
    for name in VALUES:
        found = CONTROLS[name].train(Subject(ticket))
        assert found.mask == mask
        scales = run.start if name == "reinit" else ticket.run.start  # others leave what is no weight
        assert torch.equal(found.start["1.weight"], scales["1.weight"] * channels)
        assert not torch.equal(found.start["0.weight"], ticket.run.start["0.weight"])
    with pytest.raises(tb.InputError, match=r"control 'random_erk' .*, but this mask is of whole channels"):
        CONTROLS["random_erk"].train(Subject(ticket))
