"""``tombola diagnose``: the group, and what layers, collapse, masks and cost print, write and refuse."""

from __future__ import annotations

import csv
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from cli_tools import TINY, Result, call

import tombola as tb
from tombola.cli.diagnose import VERBS
from tombola.ticket import Ticket

OWN = ("layers", "collapse", "masks", "cost")
TRAINED = TINY[:-1]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def refused(found: Result, said: str) -> None:
    assert (found.status, found.out) == (2, "")
    assert said in found.err
    assert "Traceback" not in found.err


# ---- the group


def test_help_of_the_group_imports_nothing_heavy_and_that_of_a_diagnostic_no_torch() -> None:
    code = (
        "import sys; from tombola.cli.main import run; assert run({args}) == 0; "
        "print(*sorted({heavy} & set(sys.modules)))"
    )
    heavy = {"torch", "numpy", "pydantic", "altair", "sqlalchemy"}
    for args, wanted in [(["diagnose", "--help"], ""), *((["diagnose", verb, "-h"], "pydantic") for verb in OWN)]:
        line = code.format(args=args, heavy=heavy)
        done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == wanted


def test_the_group_names_its_diagnostics_and_wants_one() -> None:
    shown = call("diagnose", "--help")
    assert shown.status == 0
    assert all(f"  {verb} " in shown.out for verb in VERBS)
    alone = call("diagnose")
    assert (alone.status, alone.out, alone.err) == (2, "", shown.out)
    refused(call("diagnose", "lyers"), "unknown command 'lyers'. Did you mean 'layers'?")


@pytest.mark.parametrize("verb", OWN)
def test_every_option_that_takes_a_value_states_its_default(verb: str) -> None:
    command = importlib.import_module(f"tombola.cli.diagnosing.{verb}").command
    options = [p for p in command.params if isinstance(p, click.Option) and not (p.is_flag and not p.secondary_opts)]
    assert len(options) > 10
    for option in options:
        assert "default:" in str(option.help), option.name


# ---- layers


def test_layers_of_methods_that_train_nothing(tmp_path: Path) -> None:
    args: tuple[object, ...] = (
        "diagnose",
        "layers",
        "digits-mlp",
        "--method",
        "snip",
        "--method",
        "magnitude_at_init",
        "--seed",
        "0-1",
    )
    args += ("--densities", "0.1,0.05", "--no-figures", "--store", tmp_path / "runs", "--out", tmp_path)
    shown = call(*args)
    assert shown.status == 0
    lines = shown.out.splitlines()
    assert lines[0] == "density 10.0 %, mean (range) of 2 seeds"
    assert lines[1].split() == ["layer", "weights", "snip", "%", "magnitude_at_init", "%"]
    assert lines[5].split() == ["the", "net", "50,200", "10", "10"]
    assert lines[6].startswith("density 5.0 %")
    assert "seed 1 · snip · 5.00% kept: mask found" in shown.err
    rows = table(tmp_path / "layers.csv")
    assert len(rows) == 2 * 2 * 2 * 3
    for density in ("0.1", "0.05"):
        kept = [
            int(row["kept"]) for row in rows if (row["method"], row["seed"], row["density"]) == ("snip", "1", density)
        ]
        assert sum(kept) == round(float(density) * 50_200)
    found = call(*args, "--json").json
    assert found["task"] == "digits-mlp"
    assert [{key: str(value) for key, value in row.items()} for row in found["layers"]] == rows
    assert found["files"] == [str(tmp_path / "layers.csv")]
    with tb.Store(tmp_path / "runs") as store:
        assert store.runs() == []


def test_layers_of_a_method_that_trains_are_those_of_its_draw(tmp_path: Path) -> None:
    where = ("--store", tmp_path / "runs", "--no-figures")
    args: tuple[object, ...] = (
        "diagnose",
        "layers",
        "digits-mlp",
        "--method",
        "imp",
        "--density",
        "0.6",
        *TRAINED,
        *where,
    )
    shown = call(*args, "--out", tmp_path / "a")
    assert shown.status == 0
    assert "seed 0 · ticket · 60.00% kept: validation accuracy" in shown.err
    drawn = call("draw", "digits-mlp", "--density", "0.6", *TRAINED, *where, "--out", tmp_path / "b")
    assert drawn.err.splitlines()[-1].endswith("nets were in the store already")
    ours = [row["kept"] for row in table(tmp_path / "a" / "layers.csv")]
    theirs = [row["kept"] for row in table(tmp_path / "b" / "layers.csv") if row["round"] == "3"]
    assert ours == theirs


