"""Settling: the channel masks of a training after each epoch, what is said of them, the figure and the verb."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_tools import call
from PIL import Image
from torch import nn
from toy import toy_task

import tombola as tb
from tombola.diagnostics.settling import Looks, recent_rows, settling, settling_rows
from tombola.early_bird import channel_mask
from tombola.errors import InputError, TombolaError
from tombola.events import Event
from tombola.lab import Lab
from tombola.mask import Mask
from tombola.recipe import Recipe
from tombola.report.settling_figure import MOST_EPOCHS, WRITTEN_EPOCHS, settling_figure

RULE: dict[str, Any] = {"window": 3, "distance": 0.25}


def pictured(*texts: str) -> tuple[Mask, ...]:
    return tuple(Mask({"norm.weight": torch.tensor([c == "1" for c in text])}) for text in texts)


# Four channels; distances: 1-2 half, 2-3 none, 1-3 half, 3-4 none, 2-4 none, 1-4 half.
LOOKS = Looks(5, 0.5, pictured("1100", "1010", "1010", "1010"), **RULE)
RESTLESS = Looks(5, 0.25, pictured("1000", "0100", "0010", "0001"), **RULE)


def norm_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def norm_task(**recipe: Any) -> tb.Task:
    """Eight steps an epoch, and a penalty that moves the scales."""
    found = {"steps": "44it", "lr": 0.05, "engine": "masked", "scale_l1": 1e-3} | recipe
    return toy_task(model=norm_net, recipe=found)


# ---- rows


def test_rows_by_hand() -> None:
    assert (LOOKS.drawn, RESTLESS.drawn) == (4, None)
    rows = settling_rows([LOOKS, RESTLESS])
    assert [(row["epoch"], row["before"], row["distance"]) for row in rows[:6]] == [
        *((2, 1, 0.5), (3, 1, 0.5), (3, 2, 0.0)),
        *((4, 1, 0.5), (4, 2, 0.0), (4, 3, 0.0)),
    ]
    assert {(row["seed"], row["density"], row["drawn"]) for row in rows} == {(5, 0.5, 4), (5, 0.25, None)}
    assert {row["distance"] for row in rows[6:]} == {0.5}
    recent = recent_rows([LOOKS])
    assert [(row["epoch"], row["last"], row["furthest"], row["drawn"]) for row in recent] == [
        (2, 0.5, None, False),
        (3, 0.0, 0.5, False),
        (4, 0.0, 0.0, True),
    ]


# ---- trainings


def test_masks_are_those_of_the_scales_after_each_epoch_and_nothing_is_trained_twice(store: tb.Store) -> None:
    events: list[Event] = []
    task = norm_task()
    lab = Lab(task, store, watcher=events.append)
    found = settling(lab, 3, [0.5, 0.25], window=3, distance=0.1)
    assert [event.arm for event in events if event.kind == "start"] == ["dense"]
    per_epoch = lab.steps_per_epoch(3, lab.recipe)
    epochs = 44 // per_epoch
    assert [len(looks.masks) for looks in found] == [epochs, epochs]
    assert epochs >= 3
    run = lab.train(3)
    for looks, density in zip(found, (0.5, 0.25), strict=True):
        assert (looks.seed, looks.density, looks.window, looks.distance) == (3, density, 3, 0.1)
        for epoch, mask in enumerate(looks.masks, start=1):
            scale = run.at(tb.Duration(epoch * per_epoch))["1.weight"].abs()
            assert mask == channel_mask({"1.weight": scale}, density)
            assert mask.kept == round(density * 16)
    events.clear()
    assert settling(lab, 3, [0.5, 0.25], window=3, distance=0.1) == found
    assert [event.kind for event in events] == ["found"]


def test_a_run_that_is_in_the_store_already_is_looked_at_too(store: tb.Store) -> None:
    lab = Lab(norm_task(), store)
    lab.train(1)
    assert len(settling(lab, 1, [0.5])[0].masks) >= 3


def test_what_cannot_settle_is_refused_before_anything_is_trained(store: tb.Store) -> None:
    events: list[Event] = []
    plain = toy_task(model=lambda: nn.Sequential(nn.Linear(12, 3)))
    for task, densities, rule, said in (
        (plain, [0.5], {}, "and this net has none"),
        (norm_task(steps="5it"), [0.5], {}, r"5it are fewer than two epochs of \d+ steps: train for longer"),
        (norm_task(), [0.01], {}, r"keeps 0 of 16 channels"),
        (norm_task(), [0.5], {"window": 1}, "window of 2 or more, but got 1"),
    ):
        with pytest.raises(InputError, match=said):
            settling(Lab(task, store, watcher=events.append), 0, densities, **rule)
    assert events == []


def test_a_net_that_diverges_at_once_has_no_masks(store: tb.Store) -> None:
    with pytest.raises(TombolaError, match="seed 0 diverged before its second epoch was over"):
        settling(Lab(norm_task(lr=1e30, optimizer="sgd", evaluate_every="1it"), store), 0, [0.5])


# ---- the figure


def layers_of(panel: dict[str, Any], chart: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The points of each layer of a panel."""
    return [chart["datasets"][layer.get("data", panel.get("data"))["name"]] for layer in panel["layer"]]


