"""Recipes through the command line's doors: flags, TOML files, and ``--print-recipe`` back to a file."""

from __future__ import annotations

import itertools
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cli_tools import TINY, call
from hypothesis import given as drawn
from hypothesis import strategies as st

import tombola as tb
from tombola.asked import draw_recipe
from tombola.cli import recipe_file
from tombola.durations import Duration
from tombola.recipe import DrawRecipe

DIGITS = tb.get_task("digits-mlp")

OPTION_SETS = [
    [],
    ["--seed", "7", "--rounds", "3", "--lr", "0.1", "--batch", "17"],
    ["--density", "0.05", "--rate", "0.3"],
    ["--stop-at-margin", "--margin", "0.02"],
    ["--allocation", "global", "--criterion", "random", "--method", "one_shot"],
    ["--allocation", "erk", "--schedule", "cubic", "--density", "0.1", "--rounds", "4"],
    ["--survivors", "rewind", "--back-to", "100it", "--strategy", "2"],
    ["--survivors", "fine-tune", "--fine-tune", "0.1234567ep"],
    [
        "--control",
        "reinit",
        "--control",
        "shuffled",
        "--control-draws",
        "3",
        "--control-rounds",
        "1,2",
        "--rounds",
        "2",
    ],
    ["--relative-rate", "fc3.weight=0.25", "--relative-rate", "fc*=1.5"],
    ["--optimizer", "sgd", "--momentum", "0.9", "--nesterov", "--weight-decay", "1e-4"],
    ["--lr-schedule", "steps", "--milestones", "80ep,120ep", "--gamma", "0.2", "--warmup", "10it"],
    ["--betas", "0.5,0.75", "--eps", "1e-10", "--optimizer", "adamw", "--steps", "123456789it"],
    ["--device", "cuda:1", "--threads", "4", "--engine", "masked", "--lr-schedule", "cosine"],
]


@pytest.mark.parametrize("options", OPTION_SETS, ids=" ".join)
def test_a_printed_recipe_is_the_same_recipe(options: list[str], tmp_path: Path) -> None:
    printed = call("draw", "digits-mlp", *options, "--print-recipe")
    assert printed.status == 0
    assert printed.err == ""
    file = tmp_path / "r.toml"
    file.write_text(printed.out)
    assert call("draw", "--recipe", file, "--print-recipe").out == printed.out
    as_json = call("draw", "--recipe", file, "--print-recipe", "--json").json
    assert draw_recipe(DIGITS, as_json) == draw_recipe(DIGITS, recipe_file.read(file))


def test_flags_mean_what_their_fields_mean() -> None:
    options = [option for options in OPTION_SETS[8:12] for option in options]
    printed = tomllib.loads(call("draw", "digits-mlp", *options, "--seed", "3", "--print-recipe").out)
    recipe = draw_recipe(
        DIGITS,
        {
            "seed": 3,
            "controls": ["reinit", "shuffled"],
            "control_draws": 3,
            "control_rounds": [1, 2],
            "rounds": 2,
            "relative_rates": {"fc3.weight": 0.25, "fc*": 1.5},
            "training": {
                "optimizer": "sgd",
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 1e-4,
                "lr_schedule": "steps",
                "milestones": ["80ep", "120ep"],
                "gamma": 0.2,
                "warmup": "10it",
            },
        },
    )
    assert DrawRecipe.model_validate(printed) == recipe
    assert recipe.training.steps == DIGITS.recipe.steps


@drawn(
    lr=st.floats(1e-300, 1e300),
    margin=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**63 - 1),
    steps=st.builds(Duration, st.floats(1e-9, 1e9), st.just("ep")) | st.builds(Duration, st.integers(1, 10**12)),
    relative=st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), st.floats(0, 1e9), max_size=3),
)
def test_no_digit_is_lost_on_the_way_through_a_file(
    lr: float, margin: float, seed: int, steps: Duration, relative: dict[str, float], tmp_path_factory: Any
) -> None:
    options = {"margin": margin, "seed": seed, "relative_rates": relative, "training": {"lr": lr, "steps": steps}}
    recipe = draw_recipe(DIGITS, options)
    file = tmp_path_factory.mktemp("recipe") / "r.toml"
    file.write_bytes(recipe_file.written(recipe).encode())
    assert draw_recipe(DIGITS, recipe_file.read(file)) == recipe


def test_a_control_asked_for_twice_is_one_control() -> None:
    printed = call("draw", "digits-mlp", "--control", "reinit", "--control", "reinit", "--print-recipe")
    assert tomllib.loads(printed.out)["controls"] == ["reinit"]