def test_a_figure_is_drawn_in_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = call("diagnose", "cost", "digits-mlp")
    assert shown.status == 0
    folder = Path("tombola-out") / "diagnose-cost-digits-mlp"
    assert {path.name for path in folder.iterdir()} == {"cost.csv", "cost.svg", "cost.png", "cost.pdf"}
    assert shown.out.splitlines()[-1] == f"{folder / 'cost.csv'}, {folder / 'cost.png'} (also SVG and PDF)"
    assert not Path("runs").exists()


# ---- collapse


def test_collapse_needs_neither_store_nor_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOMBOLA_DATA", str(tmp_path / "nowhere"))
    args: tuple[object, ...] = (
        "diagnose",
        "collapse",
        "mnist-lenet300",
        "--method",
        "synflow",
        "--method",
        "magnitude_at_init",
    )
    args += ("--points", 2, "--bisections", 2, "--score-rounds", 5, "--no-figures", "--out", "out")
    shown = call(*args)
    assert shown.status == 0
    lines = shown.out.splitlines()
    assert lines[0] == "mnist-lenet300: 266,200 weights in 3 layers, maximal compression 88,733"
    assert [line.split()[0] for line in lines[1:4]] == ["method", "synflow", "magnitude_at_init"]
    assert "seed 0 · magnitude_at_init · bisection 2 · compression " in shown.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    found = call(*args, "--json").json
    assert found["maximal_compression"] == pytest.approx(266_200 / 3)
    assert [one["method"] for one in found["critical"]] == ["synflow", "magnitude_at_init"]
    magnitude = found["critical"][1]
    assert 1 < magnitude["critical_compression"] < magnitude["next_compression"] < found["maximal_compression"]
    assert magnitude["emptied_there"]
    assert len(table(Path("out/collapse.csv"))) == len(found["rows"])


# ---- masks


def test_masks_of_the_rounds_of_a_draw(tmp_path: Path) -> None:
    args: tuple[object, ...] = ("diagnose", "masks", "digits-mlp", "--rounds", 3, *TRAINED, "--no-figures")
    args += ("--store", tmp_path / "runs", "--out", tmp_path)
    shown = call(*args)
    assert shown.status == 0
    lines = shown.out.splitlines()
    assert lines[0].startswith("overlap in percent")
    assert [line.split()[1:3] for line in lines[2:5]] == [["80.2", "%"], ["64.3", "%"], ["51.6", "%"]]
    found = call(*args, "--json").json
    kept = {one["name"]: one["kept"] for one in found["masks"]}
    for pair in found["pairs"]:  # every round is within the one before
        assert pair["both"] == kept[pair["other"]] == pair["kept_other"]
        assert pair["overlap"] == pytest.approx(pair["both"] / kept[pair["one"]])
        assert pair["overlap"] > pair["chance_overlap"]
    assert len(table(tmp_path / "masks.csv")) == 3


def test_masks_of_seeds_and_methods_at_one_density(tmp_path: Path) -> None:
    args: tuple[object, ...] = (
        "diagnose",
        "masks",
        "digits-mlp",
        "--method",
        "random_at_init",
        "--method",
        "magnitude_at_init",
    )
    args += ("--density", "0.1", "--seed", "0,2", "--no-figures", "--store", tmp_path / "runs", "--out", tmp_path)
    found = call(*args, "--json").json
    names = [f"{method}, seed {seed}" for method in ("random_at_init", "magnitude_at_init") for seed in (0, 2)]
    assert [(one["name"], one["kept"]) for one in found["masks"]] == [(name, 5020) for name in names]
    assert len(found["pairs"]) == 6


