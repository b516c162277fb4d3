"""Method ``given``: the ticket of a file, trained beside the dense net of its seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from torch import nn
from toy import same, toy_task

import tombola as tb
from tombola.asked import draw_recipe
from tombola.draws import Draw

TASK = toy_task(recipe={"steps": "20it", "evaluate_every": "10it", "engine": "masked"})


def drawn(store: tb.Store, **options: Any) -> Draw:
    return toy.drawn(store, TASK, **options)


@pytest.mark.parametrize("kept_in", ["a file", "the store"])
def test_a_ticket_is_trained_as_its_draw_has_trained_it(store: tb.Store, tmp_path: Path, kept_in: str) -> None:
    source = drawn(store, rounds=2)
    ticket = source.ticket(source.rounds[2])
    name = store.put(ticket.to_bytes()) if kept_in == "the store" else str(ticket.save(tmp_path / "a.ticket"))
    found = drawn(store, method="given", ticket=name)
    assert [r.run.id for r in found.rounds] == [source.rounds[0].run.id, source.rounds[2].run.id]
    assert (found.rounds[1].number, found.rounds[1].search) == (1, ()), "nothing was searched for"
    assert found.ticket(found.rounds[1]).digest == ticket.digest
    row = found.rows()[1]
    assert (row["find_seconds"], row["find_flops"]) == (0, 0)


def test_behind_what_is_pruned_stand_the_initial_values_of_the_seed(store: tb.Store, tmp_path: Path) -> None:
    source = drawn(store, rounds=2)
    other = tb.Ticket(source.rounds[2].mask, TASK.build(9).state_dict(), {})
    path = str(other.save(tmp_path / "a.ticket"))
    found = drawn(store, method="given", ticket=path, seed=3, controls=("shuffled",))
    round, initial = found.rounds[1], TASK.build(3).state_dict()
    for name, kept in round.mask.items():
        assert torch.equal(round.values[name][kept], other.values[name][kept])
        assert torch.equal(round.values[name][~kept], initial[name][~kept])
    assert same(round.run.start, dict(other.values))
    control = found.controls[0].run
    fresh = control.mask["0.weight"] & ~round.mask["0.weight"]
    assert torch.equal(control.start["0.weight"][fresh], initial["0.weight"][fresh])
    assert bool((control.start["0.weight"][fresh] != 0).all()), (
        "a weight that is kept elsewhere has a value to begin at"
    )


def test_each_seed_and_each_order_trains_the_same_ticket(store: tb.Store, tmp_path: Path) -> None:
    source = drawn(store, rounds=1)
    path = str(source.ticket(source.rounds[1]).save(tmp_path / "a.ticket"))
    options: dict[str, Any] = {"method": "given", "ticket": path}
    found = [drawn(store, **options, **more) for more in ({}, {"seed": 1}, {"training": {"order": 1}})]
    assert len({d.rounds[1].run.id for d in found}) == 3
    assert len({d.rounds[0].run.id for d in found}) == 3
    assert all(same(d.rounds[1].run.start, found[0].rounds[1].run.start) for d in found)
    assert len({d.id for d in found}) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "given"}, "method 'given' trains a ticket that is there: name its file with ticket"),
        ({"method": "given", "ticket": "x", "rounds": 2}, "leave out density, densities, rounds"),
        ({"method": "given", "ticket": "x", "density": 0.5}, "leave out density, densities, rounds"),
        ({"method": "given", "ticket": "x", "survivors": "keep"}, "takes survivors reset or rewind or lr-rewind or"),
        ({"method": "given", "ticket": "x", "criterion": "snip"}, "scores no weights, but criterion 'snip'"),
        ({"method": "given", "ticket": "x", "controls": ("inverted",)}, "this method scores none"),
        ({"method": "given", "ticket": "x", "controls": ("half_data",)}, "searches for nothing"),
        ({"method": "given", "ticket": "x", "controls": ("lr_rewind",)}, "comes without that net: leave it out"),
        ({"method": "imp", "ticket": "x"}, "finds its ticket by itself, but a ticket is given: name method 'given'"),
    ],
)
def test_what_does_not_go_with_it_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(tb.InputError, match=words):
        draw_recipe(TASK, options)


def test_files_that_are_no_tickets_of_the_net_are_refused(store: tb.Store, tmp_path: Path) -> None:
    net = nn.Linear(12, 3)
    path = tb.Ticket(tb.Mask.full(net), net.state_dict(), {}).save(tmp_path / "other.ticket")
    for name, error, words in [
        (path, tb.InputError, "the ticket doesn't fit the net"),
        (tmp_path / "none.ticket", tb.TicketError, "none.ticket"),
        ("0" * 64, tb.StoreError, "0000"),
    ]:
        with pytest.raises(error, match=words):
            drawn(store, method="given", ticket=str(name))
    path.write_bytes(b"no ticket")
    with pytest.raises(tb.TicketError, match=r"other\.ticket"):
        drawn(store, method="given", ticket=str(path))
    assert store.runs() == [], "before anything is trained"