def test_flags_override_the_file_and_the_file_the_task(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text('task = "digits-mlp"\nseed = 5\nrounds = 4\n[training]\nsteps = "77it"\nbatch = 33\n')
    printed = tomllib.loads(call("draw", "--recipe", file, "--batch", "44", "--seed", "6", "--print-recipe").out)
    assert (printed["seed"], printed["rounds"]) == (6, 4)
    assert (printed["training"]["steps"], printed["training"]["batch"]) == ("77it", 44)
    assert printed["training"]["lr"] == DIGITS.recipe.lr
    assert tomllib.loads(call("draw", "--recipe", file, "--print-recipe").out)["seed"] == 5


def test_several_seeds_are_not_one_recipe() -> None:
    found = call("draw", "digits-mlp", "--seed", "0-2", "--print-recipe")
    assert (found.status, found.out) == (2, "")
    assert "a recipe has one seed" in found.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("round = 3", "{file}: a recipe has no field 'round'. Did you mean 'rounds'?"),
        ("[training]\nsteep = '3it'", "{file}, [training]: a recipe has no field 'steep'. Did you mean 'steps'?"),
        ("lr = 0.1", "{file}: a recipe has no field 'lr'. It belongs under [training]."),
        ("[training]\nrounds = 2", "{file}, [training]: a recipe has no field 'rounds'. It belongs above [training]."),
        ("rounds = 'many'", "{file}: rounds: must be a valid integer, but got 'many'"),
        ("rounds = [3]", "{file}: rounds: must be a valid integer, but got [3]"),
        ("seed = -1", "{file}: seed: must be greater than or equal to 0, but got -1"),
        ("task = 5", "{file}: task: must be a valid string, but got 5"),
        ("margin = nan", "{file}: margin: must be"),
        ("controls = 'reinit'", "{file}: controls: must be a valid tuple, but got 'reinit'"),
        ("controls = ['reinitt']", "{file}: controls: value 1 must be 'reinit', 'shuffled', "),
        ("relative_rates = 3", "{file}: relative_rates: must be a valid dictionary, but got 3"),
        ("training = 3", "{file}: training must be a table, [training], but got 3"),
        ("[training]\nlr = 'fast'", "{file}, [training]: lr: must be a valid number, but got 'fast'"),
        ("[training]\nlr = inf", "{file}, [training]: lr: must be a finite number, but got inf"),
        ("[training]\nsteps = 1.5", "{file}, [training]: steps: a duration must be a number with"),
        ("[training]\nbetas = [0.9]", "{file}, [training]: betas: value 2 is missing"),
        ("[training]\nnesterov = true", "{file} and the command line: training: nesterov needs"),
        ("method = 'ipm'", "{file} and the command line: unknown method 'ipm'. Did you mean 'imp'?"),
        ("rounds = ", "the recipe {file} must be TOML in UTF-8, but:"),
        ("x = " + "[" * 5000, "the recipe {file}"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(text)
    found = call("draw", "digits-mlp", "--recipe", file, *TINY, "--store", tmp_path / "runs", "--out", tmp_path / "o")
    assert (found.status, found.out) == (2, "")
    assert said.format(file=file) in found.err
    assert "Traceback" not in found.err
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_bytes(b"rounds = \xff")
    found = call("draw", "digits-mlp", "--recipe", file)
    assert found.status == 2
    assert "must be TOML in UTF-8" in found.err


def test_a_file_may_name_no_task_or_an_unknown_one(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text("rounds = 3")
    assert "name a task" in call("draw", "--recipe", file).err
    file.write_text("task = 'digit-mlp'")
    assert "unknown task 'digit-mlp'. Did you mean 'digits-mlp'?" in call("draw", "--recipe", file).err


def test_seeds_are_lists_and_ranges_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def watched(recipes: list[DrawRecipe], **_: Any) -> None:
        asked.append([recipe.seed for recipe in recipes])
        raise tb.TombolaError("enough")

    monkeypatch.setattr("tombola.execution.carry_out", watched)
    for text in ("0", "3,1", "0-4", "2,0-2, 9 - 10", "99999999999999999999"):
        assert call("draw", "digits-mlp", "--seed", text, "--store", tmp_path, "--out", tmp_path).status == 1
    assert asked == [[0], [3, 1], [0, 1, 2, 3, 4], [2, 0, 1, 9, 10], [99999999999999999999]]


def test_every_combination_of_doors_gives_one_recipe(tmp_path: Path) -> None:
    """A field may come by flag or by file: the recipe is the same."""
    fields = {"rounds": "2", "margin": "0.1"}
    found = set()
    for doors in itertools.product(("flag", "file"), repeat=len(fields)):
        file = tmp_path / "r.toml"
        by = dict(zip(fields, doors, strict=True))
        file.write_text("\n".join(f"{name} = {value}" for name, value in fields.items() if by[name] == "file"))
        flags = [part for name, value in fields.items() if by[name] == "flag" for part in (f"--{name}", value)]
        found.add(call("draw", "digits-mlp", "--recipe", file, *flags, "--print-recipe").out)
    assert len(found) == 1


def test_train_takes_the_training_of_a_recipe_file_and_writes_it_back(tmp_path: Path) -> None:
    written = call("draw", "digits-mlp", "--steps", "40it", "--lr", "0.002", "--print-recipe")
    path = tmp_path / "recipe.toml"
    path.write_text(written.out)
    again = call("train", "digits-mlp", "--recipe", path, "--batch", "30", "--print-recipe")
    assert again.status == 0
    training = tomllib.loads(again.out)["training"]
    assert (training["steps"], training["lr"], training["batch"]) == ("40it", 0.002, 30)
    trained = call("train", "digits-mlp", "--recipe", path, "--store", tmp_path / "runs", "--json")
    assert trained.json["steps"] == 40
