from __future__ import annotations

import random
from typing import Any

import pytest
from audited import ACCURACIES, DENSE, GOOD, WORSE, arm_rows, judged, of, row, rows, said
from hypothesis import given, settings
from hypothesis import strategies as st

from tombola.errors import InputError


def test_arms_without_a_common_seed_are_refused() -> None:
    there = rows({"dense": DENSE, "ticket": GOOD}) + arm_rows("reinit", WORSE, first=5)
    with pytest.raises(InputError, match=r"paired by seed, but ticket has seeds 0-4 and reinit seeds 5-9: train both"):
        judged(there)


def test_seeds_that_only_one_arm_has_are_left_out_and_said() -> None:
    there = rows({"dense": DENSE, "ticket": GOOD}) + arm_rows("reinit", WORSE[:3])
    verdict = judged(there)
    assert of(verdict, "reinit").accuracy.compared.seeds == (0, 1, 2)
    assert of(verdict, "dense").accuracy.compared.seeds == (0, 1, 2, 3, 4)
    assert said(verdict, "Only seeds 0-2 of reinit and the ticket count: seeds 3-4 are not in both.")


@pytest.mark.parametrize("status", ["finished", "diverged"])
def test_a_value_that_is_missing_is_never_dropped(status: str) -> None:
    there = [*rows({"dense": DENSE, "ticket": GOOD}), row("reinit", 0, None, status=status)]
    if status == "finished":
        with pytest.raises(
            InputError, match=r"every finished run must have a stop_metric, but that of seed 0, arm 'reinit'"
        ):
            judged(there)
        return
    verdict = judged(there)
    assert of(verdict, "reinit").accuracy.compared.their_values == ((0.0,),)
    assert said(verdict, "1 of 1 runs of reinit diverged and counts as 0.0 %.")


@pytest.mark.parametrize(("metric", "up"), [("accuracy", True), ("perplexity", False), ("mean_return", True)])
def test_a_ticket_that_diverged_once_neither_wins_nor_matches(metric: str, up: bool) -> None:
    ticket: list[float | None] = [*[0.999 if up else 0.5] * 7, None]
    verdict = judged(rows({"dense": [0.98] * 8, "ticket": ticket}), metric=metric, higher_is_better=up)
    assert verdict.accuracy == "can't tell"
    assert verdict.speed == "can't tell", "what diverged has learned nothing sooner"
    assert said(verdict, "1 of 8 runs of the ticket diverged")


def test_a_ticket_that_always_diverged_loses() -> None:
    verdict = judged(rows({"dense": DENSE, "ticket": [None] * 5}), metric="perplexity", higher_is_better=False)
    assert (verdict.accuracy, verdict.speed) == ("loses", "loses")


def test_a_dense_net_that_diverged_is_nothing_to_judge_by() -> None:
    with pytest.raises(InputError, match="dense net, but it diverged with seed 4: train it anew"):
        judged(rows({"dense": [*DENSE[:4], None], "ticket": GOOD}))


def test_rows_that_are_no_audit_are_refused() -> None:
    there = rows({"dense": DENSE, "ticket": GOOD})
    with pytest.raises(InputError, match="must be that of a ticket, but got 3; there are 9"):
        judged(there, round=3)
    with pytest.raises(InputError, match="must be that of a ticket, but got 0"):
        judged(there, round=0)
    with pytest.raises(InputError, match="there is none: draw a ticket first"):
        judged(rows({"dense": DENSE}))
    with pytest.raises(InputError, match="no row is of round 0"):
        judged(rows({"ticket": GOOD}))
    with pytest.raises(InputError, match="ticket, seed 2, draw 0 is there with two runs"):
        judged([*there, row("ticket", 2, 0.9, run="another")])
    assert judged([*there, *there]) == judged(there), "the same run twice, as when two audits share it, is one"


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("margin", -0.1, "margin must be a number from 0 up, but got -0.1"),
        ("margin", float("nan"), "margin must be a number"),
        ("speed_margin", -1.0, "speed_margin must be a number"),
        ("alpha", 0.5, "alpha must lie between 0 and 0.5"),
        ("at", "middle", "at must be 'stop' .* but got 'middle'"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: Any, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        judged(rows({"dense": DENSE, "ticket": GOOD}), **{option: value})


@settings(max_examples=10, deadline=None)
@given(ACCURACIES, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(values: list[list[float]], mixer: random.Random) -> None:
    there = rows({"dense": DENSE, "ticket": [v[0] for v in values], "reinit": [v[1:] for v in values]})
    mixed = list(there)
    mixer.shuffle(mixed)
    assert judged(mixed) == judged(there)
