"""Schedules of densities: by hand, and what all of them share."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tombola.errors import InputError
from tombola.schedules import SCHEDULES, TO_TARGET, cubic, exponential, geometric, linear, to_target

TARGETS = st.floats(1e-6, 1.0)
ROUNDS = st.integers(1, 60)


def test_geometric_by_hand() -> None:
    assert geometric(0.5, 3) == [0.5, 0.25, 0.125]
    assert geometric(0.2, 2) == [0.8, 0.8**2]


def test_exponential_by_hand() -> None:
    assert exponential(0.01, 2) == pytest.approx([0.1, 0.01], rel=1e-15)
    assert exponential(0.125, 3) == pytest.approx([0.5, 0.25, 0.125], rel=1e-15)


def test_linear_by_hand() -> None:
    assert linear(0.2, 4) == pytest.approx([0.8, 0.6, 0.4, 0.2], rel=1e-15)


def test_cubic_by_hand() -> None:
    # Sparsity 0.8 * (1 - (1/2) ** 3) = 0.7 half-way.
    assert cubic(0.2, 2) == pytest.approx([0.3, 0.2], rel=1e-15)


@settings(deadline=None)
@given(st.sampled_from(sorted(TO_TARGET)), TARGETS, ROUNDS)
def test_schedules_to_a_target_fall_all_the_way_and_end_on_it(schedule: str, target: float, rounds: int) -> None:
    densities = to_target(schedule, target, rounds)
    assert len(densities) == rounds
    assert densities[-1] == target
    assert all(0 < d <= 1 for d in densities)
    assert all(later <= earlier for earlier, later in pairwise(densities))


@settings(deadline=None)
@given(TARGETS.filter(lambda t: t < 0.999), st.integers(2, 60))
def test_what_the_schedules_keep_equal(target: float, rounds: int) -> None:
    steady = [1.0, *linear(target, rounds)]
    assert [a - b for a, b in pairwise(steady)] == pytest.approx([(1 - target) / rounds] * rounds)
    scaled = [1.0, *exponential(target, rounds)]
    rates = [b / a for a, b in pairwise(scaled)]
    assert rates == pytest.approx([target ** (1 / rounds)] * rounds)
    assert exponential(target, rounds) == pytest.approx(geometric(1 - target ** (1 / rounds), rounds))
    early = [1.0, *cubic(target, rounds)]
    drops = [a - b for a, b in pairwise(early)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(drops))


def test_every_schedule_has_its_name() -> None:
    assert SCHEDULES == ("geometric", "exponential", "linear", "cubic")
    assert to_target("cubic", 0.1, 5) == cubic(0.1, 5)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.5, math.nan])
def test_rates_outside_0_and_1_are_refused(rate: float) -> None:
    with pytest.raises(InputError, match="a pruning rate must be between 0 and 1, both excluded, but got"):
        geometric(rate, 3)


@pytest.mark.parametrize("schedule", sorted(TO_TARGET))
@pytest.mark.parametrize("target", [0.0, 1.1, -0.5, math.nan])
def test_targets_that_are_no_density_are_refused(schedule: str, target: float) -> None:
    with pytest.raises(InputError, match="a target density must be above 0 and at most 1, but got"):
        to_target(schedule, target, 3)


@pytest.mark.parametrize("rounds", [0, -1])
def test_no_rounds_are_refused(rounds: int) -> None:
    with pytest.raises(InputError, match=f"a schedule has at least one round, but got {rounds}"):
        geometric(0.2, rounds)
    for schedule in TO_TARGET:
        with pytest.raises(InputError, match=f"a schedule has at least one round, but got {rounds}"):
            to_target(schedule, 0.5, rounds)


def test_unknown_schedules_are_refused() -> None:
    with pytest.raises(InputError, match=r"unknown schedule 'cubik' to a target density. Did you mean 'cubic'\?"):
        to_target("cubik", 0.5, 3)
