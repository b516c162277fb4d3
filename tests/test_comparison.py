"""Comparing methods: ladders, what is carried out and what is refused, tables by hand."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from compared_rows import Row, compared, run
from hypothesis import given
from hypothesis import strategies as st

import tombola as tb
from tombola import comparing
from tombola.asked import draw_recipe
from tombola.draws import Draw
from tombola.errors import DataError, InputError, TicketError, TombolaError
from tombola.events import Event
from tombola.methods import METHODS
from tombola.recipe import DrawRecipe
from tombola.report import comparison
from tombola.report.tables import DASH

DIGITS = tb.get_task("digits-mlp")

# ---- the ladder


def test_a_ladder_by_hand() -> None:
    assert comparing.ladder([0.25, 0.2], 0.5) == [0.5, 0.25, 0.2]
    assert comparing.ladder([0.5], 0.2) == [0.793701, 0.629961, 0.5]  # the powers of a third of 0.5
    assert comparing.ladder([0.9], 0.5) == [0.9]
    assert len(comparing.ladder([0.1], 0.2)) == 10  # log 0.1 / log 0.8 is 10.3


def test_small_densities_keep_the_digits_that_tell_them_apart() -> None:
    assert comparing.ladder([1e-4, 2.5e-5], 0.5)[-2:] == [0.00005, 0.000025]


@given(
    st.lists(st.floats(1e-5, 0.99), min_size=1, max_size=5, unique=True).map(lambda d: sorted(d, reverse=True)),
    st.floats(0.05, 0.9),
)
def test_a_ladder_meets_every_density_and_falls_evenly(densities: list[float], rate: float) -> None:
    found = comparing.ladder(densities, rate)
    assert set(densities) <= set(found)
    DrawRecipe(densities=tuple(found))  # refuses what doesn't fall
    above = 1.0
    for density in densities:
        steps = found[found.index(above) + 1 if above < 1 else 0 : found.index(density) + 1]
        ratios = [b / a for a, b in pairwise([above, *steps])]
        assert all(r == pytest.approx((density / above) ** (1 / len(steps)), rel=2e-3) for r in ratios)
        assert abs(len(steps) - math.log(density / above) / math.log(1 - rate)) <= (0.5 if len(steps) > 1 else 1)
        above = density


# ---- what is asked for


def test_methods_are_named_once_and_known() -> None:
    assert comparing.methods_named(["rigl", "imp"]) == ["rigl", "imp"]
    everything = comparing.methods_named(["all"])
    assert "at_init" not in everything
    assert {*everything, "at_init", "given"} == set(METHODS)
    for names, said in (
        ([], "name the methods to compare"),
        (["imp", "imp"], "'imp' is there 2 times"),
        (["all", "imp"], "leave out the others"),
        (["rigle"], "Did you mean 'rigl'"),
    ):
        with pytest.raises(InputError, match=said):
            comparing.methods_named(names)


def test_each_method_goes_to_the_densities_in_its_own_way() -> None:
    names = ["imp", "han", "obd", "one_shot", "snip", "rigl", "early_bird", "supermask"]
    found, refused = comparing.recipes(DIGITS, names, seeds=[3, 4], densities=[0.25, 0.2], options={"rate": 0.5})
    assert refused == []
    assert [r.seed for r in found] == [3, 4] * len(names)
    of = {r.method: r for r in found}
    for name in names[:2]:
        assert of[name].densities == (0.5, 0.25, 0.2)
    for name in names[2:6]:
        assert of[name].densities == (0.25, 0.2)
    assert of["early_bird"].densities == METHODS["early_bird"].densities
    assert (of["supermask"].densities, of["supermask"].rounds) == (None, 1)
    (own,), _ = comparing.recipes(
        DIGITS, ["early_bird"], seeds=[0], densities=[0.2], channel_densities=[0.6], options={"training": {"batch": 20}}
    )
    assert (own.densities, own.training.batch) == ((0.6,), 20)


def test_a_method_that_refuses_what_is_asked_is_left_out_and_not_the_others() -> None:
    names, changes = ["imp", "gradual"], {"allocation": "layerwise"}
    found, (refused,) = comparing.recipes(DIGITS, names, seeds=[0, 1], densities=[0.2], options=changes)
    assert [recipe.method for recipe in found] == ["imp", "imp"]
    assert (refused.method, refused.seeds) == ("gradual", (0, 1))
    assert "'layerwise'" in refused.reason
    with pytest.raises(InputError, match="'layerwise'"):
        comparing.recipes(DIGITS, names[1:], seeds=[0], densities=[0.2], options=changes)


# ---- what is carried out


def drawn(recipe: DrawRecipe, *numbers: int) -> comparing.Done:
    """The dense net and these rounds, with numbers that tell where they come from."""

    def row(number: int) -> Row:
        share = 1.0 if number == 0 else (recipe.densities or (0.4,))[number - 1]
        spent = {"find_seconds": 1.0, "find_flops": 50 * number, "train_seconds": 2.0, "train_flops": 200 * share}
        results = {"end_metric": 0.9, "stop_metric": 0.8, "status": "finished", "run": f"{recipe.method}{number}"}
        return {"arm": "ticket", "round": number, "density": share, **spent, **results, "bytes": 7}

    return comparing.Done([row(number) for number in (0, *numbers)], True)


class Fake(Draw):
    """A finished draw of these rows."""

    def __init__(self, recipe: DrawRecipe, given: list[Row]) -> None:
        self.recipe, self.given = recipe, given
        self.lab: Any = SimpleNamespace(splits=lambda seed: SimpleNamespace(test="images"))

    def rows(self) -> list[Row]:
        return self.given


def carried_out(monkeypatch: pytest.MonkeyPatch, errors: Mapping[str, TombolaError]) -> list[list[str]]:
    """Have each draw stand for itself; methods of ``errors`` raise. Gives the methods of each call, several of them
    where they were spread over processes."""
    calls = []

    def carry_out(wanted: Sequence[DrawRecipe], *, watcher: Any = None, **_: Any) -> list[Draw]:
        calls.append([recipe.method for recipe in wanted])
        for recipe in wanted:
            if recipe.method in errors:
                raise errors[recipe.method]
            if watcher is not None:
                watcher(Event("done", "ticket", recipe.seed, 0.5))
                watcher(Event("done", "scores", recipe.seed, 1.0))
                watcher(Event("done", "dense", recipe.seed, 1.0))
        return [Fake(recipe, drawn(recipe, 1).rows) for recipe in wanted]

    def fill_store(wanted: Sequence[DrawRecipe], **_: Any) -> dict[int, TombolaError]:
        calls.append([recipe.method for recipe in wanted])
        return {place: errors[recipe.method] for place, recipe in enumerate(wanted) if recipe.method in errors}

    monkeypatch.setattr(comparing, "carry_out", carry_out)
    monkeypatch.setattr(comparing, "fill_store", fill_store)
    return calls


def wanted(*methods: str, seeds: Sequence[int] = (0,)) -> list[DrawRecipe]:
    return comparing.recipes(DIGITS, methods, seeds=seeds, densities=[0.2], options={})[0]


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_a_task_cannot_have_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    carried_out(monkeypatch, {"early_bird": InputError("no batch normalisation")})
    asked = wanted("snip", "early_bird", "rigl", seeds=(0, 1))
    found = comparing.carry_out_each(asked, store="nowhere", jobs=jobs)
    assert [isinstance(outcome, comparing.Done) for outcome in found] == [True, True, False, False, True, True]
    assert comparing.left_out(asked, found) == [comparing.LeftOut("early_bird", "no batch normalisation", (0, 1))]
    assert {row["method"] for row in comparing.rows(asked, found, [0.2])} == {"dense", "snip", "rigl"}


def test_what_the_store_has_whole_is_read_and_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = {"steps": "40it", "evaluate_every": "20it"}
    asked, _ = comparing.recipes(
        DIGITS, ["snip", "one_shot"], seeds=[0], densities=[0.2], options={"training": training}
    )
    where = str(tmp_path / "store")
    done = comparing.carry_out_each(asked[:1], store=where)
    calls = carried_out(monkeypatch, {})
    heard: list[Event] = []
    found = comparing.carry_out_each(asked, store=where, watcher=heard.append)
    assert calls == [["one_shot"]], "the other one is there"
    assert [event.kind for event in heard[:2]] == ["found", "found"]
    before, after = (comparing.rows(asked[:1], outcomes, [0.2]) for outcomes in (done, found[:1]))
    assert after == before
    assert after[1]["find_seconds"] == before[1]["find_seconds"] > 0
    with tb.Store(where) as store:  # a run that is gone is made again
        run = store.run(after[1]["run"])
        assert run is not None
        store.discard(run)
    comparing.carry_out_each(asked, store=where)
    assert calls[1:] == [["snip"], ["one_shot"]]


def test_what_several_processes_have_done_is_read_and_not_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"steps": "40it", "evaluate_every": "20it"}
    asked, _ = comparing.recipes(DIGITS, ["snip"], seeds=[0, 1], densities=[0.2], options={"training": training})
    where, really = str(tmp_path / "store"), comparing.carry_out

    def fill_store(wanted: Sequence[DrawRecipe], *, store: str, **_: Any) -> dict[int, TombolaError]:
        really(wanted, store=store)
        return {}

    calls = carried_out(monkeypatch, {})
    monkeypatch.setattr(comparing, "fill_store", fill_store)
    found = comparing.carry_out_each(asked, store=where, jobs=2)
    assert calls == [], "no draw is carried out in this process"
    assert found == comparing.carry_out_each(asked, store=where), "costs of scoring too are those of the store"


def test_several_processes_share_all_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = carried_out(monkeypatch, {})
    comparing.carry_out_each(wanted("snip", "rigl"), store="nowhere", jobs=2)
    assert calls == [["snip", "rigl"], ["snip"], ["rigl"]], "then they are read, one after the other"


@pytest.mark.parametrize("jobs", [1, 2])
def test_other_errors_and_refusals_of_everything_are_raised(monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    errors: tuple[TombolaError, ...] = (DataError("no data"), TicketError("damaged"), InputError("no such layer"))
    for error in errors:
        carried_out(monkeypatch, {"snip": error, **({"rigl": error} if type(error) is InputError else {})})
        with pytest.raises(type(error), match=str(error)):
            comparing.carry_out_each(wanted("rigl", "snip"), store="nowhere", jobs=jobs)


def test_no_more_than_one_draw_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Draw]] = []
    alive = []

    def carry_out(wanted: Sequence[DrawRecipe], **_: Any) -> list[Draw]:
        gc.collect()
        alive.append([one for one in made if one() is not None])
        draw = Fake(wanted[0], drawn(wanted[0], 1).rows)
        made.append(weakref.ref(draw))
        return [draw]

    monkeypatch.setattr(comparing, "carry_out", carry_out)
    assert len(comparing.carry_out_each(wanted("snip", "rigl", "imp"), store="nowhere")) == 3
    assert alive == [[], [], []]


def test_a_watcher_is_told_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    carried_out(monkeypatch, {})
    heard: list[Event] = []
    comparing.carry_out_each(wanted("rigl"), store="nowhere", watcher=heard.append)
    assert [event.arm for event in heard] == ["rigl", "rigl · scores", "dense"]


def test_rows_are_those_of_the_densities_asked_for() -> None:
    asked, _ = comparing.recipes(DIGITS, ["imp", "supermask"], seeds=[5], densities=[0.25, 0.2], options={"rate": 0.5})
    found = comparing.rows(asked, [drawn(asked[0], 1, 2, 3), drawn(asked[1], 1)], [0.25, 0.2])
    assert [(r["method"], r["prunes"], r["asked"], r["density"], r["run"]) for r in found] == [
        ("dense", "", None, 1.0, "imp0"),
        ("imp", "after", 0.25, 0.25, "imp2"),
        ("imp", "after", 0.2, 0.2, "imp3"),
        ("supermask", "during", None, 0.4, "supermask1"),
    ]
    assert [(r["find_times"], r["train_times"]) for r in found] == [(0, 1), (0.5, 0.25), (0.75, 0.2), (0.25, 0.4)]


def test_rounds_without_a_net_are_rows_all_the_same() -> None:
    asked, _ = comparing.recipes(DIGITS, ["imp", "early_bird"], seeds=[0, 1], densities=[0.5], options={"rate": 0.5})
    outcomes: list[comparing.Outcome] = [
        drawn(asked[0], 1),
        drawn(asked[1]),
        drawn(asked[2], 1, 3),
        InputError("not this seed"),
    ]
    found = [r for r in comparing.rows(asked, outcomes, [0.5]) if r["method"] != "dense"]
    assert [(r["method"], r["seed"], r["asked"], r["channels"], r["status"]) for r in found] == [
        ("imp", 0, 0.5, None, "finished"),
        ("imp", 1, 0.5, None, "missing"),
        *(("early_bird", 0, None, share, s) for share, s in ((0.7, "finished"), (0.5, "missing"), (0.3, "finished"))),
        *(("early_bird", 1, None, share, "missing") for share in (0.7, 0.5, 0.3)),
    ]
    assert found[1]["end_metric"] is found[1]["train_times"] is None


def test_unknown_costs_stay_unknown() -> None:
    recipe = draw_recipe(DIGITS, {"method": "snip", "densities": [0.2]})
    one = drawn(recipe, 1)
    one.rows[1]["find_flops"] = None
    (_, row) = comparing.rows([recipe], [one], [0.2])
    assert (row["find_times"], row["train_times"]) == (None, 0.2)
    one.rows[0]["train_flops"] = None
    assert comparing.rows([recipe], [one], [0.2])[1]["train_times"] is None


# ---- tables


OWN = {"channels": 0.3, "density": 0.21}


def test_the_table_by_hand() -> None:
    early = [run("early_bird", "during", s, None, v, **OWN) for s, v in ((0, 0.6), (1, 0.7))]
    assert comparison.markdown(compared(*early), ["x is left out: so."]) == (
        "Test accuracy in percent at the end of training, by density: mean ± standard deviation over 3 seeds. "
        "The best mean at a density is bold.\n\n"
        "| method | prunes | 10.0 % | 5.0 % | own density |\n"
        "| :--- | :--- | ---: | ---: | ---: |\n"
        "| dense |  |  |  | 99.00 ± 0.00 at 100 % |\n"
        "| snip | before | **95.00 ± 0.00** | 80.00 (1 of 3) |  |\n"
        "| early_bird (30.0 % of channels) | during |  |  | 65.00 ± 7.07 at 21.0 % |\n"
        "| imp | after | 93.00 ± 3.61 | **93.00 ± 3.61** |  |\n"
        "\n"
        "What it cost at 5.0 % density: processor seconds to find the mask and to train under it, and operations as "
        "multiples of one dense training (x); means.\n\n"
        "| method | prunes | density | accuracy % | find, s | find, x | train, s | train, x | both, x | kB to store |\n"
        "| :--- | :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| dense |  | 100 % | 99.00 ± 0.00 | 2 | 0.00 | 8 | 1.00 | 1.00 | 2.5 |\n"
        "| snip | before | 5.0 % | 80.00 (1 of 3) | 2 | 1.50 | 8 | 0.250 | 1.75 | 2.5 |\n"
        "| early_bird (30.0 % of channels) | during | 21.0 % | 65.00 ± 7.07 | 2 | 1.50 | 8 | 0.250 | 1.75 | 2.5 |\n"
        "| imp | after | 5.0 % | 93.00 ± 3.61 | 2 | 1.50 | 8 | 0.250 | 1.75 | 2.5 |\n"
        "\n"
        "Without a result: snip at 5.0 % (1 diverged, 1 missing of 3).\n"
        "\n"
        "x is left out: so.\n"
    )


def test_the_deviation_is_that_of_a_sample() -> None:
    cell = next(c for c in compared().cells if c.method == "imp")
    assert [cell.mean, cell.deviation] == pytest.approx([0.93, math.sqrt(0.0026 / 2)])
    alone = next(c for c in compared().cells if c.method == "snip" and c.asked == 0.05)
    assert (alone.mean, alone.deviation, alone.diverged, alone.missing) == (0.8, None, 1, 1)


def test_nothing_but_lost_runs_is_said_in_the_cell() -> None:
    lost = [run("set", "during", s, 0.1, None, status="diverged") for s in range(3)]
    lost += [run("set", "during", s, 0.05, None, status="missing", density=None) for s in range(3)]
    _, lines = comparison.metric_lines(compared(*lost))
    assert lines[2].texts == ("set", "during", "diverged", DASH, "")
    assert "set at 10.0 % (3 diverged of 3); set at 5.0 % (3 missing of 3)" in compared(*lost).gaps()


def test_the_best_is_the_first_of_equal_ones_and_the_lowest_where_that_is_better() -> None:
    same = [run("grasp", "before", s, 0.1, 0.95) for s in range(3)]
    best = compared(*same).best(0.1)
    assert best is not None
    assert best.method == "grasp"
    best = compared(metric="perplexity", lower_is_better=True).best(0.1)
    assert best is not None
    assert best.method == "imp"
    assert compared().best(0.3) is None


def test_the_metric_is_read_where_asked() -> None:
    found = compared(at="stop", data="validation", metric="perplexity")
    assert found.caption().startswith("Validation perplexity at early stop, by density")
    assert comparison.metric_lines(found)[1][1].texts == ("snip", "before", "0.5 ± 0", "0.5 (1 of 3)", "")


def test_unknown_costs_are_dashes() -> None:
    unknown = dict.fromkeys(("find_times", "train_times", "train_seconds", "bytes"))
    _, lines = comparison.cost_lines(compared(run("set", "during", 0, 0.05, 0.9, **unknown)))
    assert lines[2].texts[4:] == ("2", DASH, DASH, DASH, DASH, DASH)
    assert compared(run("set", "during", 0, 0.05, 0.9, **unknown)).at_cost[2].total is None


@pytest.mark.parametrize(
    ("times", "shown"), [(0.0, "0.00"), (0.00004, "< 0.001"), (0.0512, "0.0512"), (9.876, "9.88"), (12.34, "12.3")]
)
def test_multiples_have_three_digits_that_count(times: float, shown: str) -> None:
    _, lines = comparison.cost_lines(compared(run("set", "during", 0, 0.05, 0.9, find_times=times)))
    assert lines[2].texts[5] == shown


def test_numbers_have_what_the_tables_have() -> None:
    found = {(n["method"], n["asked"]): n for n in comparison.numbers(compared())}
    assert found["imp", 0.05]["best"]
    assert found["imp", 0.05]["total_times"] == 1.75
    assert not found["imp", 0.1]["best"]
    assert not found["dense", None]["best"]
    assert (found["snip", 0.05]["runs"], found["snip", 0.05]["diverged"], found["snip", 0.05]["missing"]) == (3, 1, 1)
