"""The verdict on a ticket: judged against the dense net and its controls, over seeds, in numbers and plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

from tombola.audits import wording
from tombola.audits.blame import Part, blame
from tombola.audits.outcomes import Judged, Outcome, Power, alone, family, power
from tombola.audits.pairing import DENSE, RIVALS, TICKET, Arm, At, Quantity, Row, arms, compare
from tombola.audits.statistics import mean
from tombola.audits.wording import Units
from tombola.errors import InputError

Role = Literal["dense", "control", "rival"]


@dataclass(frozen=True, slots=True)
class ArmJudged:
    """An arm, what it is there for, and how the ticket stands to it in accuracy and in speed."""

    arm: str
    role: Role
    accuracy: Judged
    speed: Judged


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the runs of a round say about its ticket.

    ``accuracy`` and ``speed`` are its outcomes against the dense net. ``passed``: it is a winning ticket. ``as_good``
    names the controls that do as well, ``better`` the rivals that do better. ``beats_all`` is the p value that it beats
    every control. ``words`` are plain sentences, the verdict first; ``details`` say the same of each arm by itself.
    """

    round: int
    density: float
    metric: str
    at: At
    margin: float
    speed_margin: float
    alpha: float
    accuracy: Outcome
    speed: Outcome
    passed: bool
    beats_all: float | None
    as_good: tuple[str, ...]
    better: tuple[str, ...]
    arms: tuple[ArmJudged, ...]
    power: tuple[Power, ...]
    blame: tuple[Part, ...]
    words: tuple[str, ...]
    details: tuple[str, ...]

    @property
    def decision(self) -> bool | None:
        """True for a winning ticket, False for one that is worse than the dense net or has a control that does as well,
        None where neither has been shown."""
        return True if self.passed else False if self.accuracy == "loses" or self.as_good else None

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON has it: mappings, lists, numbers, words and null."""
        found: dict[str, Any] = _plain(asdict(self))
        return found

    def rows(self) -> list[dict[str, Any]]:
        """One row for each arm and quantity, for a table; the ticket's own has no comparison.

        ``mean`` and ``sd`` are the arm's over seeds; ``difference``, ``low``, ``high`` (95 % interval), ``lowest`` and
        ``highest`` are the ticket minus the arm, + where the ticket is better. ``p`` that the ticket is better,
        ``p_adjusted`` corrected for the number of controls, ``p_as_good`` that the arm does as well.
        """
        found = []
        for one in self.arms:
            for quantity, judged in (("accuracy", one.accuracy), ("speed", one.speed)):
                compared, between = judged.compared, judged.compared.interval
                found.append(
                    {
                        "arm": one.arm,
                        "role": one.role,
                        "quantity": quantity,
                        "seeds": len(compared.seeds),
                        "draws": compared.draws,
                        "mean": compared.their_mean,
                        "sd": compared.their_spread,
                        "ticket_mean": compared.our_mean,
                        "difference": between.mean,
                        "low": between.low,
                        "high": between.high,
                        "lowest": between.lowest,
                        "highest": between.highest,
                        "p": judged.p,
                        "p_adjusted": judged.p_adjusted,
                        "p_as_good": judged.p_as_good,
                        "outcome": judged.outcome,
                    }
                )
        return found


def judge(
    rows: Sequence[Row],
    *,
    round: int,
    metric: str,
    higher_is_better: bool,
    margin: float,
    at: At = "stop",
    alpha: float = 0.05,
    speed_margin: float = 0.1,
    prunes: Literal["before", "during", "after"] = "after",
) -> Verdict:
    """Judge the ticket of a round by the rows of its draws: one method and recipe, several seeds, any controls.

    A ticket has ``passed`` where it matches the dense net or is better, beats every control, and none is shown to do as
    well. Rivals (``lr_rewind``, ``fine_tune``, ``small_dense``) need not be beaten. That it beats every control is one
    claim, an intersection-union test at ``alpha`` (Berger 1982): it holds where each single p value does, uncorrected.
    What is said of single controls is corrected for their number (Holm).

    Everything is paired by seed; the value of a seed is the mean of a control's draws. See ``exchange`` for the test,
    ``alone`` and ``family`` for what the outcomes mean, ``arms`` for what a diverged run counts as. Each direction is
    tested one-sided at ``alpha``.

    :param metric: name of the metric in ``stop_metric`` and ``end_metric``; any accuracy is a share, 0 to 1.
    :param margin: the smallest difference that matters, in the metric's unit, fixed before the runs.
    :param at: whether the metric at the early-stop step or at the end counts.
    :param speed_margin: the smallest difference in the early-stop step that matters, as a share of the dense net's.
    :param prunes: when the method prunes; it changes words, not outcomes.

    Raises ``InputError`` for options outside of their ranges, for rows without the dense net or the round, for arms
    that share no seed with the ticket, and for rows of several methods at once.
    """
    check_strictness(margin=margin, alpha=alpha, speed_margin=speed_margin, at=at)
    quantity = Quantity(
        metric.replace("_", " "), f"{at}_metric", higher_is_better, margin, share=metric.endswith("accuracy")
    )
    steps = Quantity("early-stop step", "stop_step", False, 0.0)
    dense_steps = arms(rows, round, steps)[DENSE].values.values()
    steps = replace(steps, margin=speed_margin * mean([mean(draws) for draws in dense_steps]))
    of_metric, of_steps = arms(rows, round, quantity), arms(rows, round, steps)
    accuracy, speed = _judged(of_metric, quantity, alpha), _judged(of_steps, steps, alpha)
    found = tuple(ArmJudged(name, _role(name), accuracy[name], speed[name]) for name in accuracy)
    controls = [one.accuracy for one in found if one.role == "control"]
    p_values = [c.p for c in controls]
    beats_all = max((p for p in p_values if p is not None), default=None) if None not in p_values else None
    as_good = tuple(c.compared.theirs for c in controls if c.outcome == "does as well")
    dense, fast = accuracy[DENSE], speed[DENSE]
    passed = dense.outcome in ("wins", "matches") and not as_good and beats_all is not None and beats_all <= alpha
    powers = [power(one.accuracy.compared, metric, margin, _level(one, controls, alpha)) for one in found]
    powers.append(power(fast.compared, steps.field, steps.margin, alpha))
    parts = blame(of_metric, {c.compared.theirs: c for c in controls}, quantity, alpha)
    verdict = Verdict(
        round=round,
        density=_density(rows, round),
        metric=metric,
        at=at,
        margin=margin,
        speed_margin=speed_margin,
        alpha=alpha,
        accuracy=_outcome(dense),
        speed=_outcome(fast),
        passed=passed,
        beats_all=beats_all,
        as_good=as_good,
        better=tuple(one.arm for one in found if one.role == "rival" and one.accuracy.outcome == "loses"),
        arms=found,
        power=tuple(powers),
        blame=tuple(parts),
        words=(),
        details=(),
    )
    units, of_time = Units(quantity), Units(steps)
    words, details = _words(verdict, of_metric, units, of_time), _details(verdict, units, of_time, prunes)
    return replace(verdict, words=tuple(words), details=tuple(details))


def check_strictness(*, margin: float, alpha: float, speed_margin: float, at: str) -> None:
    """``InputError`` for what ``judge`` can't judge by."""
    for name, value in (("margin", margin), ("speed_margin", speed_margin)):
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name} must be a number from 0 up, but got {value}")
    if not 0 < alpha < 0.5:
        raise InputError(f"alpha must lie between 0 and 0.5, as 0.05 does, but got {alpha}")
    if at not in ("stop", "end"):
        raise InputError(f"at must be 'stop' (the early-stop step) or 'end', but got {at!r}")


