from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from audited import ACCURACIES, DENSE, DENSITY, GOOD, WORSE, arm_rows, judged, near, of, rows, said
from hypothesis import given, settings
from hypothesis import strategies as st

from tombola.audits.pairing import RIVALS


def test_a_winning_ticket() -> None:
    verdict = judged(rows({"dense": DENSE, "ticket": GOOD, "reinit": WORSE, "shuffled": WORSE}))
    assert verdict.passed
    assert (verdict.accuracy, verdict.as_good, verdict.better) == ("matches", (), ())
    assert verdict.words[0] == (
        "At 13.5 % density this is a winning ticket: "
        "it matches the dense net in accuracy and beats reinit and shuffled."
    )
    for arm in ("reinit", "shuffled"):
        beaten = of(verdict, arm).accuracy
        assert beaten.outcome == "beats"
        assert beaten.p == 4**-5
        assert beaten.p_adjusted == 2 * 4**-5, "Holm: of two equal p values both are doubled"
    assert verdict.beats_all == 4**-5, "the claim about all controls is not corrected"


def test_words_give_the_numbers() -> None:
    ticket = [v + 0.002 for v in DENSE]
    verdict = judged(rows({"dense": DENSE, "ticket": ticket, "reinit": WORSE}, {"dense": 3000, "ticket": 1000}))
    assert verdict.words[1] == (
        "At 13.5 % density the ticket matches the dense net in accuracy, and is better by less than 0.5 points: 98.4 % "
        "against 98.2 % (+0.20 points, 95 % interval +0.20 to +0.20, seeds from +0.20 to +0.20, 5 seeds)."
    )
    assert said(
        verdict, "it learns faster than the dense net: step 1,000 against step 3,000 (2,000 steps sooner, 3.0 times"
    )
    assert said(
        verdict, "It beats reinit (its mask with fresh initial values): 98.4 % against 96.2 %", "with 3 draws each"
    )
    assert said(verdict, "What matters: initial values (reinit loses 2.20 points to the ticket).")


def test_the_three_sides_and_their_precedence() -> None:
    def outcome(*differences: float) -> str:
        ticket = [0.9 + d for d in differences]
        return judged(rows({"dense": [0.9] * len(ticket), "ticket": ticket})).accuracy

    assert outcome(0.010, 0.020, 0.015, 0.012, 0.011) == "wins"
    assert outcome(-0.010, -0.020, -0.015, -0.012, -0.011) == "loses"
    assert outcome(0.001, -0.001, 0.002, -0.002, 0.0) == "matches"
    assert outcome(0.001, 0.002, 0.001, 0.002, 0.001) == "matches", "certain, but smaller than what matters"
    assert outcome(-0.001, -0.002, -0.001, -0.002, -0.001) == "matches"
    assert outcome(0.001, 0.009, 0.004, 0.006, 0.002) == "wins", "certain, and not shown to be smaller than that"
    assert outcome(0.05, -0.05, 0.03, -0.02, 0.01) == "can't tell"
    assert outcome(0.010, 0.020, 0.015, 0.012) == "can't tell", "4 seeds come to no less than 1/16"


def test_an_effect_inside_the_noise_can_not_be_told() -> None:
    rng = np.random.default_rng(0)
    noisy = [[v + 0.003, v - 0.004, v + 0.002] for v in (0.98 + 0.02 * rng.standard_normal(5)).tolist()]
    verdict = judged(rows({"dense": DENSE, "ticket": GOOD, "reinit": noisy}))
    assert of(verdict, "reinit").accuracy.outcome == "can't tell"
    assert not verdict.passed
    assert verdict.words[0].endswith("not shown to be a winning ticket: it is not shown to beat reinit.")
    assert said(verdict, "5 seeds can't settle whether it beats reinit: about ", " would")


def test_few_seeds_of_one_draw_are_said_to_be_too_few() -> None:
    far = {"signed_constant": [v - 0.1 for v in GOOD], "inverted": [v - 0.5 for v in GOOD]}
    now_and_then = [v + 0.003 * (-1) ** i for i, v in enumerate(GOOD)]
    verdict = judged(rows({"dense": DENSE, "ticket": GOOD, "values_shuffled": now_and_then, **far}))
    assert {one.accuracy.outcome for one in verdict.arms if one.arm in far} == {"can't tell"}, "1/32, times three"
    assert said(verdict, "by +50.00 points (in each seed, but 5 with one draw are too few to be sure)")
    assert sum(word.count("too few") for word in verdict.words) == 2, "not of values_shuffled"
    more = {arm: [*values, values[0]] for arm, values in {"dense": DENSE, "ticket": GOOD, **far}.items()}
    assert said(judged(rows(more)), "It beats signed_constant"), "2/64 with a sixth seed"


