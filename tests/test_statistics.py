from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tombola.audits import statistics
from tombola.audits.statistics import (
    deviation,
    exchange,
    fewest_seeds,
    holm,
    interval,
    mean,
    seeds_for_difference,
    seeds_for_equivalence,
    within,
)

# Multiples of 1/4 are exact in binary: what is equal here is equal there.
VALUES = st.integers(-40, 40).map(lambda n: n / 4)


@st.composite
def experiments(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]]]:
    seeds = draw(st.integers(1, 4))
    return tuple(  # type: ignore[return-value]
        [draw(st.lists(VALUES, min_size=1, max_size=3)) for _ in range(seeds)] for _ in range(2)
    )


def flipped(differences: list[float]) -> statistics.PValues:
    return exchange([[d] for d in differences], [[0.0]] * len(differences))


def counted(ours: list[list[float]], theirs: list[list[float]]) -> tuple[float, float]:
    """The p values by plain counting of every labelling."""
    each = []
    for a, b in zip(ours, theirs, strict=True):
        pooled = [*a, *b]
        choices = itertools.combinations(range(len(pooled)), len(a))
        each.append([(sum(pooled[i] for i in c), len(a), sum(pooled), len(b)) for c in choices])
    sums = [sum(s / n - (total - s) / m for s, n, total, m in way) for way in itertools.product(*each)]
    seen = sums[0]
    return (
        sum(s >= seen - 1e-9 for s in sums) / len(sums),
        sum(s <= seen + 1e-9 for s in sums) / len(sums),
    )


def test_three_seeds_that_agree_come_to_one_in_eight() -> None:
    p = flipped([1.0, 2.0, 0.5])
    assert (p.better, p.worse, p.exact) == (1 / 8, 1.0, True)


def test_sign_flips_worked_by_hand() -> None:
    # The sums of 3, -1 and 2 with any signs are 6, 4, 2, 2, 0, 0 ... of which 4 is seen: 2 of 8 are as large.
    p = flipped([3.0, -1.0, 2.0])
    assert (p.better, p.worse) == (2 / 8, 7 / 8)


@pytest.mark.parametrize(("seeds", "draws"), [(1, 4), (3, 1), (3, 3), (5, 3), (2, 19)])
def test_the_best_of_every_seed_comes_to_one_of_all_labellings(seeds: int, draws: int) -> None:
    theirs = [[float(d) for d in range(draws)] for _ in range(seeds)]
    p = exchange([[50.0]] * seeds, theirs)
    assert p.better == (draws + 1) ** -seeds
    assert p.worse == 1


def test_seeds_may_have_different_numbers_of_draws_and_several_of_ours() -> None:
    assert exchange([[5.0], [5.0]], [[1.0], [1.0, 2.0]]).better == 1 / (2 * 3)
    assert exchange([[5.0, 6.0]], [[1.0, 2.0]]).better == 1 / math.comb(4, 2)


def test_equal_values_say_nothing() -> None:
    p = exchange([[0.1 + 0.2], [0.98]], [[0.3, 0.3], [0.98, 0.98]])
    assert (p.better, p.worse) == (1, 1)


@settings(max_examples=60, deadline=None)
@given(experiments())
def test_p_values_are_those_of_plain_counting(experiment: tuple[list[list[float]], list[list[float]]]) -> None:
    p = exchange(*experiment)
    assert (p.better, p.worse) == pytest.approx(counted(*experiment))


@pytest.mark.parametrize("draws", [1, 2])
def test_p_values_are_those_of_scipy(draws: int) -> None:
    from scipy.stats import permutation_test

    rng = np.random.default_rng(draws)
    values = rng.standard_normal((draws + 1, 3))

    def apart(ours: np.ndarray, *theirs: np.ndarray) -> float:
        return float(np.mean(ours - np.mean(theirs, axis=0)))

    p = exchange(values[:1].T.tolist(), values[1:].T.tolist())
    for side, own in (("greater", p.better), ("less", p.worse)):
        found = permutation_test(tuple(values), apart, permutation_type="samples", alternative=side, n_resamples=np.inf)
        assert own == pytest.approx(found.pvalue)