def test_the_figure_has_a_panel_a_density_and_outlines_what_drew_the_ticket() -> None:
    chart = settling_figure(settling_rows([LOOKS, RESTLESS]), **RULE, title="toy").to_dict()
    first, second = chart["concat"]
    assert first["title"]["text"] == "50.0 % of the channels"
    assert first["title"]["subtitle"] == ["3 masks within 25\N{NO-BREAK SPACE}%: ticket after epoch 4."]
    assert second["title"]["subtitle"] == ["3 masks within 25\N{NO-BREAK SPACE}%: no ticket in 4 epochs."]
    cells, white, black, outline = layers_of(first, chart)
    assert len(cells) == 16
    assert {(c["epoch"], c["before"]): c["distance"] for c in cells}[1, 3] == 50
    assert len(white) + len(black) == 16
    assert [(c["epoch"], c["before"]) for c in outline] == [(4, 2), (4, 3)]
    assert len(second["layer"]) == 3  # nothing to outline


def test_many_epochs_are_thinned_and_not_written_into() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = tuple(Mask({"a": torch.rand(20, generator=generator) < 0.5}) for _ in range(2 * MOST_EPOCHS + 1))
    chart = settling_figure(settling_rows([Looks(0, 0.5, masks)]), window=5, distance=0.1, title="toy").to_dict()
    assert chart["title"]["text"] == "toy: how channel masks settle, 50.0 % of the channels"
    assert "Every 3 epochs." in " ".join(chart["title"]["subtitle"])
    (cells,) = layers_of(chart, chart)
    assert len({c["epoch"] for c in cells}) == 54
    assert len(cells) == 54 * 54
    few = Looks(0, 0.5, masks[:WRITTEN_EPOCHS])
    assert len(settling_figure(settling_rows([few]), window=5, distance=0.1, title="toy").to_dict()["layer"]) == 3
    with pytest.raises(InputError, match="a figure needs rows"):
        settling_figure([], window=5, distance=0.1, title="toy")


# ---- the verb


def test_the_verb_writes_distances_and_a_figure(tmp_path: Path) -> None:
    args = ("diagnose", "settling", "digits-conv", "--steps", "3ep", "--evaluate-every", "3ep", "--engine", "masked")
    args += ("--batch", "359", "--density", "0.3,0.6", "--window", "2", "--distance", "0.9")
    where = ("--store", tmp_path / "runs", "--out", tmp_path)
    shown = call(*args, *where)
    assert shown.status == 0
    lines = shown.out.splitlines()
    assert lines[0].startswith("seed 0: distance in percent")
    assert lines[2].split()[0] == "2"
    assert lines[2].count("*") == 2  # anything is within 90 %
    assert lines[-1] == f"{tmp_path / 'settling.csv'}, {tmp_path / 'settling.png'} (also SVG and PDF)"
    with Image.open(tmp_path / "settling.png") as image:
        assert image.width > 600
    assert "NaN" not in (tmp_path / "settling.svg").read_text()
    with (tmp_path / "settling.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["density"], row["epoch"], row["before"]) for row in rows] == [
        (density, *pair) for density in ("0.6", "0.3") for pair in (("2", "1"), ("3", "1"), ("3", "2"))
    ]
    found = call(*args, *where, "--no-figures", "--json").json
    assert found["drawn"] == [{"seed": 0, "density": 0.6, "epoch": 2}, {"seed": 0, "density": 0.3, "epoch": 2}]
    assert [{key: str(value) for key, value in row.items()} for row in found["distances"]] == rows
    assert (found["window"], found["distance"]) == (2, 0.9)
    with tb.Store(tmp_path / "runs") as store:
        (run,) = store.runs()
        assert Recipe.model_validate(run.about["full_recipe"]).scale_l1 == 1e-4


def test_the_verb_refuses_plainly(tmp_path: Path) -> None:
    for args, said in (
        (("digits-mlp",), "ranks channels by the scales of batch normalisation, and this net has none"),
        (("digits-conv", "--density", "0.5,1.5"), "value 2 must be less than 1, but got '1.5'"),
        (("digits-conv", "--window", "1"), "--window"),
    ):
        found = call("diagnose", "settling", *args, "--store", tmp_path / "runs", "--out", tmp_path)
        assert (found.status, found.out) == (2, "")
        assert said in found.err
        assert "Traceback" not in found.err