def test_a_random_mask_that_poses_as_a_ticket_is_found_out() -> None:
    arms: dict[str, Any] = {"dense": DENSE, "ticket": GOOD, "reinit": WORSE, "shuffled": near(GOOD)}
    verdict = judged(rows(arms), prunes="before")
    assert verdict.as_good == ("shuffled",)
    assert not verdict.passed
    assert verdict.words[0] == "At 13.5 % density this is not a winning ticket: shuffled does as well."
    assert said(verdict, "A random mask with the same layer densities does as well", "not weights, within 0.5 points")
    assert said(judged(rows(arms)), "Which weights of a layer it keeps does not matter")


def test_a_ticket_whose_values_were_redrawn_is_found_out() -> None:
    verdict = judged(rows({"dense": DENSE, "ticket": GOOD, "reinit": near(GOOD, 1), "shuffled": WORSE}))
    assert verdict.as_good == ("reinit",)
    assert not verdict.passed
    assert said(verdict, "Its initial values do not matter: the same mask with fresh ones does as well")


def test_a_control_that_is_better_does_as_well() -> None:
    better = [[v + 0.02] * 3 for v in GOOD]
    verdict = judged(rows({"dense": DENSE, "ticket": GOOD, "shuffled": better}))
    assert verdict.as_good == ("shuffled",)


def test_a_control_within_the_margin_does_as_well_though_the_ticket_is_certainly_better() -> None:
    verdict = judged(rows({"dense": DENSE, "ticket": GOOD, "reinit": [[v - 0.001] * 3 for v in GOOD]}))
    assert of(verdict, "reinit").accuracy.p == 4**-5
    assert verdict.as_good == ("reinit",)
    assert not verdict.passed
    assert said(verdict, "within 0.5 points (the ticket is better, but by less)")


def test_a_ticket_without_a_control_has_not_passed() -> None:
    verdict = judged(rows({"dense": DENSE, "ticket": GOOD}))
    assert verdict.accuracy == "matches"
    assert not verdict.passed
    assert verdict.beats_all is None
    assert verdict.words[0].endswith("no control stands beside it.")


def test_a_ticket_worse_than_the_dense_net_has_not_passed() -> None:
    verdict = judged(rows({"dense": [v + 0.03 for v in DENSE], "ticket": GOOD, "reinit": WORSE}))
    assert verdict.accuracy == "loses"
    assert not verdict.passed
    assert "it is worse than the dense net in accuracy" in verdict.words[0]


def test_rivals_need_not_be_beaten_and_are_named_where_they_do_better() -> None:
    more = [v + 0.02 for v in GOOD]
    arms: dict[str, Any] = {"dense": DENSE, "ticket": GOOD, "reinit": WORSE, "lr_rewind": more, "fine_tune": GOOD}
    verdict = judged(rows(arms))
    assert verdict.passed
    assert verdict.better == ("lr_rewind",)
    assert {one.arm for one in verdict.arms if one.role == "rival"} <= set(RIVALS)
    assert said(verdict, "Better than the ticket is lr_rewind")
    assert said(verdict, "It is as good as fine_tune")
    assert of(verdict, "reinit").accuracy.p_adjusted == 4**-5, "rivals are no part of the family that is corrected"


def test_all_controls_can_be_beaten_together_where_single_claims_fall_to_their_number() -> None:
    # One draw in 5 seeds comes to 1/32 each; corrected for two that is 1/16.
    single = [v - 0.02 for v in GOOD]
    verdict = judged(rows({"dense": DENSE, "ticket": GOOD, "signed_constant": single, "inverted": single}))
    assert [one.accuracy.outcome for one in verdict.arms[1:]] == ["can't tell", "can't tell"]
    assert verdict.beats_all == 1 / 32
    assert verdict.passed
    assert said(verdict, "Taken together it is better than both controls (p = 0.031")
    assert [p.fewest for p in verdict.power[1:3]] == [6, 6]


