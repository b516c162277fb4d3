"""Tickets carried from task to task: what is trained, from which values, under which mask, and how it is counted."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import drawn, toy_task

import tombola as tb
from tombola.audits.pairing import Quantity, arms, compare
from tombola.draws import Draw
from tombola.events import Event
from tombola.report.transfer import Transfer, controls_lines, lines, markdown
from tombola.report.transfer_figures import shade, transfer_figures
from tombola.tasks.adapting import adapted
from tombola.tasks.models import mlp
from tombola.transferring.tickets import carried

SHORT = {"steps": "20it", "evaluate_every": "10it", "engine": "masked"}


def task(name: str, classes: int = 3, lr: float = 0.01, **changes: Any) -> tb.Task:
    """Rows of 12 numbers in classes of the task's own."""
    g = torch.Generator().manual_seed(sum(map(ord, name)))
    x = torch.randn(200, 12, generator=g)
    y = (x @ torch.randn(12, classes, generator=g)).argmax(1)
    fields: dict[str, Any] = {"train": (x[:150], y[:150]), "test": (x[150:], y[150:]), "name": name}
    return toy_task(**(fields | {"model": lambda: mlp(12, 16, classes), "recipe": SHORT | {"lr": lr}} | changes))


A, B, MORE = task("a"), task("b", lr=0.02), task("more", classes=5)
RESET: dict[str, Any] = {"survivors": "reset", "rate": 0.5}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transfer") / "runs"


@pytest.fixture(scope="module")
def square(there: Path) -> Transfer:
    """Both tasks to both, two seeds, two densities."""
    return tb.transfer([A, B], [A, B], seeds=(0, 1), densities=(0.5, 0.25), store=there, **RESET)


def test_every_cell_has_its_ticket_its_controls_and_its_dense_net(square: Transfer) -> None:
    assert (square.sources, square.targets) == (["a", "b"], ["a", "b"])
    assert (square.densities, square.seeds) == ([0.5, 0.25], [0, 1])
    assert square.controls == ["reinit", "shuffled", "random_ticket"]
    cells = [(s, t, d, n) for s in "ab" for t in "ab" for d in (0.5, 0.25) for n in (0, 1)]
    found = [(r["source"], r["target"], r["asked"], r["seed"]) for r in square.rows if r["arm"] == "ticket"]
    assert sorted(found) == sorted(cells)
    for arm in square.controls:
        assert sum(r["arm"] == arm for r in square.rows) == len(cells)
    dense = [(r["task"], r["seed"], r["source"], r["density"]) for r in square.rows if r["arm"] == "dense"]
    assert sorted(dense) == [(t, n, None, 1.0) for t in "ab" for n in (0, 1)]
    assert len(square.draws) == len(set(square.draws)) == len(cells)
    assert {(r["source"], r["source_lr"], r["target"], r["target_lr"], r["own"]) for r in square.rows if r["own"]} == {
        ("a", 0.01, "a", 0.01, True),
        ("b", 0.02, "b", 0.02, True),
    }
    carried_over = [r for r in square.rows if (r["source"], r["target"]) == ("a", "b")]
    assert {(r["source_lr"], r["target_lr"], r["own"], r["task"]) for r in carried_over} == {(0.01, 0.02, False, "b")}


def test_the_diagonal_is_the_draw_itself_where_its_survivors_are_reset(square: Transfer, there: Path) -> None:
    with tb.Store(there) as store:
        own = drawn(store, A, densities=(0.5, 0.25), seed=1, **RESET)
    for round in own.rounds[1:]:
        (row,) = [
            r
            for r in square.rows
            if (r["source"], r["target"], r["arm"], r["seed"]) == ("a", "a", "ticket", 1)
            and r["asked"] == pytest.approx(round.mask.density, abs=0.01)
        ]
        assert row["run"] == round.run.id


def test_a_ticket_keeps_its_mask_and_values_and_controls_change_what_they_say(square: Transfer, there: Path) -> None:
    with tb.Store(there) as store:
        source = drawn(store, A, densities=(0.5, 0.25), **RESET)
        found = source.ticket(source.rounds[2])
        address = store.put(carried(found, B, 0).to_bytes())
        draw = drawn(store, B, method="given", ticket=address, controls=("reinit", "shuffled", "random_ticket"))
        runs = {"ticket": draw.rounds[1].run, **{control.arm: control.run for control in draw.controls}}
    of_cell = [r for r in square.rows if (r["source"], r["target"], r["asked"], r["seed"]) == ("a", "b", 0.25, 0)]
    assert {r["arm"]: r["run"] for r in of_cell} == {arm: run.id for arm, run in runs.items()}
    own = runs["ticket"]
    assert tb.Ticket(own.mask, own.start, {}).digest == found.digest
    for arm, moved, fresh in (("reinit", False, True), ("shuffled", True, False), ("random_ticket", True, True)):
        one = runs[arm]
        assert (one.mask != own.mask) == moved
        assert [layer.kept for layer in one.mask.layers()] == [layer.kept for layer in own.mask.layers()]
        both = {name: one.mask[name] & own.mask[name] for name in own.mask}
        alike = [torch.equal(one.start[name][kept], own.start[name][kept]) for name, kept in both.items()]
        assert alike == [not fresh] * 2


