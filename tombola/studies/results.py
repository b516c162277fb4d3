"""The results of a study as a tidy table, from the store alone: a row for each run of each draw."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tombola.studies.plan import Plan, Planned
from tombola.studies.state import DrawState

if TYPE_CHECKING:
    import pyarrow

Format = Literal["csv", "parquet", "json"]
FORMATS: tuple[Format, ...] = ("csv", "parquet", "json")
BASE: dict[str, type] = {
    **{"task": str, "method": str, "criterion": str, "survivors": str, "seed": int},
    **{"arm": str, "draw": int, "round": int, "density": float, "asked": float, "status": str, "metric": str},
    **{"stop_step": int, "stop_metric": float, "end_metric": float, "validation_metric": float, "seconds": float},
    **{"find_seconds": float, "find_flops": int, "train_seconds": float, "train_flops": int, "bytes": int},
    **{"chosen": bool, "run": str, "draw_id": str},
}
"""The columns that every study has, and what they hold."""


def columns(plan: Plan) -> dict[str, type]:
    """The columns of a study's results: ``BASE``, and after the seed each other field in which its draws differ."""
    found: dict[str, type] = {}
    for name, kind in BASE.items():
        found[name] = kind
        if name == "seed":
            found |= {field: _kind(plan.draws, field) for field in _more(plan)}
    return found


def _more(plan: Plan) -> list[str]:
    """Fields of the recipe that have a column of their own in this study."""
    return [field for field in plan.varied if field not in BASE]


def _kind(draws: Iterable[Planned], field: str) -> type:
    """What a field of the recipe holds: numbers stay numbers, everything else is text."""
    kinds = {type(value) for draw in draws if (value := draw.fields[field]) is not None}
    if kinds <= {int, float} and kinds:
        return float if float in kinds else int
    return bool if kinds == {bool} else str


def rows(plan: Plan, states: Sequence[DrawState]) -> list[dict[str, Any]]:
    """A row for each run that the store has of each draw, in the study's order: ``columns`` says of what.

    Those of ``Draw.rows`` with the draw's task, method and options beside them. ``asked`` is the density that the
    study names, and None for rungs of a ladder between, and where a method has its own; ``draw_id`` is the draw's
    identity. The dense net of a seed stands in each draw that begins with it, with the same ``run``. What isn't known
    is None.
    """
    names = columns(plan)
    found = []
    for state in states:
        recipe, fields = state.draw.recipe, state.draw.fields
        about: dict[str, Any] = {"task": recipe.task, "method": recipe.method, "seed": recipe.seed}
        about |= {name: _cell(fields[name], names[name]) for name in ("criterion", "survivors", *_more(plan))}
        for row in state.rows:
            own = {"asked": _asked(state.draw, row), "draw_id": state.record.id if state.record else None}
            own["metric"] = state.record.about.get("metric") if state.record else None
            whole = {**row, **own, **about}
            found.append({name: _finite(whole.get(name)) for name in names})
    return found


def _asked(draw: Planned, row: Mapping[str, Any]) -> float | None:
    number, ladder = row["round"], draw.recipe.densities or ()
    density = ladder[number - 1] if 0 < number <= len(ladder) else None
    return density if density in draw.asked else None


def _cell(value: Any, kind: type) -> Any:
    """A field of a recipe as its column takes it."""
    if value is None or kind is not str:
        return value if value is None else kind(value)
    return value if isinstance(value, str) else json.dumps(value)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def document(plan: Plan, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The results as one JSON document."""
    about = {"study": plan.study.name, "description": plan.study.description, "size": plan.size}
    return {**about, "columns": list(columns(plan)), "rows": [dict(row) for row in found]}


def as_csv(plan: Plan, found: Sequence[Mapping[str, Any]]) -> str:
    """The results as CSV, with a line of names; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns(plan)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()


def table(plan: Plan, found: Sequence[Mapping[str, Any]]) -> pyarrow.Table:
    """The results as an Arrow table, whose columns have their types also where they are empty."""
    import pyarrow

    kinds = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in columns(plan).items()])
    return pyarrow.Table.from_pylist([dict(row) for row in found], schema=schema)


def save(path: Path, kind: Format, plan: Plan, found: Sequence[Mapping[str, Any]]) -> Path:
    """Write the results to a file, and give its path. Raises ``OSError``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "csv":
        path.write_text(as_csv(plan, found), encoding="utf-8", newline="")
        return path
    if kind == "json":
        path.write_text(json.dumps(document(plan, found), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return path
    import pyarrow.parquet

    pyarrow.parquet.write_table(table(plan, found), path)
    return path


def save_all(folder: Path, plan: Plan, found: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write the results as CSV, Parquet and JSON, and the study itself as TOML, and give their paths."""
    import tomli_w

    paths = [save(folder / f"results.{kind}", kind, plan, found) for kind in FORMATS]
    paths.append(folder / "study.toml")
    paths[-1].write_text(tomli_w.dumps(plan.study.source), encoding="utf-8")
    return paths