@settings(max_examples=40, deadline=None)
@given(experiments(), VALUES)
def test_swapping_the_arms_swaps_the_sides_and_a_constant_changes_nothing(
    experiment: tuple[list[list[float]], list[list[float]]], constant: float
) -> None:
    ours, theirs = experiment
    p, swapped = exchange(ours, theirs), exchange(theirs, ours)
    assert (p.better, p.worse) == pytest.approx((swapped.worse, swapped.better))
    moved = [[[v + constant for v in seed] for seed in arm] for arm in experiment]
    assert exchange(*moved).better == pytest.approx(p.better)


def test_too_many_labellings_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    ours, theirs = (0.4 + rng.standard_normal((6, 1))).tolist(), rng.standard_normal((6, 3)).tolist()
    exact = exchange(ours, theirs)
    monkeypatch.setattr(statistics, "MOST_SUMS", 10)
    sampled = exchange(ours, theirs)
    assert exact.exact
    assert not sampled.exact
    assert sampled.better == pytest.approx(exact.better, abs=5 * math.sqrt(0.25 / statistics.SAMPLED))
    assert sampled == exchange(ours, theirs), "a sample that is not fixed would give another p each time"
    assert exchange([[9.0]] * 45, [[0.0, 1.0]] * 45).better == 1 / (statistics.SAMPLED + 1)


@pytest.mark.parametrize(("seeds", "draws"), [(5, 1), (5, 3), (4, 2)])
def test_a_ticket_that_is_just_another_draw_is_rarely_found_better(seeds: int, draws: int) -> None:
    rng, trials = np.random.default_rng(seeds * draws), 1500
    found = [
        exchange(*(rng.standard_exponential((seeds, size)).tolist() for size in (1, draws))) for _ in range(trials)
    ]
    noise = 4 * math.sqrt(0.05 * 0.95 / trials)
    assert np.mean([p.better <= 0.05 for p in found]) <= 0.05 + noise
    assert np.mean([p.worse <= 0.05 for p in found]) <= 0.05 + noise


def test_equivalence_worked_by_hand() -> None:
    ours, theirs = [[0.982], [0.979], [0.983]], [[0.98], [0.98], [0.98]]
    # Within 0.5 points every difference is above the lower and below the upper margin.
    assert within(ours, theirs, 0.005) == (1 / 8, 1 / 8)
    # Within 0.25 points: 4.5, 1.5 and 5.5 above the lower one; -0.5, -3.5 and 0.5 from the
    # upper one, where of the sums of such numbers -4.5 and twice -3.5 are as low as -3.5.
    assert within(ours, theirs, 0.0025) == (1 / 8, 3 / 8)


def test_a_difference_on_the_margin_is_not_within_it() -> None:
    assert within([[0.985]] * 5, [[0.98]] * 5, 0.005) == (1 / 32, 1)


@settings(max_examples=40, deadline=None)
@given(experiments(), st.integers(0, 8), st.integers(0, 8))
def test_a_wider_margin_is_easier(
    experiment: tuple[list[list[float]], list[list[float]]], one: int, other: int
) -> None:
    narrow, wide = sorted((one / 4, other / 4))
    for p, q in zip(within(*experiment, wide), within(*experiment, narrow), strict=True):
        assert p <= q
    assert within(*experiment, 0.0) == (exchange(*experiment).better, exchange(*experiment).worse)