def _role(arm: str) -> Role:
    return "dense" if arm == DENSE else "rival" if arm in RIVALS else "control"


def _judged(there: Mapping[str, Arm], quantity: Quantity, alpha: float) -> dict[str, Judged]:
    """The ticket's comparisons by arm, in the order of the arms."""
    compared = {name: compare(there[TICKET], arm, quantity) for name, arm in there.items() if name != TICKET}
    controls = [one for name, one in compared.items() if _role(name) == "control"]
    found = {one.compared.theirs: one for one in family(controls, alpha)}
    return {name: found[name] if name in found else alone(one, alpha) for name, one in compared.items()}


def _level(one: ArmJudged, controls: Sequence[Judged], alpha: float) -> float:
    return alpha / len(controls) if one.role == "control" else alpha


def _outcome(judged: Judged) -> Outcome:
    return cast(Outcome, judged.outcome)  # alone() gives no other


def _density(rows: Sequence[Row], round: int) -> float:
    return mean([float(row["density"]) for row in rows if row["arm"] == TICKET and row["round"] == round])


def _words(verdict: Verdict, there: Mapping[str, Arm], units: Units, steps: Units) -> list[str]:
    name, where = units.quantity.name, f"At {wording.percent(verdict.density)} density"
    dense, controls, rivals = _by_role(verdict)
    words = [wording.headline(where, name, dense.accuracy, controls, units, verdict.alpha)]
    words.append(wording.dense_metric(dense.accuracy, units, where, verdict.alpha))
    words.append(wording.dense_speed(dense.speed, steps))
    words += wording.groups(controls, rivals, units)
    words += wording.together(verdict.beats_all, len(controls), verdict.alpha)
    words += wording.parts(verdict.blame, units)
    words += wording.wanted(
        [p for one, p in zip(_claims(verdict), verdict.power, strict=True) if one.outcome == "can't tell"],
        len(verdict.power),
    )
    return words + wording.reservations(there, [one.accuracy for one in verdict.arms], units)


def _details(verdict: Verdict, units: Units, steps: Units, prunes: Literal["before", "during", "after"]) -> list[str]:
    dense, controls, rivals = _by_role(verdict)
    tested = sum(one.p is not None for one in controls)
    found = [wording.control(one, units, tested, prunes, verdict.alpha) for one in controls]
    found += [wording.rival(one, units) for one in rivals]
    claims = [f"whether it matches the dense net in {units.quantity.name}"]
    claims += [
        f"whether it {'beats' if one.role == 'control' else 'is as good as'} {one.arm}" for one in verdict.arms[1:]
    ]
    claims.append("whether it learns faster than the dense net")
    for one, power_of, claim in zip(_claims(verdict), verdict.power, claims, strict=True):
        if one.outcome == "can't tell":
            found.append(wording.powerless(one, power_of, steps if one is dense.speed else units, claim))
    return found


def _by_role(verdict: Verdict) -> tuple[ArmJudged, list[Judged], list[Judged]]:
    """The dense net, and the controls' and the rivals' accuracy."""
    (dense,) = (one for one in verdict.arms if one.role == "dense")
    controls = [one.accuracy for one in verdict.arms if one.role == "control"]
    return dense, controls, [one.accuracy for one in verdict.arms if one.role == "rival"]


def _claims(verdict: Verdict) -> list[Judged]:
    """What ``power`` speaks of, in its order: the accuracy of each arm, then the dense net's speed."""
    dense, _, _ = _by_role(verdict)
    return [*(one.accuracy for one in verdict.arms), dense.speed]


def _plain(found: Any) -> Any:
    """Tuples as lists, also within mappings."""
    if isinstance(found, Mapping):
        return {key: _plain(value) for key, value in found.items()}
    return [_plain(value) for value in found] if isinstance(found, (list, tuple)) else found
