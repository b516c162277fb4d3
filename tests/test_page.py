"""The report's page as a file: whole, closed to the network, true to the findings, and safe with hostile names."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
import torch
from fake_draws import fake_draw
from made_up_store import a_mask, add_draw, add_run, an_id

import tombola as tb
from tombola.findings import Findings, Judgement, Search, findings_of
from tombola.pictures import picture
from tombola.report.page import tables
from tombola.report.page.sections import sections, slug
from tombola.report.page.whole import page

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}"
VOID = {"meta", "img", "input", "br", "hr", "link"}


class Parsed(HTMLParser):
    """A page's elements: scripts, styles, attributes, headings, text; refuses tags that don't close."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.text.append(" ")
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))
            if tag == "script":
                self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1][0] if self.open else ""
        if inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif inside == "style":
            self.styles.append(data)
        else:
            self.text.append(data)

    @property
    def shown(self) -> str:
        return " ".join("".join(self.text).replace("\N{NO-BREAK SPACE}", " ").split())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Findings]:
    with tb.Store(tmp_path_factory.mktemp("found")) as store:
        yield findings_of(store, [add_draw(store, seed=seed, controls=("reinit",)) for seed in (0, 1)])


def test_the_page_allows_its_own_code_and_nothing_else(found: Findings) -> None:
    parsed = Parsed(page(found))
    (policy,) = [a["content"] or "" for tag, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy"]
    rules = {part.split()[0]: part.split()[1:] for part in policy.split(";")}
    code = [text for attributes, text in parsed.scripts if "type" not in attributes]
    for allowed, texts in ((rules["script-src"], code), (rules["style-src"], parsed.styles)):
        assert allowed == [f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts]
    assert rules["default-src"] == ["'none'"]
    assert "unsafe" not in policy
    for tag, attributes in parsed.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert (attributes.get("src") or "data:").startswith("data:image/png;base64,") or tag != "img"
        assert (attributes.get("href") or "#").startswith("#")
        assert tag == "img" or "src" not in attributes
    targets = {a["href"] for tag, a in parsed.elements if tag == "a"}
    ids = [a["id"] for _, a in parsed.elements if "id" in a]
    assert targets <= {f"#{name}" for name in ids}
    assert len(ids) == len(set(ids))


def test_the_page_holds_the_licences_of_the_code_in_it(found: Findings) -> None:
    html = page(found)
    for owner in ("University of Washington Interactive Data Lab", "Mike Bostock", "Jonas Earendel", "lodash"):
        assert owner in html[: html.index("<html")]


def test_the_page_says_what_was_found(found: Findings) -> None:
    parsed = Parsed(page(found))
    said = "On average over 2 seeds, at 12.5 % density (round 3) the tickets of made-up reach 89.3 % test accuracy"
    assert said in parsed.shown
    for words in ("Not audited", "Weights kept 12.5 % 8x fewer", "Early-stop step 100 dense 100", "To find it 1.8x"):
        assert words in parsed.shown, words
    for draw in found.searches[0].draws:
        assert draw.id in parsed.shown
    assert "made-up: 2 searches" not in parsed.shown
    alts = [a["alt"] or "" for tag, a in parsed.elements if tag == "img"]
    assert "fc1.weight (30 x 64), kept weights by input: 50.0 % of the net kept, round 1; brightest" in alts[0]


def test_headings_go_down_one_by_one(store: tb.Store, found: Findings) -> None:
    several = findings_of(store, [add_draw(store), add_draw(store, method="snip")])
    for findings in (found, several):
        levels = [int(tag[1]) for tag, _ in Parsed(page(findings)).elements if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))