def test_holm_by_hand() -> None:
    # 0.01 times 3; 0.03 times 2; 0.04 times 1, but no less than the one before.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.7]) == [0.7]
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_is_that_of_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    p_values = np.random.default_rng(0).random(12) ** 3
    p_values[3] = p_values[7]
    assert holm(p_values.tolist()) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_an_interval_lies_within_the_values_and_beside_their_ends() -> None:
    assert interval([0.3]) == statistics.Interval(0.3, None, None, 0.3, 0.3)
    assert interval([0.3, 0.3, 0.3]) == statistics.Interval(0.3, 0.3, 0.3, 0.3, 0.3)
    few = interval([0.1, 0.4, 0.2])
    assert (few.low, few.high) == pytest.approx((0.1, 0.4)), "3 seeds give no more than their range"
    many = interval([float(n) for n in range(20)])
    assert many.low is not None
    assert many.high is not None
    assert 0 < many.low < many.mean == 9.5 < many.high < 19
    assert interval([1.0, 2.0, 4.0, 8.0]) == interval([1.0, 2.0, 4.0, 8.0]), "the resampling is fixed"


@pytest.mark.parametrize("seeds", [10, 15, 20])
def test_intervals_of_normal_values_are_as_wide_as_those_of_student(seeds: int) -> None:
    from scipy import stats

    values = stats.norm.ppf((np.arange(seeds) + 0.5) / seeds).tolist()
    found, spread = interval(values), deviation(values)
    assert found.low is not None
    assert found.high is not None
    assert spread is not None
    student = 2 * stats.t.ppf(0.975, seeds - 1) * spread / math.sqrt(seeds)
    assert found.high - found.low == pytest.approx(student, rel=0.018), "percentiles that are not expanded are narrower"


@pytest.mark.parametrize(("seeds", "low", "high"), [(3, 0.68, 0.82), (5, 0.87, 0.97), (10, 0.9, 0.99)])
def test_intervals_cover_what_the_docstring_says(seeds: int, low: float, high: float) -> None:
    rng, trials = np.random.default_rng(seeds), 500
    found = [interval(rng.standard_normal(seeds).tolist()) for _ in range(trials)]
    covered = np.mean([one.low is not None and one.high is not None and one.low <= 0 <= one.high for one in found])
    assert low < covered < high


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12))
def test_a_mean_lies_between_its_values_and_equal_values_have_no_spread(values: list[float]) -> None:
    assert min(values) <= mean(values) <= max(values)
    assert deviation([values[0]]) is None
    assert deviation([values[0]] * 4) == 0
    if len(values) > 1:
        assert deviation(values) == pytest.approx(np.std(values, ddof=1), abs=1e-6)


@pytest.mark.parametrize(
    ("alpha", "draws", "seeds"), [(0.05, 1, 5), (0.05, 3, 3), (0.05, 19, 1), (0.25, 1, 2), (0.05 / 10, 3, 4)]
)
def test_the_fewest_seeds_that_can_show_anything(alpha: float, draws: int, seeds: int) -> None:
    assert fewest_seeds(alpha, draws) == seeds
    assert (draws + 1) ** -seeds <= alpha < (draws + 1) ** -(seeds - 1)


def test_the_number_of_seeds_is_that_of_statsmodels() -> None:
    from statsmodels.stats.power import TTestPower

    for spread, margin in ((0.01, 0.005), (0.004, 0.005), (0.02, 0.005)):
        for function, power in ((seeds_for_difference, 0.8), (seeds_for_equivalence, 0.9)):
            exact = TTestPower().solve_power(margin / spread, power=power, alpha=0.05, alternative="larger")
            assert function(spread, margin, 0.05) == math.ceil(exact)
    assert seeds_for_difference(1e-9, 0.005, 0.05) == 2


def test_a_number_of_seeds_that_can_not_be_had() -> None:
    assert seeds_for_difference(0.0, 0.005, 0.05) is None
    assert seeds_for_difference(0.01, 0.0, 0.05) is None
    assert seeds_for_equivalence(1.0, 0.005, 0.05) is None


def test_so_many_seeds_show_a_difference_4_times_in_5() -> None:
    seeds, rng, trials = seeds_for_difference(1.0, 0.8, 0.05), np.random.default_rng(0), 600
    assert seeds is not None
    shown = [flipped((0.8 + rng.standard_normal(seeds)).tolist()).better <= 0.05 for _ in range(trials)]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.1)
