"""What a report shows of draws and runs, read from the store alone: no data set is loaded and nothing is trained.

A search is one recipe over its seeds: the draws of one task that differ in nothing but the seed. Rows are those of
``Draw.rows``, ``Draw.curves`` and ``Draw.layers``; what the store doesn't know is None in them. What is under way is
shown as far as it has come.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from tombola.errors import InputError, TombolaError
from tombola.grouping import by_recipe, heading_of, labels, recipe_of, seed_of, task_of, task_of_run
from tombola.pictures import Picture, picture
from tombola.store import AuditRecord, DrawRecord, RunRecord, Store, as_seen, judging, told_in_training

if TYPE_CHECKING:
    from tombola.audits.verdict import Verdict
    from tombola.mask import Mask

Row: TypeAlias = Mapping[str, Any]

EVALUATIONS = 240
"""Of one run, at most: its others are left out evenly. No figure shows more."""

_FIELDS = (
    *("seed", "arm", "draw", "round", "density", "stop_step", "stop_metric", "end_metric", "validation_metric"),
    *("seconds", "status", "run", "find_seconds", "find_flops", "train_seconds", "train_flops", "bytes", "chosen"),
)


@dataclass(frozen=True)
class Judgement:
    """What an audit says: its words, the verdict first; whether it passed (None: can't tell); a row for each arm."""

    words: tuple[str, ...]
    passed: bool | None
    rows: tuple[Row, ...] = ()
    verdict: Verdict | None = None
    """All of it, where it is known."""
    orders: tuple[str, ...] = ()
    """Draws of one ticket that was judged as it is. What counts as their seed is the data order, as in the verdict."""


@dataclass(frozen=True)
class Search:
    """One method on one task over seeds, or one run by itself (then ``method`` is empty)."""

    label: str
    """The method, numbered where several recipes of it are shown."""
    task: str
    method: str
    metric: str
    data: str
    """What the metric was read on: test, or validation where there is no test data."""
    draws: tuple[DrawRecord, ...]
    """A draw that nobody works on any more, and that isn't finished, has the status "interrupted"."""
    recipe: Row
    """Without the seed."""
    rounds: tuple[Row, ...]
    curves: tuple[Row, ...]
    layers: tuple[Row, ...]
    pictures: tuple[Picture, ...]
    """Of the first seed: the first layer in every round, and every layer in the one that is ``shown``."""
    under_way: tuple[RunRecord, ...] = ()
    """The runs of this task and these seeds that are being trained now."""
    unread: tuple[str, ...] = ()
    """What could not be read, in sentences."""
    versions: tuple[Row, ...] = ()
    """The libraries' versions, each combination once."""
    engines: Row = field(default_factory=dict)
    """How many runs each engine carried out."""

    @property
    def seeds(self) -> list[int]:
        """The seeds."""
        return sorted({row["seed"] for row in self.rounds})

    @property
    def chosen(self) -> int | None:
        """The densest of the seeds' chosen rounds, which every seed holds inside the margin; None where none is."""
        return min((row["round"] for row in self.rounds if row["chosen"]), default=None)

    @property
    def shown(self) -> int:
        """The round whose masks are shown: the chosen one, or the last where none but the dense net was chosen."""
        return _shown(self.rounds)

    @property
    def status(self) -> str:
        """``finished``, or what holds for at least one of the draws: ``running`` before ``interrupted``."""
        found = {draw.status for draw in self.draws} | {run.status for run in self.under_way}
        return next((status for status in ("running", "interrupted") if status in found), "finished")


@dataclass(frozen=True)
class Findings:
    """Everything that a report shows."""

    title: str
    searches: tuple[Search, ...]
    judgement: Judgement | None = None
    gradients: tuple[Row, ...] = ()
    """Rows of ``tombola diagnose gradients``, which the store doesn't keep."""
    made: float = 0.0
    """When this was read, in seconds since 1970."""
    audits: tuple[str, ...] = ()
    """Audits in the store that have judged these draws, where none of them is shown."""

    @cached_property
    def tasks(self) -> list[str]:
        """The tasks, in order."""
        return list(dict.fromkeys(search.task for search in self.searches))


def findings_of(
    store: Store,
    draw_ids: Sequence[str] = (),
    run_ids: Sequence[str] = (),
    *,
    title: str | None = None,
    judgement: Judgement | None = None,
    gradients: Sequence[Row] = (),
) -> Findings:
    """What the store knows of these draws and runs (full ids). Raises ``InputError`` for one that it doesn't have."""
    runs = {run.id: run for run in store.runs()}
    draws = []
    for draw_id in dict.fromkeys(draw_ids):
        if (draw := store.draw(draw_id)) is None:
            raise InputError(f"the store has no draw {draw_id[:16]}: tombola list shows the draws it has")
        seen = as_seen(draw, list(runs.values()))
        draws.append(_as_judged(seen, judgement) if judgement else seen)
    for run_id in run_ids:
        if run_id not in runs:
            raise InputError(f"the store has no run {run_id[:16]}: tombola list runs shows the runs it has")
    reader = _Reader(store, runs)
    groups = by_recipe(draws)
    searches = [reader.search(group, label) for group, label in zip(groups, labels(groups), strict=True)]
    searches += [reader.lone(runs[run_id]) for run_id in dict.fromkeys(run_ids)]
    if not searches:
        raise InputError("a report needs a draw or a run to show: tombola draw digits-mlp makes some")
    audits = () if judgement else tuple(one.id for one in _audits(store, draws))
    name = title or ("Audit of " if judgement else "") + _title(searches)
    return Findings(name, tuple(searches), judgement, tuple(gradients), time.time(), audits)


def _audits(store: Store, draws: Sequence[DrawRecord]) -> list[AuditRecord]:
    every = store.audits()
    return judging(every, draws, store.draws()) if every else []


def _as_judged(draw: DrawRecord, judgement: Judgement) -> DrawRecord:
    """A draw of an audit: the round that was judged takes the place of the chosen one, and a data order that of a seed
    where orders were judged."""
    seen = _by_order(draw) if draw.id in judgement.orders else draw
    if judgement.verdict is None:
        return seen
    judged = judgement.verdict.round
    rows = [{**row, "chosen": row.get("arm") == "ticket" and row.get("round") == judged} for row in seen.rounds]
    return replace(seen, rounds=rows)


def _by_order(draw: DrawRecord) -> DrawRecord:
    """A draw that differs from others in its data order, which takes the place of its seed."""
    recipe = draw.about.get("recipe")
    training = recipe.get("training") if isinstance(recipe, Mapping) else None
    order = training.get("order") if isinstance(training, Mapping) else None
    if not (isinstance(recipe, Mapping) and isinstance(training, Mapping) and isinstance(order, int)):
        return draw
    common = {**recipe, "training": {name: value for name, value in training.items() if name != "order"}}
    about = {**draw.about, "seed": order, "recipe": common}
    return replace(draw, about=about, rounds=[{**row, "seed": order} for row in draw.rounds])


def _under_way(draws: Sequence[DrawRecord], runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs that are being trained of the tasks and seeds of draws that aren't finished."""
    wanted = {(task_of(draw), seed_of(draw)) for draw in draws if draw.status == "running"}
    return [r for r in runs if r.status == "running" and (task_of_run(r), r.about.get("seed")) in wanted]


def _title(searches: Sequence[Search]) -> str:
    if len(searches) == 1:
        return f"{heading_of(searches[0].task)}, {searches[0].label}"
    tasks = list(dict.fromkeys(heading_of(search.task) for search in searches))
    return f"{', '.join(tasks[:3])}{' and others' if len(tasks) > 3 else ''}: {len(searches)} searches"


@dataclass
class _Reader:
    """Reads runs from a store, each history once; what can't be read is noted and left out."""

    store: Store
    runs: Mapping[str, RunRecord]
    unread: list[str] = field(default_factory=list)
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def search(self, draws: Sequence[DrawRecord], label: str) -> Search:
        about, self.unread = draws[0].about, []
        rows = [dict.fromkeys(_FIELDS) | row for draw in draws for row in draw.rounds]
        rows = [row for row in rows if isinstance(row["round"], int) and isinstance(row["density"], float | int)]
        metric = str(about.get("metric", "accuracy"))
        known = [run for row in rows if (run := self.runs.get(str(row["run"]))) is not None]
        layers, pictures = self.masks(rows)
        return Search(
            label=label,
            task=task_of(draws[0]),
            method=str(recipe_of(draws[0]).get("method", "")),
            metric=metric,
            data=_judged_on(known, metric),
            draws=tuple(draws),
            recipe=recipe_of(draws[0]),
            rounds=tuple(rows),
            curves=tuple(point for row in rows for point in self.curve(row, metric)),
            layers=tuple(layers),
            pictures=tuple(pictures),
            under_way=tuple(_under_way(draws, list(self.runs.values()))),
            unread=tuple(dict.fromkeys(self.unread)),
            **_made_by(known),
        )

    def lone(self, run: RunRecord) -> Search:
        """A run by itself, as a search with one row."""
        self.unread, at = [], run.summary
        values = {**(at.get("end") or {}), **(at.get("stop") or {})}
        names = [k.partition("_")[2] for k in values if k.startswith("validation_") and not k.endswith("_loss")]
        metric = names[0] if names else "accuracy"
        data = _judged_on([run], metric)
        row = dict.fromkeys(_FIELDS) | {"seed": run.about.get("seed", 0), "arm": "ticket", "draw": 0, "round": 0}
        row |= {"density": run.about.get("density", 1.0), "status": run.status, "run": run.id, "chosen": True}
        row |= {"stop_step": at.get("stop_step"), "seconds": at.get("seconds"), "train_flops": at.get("flops")}
        row |= {f"{when}_metric": _finite((at.get(when) or {}).get(f"{data}_{metric}")) for when in ("stop", "end")}
        row["validation_metric"] = _finite((at.get("stop") or {}).get(f"validation_{metric}"))
        row["train_seconds"] = at.get("processor_seconds", at.get("seconds"))
        layers, pictures = self.masks([row])
        return Search(
            label=f"run {run.id[:12]} ({run.about.get('arm', 'ticket')})",
            task=task_of_run(run),
            method="",
            metric=metric,
            data=data,
            draws=(),
            recipe=dict(run.about.get("full_recipe") or run.about.get("recipe") or {}),
            rounds=(row,),
            curves=tuple(self.curve(row, metric)),
            layers=tuple(layers),
            pictures=tuple(pictures),
            under_way=() if run.finished else (run,),
            unread=tuple(self.unread),
            **_made_by([run]),
        )

    def curve(self, row: Row, metric: str) -> list[dict[str, Any]]:
        """A row for each evaluation of a run, thinned evenly with both ends kept."""
        key = {name: row[name] for name in ("seed", "arm", "draw", "round", "density")}
        return [
            {
                **key,
                "step": at["step"],
                "train_loss": at.get("train_loss"),
                "validation_loss": at.get("validation_loss"),
                "validation_metric": at.get(f"validation_{metric}"),
                **told_in_training(at, metric),
            }
            for at in self.history(row["run"])
        ]

    def history(self, run_id: Any) -> list[dict[str, Any]]:
        if run_id not in self.histories:
            data = self.blob(run_id, "history")
            rows = [] if data is None else json.loads(f"[{','.join(data.decode().splitlines())}]")
            if (count := len(rows)) > EVALUATIONS:
                rows = [rows[round(k * (count - 1) / (EVALUATIONS - 1))] for k in range(EVALUATIONS)]
            self.histories[run_id] = rows
        return self.histories[run_id]

    def masks(self, rows: Sequence[Row]) -> tuple[list[Row], list[Picture]]:
        """A row for each layer of each ticket, and the pictures of those of the first seed."""
        layers: list[Row] = []
        pictures: list[Picture] = []
        first, shown = min((row["seed"] for row in rows), default=None), _shown(rows)
        for row in rows:
            mask = self.mask(row["run"]) if row["arm"] == "ticket" else None
            if mask is None:
                continue
            at = {"seed": row["seed"], "round": row["round"], "density": mask.density}
            for layer in mask.layers():
                kept = {"layer_density": layer.density, "kept": layer.kept, "total": layer.total}
                layers.append({**at, "layer": layer.name, **kept})
            if row["seed"] == first:
                names = list(mask) if row["round"] == shown else list(mask)[:1]
                pictures += [
                    picture(mask[name], layer=name, first=name == names[0], **at)
                    for name in names
                    if mask[name].dim() >= 2 and mask[name].numel()
                ]
        return layers, pictures

    def mask(self, run_id: Any) -> Mask | None:
        """The final mask of a run."""
        from tombola.ticket import Ticket

        data = self.blob(run_id, "final")
        if data is None:
            return None
        try:
            return Ticket.from_bytes(data).mask
        except TombolaError as error:
            self.unread.append(f"The net of run {str(run_id)[:12]} can't be read: {error}.")
            return None

    def blob(self, run_id: Any, name: str) -> bytes | None:
        """A blob of a finished run; None where it isn't finished, or where it can't be read, which is noted."""
        run = self.runs.get(run_id)
        if run is None:
            self.unread.append(f"Run {str(run_id)[:12]} is not in the store any more.")
        elif name in run.blobs:
            try:
                return self.store.read(run, name)
            except TombolaError as error:
                self.unread.append(f"{error}.")
        return None


def _shown(rows: Sequence[Row]) -> int:
    chosen = min((row["round"] for row in rows if row["chosen"]), default=0)
    last: int = max((row["round"] for row in rows if row["arm"] == "ticket"), default=0)
    return chosen or last


def _judged_on(runs: Sequence[RunRecord], metric: str) -> str:
    """Test, unless there are results and none is of test data."""
    found = [run.summary["stop"] for run in runs if run.summary.get("stop")]
    return "validation" if found and not any(f"test_{metric}" in values for values in found) else "test"


def _made_by(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """The versions and engines of finished runs."""
    versions = {json.dumps(r.summary["versions"], sort_keys=True): r.summary["versions"] for r in runs if r.finished}
    engines = [str(run.summary.get("engine")) for run in {run.id: run for run in runs if run.finished}.values()]
    return {
        "versions": tuple(versions.values()),
        "engines": {name: engines.count(name) for name in sorted(set(engines))},
    }


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
