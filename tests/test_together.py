"""Several draws whose nets train in one pass: the runs of draws one by one, whatever happens on the way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_tools import TINY, call
from test_replicates import conv, mlp, normalised
from together_tools import (
    SEEDS,
    SHORT,
    all_runs,
    check_close,
    double,
    masked_alone,
    search,
    single,
    together,
    trained,
)
from toy import same, toy_data, toy_net, toy_task

import tombola as tb
from tombola.draws import Draw
from tombola.events import Event
from tombola.lab import Lab, Trainer
from tombola.tasks.task import Splits, examples
from tombola.together import side_by_side


@pytest.mark.parametrize(("net", "options"), [(normalised, {"controls": ["reinit"]}), (conv, {"method": "one_shot"})])
def test_draws_together_are_the_draws_one_by_one(
    net: Any, options: dict[str, Any], store: tb.Store, other: tb.Store, passes: list[tuple[int, ...]]
) -> None:
    task = double(net)
    events: list[Event] = []
    ours = together(task, store, watcher=events.append, **options)
    each = 1 + 2 * (1 + len(options.get("controls", ())))
    assert passes == [SEEDS] * each, "dense, two rounds, the controls of each: one pass for all seeds"
    theirs = [search(task, seed, other, options, trainer=masked_alone) for seed in SEEDS]
    assert [d.id for d in ours] == [d.id for d in theirs]
    assert [d.chosen.number for d in ours] == [d.chosen.number for d in theirs]
    assert {d.status for d in store.draws()} == {"finished"}
    for a, b in zip(all_runs(ours), all_runs(theirs), strict=True):
        check_close(a, b)
        assert a.mask == b.mask
    for kind in ("start", "done"):
        assert sorted(e.run for e in events if e.kind == kind) == sorted(run.id for run in all_runs(ours))
    for number, found in enumerate(ours):
        for run in all_runs([found]):
            assert run.summary["engine"] == "masked"
            assert run.summary["engine_reason"] == "replicated: 3 nets in one pass"
            assert run.summary["engine_place"] == [number, 3]


def test_the_time_of_a_pass_is_shared(store: tb.Store) -> None:
    task = double(mlp)
    seconds = [run.summary["seconds"] for run in trained(task, store, [{"seed": seed} for seed in SEEDS])]
    assert len(set(seconds)) == 1


def test_values_are_kept_for_rewinding_and_can_be_had_later_with_the_same_bits(
    store: tb.Store, passes: list[tuple[int, ...]]
) -> None:
    task = single(normalised)
    options = {"survivors": "rewind", "back_to": "12it", "rounds": 1}
    draws = together(task, store, **options)
    assert passes == [SEEDS] * 2
    for found in draws:
        dense = found.rounds[0].run
        assert "at-12" in dense.record.blobs
        assert same(found.rounds[1].values, dense.at(tb.Duration(12)))
    run = draws[1].rounds[0].run
    again = run.at(tb.Duration(24))  # trained again as far as that
    assert passes[2:] == [(0, 0, 0)], "at its place in a pass as wide as it was"
    assert same(again, run.final)


def test_stored_runs_are_found_and_only_the_rest_is_trained(store: tb.Store, passes: list[tuple[int, ...]]) -> None:
    task = single(mlp)
    first = together(task, store, rounds=1)
    events: list[Event] = []
    again = together(task, store, watcher=events.append, rounds=2)
    assert [run.id for run in all_runs(first)] == [d.rounds[n].run.id for d in again for n in (0, 1)]
    assert passes == [SEEDS] * 3
    assert sum(event.kind == "found" for event in events) == 6
    assert sum(event.kind == "start" for event in events) == 3


def test_who_has_the_other_places_changes_no_bit(store: tb.Store, other: tb.Store) -> None:
    task = single(conv)
    trained(task, other, [{"seed": 5}, {"seed": 3}, {"seed": 11}])
    ours = trained(task, store, [{"seed": 5}, {"seed": 0}, {"seed": 7}])
    theirs = trained(task, other, [{"seed": 5}, {"seed": 0}, {"seed": 11}])  # 0 alone between two that are there
    assert same(ours[1].final, theirs[1].final)
    assert ours[1].history == theirs[1].history


def test_what_does_not_fit_together_trains_in_passes_of_its_own(
    store: tb.Store, other: tb.Store, passes: list[tuple[int, ...]]
) -> None:
    task = double(mlp, optimizer="adam", lr=0.01, momentum=0.0)
    longer = task.recipe.model_copy(update={"steps": tb.Duration(30)})
    wanted: list[dict[str, Any]] = [
        {"seed": 0},
        {"seed": 1, "recipe": longer},
        {"seed": 2, "keep": [tb.Duration(7)]},
        {"seed": 3},
    ]
    ours = trained(task, store, wanted)
    assert passes == [(0, 0, 0, 3), (1,) * 4, (2,) * 4]
    for run, options in zip(ours, wanted, strict=True):
        check_close(run, Lab(task, other, trainer=masked_alone).train(**options))


def test_different_numbers_of_examples_do_not_fit_together(store: tb.Store, passes: list[tuple[int, ...]]) -> None:
    x, y = toy_data()

    def load(root: Any, seed: int, progress: Any) -> Splits:
        return Splits(examples((x[: 200 + seed], y[: 200 + seed])), examples((x[250:], y[250:])), None)

    trained(toy_task(model=mlp, load=load, recipe=SHORT), store, [{"seed": 0}, {"seed": 1}])
    assert passes == [(0, 0), (1, 1)]


def test_a_net_that_draws_random_numbers_is_trained_by_itself_with_a_word(store: tb.Store, other: tb.Store) -> None:
    task = single(toy_net)
    with pytest.warns(UserWarning, match=r"one by one: this net .* draws random numbers \(dropout\)") as said:
        ours = together(task, store, rounds=1)
    assert len(said) == 1, "said once, not for every round"
    for found, seed in zip(ours, SEEDS, strict=True):
        for a, b in zip(found.rounds, search(task, seed, other, {"rounds": 1}).rounds, strict=True):
            assert a.run.id == b.run.id
            assert same(a.run.final, b.run.final)
            assert "engine_place" not in a.run.summary


class Broken:
    """A task whose data make the nets of some seeds overflow."""

    def __init__(self, *seeds: int) -> None:
        self.seeds = seeds

    def task(self, net: Any) -> tb.Task:
        return toy_task(model=net, load=self.load, recipe=SHORT)

    def load(self, root: Any, seed: int, progress: Any) -> Splits:
        x, y = toy_data()
        training = x[:225] * (1e38 if seed in self.seeds else 1.0)
        return Splits(examples((training, y[:225])), examples((x[225:250], y[225:250])), examples((x[250:], y[250:])))


@pytest.mark.parametrize("net", [mlp, conv])
def test_a_seed_that_diverges_is_none_of_the_others_business(net: Any, store: tb.Store, other: tb.Store) -> None:
    broken = Broken(0).task(net)
    events: list[Event] = []
    with pytest.raises(tb.TombolaError, match="the dense net of seed 0 diverged after 6 steps"):
        together(broken, store, watcher=events.append, rounds=1)
    calm = together(Broken().task(net), other, rounds=1)
    by_seed = {run.about["seed"]: run for run in store.runs() if run.about["density"] == 1}
    assert {seed: run.status for seed, run in by_seed.items()} == {3: "finished", 0: "diverged", 11: "finished"}
    assert by_seed[0].summary["end"] is None
    over = [e.seed for e in events if e.kind == "done"]
    assert over[0] == 0, "its record is made when it is over"
    for found in (calm[0], calm[2]):
        again = search(broken, found.recipe.seed, store, {"rounds": 1})
        for a, b in zip(again.rounds, found.rounds, strict=True):
            assert a.run.id == b.run.id
            assert same(a.run.final, b.run.final)
    assert {d.about["seed"] for d in store.draws() if d.status == "finished"} == {3, 11}


def test_a_draw_that_fails_costs_the_others_nothing(store: tb.Store) -> None:
    task = single(mlp)

    def work(seed: int, options: dict[str, Any]) -> Callable[[Trainer], Draw]:
        return lambda trainer: search(task, seed, store, options, None, trainer)

    bad = {"controls": ["reinit"], "control_rounds": [7]}
    with pytest.raises(tb.InputError, match="at round 7"):
        side_by_side([work(0, bad), work(1, {}), work(2, bad)])
    assert [(d.about["seed"], d.status) for d in store.draws()] == [(1, "finished")]


def test_a_defect_is_raised_at_once_and_no_thread_is_left(store: tb.Store) -> None:
    class DefectError(Exception):
        pass

    def bad(trainer: Trainer) -> None:
        raise DefectError

    task = single(mlp)
    with pytest.raises(DefectError):
        side_by_side([lambda trainer: search(task, 0, store, {}, None, trainer), bad])
    assert not [thread for thread in threading.enumerate() if thread.name == "search"]
    assert not store.runs()


def test_a_lab_can_be_used_when_all_is_over(store: tb.Store) -> None:
    (found, _) = together(double(mlp), store, SEEDS[:2], rounds=1)
    run = found.lab.train(42)
    assert "engine_place" not in run.summary


# ---- the command


def test_the_command_draws_together_and_says_what_it_did(tmp_path: Path) -> None:
    def options(name: str) -> list[object]:
        return [
            "--seed",
            "0-1",
            "--rounds",
            1,
            "--margin",
            "0.9",
            "--store",
            tmp_path / name,
            "--out",
            tmp_path / "out",
        ]

    shown = call("draw", "digits-mlp", *TINY, *options("ours"), "--together", "--json")
    assert shown.status == 0
    assert [line.partition(":")[0] for line in shown.err.splitlines()] == [
        f"seed {seed} · {what} kept" for what in ("dense · 100.00%", "ticket · 80.20%") for seed in (0, 1)
    ]
    alone = call("draw", "digits-mlp", *TINY, *options("theirs"), "--engine", "masked", "--json")
    for ours, theirs in zip(shown.json["rounds"], alone.json["rounds"], strict=True):
        assert (ours["seed"], ours["round"], ours["arm"]) == (theirs["seed"], theirs["round"], theirs["arm"])
        assert ours["end_metric"] == pytest.approx(theirs["end_metric"], abs=0.02)
        said = call("show", ours["run"][:12], "--store", tmp_path / "ours").out
        assert "replicated: 2 nets in one pass" in said
    again = call("draw", "digits-mlp", *TINY, *options("ours"), "--together")
    assert again.err == "4 nets were in the store already\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seed", "0"], "only several seeds can train together, but got 1"),
        (["--seed", "0-1", "--jobs", "2"], "in one process, but 2 are asked for"),
        (["--seed", "0-1", "--engine", "sparse"], "on engine 'masked', but the recipe asks for 'sparse'"),
        (["--seed", "0-1", "--engine", "compact"], "on engine 'masked', but the recipe asks for 'compact'"),
    ],
)
def test_what_does_not_go_together_is_refused(options: list[str], said: str, tmp_path: Path) -> None:
    found = call("draw", "digits-mlp", "--together", *options, "--store", tmp_path / "s", "--out", tmp_path / "o")
    assert (found.status, found.out) == (2, "")
    assert said in found.err
    assert not (tmp_path / "s").exists()