def test_masks_of_tickets(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    values = {"a": torch.ones(4, 30)}
    masks = [tb.Mask({"a": torch.rand(4, 30, generator=generator) < 0.4}) for _ in range(2)]
    paths = [Ticket(mask, values, {}).save(tmp_path / f"{n}.ticket") for n, mask in enumerate(masks)]
    args: tuple[object, ...] = ("diagnose", "masks", *paths, "--no-figures", "--out", tmp_path)
    found = call(*args, "--json").json
    assert [one["name"] for one in found["masks"]] == ["0", "1"]
    assert found["pairs"][0]["distance"] == masks[0].distance(masks[1])
    assert found["pairs"][0]["overlap"] == masks[0].overlap(masks[1])
    other = Ticket(tb.Mask({"b": torch.ones(2, dtype=torch.bool)}), {"b": torch.ones(2)}, {}).save(
        tmp_path / "c.ticket"
    )
    refused(call("diagnose", "masks", paths[0], other, "--out", tmp_path), "0 and c can't be compared")
    refused(call(*args, "--method", "snip"), "tickets have their own: leave them out")
    refused(call("diagnose", "masks", paths[0]), "is one ticket: give more")
    refused(call("diagnose", "cost", paths[0]), "the ticket's origin names no task")


# ---- cost


def test_cost_of_dense_masked_and_ticket(tmp_path: Path) -> None:
    where = ("--no-figures", "--store", tmp_path / "runs", "--out", tmp_path)
    dense = call("diagnose", "cost", "digits-mlp", *where, "--json").json
    assert dense["net"] == "digits-mlp, dense"
    total = dense["layers"][-1]
    assert (total["weights"], total["kept"], total["flops"]) == (50_610, 50_610, 2 * 50_200)
    masked = call(
        "diagnose", "cost", "digits-mlp", "--method", "random_at_init", "--density", "0.1", *where, "--json"
    ).json
    total = masked["layers"][-1]
    assert (total["weights"], total["kept"], total["kept_flops"]) == (50_610, 5020 + 410, 2 * 5020)
    for rows in (dense["layers"], masked["layers"]):
        for key in ("kept", "weights", "flops", "bytes_dense", "bytes_sparse", "bytes_bitmask"):
            assert sum(row[key] for row in rows[:-1]) == rows[-1][key]
    model = tb.get_task("digits-mlp").build(0)
    mask = tb.Mask({name: torch.zeros(p.shape, dtype=torch.bool) for name, p in tb.prunable(model).items()})
    path = Ticket(mask, model.state_dict(), {"task": "digits-mlp"}).save(tmp_path / "empty.ticket")
    shown = call("diagnose", "cost", path, *where)
    assert shown.out.splitlines()[0] == "digits-mlp, empty (0.00% kept)"
    assert [row["kept"] for row in table(tmp_path / "cost.csv")] == ["0", "0", "0", "410", "410"]


# ---- bad input


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["layers"], "Missing argument 'TASK'"),
        (["layers", "digit-mlp"], "unknown task 'digit-mlp'. Did you mean 'digits-mlp'?"),
        (["layers", "digits-mlp", "--method", "snp"], "unknown method 'snp'. Did you mean 'snip'?"),
        (["layers", "digits-mlp", "--density", "2"], "Invalid value for '--density': must be less than 1, but got '2'"),
        (["layers", "digits-mlp", "--densities", "0.1,x"], "value 2 must be a valid number, but got 'x'"),
        (["layers", "digits-mlp", "--unpruned", "zz"], "no prunable parameter fits the pattern 'zz'"),
        (["layers", "digits-mlp", "--device", "cuda:99"], "device 'cuda:99' can't be used here"),
        (["collapse", "digits-mlp", "--method", "imp"], "method 'imp' trains before it prunes"),
        (["collapse", "digits-mlp", "--points", "1"], "1 is not in the range"),
        (["masks"], "Missing argument"),
        (["masks", "digits-mlp", "digits-conv"], "there is no ticket file 'digits-mlp'"),
        (["masks", "digits-mlp", "--rounds", "2", "--density", "0.1"], "give one of the two"),
        (["masks", "digits-mlp", "--method", "random_at_init", "--density", "0.1"], "two at a time, but there is 1"),
        (["masks", "a.ticket", "b.ticket"], "no ticket file at a.ticket"),
        (["cost", "a.ticket"], "no ticket file at a.ticket"),
        (["cost", "digits-mlp", "--density", "0.1"], "give both a method and a density"),
        (["cost", "digits-mlp", "--method", "snip", "--densities", "0.2,0.1"], "one method, one density and one seed"),
    ],
)
def test_bad_input_is_one_line(args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(call("diagnose", *args), said)
    assert not Path("tombola-out").exists()


def test_results_that_cannot_be_written_are_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: Any) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr("tombola.diagnostics.masks.masks_at", work)
    (tmp_path / "layers.csv").mkdir()
    where = ("--out", tmp_path, "--store", tmp_path / "runs")
    refused(call("diagnose", "layers", "digits-mlp", *where), f"{tmp_path / 'layers.csv'} is in the way")
