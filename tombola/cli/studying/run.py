"""``tombola study run``: carry out what the store lacks of a study, and write its results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tombola.cli import output
from tombola.cli.options import Verb, data_root_option, json_option, path_option, store_option, tracker_option
from tombola.cli.places import check_writable, writing
from tombola.cli.studying import asked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tombola.studies.plan import Plan
    from tombola.studies.running import Setting
    from tombola.studies.state import DrawState


@click.command("run", cls=Verb)
@click.argument("what", metavar="NAME|FILE")
@asked.quick_option()
@asked.jobs_option("Options")
@store_option()
@data_root_option()
@path_option(
    "--out",
    section="Options",
    metavar="FOLDER",
    help="folder for the results  [default: tombola-out/NAME, or tombola-out/NAME-quick]",
)
@tracker_option("Options")
@json_option()
def command(what: str, quick: bool, **options: Any) -> int:
    """Carry out what the store lacks of a study: of the file FILE, or one that comes with Tombola.

    A draw that fails doesn't stop the others, and the exit status is 1 then. The same command after an interruption, or
    tombola study resume, goes on where it stopped. At the end the results are in the folder as CSV, Parquet and JSON,
    with the study itself.
    """
    from tombola.studies.library import load
    from tombola.studies.plan import plan
    from tombola.studies.running import Setting

    found = plan(load(what), quick)
    out = options["out"] or Path("tombola-out") / (found.study.name + "-quick" * quick)
    setting = Setting(options["store"], out, options["jobs"] or asked.cores(), options["data_root"])
    return carry_out(found, setting, options["as_json"], options["trackers"])


def carry_out(found: Plan, setting: Setting, as_json: bool, trackers: Sequence[str] = ()) -> int:
    """Carry out a study, say how it goes, write its results, and give the exit status."""
    from tombola.cli.studying.overview import Overview
    from tombola.store import Store
    from tombola.studies.pace import Pace
    from tombola.studies.results import FORMATS, rows, save_all
    from tombola.studies.running import Tracked, run_study
    from tombola.tracking import EVENTS, Tracking, trackers_for

    check_writable(setting.out, ("study.toml", EVENTS, *(f"results.{kind}" for kind in FORMATS)))
    told = trackers_for(setting.out, trackers)
    with Store(setting.store) as store:
        pace = Pace.of(store)
    with Overview(found, pace, setting.jobs) as overview, Tracking(told) as tracking:
        there = run_study(found, setting, lambda states: Tracked(overview.of(states), tracking))
    with writing(setting.out):
        files = save_all(setting.out, found, rows(found, there))
    failed = any(state.state == "failed" for state in there)
    if as_json:
        about = {"study": found.study.name, "size": found.size, **asked.numbers(there)}
        draws = asked.each_draw(found, there)
        output.document({**about, "draws": draws, "files": [str(path) for path in files]})
    else:
        _report(found, there, files)
    return 1 if failed else 0


def _report(found: Plan, there: Sequence[DrawState], files: Sequence[Path]) -> None:
    count = asked.numbers(there)
    runs = {row["run"]: row["seconds"] for state in there for row in state.rows}
    output.sentence(
        f"{asked.title(found)}: {count['states']['done']:,} of {asked.counted(len(there), 'draw')} done, "
        f"{asked.counted(len(runs), 'run')}, {sum(runs.values()):,.0f} s of training"
    )
    for line in asked.failures(found, there):
        output.sentence(output.inert(line))
    for one in found.refused:
        output.sentence(f"Left out: {one.name}: {one.reason}.")
    click.echo(f"Written: {', '.join(output.inert(path) for path in files)}")
