"""Audits on a toy: what is trained and what is not, what is paired, where a ladder is cut, what is judged as it is."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from audited import of, said
from auditing_tools import TASK, Audited, drawn, runs_of
from torch import nn

import tombola as tb
from tombola.auditing import claim_of


@pytest.fixture
def audits(store: tb.Store, tmp_path: Path) -> Audited:
    """In the place of ``store``."""
    return Audited(tmp_path / "runs")


# ---- repeated on seeds


def test_the_ticket_is_drawn_again_and_nothing_is_trained_twice(store: tb.Store, audits: Audited) -> None:
    draw = drawn(store, rounds=3)
    found = audits.ticket(draw.ticket(draw.rounds[2]), 2, controls=("reinit", "shuffled"), control_draws=2)
    assert said(found.verdict, "Drawn again by its recipe, the ticket is the same, bit for bit.")
    assert audits.began == 4 + 3 + 4, "controls of seed 0; dense, two rounds and controls of seed 1"
    assert found.replicates == "seeds"
    assert runs_of(found, "ticket") == [r.run.id for r in draw.rounds[:3]], "dense and ticket runs are the draw's"
    again = audits.ticket(draw.ticket(draw.rounds[2]), 2, controls=("reinit", "shuffled"), control_draws=2)
    assert audits.began == 0
    assert again.as_dict() == found.as_dict()
    timed = ("find_seconds",)  # of pruning, which is done again
    for one, other in zip(again.rows, found.rows, strict=True):
        assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in other.items() if k not in timed}


def test_every_arm_is_paired_by_seed_and_every_draw_is_another_run(store: tb.Store, audits: Audited) -> None:
    draw = drawn(store, rounds=2, seed=5)
    found = audits.ticket(draw.ticket(draw.rounds[2]), 3, controls=("reinit", "signed_constant"), control_draws=2)
    assert {one.arm for one in found.verdict.arms} == {"dense", "reinit", "signed_constant"}
    for one in found.verdict.arms:
        assert one.accuracy.compared.seeds == (5, 6, 7), "counted from the ticket's own"
        assert one.accuracy.compared.unpaired == ()
        assert one.accuracy.compared.draws == (2 if one.arm == "reinit" else 1)
    runs = [row["run"] for row in found.rows]
    assert len(set(runs)) == len(runs) == 3 * (3 + 2 + 1)
    assert found.as_dict()["seeds"] == [5, 6, 7]
    chosen = audits.ticket(draw.ticket(draw.rounds[2]), [9, 5], controls=("reinit",), control_draws=1)
    assert of(chosen.verdict, "reinit").accuracy.compared.seeds == (5, 9)


LADDERS: list[dict[str, Any]] = [
    {"rounds": 3},
    {"rounds": 3, "allocation": "global", "survivors": "rewind", "back_to": "10it"},
    {"rounds": 3, "allocation": "layerwise", "relative_rates": {"4.*": 0.5}},
    {"density": 0.5},
    {"density": 0.2, "rounds": 3, "schedule": "cubic"},
    {"stop_at_margin": True, "margin": 0.03},
    {"method": "one_shot", "rounds": 2},
    {"method": "lr_rewind", "rounds": 2, "strategy": 1},
    {"method": "snip", "densities": (0.5, 0.3, 0.1), "score_per_class": 3},
    {"method": "set", "densities": (0.5, 0.3), "update_every": "10it"},
    {"method": "deep_compression", "rounds": 2},
    {"method": "supermask", "settings": {"lr": 10.0}},
    {"method": "early_bird", "densities": (0.7, 0.5), "settings": {"window": 2, "distance": 1.0}},
]


@pytest.mark.parametrize("options", LADDERS, ids=lambda o: " ".join(map(str, o.values())))
def test_a_ladder_that_is_cut_at_the_round_gives_the_very_same_runs(
    store: tb.Store, audits: Audited, options: dict[str, Any]
) -> None:
    draw = drawn(store, **options)
    assert len(draw.rounds) > 1
    whole = [r.run.id for r in draw.rounds]
    for round in draw.rounds[1:]:
        found = audits.ticket(draw.ticket(round))
        assert runs_of(found, "ticket") == whole[: round.number + 1]
        assert said(found.verdict, "the same, bit for bit")
        assert found.verdict.round == round.number
    assert audits.began == 0


def test_nets_that_the_search_has_trained_have_no_controls_and_it_is_said(store: tb.Store, audits: Audited) -> None:
    options: dict[str, Any] = {"method": "set", "densities": (0.3,), "update_every": "10it"}
    draw = drawn(store, **options)
    found = audits.ticket(draw.ticket(draw.rounds[1]), controls=None)
    assert [one.arm for one in found.verdict.arms] == ["dense"]
    assert said(found.verdict, "no training to repeat: drawn with survivors reset or rewind or fine-tune it can have")
    with pytest.raises(tb.InputError, match="trains nothing from its ticket"):
        audits.ticket(draw.ticket(draw.rounds[1]), controls=("reinit",))
    shared = drawn(store, method="deep_compression", rounds=1)
    assert said(audits.ticket(shared.ticket(shared.rounds[1]), controls=None).verdict, "its method knows no other")


# ---- as it is


def test_data_orders_share_mask_and_values_and_nothing_else(store: tb.Store, audits: Audited) -> None:
    draw = drawn(store, rounds=1)
    ticket = draw.ticket(draw.rounds[1])
    found = audits.ticket(ticket, 3, as_it_is=True, controls=("reinit", "shuffled"), control_draws=2)
    assert (found.replicates, found.as_dict()["orders"]) == ("orders", [0, 1, 2])
    about = {run.id: run.about for run in store.runs()}
    of_arm = {arm: [about[row["run"]] for row in found.rows if row["arm"] == arm] for arm in ("reinit", "shuffled")}
    tickets = [about[row["run"]] for row in found.rows if row["arm"] == "ticket" and row["round"]]
    assert len({a["start"] for a in tickets}) == len({a["mask"] for a in tickets}) == 1
    assert len({str(a["recipe"]) for a in tickets}) == 3
    assert {a["mask"] for a in of_arm["reinit"]} == {tickets[0]["mask"]}
    assert len({a["start"] for a in of_arm["reinit"]}) == 6, "another draw in each order, and for each number"
    assert len({a["mask"] for a in of_arm["shuffled"]}) == 6
    assert runs_of(found, "ticket")[:2] == [r.run.id for r in draw.rounds], "the first order is that of the draw"
    assert said(found.verdict, "over 3 data orders of seed 0: where seeds are named, they are those")


@pytest.mark.parametrize(
    "survivors",
    [
        {"survivors": "rewind", "back_to": "10it"},
        {"survivors": "lr-rewind", "back_to": "10it"},
        {"survivors": "fine-tune", "fine_tune": "20it"},
    ],
    ids=lambda o: str(o["survivors"]),
)
def test_a_ticket_is_trained_as_its_recipe_has_trained_it(
    store: tb.Store, audits: Audited, survivors: dict[str, Any]
) -> None:
    draw = drawn(store, rounds=1, **survivors)
    found = audits.ticket(draw.ticket(draw.rounds[1]), as_it_is=True, controls=("reinit",), control_draws=1)
    assert runs_of(found, "ticket") == [r.run.id for r in draw.rounds]
    assert audits.began == 1


def test_a_ticket_that_does_not_say_how_it_was_drawn(store: tb.Store, audits: Audited) -> None:
    draw = drawn(store, rounds=1)
    whole = draw.ticket(draw.rounds[1])
    with pytest.raises(tb.InputError, match="origin names no task: say which one"):
        claim_of(tb.Ticket(whole.mask, whole.values, {}))
    recipe = dict(whole.origin["recipe"])
    for origin, words in [
        ({}, "It doesn't say how it was drawn."),
        ({"task": TASK.name, "recipe": recipe, "round": 0}, "It doesn't say how it was drawn."),
        ({"task": TASK.name, "recipe": recipe, "round": True}, "It doesn't say how it was drawn."),
        ({"task": TASK.name, "recipe": {**recipe, "colour": 1}, "round": 1}, "is none of this version"),
        ({"task": TASK.name, "recipe": {**recipe, "method": "magic"}, "round": 1}, "'magic', is none of this version"),
        ({"task": "another", "recipe": recipe, "round": 1}, "It wasn't drawn on task 'toy for audits'"),
        ({"task": TASK.name, "recipe": {**recipe, "task": "x"}, "round": 1}, "It wasn't drawn on task"),
        ({"task": TASK.name, "recipe": {**recipe, "method": "given"}, "round": 1}, "the file of another ticket"),
    ]:
        found = audits.ticket(tb.Ticket(whole.mask, whole.values, origin))
        assert said(found.verdict, words), origin
        assert said(found.verdict, "It is judged as it is, over 1 data order of seed 0")
        assert runs_of(found, "ticket") == [r.run.id for r in draw.rounds]


def test_nothing_is_imported_because_a_file_says_so(store: tb.Store, audits: Audited) -> None:
    draw = drawn(store, rounds=1)
    ticket = draw.ticket(draw.rounds[1])
    recipe = {**ticket.origin["recipe"], "criterion": "this:d", "training": {"steps": "40it", "batch": 20}}
    found = audits.ticket(tb.Ticket(ticket.mask, ticket.values, {**ticket.origin, "recipe": recipe}))
    assert "this" not in sys.modules
    assert said(found.verdict, "Its criterion, 'this:d', is a function that isn't registered here")
    training = found.draws[0].recipe.training
    assert (training.steps.length, training.batch) == (40, 20), "it is trained as it says all the same"


def test_a_round_that_its_recipe_does_not_come_to(store: tb.Store, audits: Audited) -> None:
    draw = drawn(store, rounds=2)
    ticket = draw.ticket(draw.rounds[2])
    claim = replace(claim_of(ticket, TASK), round=3)
    with pytest.raises(tb.InputError, match=r"rounds go from 1 to 2, but round 3 is to be judged: judge .* as it is"):
        audits.claim(claim)
    assert said(audits.claim(claim, as_it_is=True).verdict, "It is judged as it is")


def test_a_ticket_of_another_net_is_refused_before_anything_is_trained(store: tb.Store, audits: Audited) -> None:
    wide = nn.Linear(12, 3)
    odd = tb.Ticket(tb.Mask.full(wide), wide.state_dict(), {})
    for origin in ({}, drawn(store, rounds=1).ticket().origin):
        with pytest.raises(tb.InputError, match=r"doesn't fit the net: '0\.weight' has shape none in the ticket"):
            audits.ticket(tb.Ticket(odd.mask, odd.values, origin))
        assert audits.began == 0


def test_layers_that_the_mask_leaves_out_are_told(store: tb.Store, audits: Audited) -> None:
    draw = drawn(store, rounds=1)
    ticket = draw.ticket(draw.rounds[1])
    names = list(ticket.mask)[:1]
    fewer = tb.Ticket(tb.Mask({n: ticket.mask[n] for n in names}), ticket.values, ticket.origin)
    found = audits.ticket(fewer)
    assert said(found.verdict, "Drawn again by its recipe (seed 0), it has other layers.")
    assert found.verdict.density == fewer.density


# ---- a task of one's own


def test_a_task_of_ones_own_is_judged_in_this_process(store: tb.Store, tmp_path: Path) -> None:
    draw = drawn(store, rounds=1)
    ticket, place = draw.ticket(draw.rounds[1]), tmp_path / "runs"
    verdict = tb.audit(ticket, task=TASK, seeds=2, controls=["reinit"], control_draws=1, store=place)
    assert isinstance(verdict, tb.Verdict)
    assert said(verdict, "the same, bit for bit")
    with pytest.raises(tb.InputError, match="a task of your own is judged in one process, but 2 are asked for"):
        tb.audit(ticket, task=TASK, seeds=2, store=place, jobs=2)
    with pytest.raises(tb.InputError, match="unknown task 'toy for audits'"):
        tb.audit(ticket, store=place)
    with pytest.raises(tb.InputError, match="an audit opens its store itself, in each process: give its folder"):
        tb.audit(ticket, task=TASK, store=store)  # type: ignore[arg-type]
    path = ticket.save(tmp_path / "a.ticket")
    assert tb.audit(path, task=TASK, seeds=2, controls=["reinit"], control_draws=1, store=place) == verdict
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(tb.TicketError, match=r"a\.ticket"):
        tb.audit(path, task=TASK, store=place)
