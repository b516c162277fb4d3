"""What a report reads from a store: nothing is lost, nothing is trained, and what is missing is said."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up_store import SHAPES, VERSIONS, a_mask, add_draw, add_run, an_id
from store_tools import blob_file
from toy import toy_task

import tombola as tb
from tombola.asked import draw_recipe
from tombola.draws import Draw, controls, rounds
from tombola.errors import InputError
from tombola.findings import EVALUATIONS, findings_of
from tombola.grouping import with_seeds
from tombola.lab import Lab
from tombola.pictures import CELLS, picture


def pictured(mask: torch.Tensor, *, first: bool) -> Any:
    return picture(mask, layer="w", seed=0, round=1, density=0.5, first=first)


def test_a_search_has_the_rows_of_its_draw_without_its_data(store: tb.Store) -> None:
    task = toy_task(rounds=2)
    recipe = draw_recipe(task, {"controls": ["reinit"], "seed": 3})
    draw = Draw(recipe, Lab(task, store, recipe=recipe.training))
    list(rounds(draw))
    list(controls(draw))
    (search,) = findings_of(store, [draw.id]).searches
    assert (search.task, search.method, search.metric, search.data) == ("toy", "imp", "accuracy", "test")
    for found, expected in ((search.curves, draw.curves()), (search.layers, draw.layers())):
        assert sorted(map(str, found)) == sorted(map(str, expected))
    named = {(row["arm"], row["round"]): row for row in search.rounds}
    assert len(named) == len(search.rounds) == 5
    for row in draw.rows():
        assert {key: named[row["arm"], row["round"]][key] for key in row} == row
    assert search.chosen == draw.chosen.number
    assert search.status == "finished"
    assert not search.unread
    assert search.recipe == {k: v for k, v in recipe.model_dump(mode="json").items() if k != "seed"}


def test_draws_that_differ_in_the_seed_alone_are_one_search(store: tb.Store) -> None:
    ids = [add_draw(store, seed=seed, rate=0.5) for seed in (1, 0)]
    other = add_draw(store, seed=0, rate=0.2)
    one, two = findings_of(store, [*ids, other]).searches
    assert (one.label, one.seeds, two.label, two.seeds) == ("imp", [0, 1], "imp, recipe 2", [0])
    assert [draw.id for draw in one.draws] == ids[::-1]
    assert one.recipe == {"task": "made-up", "method": "imp", "rounds": 3, "rate": 0.5}
    assert one.versions == (VERSIONS,)
    assert one.engines == {"masked": 8}
    assert [d.id for d in with_seeds(store, store.draws()[0])] == ids[::-1]
    assert [d.id for d in with_seeds(store, store.draws()[2])] == [other]


def test_labels_name_tasks_where_there_are_several(store: tb.Store) -> None:
    ids = [add_draw(store, task=task, method=m) for task, m in (("a", "imp"), ("b", "imp"), ("a", "snip"))]
    found = findings_of(store, ids)
    assert [search.label for search in found.searches] == ["a, imp", "b, imp", "a, snip"]
    assert found.tasks == ["a", "b"]
    assert found.title == "a, b: 3 searches"


def test_the_chosen_round_is_one_that_every_seed_holds(store: tb.Store) -> None:
    ids = [add_draw(store, seed=0), add_draw(store, seed=1)]
    short = store.draw(ids[1])
    assert short is not None
    rows = [row | {"chosen": row["round"] == 2} for row in short.rounds]
    store.save_draw(ids[1], short.about, rows, "finished")
    (search,) = findings_of(store, ids).searches
    assert search.chosen == search.shown == 2
    assert {p.layer for p in search.pictures if p.round == 2} == set(SHAPES)


def test_a_history_is_read_once_and_a_net_once_a_search(store: tb.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [add_draw(store, rounds=2), add_draw(store, rounds=2, method="snip"), add_draw(store, rounds=2, rate=0.1)]
    read: Counter[tuple[str, str]] = Counter()
    original = tb.Store.read

    def counted(self: tb.Store, record: Any, name: str) -> bytes:
        read[record.id, name] += 1
        return original(self, record, name)

    monkeypatch.setattr(tb.Store, "read", counted)
    findings_of(store, ids)
    assert {count for (_, name), count in read.items() if name == "history"} == {1}
    dense = an_id("made-up", 0)
    assert {count for (run, name), count in read.items() if name == "final" and run != dense} == {1}
    assert read[dense, "final"] == 3


def test_a_draw_under_way_says_so(store: tb.Store) -> None:
    add_draw(store, rounds=1)
    draw_id = add_draw(store, rounds=1, method="snip", status="running")
    (search,) = findings_of(store, [draw_id]).searches
    assert search.status == "interrupted"
    with (
        store.claim(an_id("now"), {"task": {"name": "made-up"}, "seed": 0, "arm": "ticket", "density": 0.25}) or _none()
    ):
        (search,) = findings_of(store, [draw_id]).searches
        assert search.status == "running"
        assert [run.id for run in search.under_way] == [an_id("now")]
    (other,) = findings_of(store, [store.draws()[0].id]).searches
    assert other.status == "finished"
    assert not other.under_way


def _none() -> Any:
    raise AssertionError("the run is claimed already")


def test_what_is_damaged_or_gone_is_said_and_the_rest_is_shown(store: tb.Store) -> None:
    draw_id = add_draw(store, rounds=2)
    draw = store.draw(draw_id)
    assert draw is not None
    one, two = (store.run(draw.rounds[number]["run"]) for number in (1, 2))
    assert one is not None
    assert two is not None
    blob_file(store, one.blobs["final"]).write_bytes(b"rubbish")
    store.discard(two)
    (search,) = findings_of(store, [draw_id]).searches
    assert len(search.rounds) == 3
    assert {row["round"] for row in search.layers} == {0}
    assert {row["round"] for row in search.curves} == {0, 1}
    assert any(one.id[:8] in note for note in search.unread)
    assert f"Run {two.id[:12]} is not in the store any more." in search.unread


def test_rows_of_older_versions_lack_what_they_did_not_know(store: tb.Store) -> None:
    draw_id = add_draw(store, rounds=1)
    draw = store.draw(draw_id)
    assert draw is not None
    known = ("seed", "arm", "draw", "round", "density", "status", "run", "stop_metric")
    store.save_draw(draw_id, draw.about, [{k: row[k] for k in known} for row in draw.rounds], "finished")
    (search,) = findings_of(store, [draw_id]).searches
    assert search.rounds[1]["stop_metric"] == draw.rounds[1]["stop_metric"]
    assert search.rounds[1]["find_seconds"] is None
    assert search.chosen is None
    assert search.shown == 1


def test_a_run_by_itself(store: tb.Store) -> None:
    mask = a_mask(0.25)
    add_run(store, an_id("x"), mask, seed=4, arm="reinit", accuracy=0.8)
    add_run(store, an_id("y"), mask, status="diverged")
    x, y = findings_of(store, [], [an_id("x"), an_id("y"), an_id("x")]).searches
    assert (x.method, x.seeds, x.metric, x.data) == ("", [4], "accuracy", "test")
    (row,) = x.rounds
    assert (row["stop_metric"], row["validation_metric"], row["density"]) == (0.8, 0.81, 0.25)
    assert len(x.curves) == 11
    assert {layer["layer"]: layer["kept"] for layer in x.layers} == {"fc1.weight": 480, "fc2.weight": 75}
    assert y.rounds[0]["status"] == "diverged"


def test_a_run_that_is_trained_now(store: tb.Store) -> None:
    claim = store.claim(an_id("now"), {"task": {"name": "made-up"}, "seed": 1, "arm": "dense", "density": 1.0})
    assert claim is not None
    with claim:
        (search,) = findings_of(store, [], [an_id("now")]).searches
    assert search.status == "running"
    assert search.rounds[0]["stop_metric"] is None
    assert not search.curves
    assert not search.unread


def test_of_a_long_curve_both_ends_are_kept(store: tb.Store) -> None:
    add_run(store, an_id("long"), a_mask(0.5), evaluations=999)
    (search,) = findings_of(store, [], [an_id("long")]).searches
    steps = [row["step"] for row in search.curves]
    assert len(steps) == EVALUATIONS
    assert steps[0] == 0
    assert steps[-1] == 20 * 999
    assert steps == sorted(set(steps))


def test_what_the_store_does_not_have_is_refused(store: tb.Store) -> None:
    with pytest.raises(InputError, match="needs a draw or a run"):
        findings_of(store)
    for ids in ([[an_id("no")]], [[], [an_id("no")]]):
        with pytest.raises(InputError, match=f"has no .* {an_id('no')[:16]}"):
            findings_of(store, *ids)


def test_a_first_linear_layer_is_drawn_by_its_inputs() -> None:
    mask = torch.zeros(5, 16, dtype=torch.bool)
    mask[:3, 6] = True
    mask[0, 15] = True
    found = pictured(mask, first=True)
    assert (found.kind, found.most, found.shape) == ("inputs", 5.0, (5, 16))
    (grid,) = found.grids
    assert [(y, x, v) for y, row in enumerate(grid) for x, v in enumerate(row) if v] == [(1, 2, 3), (3, 3, 1)]
    assert len(pictured(torch.ones(2, 12, dtype=torch.bool), first=True).grids) == 3  # three channels of 2 x 2
    assert pictured(torch.ones(2, 13, dtype=torch.bool), first=True).kind == "weights"
    assert pictured(mask, first=False).kind == "weights"


def test_first_kernels_are_drawn_side_by_side() -> None:
    mask = torch.zeros(5, 2, 3, 3, dtype=torch.bool)
    mask[4, 1, 0, 2] = True
    found = pictured(mask, first=True)
    assert (found.kind, len(found.grids)) == ("filters", 2)
    grid = found.grids[1]
    assert (len(grid), len(grid[0])) == (7, 11)  # three across, two down, with a gap between
    # Filter 4 is the second of the second row: its corner is at (4, 4).
    assert [(y, x) for y, row in enumerate(grid) for x, v in enumerate(row) if v] == [(4, 6)]
    assert sum(v is None for row in grid for v in row) == 77 - 5 * 9


@given(st.integers(1, 250), st.integers(1, 250), st.integers(1, 3), st.integers(0, 2**31))
def test_a_picture_of_weights_is_within_bounds_and_small(rows: int, columns: int, kernel: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, columns, kernel, generator=g) < 0.3
    (grid,) = pictured(mask, first=False).grids
    assert len(grid) == min(rows, CELLS)
    assert {len(row) for row in grid} == {min(columns, CELLS)}
    assert all(value is not None and 0 <= value <= 1 for row in grid for value in row)
    if rows <= CELLS and columns <= CELLS:
        assert math.isclose(sum(v or 0 for row in grid for v in row) * kernel, int(mask.sum()), abs_tol=1e-2)