def test_an_audit_comes_first(found: Findings) -> None:
    rows = ({"arm": "ticket", "mean": 0.95, "n": 5}, {"arm": "reinit", "mean": None, "n": 5})
    for passed, badge in ((True, "Audit passed"), (False, "Audit not passed"), (None, "Audit undecided")):
        judged = replace(found, judgement=Judgement(("The tickets win.", "By 1.2 points."), passed, rows))
        shown = Parsed(page(judged)).shown
        assert f"Verdict {badge} The tickets win. By 1.2 points." in shown
        assert "arm mean n ticket 0.95 5 reinit \N{EN DASH} 5" in shown
        assert "On average over" not in shown


def test_hostile_names_stay_text(store: tb.Store) -> None:
    names: dict[str, Any] = {"task": HOSTILE, "method": HOSTILE + "2", "controls": (HOSTILE,), "note": HOSTILE}
    shapes = {HOSTILE: (30, 64), f"{HOSTILE}<!--": (4, 30)}
    ids = [add_draw(store, seed=seed, shapes=shapes, **names) for seed in (0, 1)]
    judgement = Judgement((HOSTILE,), True, ({HOSTILE: HOSTILE},))
    parsed = Parsed(page(replace(findings_of(store, ids), judgement=judgement)))
    assert parsed.shown.count(HOSTILE) > 20
    assert "49" not in slug(HOSTILE)
    code = [text for attributes, text in parsed.scripts if "type" not in attributes]
    data = [text for attributes, text in parsed.scripts if attributes.get("type") == "application/json"]
    assert len(code) == 3
    assert not any(HOSTILE in text for text in code)
    for text in data:
        assert not set("<>&") & set(text)
        chart = json.loads(text)
        assert re.fullmatch("[a-z0-9-]+", chart["name"])
    assert any(HOSTILE in one["names"] for text in data for one in json.loads(text)["series"])
    assert not [a for tag, a in parsed.elements if tag == "img" and a.get("src") == "x"]


def test_gradient_flow_is_shown_where_it_was_measured(found: Findings) -> None:
    assert "tombola diagnose gradients made-up measures it" in Parsed(page(found)).shown
    rows = tuple(
        {
            "method": "dense",
            "density": 1.0,
            "seed": 0,
            "step": s,
            "squared_norm": 1.0,
            "loss": 2.0,
            "status": "finished",
        }
        for s in (0, 10)
    )
    shown = Parsed(page(replace(found, gradients=rows))).shown
    assert "Loss on the same examples" in shown
    assert "measures it" not in shown


def test_diverged_and_missing_values_are_told(store: tb.Store) -> None:
    draw_id = add_draw(store, rounds=2)
    draw = store.draw(draw_id)
    assert draw is not None
    lost = {"status": "diverged", "stop_metric": None, "end_metric": float("nan"), "stop_step": None}
    store.save_draw(draw_id, draw.about, [*draw.rounds[:2], draw.rounds[2] | lost], "finished")
    found = findings_of(store, [draw_id])
    row = tables.rounds(found.searches[0], "rounds").rows[2]
    assert [cell.text for cell in row[3:7]] == ["0 of 1", "diverged", "diverged", "diverged"]
    assert [cell.sort for cell in row[4:7]] == ["", "", ""]
    shown = Parsed(page(found)).shown
    assert "Diverged or without a value: ticket at 25.0 %." in shown
    assert "One seed" in shown
    assert "NaN" not in shown


def test_what_is_under_way_and_what_is_lost_is_told(store: tb.Store) -> None:
    draw_id = add_draw(store, status="running")
    gone = store.draw(draw_id)
    assert gone is not None
    store.discard(gone.rounds[-1]["run"])
    about = {"task": {"name": "made-up"}, "seed": 0, "arm": "reinit", "density": 0.25}
    claim = store.claim(an_id("now"), about)
    assert claim is not None
    with claim:
        shown = Parsed(page(findings_of(store, [draw_id]))).shown
    assert "This search is still running. 4 runs are done" in shown
    assert f"Run {an_id('now')[:12]} is running by" in shown
    assert "reinit at 25.0 % density, seed 0, begun" in shown
    assert f"Run {gone.rounds[-1]['run'][:12]} is not in the store any more." in shown
    assert "interrupted: the command that began it goes on" in Parsed(page(findings_of(store, [draw_id]))).shown