def test_one_seed_settles_nothing() -> None:
    verdict = judged(rows({"dense": DENSE[:1], "ticket": GOOD[:1], "reinit": WORSE[:1]}))
    assert (verdict.accuracy, verdict.speed, verdict.passed) == ("can't tell", "can't tell", False)
    reinit = of(verdict, "reinit").accuracy
    assert (reinit.p, reinit.p_adjusted, reinit.outcome, reinit.compared.interval.low) == (
        None,
        None,
        "can't tell",
        None,
    )
    assert said(
        verdict, "1 seed can't settle whether it beats reinit: its exact test needs at least 3, and one seed has"
    )
    assert all((p.difference, p.spread) == (None, None) for p in verdict.power)


def test_equal_differences_do_not_tell_how_many_seeds_are_enough() -> None:
    verdict = judged(rows({"dense": [0.5] * 3, "ticket": [0.75] * 3}))
    assert verdict.accuracy == "can't tell"
    assert said(verdict, "3 seeds can't settle", "at least 5, and equal differences do not tell")


def test_the_end_is_judged_where_it_is_asked_for() -> None:
    there = rows({"dense": DENSE, "ticket": GOOD})
    for one in there:
        one["end_metric"] = 0.1 if one["round"] else 0.98
    assert judged(there).accuracy == "matches"
    assert judged(there, at="end").accuracy == "loses"


def test_a_metric_of_which_less_is_better() -> None:
    arms = {
        "dense": [4.0, 4.1, 4.2, 4.0, 4.1],
        "ticket": [3.0, 3.1, 3.1, 3.0, 3.2],
        "reinit": [5.0, 5.1, 5.2, 5.0, 5.1],
    }
    verdict = judged(rows(arms), metric="perplexity", higher_is_better=False, margin=0.05)
    assert verdict.accuracy == "wins"
    assert verdict.passed
    assert of(verdict, "reinit").accuracy.compared.interval.mean == pytest.approx(2.0)
    assert said(verdict, "is better than the dense net in perplexity: 3.08 against 4.08 (+1, where + is better")


def test_speed_is_judged_by_the_early_stop_step() -> None:
    dense = [4000, 4400, 4200, 4100, 4300]

    def speed(*steps: float) -> str:
        return judged(rows({"dense": DENSE, "ticket": GOOD}, {"dense": dense, "ticket": steps})).speed

    assert speed(1000, 1100, 1200, 900, 1300) == "wins"
    assert speed(9000, 9500, 9900, 9000, 9100) == "loses"
    assert speed(4100, 4300, 4200, 4200, 4200) == "matches", "a tenth of the dense net's steps is the margin"
    assert speed(1000, 9000, 2000, 8000, 4000) == "can't tell"


def test_blame_finds_the_part_that_was_destroyed() -> None:
    low = [[v - 0.05 for v in seed] for seed in WORSE]
    arms: dict[str, Any] = {
        "dense": DENSE,
        "ticket": GOOD,
        "shuffled": near(GOOD),
        "random_uniform": WORSE,
        "random_erk": near(GOOD, 2),
    }
    arms |= {"reinit": low, "signed_reinit": near(GOOD, 3), "inverted": WORSE}
    verdict = judged(rows(arms))
    found = {part.part.split(" (")[0] + f" {part.destroyed}": part.matter for part in verdict.blame}
    assert found == {
        "positions within the layers shuffled": "does not matter",
        "layer densities random_uniform": "matters",
        "layer densities random_erk": "does not matter",
        "initial values reinit": "matters",
        "signs of the initial values reinit": "matters",
        "magnitudes of the initial values signed_reinit": "does not matter",
        "order of the scores inverted": "matters",
    }
    assert said(
        verdict, "What matters: ", "(random_uniform loses", "to shuffled)", "(reinit loses", "to signed_reinit)"
    )


def test_a_part_and_its_control_never_say_two_things() -> None:
    agree = {"beats": "matters", "does as well": "does not matter", "can't tell": "can't tell"}
    arms: dict[str, Any] = {
        "dense": DENSE,
        "ticket": GOOD,
        "shuffled": near(GOOD),
        "reinit": WORSE,
        "inverted": near(GOOD, 4, 1, 0.02),
    }
    verdict = judged(rows(arms))
    for part in verdict.blame:
        assert part.matter == agree[of(verdict, part.destroyed).accuracy.outcome]


