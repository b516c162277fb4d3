"""Findings as sections of a page: fragments of HTML that stand by themselves, with the data of their charts in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tombola.errors import InputError
from tombola.findings import Findings, Search
from tombola.grouping import heading_of
from tombola.pictures import Picture
from tombola.report import figures
from tombola.report.page import compared, tables
from tombola.report.page import judged as judged_page
from tombola.report.page.charts import Chart, chart, panels
from tombola.report.page.images import data_url, highest
from tombola.report.page.tables import Table
from tombola.report.page.templates import render
from tombola.report.tables import groups, is_share, metric_name, percent, sentence
from tombola.store import minute

if TYPE_CHECKING:
    from tombola.audits.verdict import Verdict
    from tombola.report.comparison import Comparison

PICTURED = 6
"""Rounds of which the first layer is drawn, at most."""
LAYERS_PICTURED = 12
"""Layers of the chosen round that are drawn, at most."""
KEPT = "What is kept"


@dataclass(frozen=True)
class Section:
    """A part of the page: a fragment of HTML in an element with this ``id``."""

    id: str
    heading: str
    html: str


@dataclass(frozen=True)
class _Part:
    """What stands together under one heading."""

    heading: str
    words: str = ""
    charts: Sequence[Chart] = ()
    pictures: Sequence[dict[str, Any]] = ()
    tables: Sequence[Table] = ()
    said: Sequence[str] = ()
    """Sentences for those who want it exactly, folded away."""


@dataclass(frozen=True)
class _Seen:
    """A search as the templates show it."""

    search: Search
    said: str
    facts: Sequence[tuple[str, str, str]] = ()
    notes: Sequence[str] = ()
    parts: Sequence[_Part] = field(default_factory=list)


def sections(findings: Findings) -> list[Section]:
    """The sections of a page, the verdict first; of several searches a comparison and one section each."""
    from altair.utils.schemapi import debug_mode

    with debug_mode(False):  # what the figures are is checked by their tests, and takes a third of the time
        return _sections(findings)


def _sections(findings: Findings) -> list[Section]:
    several = len(findings.searches) > 1
    seen = [_seen(search, f"s{number}") for number, search in enumerate(findings.searches)]
    comparisons = _comparisons(findings)
    said = [words for _, found in comparisons for words in compared.best(found)]
    verdict = {"judgement": findings.judgement, "seen": seen, "several": several, "said": said}
    judged = findings.judgement
    audit = tables.plain("audit", "What the audit read.", judged.rows) if judged else None
    made = [Section("verdict", "Verdict", render("verdict.html.j2", audit=audit, audits=findings.audits, **verdict))]
    if judged and judged.verdict:
        made.append(_section(_audited(judged.verdict, findings.title), "audit"))
    made += [_compared(task, found, findings) for task, found in comparisons]
    if several:
        made += [_one_of_several(view, number) for number, view in enumerate(seen)]
    else:
        made += [_section(part, f"part-{number}") for number, part in enumerate(seen[0].parts)]
    # Of one search before what only few will read.
    before = next((i + 1 for i, part in enumerate(made) if part.heading == KEPT), len(made))
    made.insert(before, _section(_gradients(findings), "gradients"))
    return made


def _audited(verdict: Verdict, title: str) -> _Part:
    drawn = judged_page.charts(verdict, title)
    made = [judged_page.arms(verdict), judged_page.parts(verdict)]
    return _Part(judged_page.HEADING, charts=drawn, tables=made, said=verdict.details)


def _section(part: _Part, name: str) -> Section:
    return Section(name, part.heading, render("part.html.j2", part=part, id=name, level=2))


def _one_of_several(view: _Seen, number: int) -> Section:
    name = f"search-{number}"
    return Section(name, view.search.label, render("search.html.j2", view=view, id=name))


def _seen(search: Search, name: str) -> _Seen:
    said = _said(search)
    if not search.rounds:
        return _Seen(search, said, notes=_notes(search))
    of = f"{search.task}, {search.label}" if search.task not in search.label else search.label
    stem = f"{name}-{slug(of)}"
    ladder = len({row["round"] for row in search.rounds}) > 1 and any(row["density"] > 0 for row in search.rounds)
    parts = [_results(search, stem, of, ladder=ladder)] if search.method else []
    parts += [_training(search, stem, of), _kept(search, stem, of, ladder=ladder)]
    if (cost := tables.costs(search, f"{stem}-costs")) is not None:
        parts.append(_Part("Cost", tables=[cost]))
    parts.append(_Part("Every run" if search.method else "The run", tables=[tables.runs(search, f"{stem}-runs")]))
    parts.append(_Part("Recipe and versions", tables=_origins(search, stem)))
    return _Seen(search, said, _facts(search), _notes(search), parts)


def _results(search: Search, stem: str, of: str, *, ladder: bool) -> _Part:
    charts = []
    if ladder:
        metric, read = metric_name(search.metric), search.data.capitalize()
        drawn = figures.metric_figure(search.rounds, search.metric, read)
        charts.append(chart(f"{stem}-{slug(metric)}", drawn, title=f"{read} {metric}", of=of))
        stop = figures.early_stop_figure(search.rounds)
        charts.append(chart(f"{stem}-early-stop", stop, title="Early-stop step", of=of))
    return _Part("Results by density", charts=charts, tables=[tables.rounds(search, f"{stem}-rounds")])


def _training(search: Search, stem: str, of: str) -> _Part:
    if not any(row["density"] > 0 for row in search.curves):
        return _Part("Training", words="No training has a curve yet.")
    drawn = figures.curves_figure(search.curves, search.metric)
    metric = metric_name(search.metric)
    charts = [chart(f"{stem}-curves", drawn, title=f"Validation {metric}", of=of)]
    if (training := figures.training_figure(search.curves, search.metric)) is not None:
        charts.append(chart(f"{stem}-train-{slug(metric)}", training, title=f"Training {metric}", of=of))
    return _Part("Training", charts=charts)


def _kept(search: Search, stem: str, of: str, *, ladder: bool) -> _Part:
    charts = []
    if ladder and any(row["kept"] for row in search.layers):
        charts.append(chart(f"{stem}-layers", figures.layers_figure(search.layers), title="Density by layer", of=of))
    table = tables.layers(search, f"{stem}-layers")
    return _Part(KEPT, _pictured(search), charts, _pictures(search), [] if table is None else [table])


def _said(search: Search) -> str:
    """What was found, in a sentence."""
    rows = search.rounds
    if (search.chosen or 0) not in {row["round"] for row in rows if row["arm"] == "ticket"}:
        return f"{search.label} of {heading_of(search.task)} has no result yet."
    if not search.method:
        value = rows[0]["stop_metric"]
        shown = "no value" if value is None else percent(value) if is_share(search.metric) else f"{value:.4g}"
        what = f"{search.data} {metric_name(search.metric)} at early stop"
        net = f"One training of {heading_of(search.task)} at {percent(rows[0]['density'])} density"
        return f"{net}, {rows[0]['status']}: {what} {shown}."
    said = sentence(rows, search.chosen or 0, search.metric, search.task)
    read = metric_name(search.metric)
    return said.replace(f"test {read}", f"{search.data} {read}")


def _notes(search: Search) -> list[str]:
    """What a reader has to know beside the numbers: what is under way, interrupted or lost."""
    notes = []
    if search.draws and search.status != "finished":
        done = sum(row["status"] in ("finished", "diverged") for row in search.rounds)
        state = "still running" if search.status == "running" else "interrupted: the command that began it goes on"
        notes.append(f"This search is {state}. {done} runs are done, and shown here.")
    for run in search.under_way:
        kept = percent(run.about.get("density", 1.0))
        where = f" by {run.owner}" if run.owner else ""
        words = f"{run.about.get('arm', 'a net')} at {kept} density, seed {run.about.get('seed', 0)}"
        notes.append(f"Run {run.id[:12]} is {run.status}{where}: {words}, begun {minute(run.created)}.")
    if len(search.seeds) == 1 and search.method:
        notes.append("One seed: how much results vary by chance can't be told from it.")
    return notes + list(search.unread)


def _facts(search: Search) -> list[tuple[str, str, str]]:
    """The numbers that matter most, of the chosen round beside the dense net: name, value, beside what."""
    found = {g.round: g for g in groups([row for row in search.rounds if row["arm"] == "ticket"])}
    shown = found.get(search.chosen or 0) if search.method else None
    if shown is None or 0 not in found or shown.round == 0:
        return []
    dense = found[0]
    form = percent if is_share(search.metric) else (lambda v: f"{v:.4g}")
    facts = [("Weights kept", percent(shown.density), f"{tables.times(1 / shown.density)} fewer")]
    for name, key, how in (
        (f"{search.data.capitalize()} {metric_name(search.metric)}", "stop_metric", form),
        ("Early-stop step", "stop_step", tables.count),
    ):
        own, whole = shown.spread(key), dense.spread(key)
        if own and whole:
            facts.append((name, how(own.mean), f"dense {how(whole.mean)}"))
    trained = {row["seed"]: row["train_flops"] for row in dense.rows}
    for name, flops in (("To find it", "find_flops"), ("To train it", "train_flops")):
        taken = tables.in_trainings(shown.rows, flops, trained)
        if taken is not None:
            facts.append((name, tables.times(taken) if taken >= 0.01 else "< 0.01x", "a dense training"))
    return facts


def _pictured(search: Search) -> str:
    if not search.pictures:
        return "No mask can be read from the store." if not search.layers else ""
    first = search.pictures[0]
    most = max(map(highest, search.pictures))
    said = {
        "inputs": f"A square for each input of {first.layer}: the brighter, the more of its {first.most:,.0f} weights "
        "are kept.",
        "filters": f"The kernels of {first.layer}: bright where a weight is kept.",
        "weights": f"{first.layer}, outputs down and inputs across: the brighter, the more is kept.",
    }[first.kind]
    return f"{said} Seed {first.seed}." if most else ""


def _pictures(search: Search) -> list[dict[str, Any]]:
    """The first layer over rounds, then the other layers in the round that is shown."""
    if not search.pictures:
        return []
    first, shown = search.pictures[0].layer, search.shown
    own = sorted((p for p in search.pictures if p.layer == first), key=lambda p: p.round)
    rounds = [p for p in own if p.round] or own
    if len(rounds) > PICTURED:
        even = {round(k * (len(rounds) - 1) / (PICTURED - 1)) for k in range(PICTURED)}
        place = next((i for i, p in enumerate(rounds) if p.round == shown), 0)
        if place not in even:
            even.remove(min(even - {0, len(rounds) - 1}, key=lambda i: abs(i - place)))
        rounds = [rounds[i] for i in sorted(even | {place})]
    others = [p for p in search.pictures if p.layer != first][: LAYERS_PICTURED - 1]
    return [_picture(p, chosen=p.round == search.chosen and p.round > 0) for p in (*rounds, *others)]


def _picture(picture: Picture, *, chosen: bool) -> dict[str, Any]:
    top = highest(picture)
    brightest = {"inputs": f"{top:,.0f} of {picture.most:,.0f}", "filters": "", "weights": percent(top)}[picture.kind]
    kept = f"{percent(picture.density)} of the net kept, round {picture.round}"
    told = f"; brightest {brightest}" if brightest else ""
    about = {"inputs": "kept weights by input", "filters": "kept weights of each kernel", "weights": "share kept"}
    shape = " x ".join(map(str, picture.shape))
    return {
        "urls": [data_url(grid, top or 1.0) for grid in picture.grids],
        "alt": f"{picture.layer} ({shape}), {about[picture.kind]}: {kept}{told}.",
        "layer": picture.layer,
        "kept": percent(picture.density),
        "round": picture.round,
        "brightest": brightest,
        "wide": len(picture.grids[0][0]) > 2 * len(picture.grids[0]),
        "chosen": chosen,
    }


def _origins(search: Search, stem: str) -> list[Table]:
    about: dict[str, Any] = {"task": search.task, "seeds": search.seeds}
    if search.draws:
        about |= {"begun": minute(min(draw.created for draw in search.draws)), "status": search.status}
        about |= {f"draw of seed {draw.about.get('seed')}": draw.id for draw in search.draws}
    made = [tables.facts(f"{stem}-recipe", "The recipe.", ("field", "value"), {**about, **search.recipe})]
    found: dict[str, Any] = {}
    for number, versions in enumerate(search.versions, start=1):
        found |= versions if len(search.versions) == 1 else {f"{name} ({number})": v for name, v in versions.items()}
    found |= {f"runs on engine {name}": str(number) for name, number in search.engines.items()}
    if found:
        made.append(tables.facts(f"{stem}-versions", "Versions and engines.", ("what", "value"), found))
    return made


def _comparisons(findings: Findings) -> list[tuple[str, Comparison]]:
    made = [(task, compared.comparison([s for s in findings.searches if s.task == task])) for task in findings.tasks]
    return [(task, found) for task, found in made if found is not None]


def _compared(task: str, found: Comparison, findings: Findings) -> Section:
    from tombola.report.comparison_figures import comparison_figures

    heading = "Methods compared" if len(findings.tasks) == 1 else f"Methods compared: {heading_of(task)}"
    name = f"compared-{slug(task)}-{findings.tasks.index(task)}"
    try:
        drawn = comparison_figures(found, title=task)
    except InputError:  # there is no result to draw
        drawn = {}
    titles = {"equal_density": "At equal density", "equal_cost": "At equal cost"}
    charts = [chart(f"{name}-{slug(k)}", f, title=titles[k], of=task, fixed=True) for k, f in drawn.items()]
    words = " ".join(
        filter(None, [found.gaps(), compared.missing(found, [s for s in findings.searches if s.task == task])])
    )
    return _section(_Part(heading, words, charts, tables=compared.tables(found, name)), name)


def _gradients(findings: Findings) -> _Part:
    """Gradient flow where it was measured, and how to measure it where it wasn't."""
    if not findings.gradients:
        task = findings.tasks[0] if findings.tasks else "TASK"
        words = f"Not measured. tombola diagnose gradients {task} measures it; name its folder beside this report's."
        return _Part("Gradient flow", words)
    from tombola.report.flow_figures import gradient_figure

    drawn = gradient_figure(findings.gradients, findings.title)
    table = tables.plain("gradients", "What was measured.", findings.gradients)
    return _Part("Gradient flow", charts=panels("gradients", drawn, of=findings.title), tables=[table])


def slug(text: str) -> str:
    """A text as a part of a file's name: letters and digits in lower case, dashes for the rest."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "x"
