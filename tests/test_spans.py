"""Where the y axes of metrics end: shares near their top, returns of games whole, perplexity by its logarithm."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tombola.report import drawing
from tombola.report.spans import Span, span, window

VALUES = st.lists(st.floats(-1e6, 1e6), max_size=20)
SOME = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20)


def test_window_shows_everything_that_is_near() -> None:
    # The focus reaches 2 below the top, so the axis may reach 6: down to 95, with 4 % of 5 as margin.
    assert window([98.0, 99.0, 100.0], [95.0, 98.0, 100.0]) == pytest.approx([94.8, 100.2])


def test_window_cuts_what_is_far_and_forgives_an_outlier_of_the_focus() -> None:
    assert window([98.0, 99.0, 100.0], [10.0, 98.0, 100.0]) == pytest.approx([94 - 0.24, 100.24])
    # Quartiles 99 and 100, fence 97.5: the collapsed ticket at 11 % doesn't count, those at 99 do.
    focus = [99.0, 100.0, 99.0, 100.0, 99.0, 100.0, 99.0, 100.0, 11.0]
    assert window(focus, focus) == pytest.approx([97 - 0.12, 100.12])
    low, high = window([2.0, 3.0], [2.0, 3.0, 900.0], lower_better=True)
    assert (low, high) == pytest.approx((2 - 0.12, 5 + 0.12))


def test_a_quarter_of_the_focus_is_no_outlier() -> None:
    ladder = [28.4, 28.4, 27.6, 21.9]  # four rounds, the last of which falls: one of them is a quarter
    low, high = window(ladder, [*ladder, 26.2, 21.5, 12.4])
    assert (low, high) == pytest.approx((12.4 - 0.64, 28.4 + 0.64))
    low, _ = window([*ladder, 28.4], ladder)
    assert low > 25, "one of five is an outlier"


@given(st.lists(st.floats(-1e6, 1e6), max_size=20), st.lists(st.floats(-1e6, 1e6), max_size=20))
def test_window_is_an_interval_that_holds_the_top_of_everything(focus: list[float], others: list[float]) -> None:
    low, high = window(focus, focus + others)
    assert low < high
    assert not focus + others or low < max(focus + others) <= high


@given(st.lists(st.floats(0, 100), max_size=20), st.lists(st.floats(0, 100), max_size=20))
def test_shares_have_the_window(focus: list[float], others: list[float]) -> None:
    assert span("accuracy", focus, focus + others) == (*window(focus, focus + others), False)
    assert span("balanced_accuracy", focus, focus + others).domain == list(window(focus, focus + others))


@given(SOME, VALUES, st.booleans())
def test_other_metrics_show_all_of_the_focus_and_the_best_of_all(
    focus: list[float], others: list[float], lower_better: bool
) -> None:
    shown = span("score", focus, focus + others, lower_better)
    assert shown.low < shown.high
    assert all(shown.low <= v <= shown.high for v in focus)
    best = min(focus + others) if lower_better else max(focus + others)
    assert shown.low <= best <= shown.high
    assert not shown.log


@given(SOME, VALUES)
def test_lower_is_better_upside_down(focus: list[float], others: list[float]) -> None:
    low, high, _ = span("score", focus, focus + others, lower_better=False)
    turned = span("score", [-v for v in focus], [-v for v in focus + others], lower_better=True)
    assert turned.domain == [-high, -low]


@pytest.mark.parametrize(
    ("tickets", "controls"),
    [
        ([199, 197, 196, 91], [199, 182, 94, 22]),  # CartPole
        ([200, 200, 200], [200, 60, 9]),
        ([-84, -83, -85], [-100, -400, -500]),  # Acrobot
        ([240, 100, -120], [200, -150, -600]),  # LunarLander
        ([250, 240, 245], [200, -150, -1000]),
        ([8000, 6000, 300], [7000, 500, 0]),  # games of the Atari
        ([33.1, 32.0, 28.0], [30.0, 8.0, 0.2]),  # BLEU
        ([0.0, 0.0], [-21.0, -20.0]),
    ],
)
def test_whole_collapses_are_shown(tickets: list[float], controls: list[float]) -> None:
    low, high, log = span("return", tickets, tickets + controls)
    assert low < min(tickets + controls) < max(tickets + controls) < high
    assert not log


def test_what_would_flatten_the_tickets_is_cut() -> None:
    # Largest magnitude 250, reach 150: six times the larger below the best are -1,250, and 4 % of 1,500 are air.
    assert span("return", [250, 100], [250, 100, -9000]).domain == pytest.approx([-1250 - 60, 250 + 60])
    # A ticket that reaches farther than it is large counts by its reach.
    assert span("return", [250, -250], [250, -250, -9000]).domain == pytest.approx([-2750 - 120, 250 + 120])
    assert span("return", [250, -9000], [250, -9000]).low < -9000, "a ticket is never cut"
    assert span("loss", [0.5, 0.6], [0.5, 0.6, 900.0]).domain == pytest.approx([0.5 - 0.144, 4.1 + 0.144])


def test_chance_does_not_look_like_a_fall() -> None:
    low, high, _ = span("return", [200.0, 199.5], [200.0, 199.5])
    assert (low, high) == pytest.approx((190 - 0.4, 200 + 0.4))
    low, high, _ = span("perplexity", [100.0, 100.5], [100.0, 100.5])
    assert high / low == pytest.approx(1.05**1.08)


def test_perplexity_is_log_up_to_a_hundred_times_the_tickets() -> None:
    near = span("perplexity", [100, 130], [100, 130, 9000])
    air = (9000 / 100) ** 0.04
    assert near.domain == pytest.approx([100 / air, 9000 * air])
    far = span("validation_perplexity", [100, 130], [90, 130, 1e12])
    air = (13_000 / 90) ** 0.04
    assert far.domain == pytest.approx([90 / air, 13_000 * air])
    assert near.log
    assert far.log
    assert span("perplexity", [100, 1e9], [100, 1e9]).high > 1e9, "a ticket is never cut"
    assert not span("perplexity", [1.0, 0.0], [1.0, 0.0]).log, "no perplexity, whatever it is called"


@pytest.mark.parametrize("metric", ["accuracy", "return", "perplexity"])
def test_axes_without_values_or_with_one_have_ends(metric: str) -> None:
    assert span(metric, [], []).domain == [0.0, 1.0]
    low, high, _ = span(metric, [], [40.0])
    assert low < 40 < high
    low, high, _ = span(metric, [0.0], [0.0])
    assert low < 0 < high


def test_short_log_axes_have_ticks_too() -> None:
    assert drawing.even_log_ticks(1.8, 60) == [2, 5, 10, 20, 50]
    assert drawing.even_log_ticks(2.02, 2.55) == [2.1, 2.2, 2.3, 2.4, 2.5]
    assert drawing.even_log_ticks(105, 151) == [110, 120, 130, 140, 150]


@given(st.floats(1, 1e6), st.floats(1.05, 1e6))
def test_log_axes_have_ticks_between_their_ends(low: float, times: float) -> None:
    found = drawing.even_log_ticks(low, low * times)
    assert len(found) >= 2
    assert all(low <= tick <= low * times or math.isclose(tick, low) for tick in found)


def test_points_are_held_near_a_linear_axis_and_above_zero_on_a_log_one() -> None:
    point = {"arm": "a", "mean": 1e13, "low": -5.0, "high": 2e13}
    assert drawing.near([point], Span(0, 2)) == [{"arm": "a", "mean": 102, "low": -5.0, "high": 102}]
    assert drawing.near([point], Span(10, 200, log=True)) == [{"arm": "a", "mean": 1e13, "low": 0.1, "high": 2e13}]
