"""Made-up rows of draws, for the tests of verdicts: one run for each arm, seed and draw, with planted values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tombola.audits.verdict import ArmJudged, Verdict, judge

Row = dict[str, Any]

ROUND, DENSITY = 9, 0.135

GOOD = [0.982, 0.981, 0.983, 0.9825, 0.9815]
DENSE = [0.981, 0.982, 0.9825, 0.9815, 0.983]
WORSE = [[v - 0.02, v - 0.021, v - 0.019] for v in GOOD]
ACCURACIES = st.lists(
    st.lists(st.integers(900, 999).map(lambda n: n / 1000), min_size=4, max_size=4), min_size=5, max_size=5
)


def row(arm: str, seed: int, value: float | None, *, draw: int = 0, steps: float = 1000, **changes: Any) -> Row:
    """A run of round 9; ``arm`` dense is that of round 0."""
    number, name = (0, "ticket") if arm == "dense" else (ROUND, arm)
    found: Row = {"seed": seed, "arm": name, "draw": draw, "round": number, "density": DENSITY if number else 1.0}
    found |= {"stop_step": steps, "stop_metric": value, "end_metric": value, "validation_metric": value}
    found |= {"seconds": 1.0, "status": "diverged" if value is None else "finished", "run": f"{arm}-{seed}-{draw}"}
    return found | changes


def arm_rows(arm: str, values: Sequence[Any], *, first: int = 0, steps: float | Sequence[float] = 1000) -> list[Row]:
    """The runs of an arm over seeds from ``first`` on: a value for each seed, or a list with one for each draw."""
    found = []
    for place, value in enumerate(values):
        taken = steps if isinstance(steps, (int, float)) else steps[place]
        draws = value if isinstance(value, (list, tuple)) else [value]
        found += [row(arm, first + place, v, draw=number, steps=taken) for number, v in enumerate(draws)]
    return found


def rows(arms: Mapping[str, Sequence[Any]], steps: Mapping[str, float | Sequence[float]] | None = None) -> list[Row]:
    """The runs of several arms over the seeds 0, 1, ..."""
    return [one for arm, values in arms.items() for one in arm_rows(arm, values, steps=(steps or {}).get(arm, 1000))]


def near(values: list[float], seed: int = 0, draws: int = 3, spread: float = 0.0008) -> list[list[float]]:
    """Draws that scatter about the values: controls that do as well."""
    rng = np.random.default_rng(seed)
    return [(v + spread * rng.standard_normal(draws)).tolist() for v in values]


def judged(there: list[Row], **options: Any) -> Verdict:
    given: dict[str, Any] = {"round": ROUND, "metric": "accuracy", "higher_is_better": True, "margin": 0.005}
    return judge(there, **(given | options))


def document(verdict: Verdict, draws: Sequence[str], replicates: str = "seeds", **changes: Any) -> dict[str, Any]:
    """What an audit says of itself, over the numbers from 0 on."""
    about = {"task": "made-up", "replicates": replicates, replicates: list(range(len(draws))), "draws": list(draws)}
    about |= {"ticket": None, "recipe": {"method": "given" if replicates == "orders" else "imp"}}
    return {**about, "verdict": verdict.as_dict(), **changes}


def of(verdict: Verdict, arm: str) -> ArmJudged:
    (found,) = (one for one in verdict.arms if one.arm == arm)
    return found


def said(verdict: Verdict, *parts: str) -> bool:
    return any(all(part in sentence for part in parts) for sentence in (*verdict.words, *verdict.details))
