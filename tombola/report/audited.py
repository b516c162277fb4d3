"""An audit as a table for a terminal, as files, and as it is read back from its document, wherever that is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table
from rich.text import Text

from tombola.audits.pairing import listed
from tombola.audits.verdict import ArmJudged, Verdict
from tombola.errors import InputError
from tombola.report.tables import DASH, is_share, percent, save_rows
from tombola.store import AuditRecord, minute

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from tombola.audits.outcomes import Judged
    from tombola.findings import Judgement

DOCUMENT = "audit.json"
_HIGHEST = 1e100  # no number of an audit is near it


@dataclass(frozen=True, slots=True)
class Told:
    """An audit as its document tells it. Its words are another's: they are to be escaped where they are shown."""

    task: str
    replicates: Literal["seeds", "orders"]
    numbers: tuple[int, ...]
    """The seeds, or the data orders of a ticket that was judged as it is."""
    draws: tuple[str, ...]
    ticket: str | None
    recipe: dict[str, Any]
    verdict: Verdict

    @property
    def method(self) -> str:
        """The method, ``given`` where a ticket was judged as it is."""
        return str(self.recipe.get("method", ""))

    @property
    def judgement(self) -> Judgement:
        """What a page shows of it."""
        from tombola.findings import Judgement

        orders = self.draws if self.replicates == "orders" else ()
        return Judgement(self.verdict.words, self.verdict.decision, verdict=self.verdict, orders=orders)


def arms_table(verdict: Verdict) -> Table:
    """An arm in each row: its metric and early-stop step, by how much the ticket is ahead, and what that has shown."""
    share = is_share(verdict.metric)
    made = Table(box=None, pad_edge=False, header_style="bold")
    unit, ahead = (f"{verdict.metric} %", "ahead by, points") if share else (verdict.metric, "ahead by")
    for name in ("arm", unit, ahead, "seeds from .. to", "p", "shown", "step", "sooner by", "shown"):
        made.add_column(name, justify="left" if name in ("arm", "shown") else "right", no_wrap=True)
    first = verdict.arms[0]
    ours = _value(first.accuracy.compared.our_mean, share)
    made.add_row(*map(Text, ("ticket", ours, "", "", "", "", f"{first.speed.compared.our_mean:,.0f}", "", "")))
    for one in verdict.arms:
        made.add_row(*map(Text, _cells(one, share)))
    return made


def _cells(one: ArmJudged, share: bool) -> Sequence[str]:
    accuracy, speed = one.accuracy.compared, one.speed.compared
    scale, digits = (100, 2) if share else (1, 4)
    between = accuracy.interval
    reach = f"{scale * between.lowest:+.{digits}f} .. {scale * between.highest:+.{digits}f}"
    return (
        *(one.arm, _value(accuracy.their_mean, share), f"{scale * between.mean:+.{digits}f}", reach),
        *(_p(one.accuracy), one.accuracy.outcome),
        *(f"{speed.their_mean:,.0f}", f"{speed.interval.mean:+,.0f}", one.speed.outcome),
    )


def _value(value: float, share: bool) -> str:
    return f"{100 * value:.2f}" if share else f"{value:.4g}"


def p_shown(judged: Judged) -> float | None:
    """The p value of what was shown; of nothing, that the ticket is better."""
    if judged.outcome in ("matches", "does as well"):
        return judged.p_as_good
    return judged.compared.worse if judged.outcome == "loses" else judged.p_adjusted


def _p(judged: Judged) -> str:
    p = p_shown(judged)
    return DASH if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def read_audit(kept: Path | AuditRecord) -> Told:
    """The audit of an ``audit.json``, or of the store. ``InputError`` for what holds something else.

    Nothing of it is trusted: whatever passes can be shown, as table, figure and words.
    """
    try:
        document = json.loads(kept.read_text(encoding="utf-8")) if isinstance(kept, Path) else kept.document
        json.dumps(document, ensure_ascii=False).encode()  # fails where a text is no Unicode, as halves of letters are
        told = _form().validate_python({**document, "numbers": document[document["replicates"]]})
        _check(told)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        name = kept if isinstance(kept, Path) else f"audit {kept.id[:12]}"
        raise InputError(f"{name} is not the document of an audit by this version: audit the ticket again") from error
    return told


@cache
def _form() -> TypeAdapter[Told]:
    from pydantic import TypeAdapter

    return TypeAdapter(Told)


def _check(told: Told) -> None:
    """``ValueError`` for what no audit says, and no table or figure could show."""
    arms = told.verdict.arms
    if [one.role for one in arms].index("dense") != 0 or sum(one.role == "dense" for one in arms) > 1:
        raise ValueError("the dense net is the first arm, and there is one")
    for compared in (judged.compared for one in arms for judged in (one.accuracy, one.speed)):
        seeds = len(compared.seeds)
        if not (seeds == len(compared.differences) == len(compared.our_values) == len(compared.their_values) > 0):
            raise ValueError("each seed has a difference, and the values that it is of")
        if not all(compared.their_values):
            raise ValueError("each seed has a draw")
    if not all(-_HIGHEST < number < _HIGHEST for number in _numbers(told.verdict.as_dict())):
        raise ValueError("numbers are finite")
    if not (told.draws and told.numbers and told.verdict.words):
        raise ValueError("an audit rests on draws, over seeds, and says something")


def _numbers(value: Any) -> Iterator[float]:
    """Every number in nested mappings and lists."""
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)


def in_a_line(record: AuditRecord) -> dict[str, str]:
    """An audit of the store in a line, by the names of its columns; the same ones for one that can't be read."""
    names = ("what", "task", "method", "round", "density", "seeds", "accuracy", "speed", "verdict")
    cells = dict.fromkeys(names, DASH)
    try:
        told = read_audit(record)
    except InputError:
        cells["what"] = "not readable by this version"
    else:
        verdict, count = told.verdict, len(told.numbers)
        orders = f"{count} data order{'s' * (count > 1)}"
        cells |= {
            "what": f"draw {told.draws[0][:8]}" if told.ticket is None else f"ticket {told.ticket[:8]}",
            "task": told.task,
            "method": told.method,
            "round": str(verdict.round),
            "density": percent(verdict.density),
            "seeds": orders if told.replicates == "orders" else listed(told.numbers).partition(" ")[2],
            "accuracy": verdict.accuracy,
            "speed": verdict.speed,
            "verdict": {True: "passed", False: "not passed", None: "undecided"}[verdict.decision],
        }
    return {"audit": record.id[:12], **cells, "when": minute(record.created)}


def save_audit(
    verdict: Verdict, document: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], out: Path
) -> list[Path]:
    """Write ``audit.json``, ``arms.csv`` and ``runs.csv`` into a folder that is there, and give their paths."""
    path = out / DOCUMENT
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return [path, save_rows(out / "arms.csv", verdict.rows()), save_rows(out / "runs.csv", runs)]
