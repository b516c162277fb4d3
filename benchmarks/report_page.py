"""What a report page costs: reading 505 runs from a store, making the page, and how much it weighs.

The runs are real and short: a draw of digits-mlp over five seeds, 20 rounds and four controls beside each, evaluated at
every step. The baseline is what ``tombola draw`` writes of the same findings: tables and figures as SVG, PNG and PDF.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from timing import begin, duration, header, interleaved, ratio, table

import tombola as tb
from tombola.findings import Findings, findings_of
from tombola.report.figures import figures, save_figures
from tombola.report.page.whole import page
from tombola.report.tables import save_tables

READ, MADE, SAVED = "findings read from the store", "the page made of them", "tables and figures saved as files"


def filled(store: tb.Store, seeds: int, rounds: int, steps: int) -> list[str]:
    """Draw over seeds, with two draws each of two controls, and give the draws' ids."""
    options = {"rounds": rounds, "controls": ["reinit", "shuffled"], "control_draws": 2}
    for seed in range(seeds):
        training = {"steps": f"{steps}it", "evaluate_every": "1it"}
        tb.draw("digits-mlp", store=store, seed=seed, training=training, **options)
    return [draw.id for draw in store.draws()]


def saved(findings: Findings, folder: Path) -> None:
    """What ``tombola draw`` writes."""
    (search,) = findings.searches
    found = (search.rounds, search.curves, search.layers)
    save_tables(folder, *found)
    save_figures(folder, figures(*found, title=search.task, metric=search.metric))


def main() -> None:
    quick = begin(__doc__ or "")
    repeats = 2 if quick else 5
    with tempfile.TemporaryDirectory() as folder, tb.Store(Path(folder) / "runs") as store:
        draws = filled(store, *((2, 2, 20) if quick else (5, 20, 200)))
        findings = findings_of(store, draws)
        runs = sum(len(search.rounds) for search in findings.searches)
        megabytes = len(page(findings).encode()) / 1e6
        times = interleaved(
            {
                READ: lambda: findings_of(store, draws),
                MADE: lambda: page(findings),
                SAVED: lambda: saved(findings, Path(folder)),
            },
            repeats,
        )
    print(header(f"A report page of {runs} runs: {megabytes:.2f} MB", repeats))
    rows = [(name, duration(times[name], digits=2), ratio(times[name], times[SAVED])) for name in (READ, MADE, SAVED)]
    print(table(("what", "seconds", f"against {SAVED}"), rows))


if __name__ == "__main__":
    main()