def test_numbers_are_those_of_the_rows(square: Transfer) -> None:
    (row,) = [r for r in square.table(0.25) if (r["source"], r["target"]) == ("b", "a")]
    cell = [r for r in square.rows if (r["source"], r["target"], r["asked"]) == ("b", "a", 0.25)]
    values = {arm: [r["stop_metric"] for r in cell if r["arm"] == arm] for arm in ("ticket", *square.controls)}
    assert row["mean"] == pytest.approx(statistics.fmean(values["ticket"]))
    assert row["standard_deviation"] == pytest.approx(statistics.stdev(values["ticket"]))
    assert row["seeds"] == 2
    for arm in square.controls:
        assert row[arm] == pytest.approx(statistics.fmean(values[arm]))
    apart = [ours - theirs for ours, theirs in zip(values["ticket"], values["random_ticket"], strict=True)]
    assert row["ahead_of_random"] == pytest.approx(statistics.fmean(apart))
    assert (row["lowest"], row["highest"]) == pytest.approx((min(apart), max(apart)))
    dense = [r["stop_metric"] for r in square.rows if (r["arm"], r["task"]) == ("dense", "a")]
    assert row["dense"] == pytest.approx(statistics.fmean(dense))
    matrix = square.matrix(0.25)
    assert matrix["b"]["a"] == row["mean"]
    assert list(matrix) == ["a", "b"]
    assert square.matrix(0.25, "dense")["b"]["a"] == pytest.approx(row["dense"])
    assert square.matrix(0.25, "ahead of random_ticket")["b"]["a"] == pytest.approx(row["ahead_of_random"])


def test_a_ticket_is_held_against_the_targets_own_in_the_same_net(tmp_path: Path) -> None:
    options: dict[str, Any] = {"densities": [0.5], "seeds": (0, 1), "controls": (), "store": tmp_path, **RESET}
    found = tb.transfer([A, B], [B, MORE], **options)
    assert found.named == ("a", "b")
    assert found.sources == ["a", "b", "more@a", "more@b"]
    assert {(r["source"], r["target"], r["own_ticket"]) for r in found.rows if r["arm"] == "ticket"} == {
        *(("a", "b", "b"), ("b", "b", "b"), ("a", "more", "more@a"), ("b", "more", "more@b")),
        *(("more@a", "more", "more@a"), ("more@b", "more", "more@b")),
    }
    values = {(r["source"], r["target"], r["seed"]): r["stop_metric"] for r in found.rows if r["arm"] == "ticket"}
    table = {(r["source"], r["target"]): r for r in found.table(0.5)}
    for source, target, own in (("a", "b", "b"), ("a", "more", "more@a"), ("b", "more", "more@b")):
        theirs = [values[own, target, seed] for seed in (0, 1)]
        apart = [values[source, target, seed] - there for seed, there in enumerate(theirs)]
        assert table[source, target]["own_ticket"] == pytest.approx(statistics.fmean(theirs))
        assert table[source, target]["ahead_of_own"] == pytest.approx(statistics.fmean(apart))
    assert table["b", "b"]["ahead_of_own"] is None
    assert found.matrix(0.5, "own ticket") == {
        "a": {"b": table["a", "b"]["own_ticket"], "more": table["a", "more"]["own_ticket"]},
        "b": {"more": table["b", "more"]["own_ticket"]},
    }
    assert [line[0] for line in lines(found, 0.5)[1] if not line[0].startswith(" ")] == ["a", "b"]
    alone = tb.transfer([A], [B], own=False, **options)
    assert {r["own_ticket"] for r in alone.rows} == {None}


