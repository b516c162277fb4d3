"""Durations: what they parse, print, count and refuse."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from tombola.durations import Duration
from tombola.errors import InputError


@pytest.mark.parametrize(
    ("text", "length", "unit"),
    [
        ("50000it", 50_000, "it"),
        ("160ep", 160, "ep"),
        ("0.5ep", 0.5, "ep"),
        ("3.0it", 3, "it"),
        ("0it", 0, "it"),
        (" 12 it ", 12, "it"),
        (7, 7, "it"),
    ],
)
def test_of_reads_text_and_whole_numbers(text: str | int, length: float, unit: str) -> None:
    assert Duration.of(text) == Duration(length, unit)


def test_of_gives_back_a_duration() -> None:
    duration = Duration(3, "ep")
    assert Duration.of(duration) is duration


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (Duration(50_000), "50000it"),
        (Duration(50_000.0), "50000it"),
        (Duration(2**53 - 1), "9007199254740991it"),
        (Duration(1_234_567), "1234567it"),
        (Duration(160, "ep"), "160ep"),
        (Duration(0.5, "ep"), "0.5ep"),
        (Duration(0.1234567891, "ep"), "0.1234567891ep"),
        (Duration(1_500_000.5, "ep"), "1500000.5ep"),
        (Duration(1e-7, "ep"), "0.0000001ep"),
        (Duration(-0.0, "ep"), "0ep"),
    ],
)
def test_text_keeps_every_digit(duration: Duration, text: str) -> None:
    assert str(duration) == text
    assert Duration.of(text) == duration


@settings(deadline=None)
@given(
    st.one_of(
        st.builds(Duration, st.integers(0, 2**53 - 1)),
        st.builds(Duration, st.floats(0, 2**53, exclude_max=True), st.just("ep")),
    )
)
def test_every_duration_reads_back_from_its_text(duration: Duration) -> None:
    assert Duration.of(str(duration)) == duration


@pytest.mark.parametrize(
    "value", ["", "it", "5", "5 steps", "-5it", "5e3it", "1,000it", "5it5ep", "nanit", "infep", ".5ep", True, 0.5, None]
)
def test_of_refuses_what_is_no_duration(value: object) -> None:
    with pytest.raises(InputError, match=r"a duration must be a number with 'it' .* or 'ep' .* but got"):
        Duration.of(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [-1, math.nan, math.inf, -math.inf, 2**53, 10**400])
def test_lengths_out_of_range_are_refused(length: float) -> None:
    with pytest.raises(InputError, match=r"a duration must be a length of 0 or more and below 2\*\*53, but got"):
        Duration(length)


def test_lengths_out_of_range_are_refused_as_text() -> None:
    for text in (f"{2**53}it", "9" * 400 + "it", "9" * 400 + "ep"):
        with pytest.raises(InputError, match=r"a duration must be a length of 0 or more and below 2\*\*53, but got"):
            Duration.of(text)


def test_fractions_of_a_step_and_other_units_are_refused() -> None:
    with pytest.raises(InputError, match=r"a duration in steps must be a whole number, but got 1\.5it"):
        Duration.of("1.5it")
    with pytest.raises(InputError, match=r"counted in 'it' \(steps\) or 'ep' \(epochs\), but got 's'"):
        Duration(1, "s")


@pytest.mark.parametrize(
    ("text", "per_epoch", "steps"),
    [
        ("500it", 917, 500),
        ("2ep", 917, 1834),
        ("0.5ep", 917, 458),  # 458.5, a half, to the even number
        ("0.5ep", 919, 460),  # 459.5
        ("0.1ep", 30, 3),
        ("0.001ep", 10, 0),
        ("0ep", 917, 0),
    ],
)
def test_steps_by_hand(text: str, per_epoch: int, steps: int) -> None:
    found = Duration.of(text).steps(per_epoch)
    assert found == steps
    assert isinstance(found, int)


def test_durations_are_values() -> None:
    assert Duration(500) == Duration(500.0, "it")
    assert hash(Duration(500)) == hash(Duration(500.0, "it"))
    assert Duration(1) != Duration(1, "ep")
    with pytest.raises(AttributeError):
        Duration(1).length = 2  # type: ignore[misc]


class Plan(BaseModel):
    length: Duration = Duration(3)
    stops: tuple[Duration, ...] = ()


def test_pydantic_reads_and_writes_text() -> None:
    plan = Plan.model_validate({"length": "0.25ep", "stops": [5, "2ep", Duration(7)]})
    assert plan.length == Duration(0.25, "ep")
    assert plan.stops == (Duration(5), Duration(2, "ep"), Duration(7))
    assert plan.model_dump() == {"length": "0.25ep", "stops": ("5it", "2ep", "7it")}
    assert json.loads(plan.model_dump_json()) == {"length": "0.25ep", "stops": ["5it", "2ep", "7it"]}
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert Plan().model_dump(exclude_defaults=True) == {}


def test_pydantic_reports_a_bad_duration_by_its_rule() -> None:
    with pytest.raises(ValidationError, match="a duration must be a number with 'it'"):
        Plan.model_validate({"length": "5 minutes"})