def test_a_run_has_a_page(store: tb.Store) -> None:
    add_run(store, an_id("x"), a_mask(0.25), arm="reinit", accuracy=0.8)
    shown = Parsed(page(findings_of(store, [], [an_id("x")]))).shown
    assert "One training of made-up at 25.0 % density, finished: test accuracy at early stop 80.0 %." in shown
    assert "Validation accuracy" in shown
    claim = store.claim(an_id("y"), {"task": {"name": "made-up"}, "seed": 0, "arm": "ticket", "density": 1.0})
    assert claim is not None
    with claim:
        shown = Parsed(page(findings_of(store, [], [an_id("y")]))).shown
    assert "running: test accuracy at early stop no value" in shown
    assert "No training has a curve yet." in shown


def large() -> Search:
    """500 runs: five seeds, 25 rounds, a ticket and three controls, with curves of 240 evaluations."""
    rows, curves, layers = fake_draw(seeds=5, rounds=25, draws=0)
    tickets = [row | {"run": an_id(row["seed"], row["round"]), "chosen": row["round"] == 12} for row in rows]
    spent = {"find_seconds": 1.5, "find_flops": 10**9, "train_seconds": 1.5, "train_flops": 10**9, "bytes": 10**5}
    arms = ("reinit", "random", "shuffled")
    controls = [row | {"arm": arm, "chosen": False} for row in tickets if row["round"] for arm in arms]
    evaluated = [row for row in curves if row["arm"] == "ticket"]
    evaluated = [row for i, row in enumerate(evaluated) if i % 500 < 480 and i % 2 == 0]
    evaluated += [row | {"arm": arm} for row in evaluated if row["round"] for arm in arms]
    mask = torch.rand(300, 784, generator=torch.Generator().manual_seed(0)) < 0.1
    maps = [picture(mask, layer="fc1.weight", seed=0, round=r, density=0.8**r, first=True) for r in range(26)]
    whole = picture(mask, layer="fc2.weight", seed=0, round=12, density=0.8**12, first=False)
    return Search(
        *("imp", "mnist-lenet300", "imp", "accuracy", "test", (), {"rate": 0.2}),
        *(tuple(row | spent for row in (*tickets, *controls)), tuple(evaluated), tuple(layers), (*maps, whole)),
    )


def test_a_page_of_500_runs_weighs_less_than_10_megabytes() -> None:
    search = large()
    assert len(search.rounds) == 505
    html = page(Findings("500 runs", (search,)))
    assert 500 < html.count("<tr") < 1500
    assert len(html.encode()) < 4e6
    assert len(search.curves) == 505 * 240


def test_sections_stand_by_themselves(found: Findings) -> None:
    made = sections(found)
    assert [part.heading for part in made][:5] == [
        *("Verdict", "Results by density", "Training", "What is kept", "Gradient flow")
    ]
    for part in made:
        parsed = Parsed(part.html)
        assert parsed.elements[0] == ("section", {"id": part.id, "aria-labelledby": f"{part.id}-heading"})


def test_what_was_read_on_validation_data_says_so(store: tb.Store) -> None:
    draw_id = add_draw(store, rounds=1)
    (search,) = findings_of(store, [draw_id]).searches
    shown = Parsed(page(Findings("x", (replace(search, data="validation"),)))).shown
    assert "reaches 89.8 % validation accuracy" in shown
    assert "test accuracy" not in shown.lower()


def test_a_draw_without_a_result_has_a_page(store: tb.Store) -> None:
    store.save_draw(an_id("none"), {"task": "t", "seed": 0, "recipe": {"method": "imp"}}, [], "running")
    shown = Parsed(page(findings_of(store, [an_id("none")]))).shown
    assert "imp of t has no result yet." in shown