def test_arms_of_which_two_share_no_seed_with_each_other_tell_nothing_of_each_other() -> None:
    there = rows({"dense": DENSE, "ticket": GOOD})
    there += arm_rows("shuffled", WORSE[:2]) + arm_rows("random_erk", WORSE[2:], first=2)
    assert [part.destroyed for part in judged(there).blame] == ["shuffled"]


def test_as_good_controls_are_found_with_few_seeds_beside_many_other_controls() -> None:
    names = ["reinit", "values_shuffled", "random_uniform", "random_erk", "random_smart_ratio", "signed_reinit"]
    arms: dict[str, Any] = {"dense": DENSE, "ticket": GOOD, "shuffled": near(GOOD)} | dict.fromkeys(names, WORSE)
    assert judged(rows(arms)).as_good == ("shuffled",)


def test_json_and_table() -> None:
    verdict = judged(rows({"dense": DENSE, "ticket": GOOD, "reinit": WORSE, "small_dense": DENSE}))
    document = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
    assert document == verdict.as_dict()
    assert document["words"] == list(verdict.words)
    assert document["density"] == DENSITY
    reinit = document["arms"][1]["accuracy"]["compared"]
    assert reinit["their_values"] == [list(seed) for seed in WORSE], "the single draws are kept"
    table = verdict.rows()
    assert [(one["arm"], one["quantity"]) for one in table] == [
        (arm, quantity) for arm in ("dense", "reinit", "small_dense") for quantity in ("accuracy", "speed")
    ]
    own = table[2]
    assert own["difference"] == pytest.approx(0.02)
    assert own["mean"] == pytest.approx(np.mean(WORSE))
    assert own["sd"] == pytest.approx(np.std(np.mean(WORSE, axis=1), ddof=1))
    assert (own["p"], own["outcome"], own["seeds"], own["draws"]) == (4**-5, "beats", 5, 3)


@settings(max_examples=10, deadline=None)
@given(ACCURACIES)
def test_swapping_ticket_and_arm_swaps_better_and_worse(values: list[list[float]]) -> None:
    ticket, dense = [v[0] for v in values], [v[1] for v in values]
    one, other = (
        of(judged(rows(arms)), "dense").accuracy.compared
        for arms in ({"dense": dense, "ticket": ticket}, {"dense": ticket, "ticket": dense})
    )
    assert (one.better, one.worse) == (other.worse, other.better)
    assert (one.not_worse, one.not_better) == (other.not_better, other.not_worse)
    assert one.equivalent == other.equivalent


@settings(max_examples=10, deadline=None)
@given(ACCURACIES, st.integers(-8, 8))
def test_a_constant_added_to_all_arms_changes_no_outcome(values: list[list[float]], constant: int) -> None:
    arms: dict[str, Any] = {"dense": DENSE, "ticket": [v[0] for v in values], "reinit": [v[1:] for v in values]}
    moved = rows(arms)
    for one in moved:
        one["stop_metric"] += constant
    still, other = judged(rows(arms), metric="score"), judged(moved, metric="score")
    assert [(a.accuracy.p, a.accuracy.outcome) for a in still.arms] == [
        (a.accuracy.p, a.accuracy.outcome) for a in other.arms
    ]
    assert (still.passed, still.as_good) == (other.passed, other.as_good)


def test_a_ticket_that_is_one_more_draw_of_its_control_rarely_passes() -> None:
    rng, trials, passed = np.random.default_rng(7), 60, 0
    for _ in range(trials):
        draws = (0.98 + 0.002 * rng.standard_normal((5, 4))).tolist()
        arms: dict[str, Any] = {
            "dense": DENSE,
            "ticket": [d[0] for d in draws],
            "reinit": [d[1:] for d in draws],
            "shuffled": WORSE,
        }
        passed += judged(rows(arms)).passed
    assert passed / trials <= 0.05 + 4 * (0.05 * 0.95 / trials) ** 0.5


def test_a_control_of_ones_own_is_judged_like_any_other() -> None:
    verdict = judged(rows({"dense": DENSE, "ticket": GOOD, "mine": near(GOOD), "yours": WORSE}))
    assert verdict.as_good == ("mine",)
    assert said(verdict, "The control mine does as well, within 0.5 points")
    assert said(verdict, "It beats yours: ")
    assert verdict.blame == ()
