"""What is asked of an audit: the dense net's learning rates, controls, margins, draws and runs of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from audited import of, said
from auditing_tools import SHORT, TASK, Audited, drawn, runs_of
from torch import nn
from toy import toy_task

import tombola as tb
from tombola.asked import draw_recipe
from tombola.auditing import Claim, _tuned, claim_of, claim_of_record
from tombola.draws import Draw
from tombola.lab import Lab


@pytest.fixture
def audits(store: tb.Store, tmp_path: Path) -> Audited:
    """In the place of ``store``."""
    return Audited(tmp_path / "runs")


# ---- the dense net's learning rate


def test_the_dense_net_is_tuned_on_validation_data(store: tb.Store, audits: Audited) -> None:
    draw = drawn(store, rounds=1)
    ticket = draw.ticket(draw.rounds[1])
    found = audits.ticket(ticket, 2, dense_rates=(0.03, 1e-6))
    assert audits.began == 2 * 2 + 2, "two rates for two seeds; dense and ticket of seed 1"
    rates = [row for row in found.rows if row["arm"] == "dense_rate"]
    assert [(row["seed"], row["draw"]) for row in rates] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    own = [row for row in found.rows if row["arm"] == "ticket" and row["round"] == 0]
    by_rate = {0.01: own, 0.03: rates[::2], 1e-6: rates[1::2]}
    means = {rate: sum(row["validation_metric"] for row in rows) for rate, rows in by_rate.items()}
    best = max(means, key=lambda rate: means[rate])
    assert best != 1e-6
    assert said(found.verdict, f"of the learning rates 1e-06, 0.01, 0.03, {best:g} is best on validation data")
    expected = sum(row["stop_metric"] for row in by_rate[best]) / 2
    assert of(found.verdict, "dense").accuracy.compared.their_mean == pytest.approx(expected)
    assert {one.arm for one in found.verdict.arms} == {"dense"}, "a learning rate is no arm of the verdict"
    again = audits.ticket(ticket, 2, dense_rates=(0.03, 1e-6))
    assert audits.began == 0
    assert again.as_dict() == found.as_dict()
    with pytest.raises(tb.InputError, match=r"not be the recipe's own 0\.01, but got 0\.01"):
        audits.ticket(ticket, dense_rates=(0.01,))


def test_test_data_never_choose_a_learning_rate(store: tb.Store) -> None:
    recipe = draw_recipe(TASK, {"rounds": 1, "dense_rates": (0.1, 0.2)})
    draw = Draw(recipe, Lab(TASK, store, recipe=recipe.training))

    def row(arm: str, place: int, validation: float | None, test: float) -> dict[str, Any]:
        known = {"arm": arm, "draw": place, "seed": 0, "round": 0, "stop_step": 10}
        return {**known, "validation_metric": validation, "stop_metric": test}

    there = [row("ticket", 0, 0.8, 0.99), row("dense_rate", 0, 0.9, 0.1), row("dense_rate", 1, None, 1.0)]
    chosen, words = _tuned([*there, {**row("ticket", 0, 0.7, 0.7), "round": 1}], recipe, draw)
    assert [(r["arm"], r["round"], r["stop_metric"]) for r in chosen] == [("ticket", 0, 0.1), ("ticket", 1, 0.7)]
    assert words == ("The dense net is tuned: of the learning rates 0.01, 0.1, 0.2, 0.1 is best on validation data.",)
    there[1]["validation_metric"] = 0.8
    assert _tuned(there, recipe, draw)[0][0]["stop_metric"] == 0.99, "of equal ones its own"


@pytest.mark.parametrize(("own", "tuned", "judged"), [((30, 50), (70, 30), [30, 50]), ((30, 50), (10, 60), [10, 60])])
def test_a_slow_rate_makes_no_ticket_fast(
    store: tb.Store, own: tuple[int, int], tuned: tuple[int, int], judged: list[int]
) -> None:
    recipe = draw_recipe(TASK, {"rounds": 1, "dense_rates": (0.001,)})
    draw = Draw(recipe, Lab(TASK, store, recipe=recipe.training))
    arms = (("ticket", own, 0.8), ("dense_rate", tuned, 0.9))
    there = [
        {"arm": arm, "draw": 0, "seed": seed, "round": 0, "stop_step": step, "validation_metric": v, "stop_metric": v}
        for arm, steps, v in arms
        for seed, step in enumerate(steps)
    ]
    chosen, words = _tuned(there, recipe, draw)
    assert [row["stop_step"] for row in chosen] == judged
    assert [row["stop_metric"] for row in chosen] == [0.9, 0.9], "its accuracy is that of the tuned one all the same"
    assert len(words) == 1 + (judged == [30, 50])
    if len(words) == 2:
        assert "judged against the recipe's own rate, 0.01, " in words[1]
        assert "stops at step 40, before step 50 of the tuned one" in words[1]


# ---- what is asked for


def test_rivals_decide_nothing(store: tb.Store, audits: Audited) -> None:
    task = toy_task(
        name=TASK.name,
        recipe=SHORT,
        scaled=lambda factor: nn.Sequential(
            nn.Linear(12, max(1, round(24 * factor))), nn.ReLU(), nn.Linear(max(1, round(24 * factor)), 3)
        ),
    )
    draw = drawn(store, task, rounds=1)
    claim = claim_of(draw.ticket(draw.rounds[1]), task)
    rivals = ("lr_rewind", "fine_tune", "small_dense")
    found = audits.claim(claim, 2, controls=rivals, margin=0.5).verdict
    assert {one.arm: one.role for one in found.arms} == {"dense": "dense", **dict.fromkeys(rivals, "rival")}
    assert not found.passed
    assert found.as_good == ()
    assert said(found, "no control stands beside it")
    one = audits.claim(claim, 2, controls=("reinit",)).verdict
    all_ = audits.claim(claim, 2, controls=("reinit", *rivals)).verdict
    assert (all_.passed, all_.beats_all, all_.as_good) == (one.passed, one.beats_all, one.as_good)
    assert of(all_, "reinit") == of(one, "reinit")


def test_controls_by_default_are_those_that_cost_no_search(store: tb.Store, audits: Audited) -> None:
    cheap = {"dense", "reinit", "shuffled", "random_uniform", "random_erk", "random_smart_ratio", "values_shuffled"}
    cheap |= {"signed_reinit", "signed_constant"}
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({"rounds": 1}, {"inverted", "lr_rewind", "fine_tune"}),
        ({"method": "snip", "densities": (0.5,)}, {"inverted", "random_labels", "shuffled_pixels", "half_data"}),
        ({"method": "synflow", "densities": (0.5,), "score_rounds": 3}, {"inverted"}),
    ]
    for options, more in cases:
        draw = drawn(store, **options)
        found = audits.ticket(draw.ticket(draw.rounds[1]), controls=None, control_draws=1)
        assert {one.arm for one in found.verdict.arms} == cheap | more
        assert all(row["round"] == 1 for row in found.rows if row["arm"] != "ticket")


def test_what_can_not_be_is_refused_before_anything_is_trained(store: tb.Store, audits: Audited) -> None:
    draw = drawn(store, rounds=1)
    ticket = tb.Ticket(draw.rounds[1].mask, draw.rounds[1].values, {**draw.ticket().origin, "round": 1, "seed": 8})
    origin = {**ticket.origin, "recipe": {**ticket.origin["recipe"], "seed": 8}}
    fresh = tb.Ticket(ticket.mask, ticket.values, origin)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"controls": ("reinitt",)}, "unknown control 'reinitt'. Did you mean 'reinit'"),
        ({"controls": ("reinit", "reinit")}, "must be named once each"),
        ({"controls": ("small_dense",)}, "the task names none"),
        ({"control_draws": 0, "controls": ("reinit",)}, "control_draws: .* got 0"),
        ({"margin": float("nan")}, "margin must be a number from 0 up, but got nan"),
        ({"margin": -0.1}, "margin must be a number from 0 up"),
        ({"speed_margin": -1.0}, "speed_margin must be a number from 0 up"),
        ({"alpha": 0.5}, "alpha must lie between 0 and 0.5"),
        ({"at": "middle"}, "at must be 'stop'"),
        ({"dense_rates": (0.02, 0.02)}, "dense_rates must each be there once"),
        ({"dense_rates": (-1.0,)}, "dense_rates.0: .*greater than 0"),
        ({"seeds": 0}, "seeds must be from 1 to 1,000, but got 0"),
        ({"seeds": []}, "seeds must be whole numbers"),
        ({"seeds": [1, 1]}, "each once"),
        ({"seeds": [-1]}, "0 or more"),
    ]
    for how, words in refused:
        with pytest.raises(tb.InputError, match=words):
            audits.ticket(fresh, **how)
        assert audits.began == 0


def test_margin_and_place_of_judgement(store: tb.Store, audits: Audited) -> None:
    draw = drawn(store, rounds=1, margin=0.07)
    ticket = draw.ticket(draw.rounds[1])
    stop, end = (audits.ticket(ticket, 2, at=at) for at in ("stop", "end"))
    for found, field in ((stop, "stop_metric"), (end, "end_metric")):
        values = [row[field] for row in found.rows if row["round"] == 1]
        assert of(found.verdict, "dense").accuracy.compared.our_mean == pytest.approx(sum(values) / 2)
    assert (stop.verdict.margin, stop.verdict.at, end.verdict.at) == (0.07, "stop", "end")
    assert audits.ticket(ticket, 2, margin=0.2).verdict.margin == 0.2
    assert audits.ticket(ticket, 2, margin=0.0).verdict.margin == 0.0


# ---- draws and runs of the store


def test_a_draw_or_a_run_of_it_claims_the_round(
    store: tb.Store, audits: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tb.TASKS, TASK.name, TASK)
    draw = drawn(store, rounds=2, margin=0.9, controls=["reinit"])
    record, ticket = store.draw(draw.id), draw.ticket(draw.rounds[1])
    assert record is not None
    audits.ticket(ticket, 2, as_it_is=True)
    draws = store.draws()
    assert claim_of_record(record, draws) == Claim(TASK, draw.recipe, 2)
    assert claim_of_record(record, draws, 1).round == 1
    run = store.run(draw.rounds[1].run.id)
    assert run is not None
    claim = claim_of_record(run, draws)
    assert (claim.recipe.method, claim.round) == ("imp", 1), "not the one that was judged as it is"
    found = audits.claim(claim)
    assert audits.began == 0
    assert runs_of(found, "ticket") == [r.run.id for r in draw.rounds[:2]]
    with pytest.raises(tb.InputError, match="only the file of a ticket can be judged as it is"):
        audits.claim(claim, as_it_is=True)
    for wrong, number, words in [
        (store.run(draw.rounds[0].run.id), None, "is no draw's ticket"),
        (store.run(draw.controls[0].run.id), None, "is no draw's ticket"),
        (run, 2, "is that of round 1, but round 2 is asked for"),
        (record, 3, "go from 1 to 2, but got 3"),
        (next(d for d in draws if d.about["recipe"]["method"] == "given"), 1, "only trained the ticket of a file"),
    ]:
        assert wrong is not None
        with pytest.raises(tb.InputError, match=words):
            claim_of_record(wrong, draws, number)
    none = drawn(store, rounds=1, margin=0.0, seed=3, training={"lr": 0.02})
    unchosen = store.draw(none.id)
    assert unchosen is not None
    for row in unchosen.rounds:
        row["chosen"] = row["round"] == 0
    with pytest.raises(tb.InputError, match="chose no ticket, as none was inside the margin: name a round"):
        claim_of_record(unchosen, draws)
    unchosen.about["recipe"]["colour"] = "red"
    with pytest.raises(tb.InputError, match="can't be read by this version: draw it anew"):
        claim_of_record(unchosen, draws, 1)
