"""``tombola diagnose gradients``, ``instability`` and ``hessian`` on the embedded digits, tiny."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cli_tools import Result, call
from PIL import Image

import tombola as tb
from tombola.errors import InputError
from tombola.report.figures import save_figures
from tombola.report.flow_figures import curvature_figure, gradient_figure, instability_figure

TINY = ("--steps", "30it", "--evaluate-every", "15it")


class Kept(NamedTuple):
    """A store, and a ticket that was drawn with it, rewound to step 5."""

    store: Path
    ticket: Path


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    folder = tmp_path_factory.mktemp("diagnosed")
    args = ("--seed", 2, "--rounds", 1, "--survivors", "rewind", "--back-to", "5it", "--margin", "0.9", "--no-figures")
    drawn = call("draw", "digits-mlp", *TINY, *args, "--store", folder / "runs", "--out", folder / "out")
    assert drawn.status == 0
    return Kept(folder / "runs", folder / "out" / "digits-mlp-seed2.ticket")


def diagnose(kept: Kept, out: Path, *args: object) -> Result:
    return call("diagnose", *args, "--store", kept.store, "--out", out)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def trained(shown: Result) -> list[str]:
    """What was trained, as progress tells it."""
    return [line.split(" · ")[1] for line in shown.err.splitlines() if line.endswith(" s")]


def check_figure(out: Path, name: str) -> None:
    assert {path.suffix for path in out.glob(f"{name}.*")} == {".csv", ".svg", ".png", ".pdf"}
    with Image.open(out / f"{name}.png") as image:
        assert image.width > 600
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20
    svg = (out / f"{name}.svg").read_text()
    assert "NaN" not in svg
    assert "undefined" not in svg


def test_gradients_of_methods_beside_the_dense_net(kept: Kept, tmp_path: Path) -> None:
    args = ("gradients", "digits-mlp", *TINY, "--method", "snip", "--method", "random_at_init", "--density", "0.1")
    args += ("--at", "0it,10it,30it", "--seed", "0-1", "--per-class", 5)
    shown = diagnose(kept, tmp_path, *args)
    assert shown.status == 0
    assert trained(shown) == ["dense", "ticket", "ticket"] * 2
    lines = shown.out.splitlines()
    assert lines[0].split("  ")[0].strip() == "step"
    assert [line.split()[0] for line in lines[1:4]] == ["0", "10", "30"]
    assert lines[4] == f"{tmp_path / 'gradients.csv'}, {tmp_path / 'gradients.png'} (also SVG and PDF)"
    check_figure(tmp_path, "gradients")
    rows = rows_of(tmp_path / "gradients.csv")
    assert len(rows) == 2 * 3 * 3
    first = next(row for row in rows if (row["method"], row["seed"], row["step"]) == ("snip", "1", "10"))
    assert float(first["gradient_norm"]) == pytest.approx(math.sqrt(float(first["squared_norm"])))
    again = diagnose(kept, tmp_path, *args, "--json", "--no-figures")
    assert trained(again) == []
    assert [str(row["loss"]) for row in again.json["gradients"]] == [row["loss"] for row in rows]


def test_instability_of_the_dense_net_by_shared_steps(kept: Kept, tmp_path: Path) -> None:
    args = ("instability", "digits-mlp", *TINY, "--rewind", "0it,20it", "--points", 3)
    shown = diagnose(kept, tmp_path, *args)
    assert shown.status == 0
    assert len(trained(shown)) >= 4  # the dense net may be there already
    cells = [line.split() for line in shown.out.splitlines()[1:5]]
    assert [cell[:2] for cell in cells] == [[s, data] for s in ("0", "20") for data in ("train", "validation")]
    check_figure(tmp_path, "instability")
    assert len(rows_of(tmp_path / "instability.csv")) == 2 * 3 * 2
    found = diagnose(kept, tmp_path, *args, "--json").json
    assert found["density"] == 1
    for barrier, cell in zip(found["barriers"], cells, strict=True):
        assert float(cell[4]) == pytest.approx(100 * barrier["error_barrier"], abs=0.01)
        assert barrier["error_barrier"] >= 0


def test_instability_of_a_ticket_is_that_of_its_seed_recipe_and_mask(kept: Kept, tmp_path: Path) -> None:
    args = ("instability", "digits-mlp", "--ticket", kept.ticket, "--rewind", "5it", "--points", 2)
    shown = diagnose(kept, tmp_path, *args)
    assert shown.status == 0
    assert [line.partition(":")[0] for line in shown.err.splitlines()] == [
        *(f"seed 2 · copy {order} from step 5 · 80.20% kept" for order in (1, 2)),
        "1 net was in the store already",  # the draw's own dense net, with its state at step 5
    ]
    assert {row["density"] for row in rows_of(tmp_path / "instability.csv")} == {str(tb.load(kept.ticket).density)}


def test_hessian_of_a_ticket_follows_its_own_training(kept: Kept, tmp_path: Path) -> None:
    shown = diagnose(kept, tmp_path, "hessian", kept.ticket, "--count", 2, "--per-class", 5)
    assert shown.status == 0
    assert shown.err == "1 net was in the store already\n"
    cells = [line.split() for line in shown.out.splitlines()[1:5]]
    assert [cell[:2] for cell in cells] == [["2", "5"], ["2", "5"], ["2", "30"], ["2", "30"]]  # from its rewind step
    assert all(cell[5] == "yes" for cell in cells)
    check_figure(tmp_path, "hessian")
    rows = rows_of(tmp_path / "hessian.csv")
    assert float(rows[0]["eigenvalue"]) >= float(rows[1]["eigenvalue"]) > 0


def test_hessian_of_a_task_is_that_of_its_dense_net(kept: Kept, tmp_path: Path) -> None:
    args = ("hessian", "digits-mlp", *TINY, "--seed", "2", "--at", "0it,5it", "--per-class", 5, "--no-figures")
    found = diagnose(kept, tmp_path, *args, "--json")
    assert found.status == 0
    assert trained(found) == []
    assert [(row["step"], row["density"]) for row in found.json["eigenvalues"]] == [(0, 1), (5, 1)]
    assert [path.name for path in tmp_path.iterdir()] == ["hessian.csv"]


def test_the_curvature_where_a_training_begins_needs_no_training(tmp_path: Path) -> None:
    args = ("hessian", "digits-mlp", "--at", "0it", "--per-class", 5, "--store", tmp_path / "runs", "--no-figures")
    shown = call("diagnose", *args, "--out", tmp_path / "out")
    assert (shown.status, shown.err) == (0, "")
    assert shown.out.splitlines()[1].split()[:2] == ["0", "0"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("gradients", "digits-mpl"), "unknown task 'digits-mpl'"),
        (("gradients", "digits-mlp", "--method", "snipp"), "unknown method 'snipp'"),
        (("gradients", "digits-mlp", "--density", "1"), "--density"),
        (("gradients", "digits-mlp", "--at", "5x"), "a duration must be a number with 'it'"),
        (("gradients", "digits-mlp", "--steps", "30it", "--at", "31it"), "no step 31it"),
        (("instability", "digits-mlp", "--steps", "30it", "--rewind", "30it"), "training ends at step 30"),
        (("instability", "digits-mlp", "--ticket", "nothing.ticket"), "nothing.ticket"),
        (("instability", "digits-conv", "--ticket", "TICKET"), "the ticket doesn't fit the net"),
        (("instability", "digits-mlp", "--momentum", "0.9"), "momentum belongs to optimizer 'sgd'"),
        (("hessian", "nothing.ticket"), "nothing.ticket"),
        (("hessian", "digits-mlpp"), "unknown task 'digits-mlpp'"),
        (("hessian", "TICKET", "--at", "4it"), "the training goes from step 5 to step 30"),
        (("hessian", "digits-mlp", "--steps", "30it", "--count", "101"), "--count"),
    ],
)
def test_wrong_input_is_answered_in_a_line(args: tuple[str, ...], words: str, kept: Kept, tmp_path: Path) -> None:
    given = [str(kept.ticket) if arg == "TICKET" else arg for arg in args]
    store = tmp_path / "runs" if "TICKET" not in args else kept.store
    shown = call("diagnose", *given, "--store", store, "--out", tmp_path / "out")
    assert (shown.status, shown.out) == (2, "")
    assert words in shown.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_net_that_diverges_ends_with_status_1(tmp_path: Path) -> None:
    args: tuple[Any, ...] = ("digits-mlp", *TINY, "--optimizer", "sgd", "--lr", "1e30", "--store", tmp_path / "runs")
    args += ("--out", tmp_path / "out")
    for what, words in (("gradients", "diverged"), ("instability", "copy 1 from step 0 of seed 0 diverged")):
        shown = call("diagnose", what, *args)
        assert (shown.status, shown.out) == (1, "")
        assert words in shown.err.splitlines()[-1]
    shown = call("diagnose", "hessian", *args, "--at", "30it")
    assert (shown.status, shown.out) == (1, "")
    assert "name earlier ones with --at" in shown.err


# ---- figures


def subtitle(panel: Any) -> str:
    return " ".join(panel["title"].get("subtitle", [])).replace("\N{NO-BREAK SPACE}", " ").strip()


def test_means_over_seeds_and_what_has_no_place_are_told(tmp_path: Path) -> None:
    base = {"density": 0.05, "status": "finished", "loss": 1.0}
    rows = [
        {**base, "method": method, "seed": seed, "step": step, "squared_norm": norm, "status": status}
        for method, status, norms in (("dense", "finished", (4.0, 1e-9)), ("snip", "diverged", (2.0, 0.0)))
        for seed in (0, 1)
        for step, norm in zip((0, 50), norms, strict=True)
    ]
    chart = gradient_figure(rows, "digits").to_dict()
    assert chart["title"]["text"] == "digits: gradient flow, seeds 0, 1"
    told = subtitle(chart["concat"][0])
    assert "Lines: means over seeds; bars: lowest to highest." in told
    assert "Zero or without a value: snip at step 50." in told
    assert "Diverged, and not drawn from there on: snip." in told
    assert all(path.stat().st_size for path in save_figures(tmp_path, {"a": gradient_figure(rows, "digits")}))


def test_a_metric_that_is_no_share_has_no_limit_of_stability(tmp_path: Path) -> None:
    rows = [
        {"seed": 0, "density": 1.0, "rewind": 0, "alpha": alpha, "data": data, "error": 9.0, "loss": 2.0}
        for alpha in (0.0, 1.0)
        for data in ("train", "validation")
    ]
    found = [{"seed": 0, "rewind": 0, "data": d, "error_barrier": 0.0, "loss_barrier": 0.0} for d in ("train",)]
    perplexity = instability_figure(rows, found, "words", "perplexity").to_dict()
    assert perplexity["concat"][0]["title"]["text"] == "Instability in perplexity"
    assert subtitle(perplexity["concat"][0]) == ""
    accuracy = instability_figure(rows, found, "digits", "accuracy")
    assert subtitle(accuracy.to_dict()["concat"][0]) == "Dotted: 2.0 %, up to which a net counts as stable."
    assert all(path.stat().st_size for path in save_figures(tmp_path, {"a": accuracy}))


def test_a_curvature_that_has_not_converged_is_named() -> None:
    rows = [
        {"seed": 0, "density": 1.0, "step": step, "number": 1, "eigenvalue": -0.5, "converged": step == 0}
        for step in (0, 1000)
    ]
    assert subtitle(curvature_figure(rows, "digits").to_dict()) == "Not converged at step 1,000."
    for draw in (lambda: curvature_figure([], "x"), lambda: gradient_figure([], "x")):
        with pytest.raises(InputError, match="there are none"):
            draw()
