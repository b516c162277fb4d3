"""``tombola report``: draws and runs of a store as one web page."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tombola.cli import output
from tombola.cli.options import Verb, json_option, path_option, store_option
from tombola.cli.places import check_id, check_writable, opened
from tombola.errors import InputError

if TYPE_CHECKING:
    from tombola.findings import Findings, Judgement
    from tombola.store import AuditRecord, Store

GRADIENTS = "gradients.csv"


@click.command("report", cls=Verb)
@click.argument("what", nargs=-1)
@path_option(
    *("-o", "--output", "path"), section="Options", metavar="FILE", help="the page  [default: tombola-report.html]"
)
@store_option()
@json_option()
def command(what: tuple[str, ...], path: Path | None, store: str, as_json: bool) -> None:
    """Write a page of what was found: verdict, figures, masks, costs, recipe.

    WHAT is a study by its name or file, a draw, an audit or a run by the first letters (4 or more) of its id, or a
    folder that draw, compare, audit or study has written its tables to; by default the last draw of the store, with its
    other seeds. A folder of diagnose gradients adds gradient flow. The page is one file that needs no network.
    """
    path = path or Path("tombola-report.html")
    check_writable(path.parent, [path.name])
    with opened(store) as found:
        findings = collect(found, _with_studies(found, store, what))
    size = write(findings, path)
    if as_json:
        draws = [draw.id for search in findings.searches for draw in search.draws]
        runs = [str(search.rounds[0]["run"]) for search in findings.searches if not search.draws]
        output.document({"file": str(path), "bytes": size, "title": findings.title, "draws": draws, "runs": runs})
        return
    output.sentence(f"{output.inert(path)}: {output.inert(findings.title)} ({size / 1e6:.1f} MB)")


def _with_studies(store: Store, where: str, what: Sequence[str]) -> list[str]:
    """What was named, where each study is the draws that the store has of it."""
    from tombola.cli.studying.asked import meant
    from tombola.studies.begun import all_begun
    from tombola.studies.library import is_file, shipped
    from tombola.studies.state import look

    names = {*shipped(), *(one.name for one in all_begun(where))}
    found: list[str] = []
    for word in what:
        if any(Path(word).glob("*.csv")) or not (word in names or is_file(word)):
            found.append(word)  # a study goes before a folder of its name that holds other things, such as a store
            continue
        plan, _ = meant(word, None, where)
        draws = [state.record.id for state in look(plan, store) if state.record]
        if not draws:
            raise InputError(f"the store has no draw of the study {word!r} yet: tombola study run {word} makes them")
        found += draws
    return found


def collect(store: Store, what: Sequence[str], judgement: Judgement | None = None) -> Findings:
    """The findings of what was named. Raises ``InputError`` for a name that fits nothing, or several things."""
    from tombola.findings import findings_of
    from tombola.grouping import with_seeds
    from tombola.report.audited import DOCUMENT
    from tombola.store import AuditRecord, DrawRecord

    draws: list[str] = []
    runs: list[str] = []
    gradients: list[dict[str, Any]] = []
    for word in what:
        if Path(word).is_dir():
            if (audit := Path(word) / DOCUMENT).exists():
                judgement = _audited(audit, judgement, draws)
            else:
                draws += _of_folder(store, Path(word))
            gradients += _gradients(Path(word))
            continue
        record = _named(store, word)
        if isinstance(record, AuditRecord):
            judgement = _audited(record, judgement, draws)
            continue
        (draws if isinstance(record, DrawRecord) else runs).append(record.id)
    if not draws and not runs:
        every = store.draws()
        if not every:
            raise InputError("the store holds no draw to report: tombola draw digits-mlp makes some")
        draws = [draw.id for draw in with_seeds(store, every[-1])]
    return findings_of(store, draws, runs, judgement=judgement, gradients=gradients)


def _audited(audit: Path | AuditRecord, before: Judgement | None, draws: list[str]) -> Judgement:
    """The verdict of an audit, whose draws are added to those that are shown."""
    from tombola.report.audited import read_audit

    if before is not None:
        name = audit.parent if isinstance(audit, Path) else audit.id[:12]
        raise InputError(f"a page has one verdict, but {name} is the second audit: write a page of each")
    told = read_audit(audit)
    draws += told.draws
    return told.judgement


def write(findings: Findings, path: Path) -> int:
    """Write the page, completely or not at all, and give its size in bytes."""
    from tombola.atomic import write_atomic
    from tombola.report.page.whole import page

    data = page(findings).encode()
    write_atomic(path, data)
    return len(data)


def _named(store: Store, word: str) -> Any:
    """The one draw, audit or run whose id begins so."""
    from tombola.store import only

    check_id(word, "folder")
    return only(store.find(word), word, "a report wants the beginning of one draw's, audit's or run's id")


def _of_folder(store: Store, folder: Path) -> list[str]:
    """The draws whose tickets are listed in a folder's tables, by the ids of their runs."""
    listed = {row["run"] for path in sorted(folder.glob("*.csv")) for row in _rows(path) if row.get("run")}
    found = []
    for draw in store.draws():
        runs = [r.get("run") for r in draw.rounds if r.get("arm") == "ticket" and r.get("round")]
        # The dense net alone is not a draw's own: every method begins with it.
        if listed & set(runs or [r.get("run") for r in draw.rounds]):
            found.append(draw.id)
    if listed and not found:
        raise InputError(f"none of the runs in the tables of {folder} is in this store: give its own with --store")
    if not listed and not (folder / GRADIENTS).exists():
        raise InputError(f"{folder} has no table of runs: name a folder that draw or compare has written to")
    return found


def _gradients(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``diagnose gradients``, where the folder has them."""
    path = folder / GRADIENTS
    return [{key: _value(text) for key, text in row.items()} for row in _rows(path)] if path.exists() else []


def _rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} can't be read as a table: {error}") from error


def _value(text: str) -> Any:
    """A cell as the number that it is, as None where it is empty, or else as text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text or None