def test_differences_are_those_of_audits(square: Transfer) -> None:
    (cell,) = [c for c in square.cells if (c.source, c.target, c.asked) == ("a", "b", 0.5)]
    rows = [
        {**r, "round": 0 if r["arm"] == "dense" else 1, "arm": "ticket" if r["arm"] == "dense" else r["arm"]}
        for r in square.rows
        if (r["source"], r["target"], r["asked"]) == ("a", "b", 0.5) or (r["arm"], r["task"]) == ("dense", "b")
    ]
    quantity = Quantity("accuracy", "stop_metric", True, A.margin, True)
    found = arms(rows, 1, quantity)
    ahead = cell.ahead()
    assert ahead is not None
    assert ahead.interval == compare(found["ticket"], found["random_ticket"], quantity).interval


def test_what_is_in_the_store_is_not_done_again(square: Transfer, there: Path) -> None:
    events: list[Event] = []
    again = tb.transfer(
        [A, B], [A, B], seeds=(0, 1), densities=(0.5, 0.25), store=there, watcher=events.append, **RESET
    )
    assert {event.kind for event in events} == {"found"}
    assert again.rows == square.rows
    assert any(event.arm.startswith("b · ") for event in events), "which task it is on is told"


def test_another_number_of_classes_is_trained_with_a_new_output_layer(tmp_path: Path) -> None:
    found = tb.transfer(A, MORE, densities=[0.5], controls=("random_ticket",), own=True, store=tmp_path, **RESET)
    assert found.sources == ["a", "more@a"]
    assert {r["task"] for r in found.rows} == {"more@a"}
    assert [c.own for c in found.cells] == [False, True]
    with tb.Store(tmp_path) as store:
        source = drawn(store, A, densities=(0.5,), **RESET)
        whole = source.ticket(source.rounds[1])
        both = adapted(MORE, A)
        made = carried(whole, both, 4)
    fresh = both.build(4).state_dict()
    assert list(made.mask) == ["fc1.weight"]
    assert torch.equal(made.mask["fc1.weight"], whole.mask["fc1.weight"])
    assert torch.equal(made.values["fc1.weight"], whole.values["fc1.weight"])
    assert torch.equal(made.values["fc1.bias"], whole.values["fc1.bias"])
    assert torch.equal(made.values["fc2.weight"], fresh["fc2.weight"]), "as the dense net of the seed begins"
    assert made.values["fc2.weight"].shape == (5, 16)
    (row,) = [r for r in found.rows if (r["arm"], r["source"]) == ("ticket", "a")]
    assert row["density"] == made.mask.density, "without the output layer"
    (own,) = [r for r in found.rows if (r["arm"], r["source"]) == ("ticket", "more@a")]
    assert own["density"] == pytest.approx(0.5, abs=0.01)


def test_files_draws_and_tasks_are_sources_alike(tmp_path: Path) -> None:
    with tb.Store(tmp_path / "runs") as store, pytest.MonkeyPatch.context() as patch:
        for known in (A, B):
            patch.setitem(tb.TASKS, known.name, known)
        source = drawn(store, A, densities=(0.5, 0.25), seed=3, controls=("reinit",), **RESET)
        path = source.ticket(source.rounds[2]).save(tmp_path / "kept.ticket")
        options: dict[str, Any] = {"store": tmp_path / "runs", "controls": ("reinit",), "own": False}
        by_file = tb.transfer(path, "b", **options)
        by_ticket = tb.transfer(tb.load(path), "b", **options)
        by_draw = tb.transfer(source.id[:10], "b", **options)
        by_task = tb.transfer("a", "b", seeds=[3], densities=(0.5, 0.25), **options, **RESET)

    def runs(found: Transfer) -> set[tuple[str, str]]:
        return {(r["arm"], r["run"]) for r in found.rows if abs(r["density"] - 0.25) < 0.01}

    assert by_file.seeds == by_draw.seeds == [3]
    assert runs(by_file) == runs(by_ticket) == runs(by_draw) == runs(by_task)
    assert by_draw.densities == [0.5, 0.25]
    assert by_file.sources == ["kept"]
    assert by_draw.sources == ["a"]
    assert {r["source_optimizer"] for r in by_file.rows if r["source"]} == {"adam"}


def test_another_optimiser_tells_sources_apart(tmp_path: Path) -> None:
    sgd = {"optimizer": "sgd", "lr": 0.1}
    found = tb.transfer(A, A, densities=[0.5], training=sgd, controls=(), store=tmp_path, **RESET)
    assert found.sources == ["a (adam 0.01)", "a (sgd 0.1)"]
    assert {(r["target_optimizer"], r["target_lr"]) for r in found.rows} == {("sgd", 0.1)}
    assert [row["ahead_of_random"] for row in found.table(0.5)] == [None, None]
    assert [row["low"] for row in found.table(0.5)] == [None, None]


