"""Made-up rows of a comparison, for the tests of its tables and figures."""

from __future__ import annotations

from typing import Any

from tombola.report.comparison import Comparison

Row = dict[str, Any]


def run(method: str, prunes: str, seed: int, asked: float | None, value: float | None, **changes: Any) -> Row:
    row: Row = {"method": method, "prunes": prunes, "seed": seed, "asked": asked, "channels": None}
    row |= {"density": asked, "status": "finished", "stop_metric": 0.5, "end_metric": value, "run": "r"}
    row |= {"find_seconds": 2.0, "find_times": 1.5, "train_seconds": 8.0, "train_times": 0.25, "bytes": 2500}
    return row | changes


def compared(*more: Row, **changes: Any) -> Comparison:
    rows = [run("dense", "", seed, None, 0.99, density=1.0, find_times=0.0, train_times=1.0) for seed in (0, 1, 2)]
    rows += [run("imp", "after", s, d, v) for d in (0.1, 0.05) for s, v in enumerate((0.90, 0.92, 0.97))]
    rows += [run("snip", "before", s, 0.1, 0.95) for s in range(3)]
    lost: Row = {"end_metric": None, "status": "diverged", "train_times": None}
    rows += [run("snip", "before", 0, 0.05, 0.8), run("snip", "before", 1, 0.05, None) | lost]
    rows += [run("snip", "before", 2, 0.05, None, status="missing", density=None)]
    fields: dict[str, Any] = {"metric": "accuracy", "densities": [0.1, 0.05], "cost_at": 0.05}
    return Comparison(rows + list(more), **(fields | changes))
