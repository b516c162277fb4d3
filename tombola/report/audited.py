"""An audit as a table for a terminal, and as files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from tombola.audits.verdict import ArmJudged, Verdict
from tombola.errors import InputError
from tombola.report.tables import DASH, is_share, save_rows

if TYPE_CHECKING:
    from tombola.audits.outcomes import Judged

DOCUMENT = "audit.json"


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


def read_audit(path: Path) -> tuple[list[str], Verdict]:
    """The draws of an ``audit.json``, of a ticket that was judged as it is the first one, and its verdict.

    ``InputError`` for a file that holds something else.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        draws = document["draws"][:1] if document["replicates"] == "orders" else document["draws"]
        return [str(draw) for draw in draws], TypeAdapter(Verdict).validate_python(document["verdict"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise InputError(f"{path} is not the document of an audit by this version: audit the ticket again") from error


def save_audit(
    verdict: Verdict, document: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], out: Path
) -> list[Path]:
    """Write ``audit.json``, ``arms.csv`` and ``runs.csv`` into a folder that is there, and give their paths."""
    path = out / DOCUMENT
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return [path, save_rows(out / "arms.csv", verdict.rows()), save_rows(out / "runs.csv", runs)]