def test_a_task_is_loaded_once_a_seed_whatever_it_is_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, int]] = []
    splits = tb.Task.splits

    def counted(self: tb.Task, seed: int, *more: Any) -> Any:
        loaded.append((self.name, seed))
        return splits(self, seed, *more)

    monkeypatch.setattr(tb.Task, "splits", counted)
    sgd = {"optimizer": "sgd", "lr": 0.1}
    tb.transfer([A, B], [A], seeds=(0, 1), densities=[0.5], training=sgd, controls=(), store=tmp_path, **RESET)
    assert sorted(loaded) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_draws_are_told_apart_by_their_optimisers_and_else_by_their_ids(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store, pytest.MonkeyPatch.context() as patch:
        for known in (A, B):
            patch.setitem(tb.TASKS, known.name, known)
        one, other = (drawn(store, A, densities=(0.5,), survivors="reset", margin=m) for m in (0.01, 0.02))
        sgd = drawn(store, A, densities=(0.5,), survivors="reset", training={"optimizer": "sgd", "lr": 0.1})

        def sources(*draws: Draw) -> list[str]:
            ids = [draw.id for draw in draws]
            return tb.transfer(ids, "b", own=False, controls=(), store=tmp_path).sources

        assert sources(one, sgd) == ["a (adam 0.01)", "a (sgd 0.1)"]
        assert sources(one, other) == [f"a (adam 0.01) {draw.id[:8]}" for draw in (one, other)]


def test_late_reset_trains_the_whole_recipe_from_early_values(tmp_path: Path) -> None:
    found = tb.transfer(A, B, densities=[0.5], rate=0.5, controls=(), own=False, store=tmp_path)
    with tb.Store(tmp_path) as store:
        source = drawn(store, A, densities=(0.5,), rate=0.5, survivors="rewind", back_to="1ep")
        (row,) = [r for r in found.rows if r["arm"] == "ticket"]
        record = store.run(row["run"])
    assert record is not None
    assert "start" not in record.about["recipe"], "from step 0 on"
    per_epoch = source.lab.steps_per_epoch(0, A.recipe)
    assert per_epoch > 1
    early = source.rounds[0].run.at(tb.Duration(per_epoch))
    assert torch.equal(source.rounds[1].values["fc1.weight"], early["fc1.weight"])
    assert not torch.equal(early["fc1.weight"], A.build(0).state_dict()["fc1.weight"])


# Words and pictures.


def test_tables_have_differences_below_and_mark_what_is_the_targets_own(square: Transfer) -> None:
    header, made = lines(square, 0.5)
    assert header == ["source", "a", "b"]
    below = [f"  ahead of {one}" for one in ("random ticket", "own ticket", "dense net")]
    assert [line[0] for line in made] == ["a", *below, "b", *below]
    table = {(r["source"], r["target"]): r for r in square.table(0.5)}
    for line, source in ((made[0], "a"), (made[4], "b")):
        for text, target in zip(line[1:], "ab", strict=True):
            row = table[source, target]
            shown = f"{100 * row['mean']:.2f} ± {100 * row['standard_deviation']:.2f}"
            assert text == shown + " *" * (source == target)
    row = table["a", "b"]
    ends = [f"{round(100 * row[name], 2) + 0.0:+.2f}" for name in ("ahead_of_random", "lowest", "highest")]
    assert made[1][2] == f"{ends[0]} ({ends[1]} to {ends[2]})"
    assert made[2][2].startswith(f"{round(100 * row['ahead_of_own'], 2) + 0.0:+.2f} (")
    assert made[2][1] == "", "nothing is ahead of itself"
    assert made[3][2].startswith(f"{round(100 * row['ahead_of_dense'], 2) + 0.0:+.2f} (")
    text = markdown(square)
    assert text.count("ahead of dense net") == 2 * 2
    assert text.count("\\*") == 4 + 4, "escaped, so that nothing is slanted"
    assert "the lowest and the highest seed (n = 2)" in text
    assert len(controls_lines(square)[1]) == 8
    assert "| a | b | 25.0 % |" in text


def test_a_diverged_net_is_counted_and_said(square: Transfer) -> None:
    broken = [
        {**r, "status": "diverged", "stop_metric": None}
        if (r["source"], r["target"], r["arm"], r["seed"], r["asked"]) == ("a", "b", "ticket", 1, 0.5)
        else r
        for r in square.rows
    ]
    found = Transfer(tuple(broken), "accuracy", True, 0.01, "test", "stop", square.draws)
    (row,) = [r for r in found.table(0.5) if (r["source"], r["target"]) == ("a", "b")]
    (other,) = [
        r["stop_metric"]
        for r in square.rows
        if (r["source"], r["target"], r["arm"], r["seed"], r["asked"]) == ("a", "b", "ticket", 0, 0.5)
    ]
    assert (row["diverged"], row["mean"]) == (1, pytest.approx(other / 2))
    assert found.gaps() == "Diverged: 1 of ticket, a on b at 50.0 %. Counted as 0."
    assert square.gaps() == ""


def test_the_heat_map_has_every_cell_and_one_scale_of_colours(square: Transfer) -> None:
    chart = transfer_figures(square, title="toys")["transfer"].to_dict()
    assert len(chart["concat"]) == 2
    points = [p for values in chart["datasets"].values() for p in values if "ahead" in p]
    every = {(p["source"], p["target"], p["text"], *p["below"]): p for p in points}
    assert len(every) == 8
    furthest = max(every.values(), key=lambda p: abs(p["ahead"]))
    assert furthest["fill"] == shade(1 if furthest["ahead"] > 0 else -1)
    assert {p["own"] for p in every.values() if p["source"] == p["target"]} == {True}
    for point in every.values():
        others = ["random", "dense"] if point["own"] else ["random", "own", "dense"]
        assert [words.split()[1] for words in point["below"]] == others
    written = sorted((p["source"], p["target"], p["line"]) for p in points if "line" in p)
    assert written == sorted((s, t, line) for s, t, *words in every for line in words), "every number once"
    assert (shade(1), shade(-1), shade(0)) == ("#0072b2", "#d55e00", "#ffffff")


# What is refused.


@pytest.mark.parametrize(
    ("sources", "to", "options", "words"),
    [
        ([], [B], {}, "needs a source and a target"),
        ([A], [], {}, "needs a source and a target"),
        ([A], [B, B], {}, "targets must be named once each, but 'b' is there again"),
        ([A], [B], {"seeds": []}, "seeds must be whole numbers, 0 or more, each once"),
        ([A], [B], {"seeds": [1, 1]}, "seeds must be whole numbers, 0 or more, each once"),
        ([A], [B], {"densities": [1.5]}, "density must be above 0 and at most 1, but got 1.5"),
        ([A], [B], {"controls": ["half_data"]}, "half_data"),
        ([A], [B], {"controls": ["rndom_ticket"]}, "controls"),
        ([A], [B], {"training": {"stepz": 3}}, "stepz"),
        ([A], [B], {"method": "supermask"}, "which method 'supermask' isn't asked for"),
        ([A], [B], {"method": "given"}, "which method 'given' isn't asked for"),
        ([A], [B], {"method": "imqp"}, "unknown method 'imqp'"),
        ([A], [B], {"jobs": 2}, "a task of your own is trained in one process, but 2 are asked for"),
        (["deadbeef"], [B], {}, "none has 'deadbeef'"),
        (
            ["nets/no-such"],
            [B],
            {},
            "there is no file nets/no-such; a source is a task, the id of a draw or a ticket file",
        ),
        (["digits-mpl"], [B], {}, r"unknown task 'digits-mpl'\. Did you mean 'digits-mlp'"),
        ([A], ["no-such"], {}, "unknown task 'no-such'"),
        ([A], [task("loss", metric="loss", higher_is_better=False)], {}, "one kind of metric"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(
    tmp_path: Path, sources: list[Any], to: list[Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(tb.InputError, match=words):
        tb.transfer(sources, to, store=tmp_path / "runs", **options)
    assert not (tmp_path / "runs").exists() or tb.Store(tmp_path / "runs").runs() == []


def test_tickets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tb.TASKS, "a", A)
        wide = mlp(12, 17, 3)
        for ticket, words in [
            (tb.Ticket(tb.Mask.full(wide), wide.state_dict(), {}), "carried from the task of its origin"),
            (tb.Ticket(tb.Mask.full(wide), wide.state_dict(), {"task": "a"}), "at most another output layer, but 'fc1"),
        ]:
            with pytest.raises(tb.InputError, match=words):
                tb.transfer(ticket, B, store=tmp_path)
        good = A.build(0)
        ticket = tb.Ticket(tb.Mask.full(good), good.state_dict(), {"task": "a"})
        with pytest.raises(tb.InputError, match=r"density 0.3 is asked for, but those of ticket \w+ have 1"):
            tb.transfer(ticket, B, densities=[0.3], store=tmp_path)


def test_a_matrix_is_of_what_is_there(square: Transfer) -> None:
    with pytest.raises(tb.InputError, match=r"at the densities 0.5, 0.25, but 0.1 is asked for"):
        square.table(0.1)
    with pytest.raises(tb.InputError, match=r"a matrix is of ticket, dense, own ticket, reinit, .* but got 'tickets'"):
        square.matrix(0.5, "tickets")
