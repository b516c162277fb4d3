"""The command line's frame: help, what it imports, exit statuses, bad input and how it is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from cli_tools import TINY, Result, call

import tombola as tb
from tombola.cli.draw import command as draw_command
from tombola.cli.main import VERBS
from tombola.cli.train import command as train_command
from tombola.recipe import DrawRecipe, Recipe

# ---- help

OF_THE_TASK = ("rounds", "allocation", "relative_rates", "margin")


def imported(*args: str) -> set[str]:
    """Which heavy packages a new process has imported when it has carried out a command."""
    heavy = ("torch", "pydantic", "sqlalchemy", "altair", "numpy", "sklearn")
    code = (
        f"import sys; from tombola.cli.main import run; assert run({list(args)}) == 0; "
        f"print(*(set({heavy}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_help_imports_nothing_heavy() -> None:
    assert imported("--help") == set()


@pytest.mark.parametrize("verb", ["draw", "train"])
def test_help_of_a_recipe_imports_no_torch(verb: str) -> None:
    assert imported(verb, "--help") == {"pydantic"}


def test_a_look_into_a_store_imports_no_torch(tmp_path: Path) -> None:
    tb.Store(tmp_path).close()
    assert imported("list", "--store", str(tmp_path)).isdisjoint({"torch", "numpy", "altair"})


def test_help_names_every_verb_with_a_line() -> None:
    shown = call("--help")
    assert shown.status == 0
    for verb, line in VERBS.items():
        assert f"{verb} " in shown.out
        assert line in shown.out
        assert call(verb, "-h").status == 0


def test_without_a_verb_help_is_shown() -> None:
    shown = call()
    assert (shown.status, shown.out) == (2, "")
    assert shown.err == call("--help").out


def test_options_of_draw_stand_under_headings() -> None:
    lines = call("draw", "--help").out.splitlines()
    headings = [line for line in lines if line and not line.startswith((" ", "Usage"))]
    assert headings == ["Search:", "Training of each net:", "Running:", "Output:", "Other:"]
    order = [lines.index(heading) for heading in headings]

    def place(flag: str) -> int:
        return next(i for i, line in enumerate(lines) if line.strip().startswith(flag))

    assert order[0] < place("--rounds") < order[1] < place("--lr ") < order[2] < place("-j, --jobs")
    assert place("--store") < order[3] < place("--out") < order[4]


@pytest.mark.parametrize("command", [draw_command, train_command])
def test_every_option_that_takes_a_value_states_its_default(command: click.Command) -> None:
    options = [p for p in command.params if isinstance(p, click.Option) and not (p.is_flag and not p.secondary_opts)]
    assert len(options) > len(Recipe.model_fields) - 2
    for option in options:
        assert "default:" in str(option.help), option.name


def test_the_stated_defaults_are_the_ones_that_hold() -> None:
    stated = {p.name: str(p.help) for p in draw_command.params if isinstance(p, click.Option)}
    for name in set(DrawRecipe.model_fields) - {"task", "seed", "training"}:
        default = DrawRecipe.model_fields[name].default
        if name in OF_THE_TASK:
            assert "[default: the task's" in stated[name]
        elif default not in (None, (), False, {}):
            assert f"[default: {default}" in stated[name]
    for name in set(Recipe.model_fields) - {"start", "trains", "score_density", "updates", "until_settled"}:
        assert stated[name].endswith("[default: the task's]")


def test_help_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = call("--help").out.splitlines()
    assert max(map(len, lines)) <= 50  # click's least width


# ---- words that are not known


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["drwa"], "unknown command 'drwa'. Did you mean 'draw'?"),
        (["draw", "digits-mlp", "--round", "3"], "unknown option '--round'. Did you mean '--rounds'?"),
        (["draw", "digits-mlp", "--no-figure"], "unknown option '--no-figure'. Did you mean '--no-figures'?"),
        (["--vers"], "unknown option '--vers'. Did you mean '--version'?"),
        (["list", "--quite-another"], "unknown option '--quite-another'.\n"),
        (["draw", "digit-mlp"], "unknown task 'digit-mlp'. Did you mean 'digits-mlp'?"),
        (["draw", "digits-mlp", "--method", "ipm"], "unknown method 'ipm'. Did you mean 'imp'?"),
        (["draw", "digits-mlp", "--criterion", "magnitud"], "Did you mean 'magnitude'?"),
        (["draw", "digits-mlp", "--control", "reinitt"], "'reinitt' is not one of 'reinit', 'shuffled'"),
        (["draw", "digits-mlp", "extra"], "unexpected extra argument (extra)"),
        (["draw"], "name a task, e.g. tombola draw digits-mlp; tombola draw --list-tasks lists them"),
        (["train"], "Missing argument 'TASK'"),
        (["train", "digits"], "Did you mean 'digits-mlp'?"),
        (["list", "drws"], "'drws' is not one of 'draws', 'runs'"),
    ],
)
def test_a_misspelt_word_is_bad_input_with_the_nearest(
    args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(call(*args), said)
    assert list(tmp_path.iterdir()) == []


def assert_refused(found: Result, said: str) -> None:
    assert found.status == 2
    assert said in found.err
    assert found.out == ""
    assert "Traceback" not in found.err


# ---- values that break a rule


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--rounds", "-1", "must be greater than 0, but got '-1'"),
        ("--rounds", "1.5", "must be a valid integer, but got '1.5'"),
        ("--density", "0", "must be greater than 0, but got '0'"),
        ("--rate", "1", "must be less than 1, but got '1'"),
        ("--lr", "abc", "must be a valid number, but got 'abc'"),
        ("--lr", "nan", "must be a finite number, but got 'nan'"),
        ("--lr", "1e400", "must be a finite number, but got '1e400'"),
        ("--weight-decay", "inf", "must be a finite number, but got 'inf'"),
        ("--margin", "nan", "but got 'nan'"),
        ("--batch", "0", "must be greater than 0, but got '0'"),
        ("--steps", "10", "like 50000it or 160ep, but got '10'"),
        ("--steps", "1.5it", "must be a whole number, but got 1.5it"),
        ("--steps", "-3it", "like 50000it or 160ep, but got '-3it'"),
        ("--steps", f"{'9' * 400}it", "but got inf"),
        ("--betas", "0.9", "value 2 is missing"),
        ("--betas", "0.9,x", "value 2 must be a valid number, but got 'x'"),
        ("--control-rounds", "1,x", "value 2 must be a valid integer, but got 'x'"),
        ("--control-rounds", "", "values with commas between, like 1,2, but got ''"),
        ("--milestones", "5it,,6it", "values with commas between"),
        ("--relative-rate", "fc1", "of the form NAME=NUMBER, like fc3.weight=0.5, but got 'fc1'"),
        ("--relative-rate", "fc1=x", "'fc1' must be a valid number, but got 'x'"),
        ("--device", "gpu", "but got 'gpu'"),
        ("--strategy", "3", "'3' is not one of '1', '2'"),
        ("--seed", "x", "must be whole numbers of 0 or more, like 0 or 0,1,2 or 0-4, but got 'x'"),
        ("--seed", "5-2", "must be whole numbers"),
        ("--seed", "-1", "must be whole numbers"),
        ("--seed", "1,", "must be whole numbers"),
        ("--seed", "0-99999999999", "must be at most 1000 seeds"),
        ("--jobs", "0", "0 is not in the range"),
        ("--store", "", "must be a path, but got ''"),
        ("--out", " ", "must be a path, but got ' '"),
        ("--recipe", "", "must be a path, but got ''"),
    ],
)
def test_a_bad_value_is_refused_with_its_option_and_its_rule(option: str, value: str, said: str) -> None:
    found = call("draw", "digits-mlp", option, value)
    assert_refused(found, said)
    assert f"Invalid value for '{option}':" in found.err.replace("'-j' / ", "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--nesterov"], "nesterov needs optimizer 'sgd' with momentum above 0"),
        (["--schedule", "linear"], "needs both density"),
        (["--density", "0.1", "--rounds", "2"], "give rounds or density, not both"),
        (["--control", "reinit", "--control-rounds", "70"], "at round 70, but the rounds go from 1 to"),
        (["--control", "reinit", "--control-rounds", "0"], "at round 0, but the rounds go from 1 to"),
        (["--relative-rate", "fcx=2"], "no prunable parameter fits the pattern 'fcx'"),
        (["--relative-rate", "fc1.weight=nan"], "must be at least 0 and below 1"),
        (["--criterion", "no_such_module:score"], "can't be imported"),
        (["--device", "cuda:99"], "device 'cuda:99' can't be used here"),
        (["--recipe", "/no/such/file.toml"], "the recipe /no/such/file.toml can't be read: No such file"),
        (["--recipe", "."], "can't be read: Is a directory"),
    ],
)
def test_what_does_not_go_together_is_found_before_any_training(options: list[str], said: str, tmp_path: Path) -> None:
    store, out = tmp_path / "runs", tmp_path / "out"
    assert_refused(call("draw", "digits-mlp", *TINY, *options, "--store", store, "--out", out), said)
    assert not out.exists()
    if store.exists():
        with tb.Store(store) as opened:
            assert opened.runs() == []


def test_train_refuses_what_it_cannot_train(tmp_path: Path) -> None:
    assert_refused(call("train", "digits-mlp", "--ticket", tmp_path), "this is a folder, not a ticket file")
    assert_refused(call("train", "digits-mlp", "--ticket", tmp_path / "a"), f"no ticket file at {tmp_path / 'a'}")
    assert_refused(call("train", "digits-mlp", "--momentum", "0.9"), "momentum belongs to optimizer 'sgd'")
    assert_refused(call("train", "digits-mlp", "--seed", "-1"), "-1 is not in the range x>=0")
    assert_refused(call("train", "digits-mlp", "--lr", "0"), "must be greater than 0")


# ---- where results go


def test_results_that_cannot_be_written_are_found_before_any_training(tmp_path: Path) -> None:
    a_file, a_folder = tmp_path / "file", tmp_path / "out"
    a_file.write_text("mine")
    (a_folder / "digits-mlp-seed0.ticket").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    for out, said in [
        (a_file, f"results can't be written to {a_file}: File exists; give another folder with --out"),
        (a_file / "deep" / "er", "Not a directory"),
        (tmp_path / ("long" * 100), "File name too long"),
        (a_folder, f"{a_folder / 'digits-mlp-seed0.ticket'} is in the way"),
    ]:
        assert_refused(call("draw", "digits-mlp", *TINY, "--store", tmp_path / "runs", "--out", out), said)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_without_the_right_to_write_is_found_before_any_training(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    found = call("draw", "digits-mlp", *TINY, "--store", tmp_path.parent / "runs", "--out", tmp_path / "out")
    tmp_path.chmod(0o700)
    assert_refused(found, "Permission denied")


def test_a_failure_to_write_afterwards_says_that_the_nets_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    args = ("draw", "digits-mlp", *TINY, "--rounds", 1, "--store", tmp_path / "runs", "--out", tmp_path / "out")
    with monkeypatch.context() as changed:
        changed.setattr("tombola.report.tables.save_tables", full)
        found = call(*args)
    assert found.status == 1
    assert "No space left on device" in found.err
    assert "nets are kept in the store" in found.err
    again = call(*args)
    assert again.status == 0
    assert "at step" not in again.err  # nothing was trained again


# ---- exit statuses


def test_a_search_that_fails_ends_with_1(tmp_path: Path) -> None:
    args = ("draw", "digits-mlp", *TINY, "--optimizer", "sgd", "--lr", "1e30", "--out", tmp_path / "out")
    found = call(*args, "--store", tmp_path / "runs", "--json")
    assert found.status == 1
    assert found.out == ""
    assert "diverged after" in found.err
    assert "Error: the dense net of seed 0 diverged" in found.err


def test_a_defect_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tombola.cli.recipe_file.written", lambda recipe: {}["gone"])
    with pytest.raises(KeyError):
        call("draw", "digits-mlp", "--print-recipe")


def test_an_interrupt_ends_with_130_and_the_same_command_goes_on(tmp_path: Path) -> None:
    args = ["draw", "digits-mlp", "--steps", "2500it", "--rounds", "3", "--no-figures"]
    args += ["--store", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen([sys.executable, "-m", "tombola", *args], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (tmp_path / "runs" / "catalogue.sqlite").exists() or not under_way(tmp_path / "runs"):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Interrupted. Finished work is kept: the same command goes on from there." in said
    assert "Traceback" not in said
    runs = call("list", "runs", "--json", "--store", tmp_path / "runs").json
    assert [run["status"] for run in runs][-1] == "interrupted"
    assert call(*args).status == 0
    assert (tmp_path / "out" / "digits-mlp-seed0.ticket").exists()


def under_way(store: Path) -> bool:
    with tb.Store(store) as opened:
        return any(run.status == "running" for run in opened.runs())


def test_an_interrupt_at_any_place_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tombola.execution.carry_out", interrupted)
    found = call("draw", "digits-mlp", "--store", tmp_path / "runs", "--out", tmp_path / "out")
    assert found.status == 130
    assert found.err.split("\n", 1)[1] == "Interrupted. Finished work is kept: the same command goes on from there.\n"


def program(*args: str, stdout: int | object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tombola", *args]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env={**os.environ, **env})  # type: ignore[call-overload,no-any-return]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_and_no_traceback() -> None:
    with open("/dev/full", "w") as full:
        found = program("--help", stdout=full)
    assert found.returncode == 1
    assert found.stderr == "Error: [Errno 28] No space left on device\n"


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    found = program("--help", stdout=write)
    os.close(write)
    assert found.returncode == 1
    assert found.stderr == ""


def test_a_terminal_without_the_characters_gets_escapes(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store:
        store.save_draw("ab" * 32, {"task": "x"}, [], "finished")
    found = program("list", "--store", str(tmp_path), stdout=subprocess.PIPE, PYTHONIOENCODING="latin-1")
    assert found.returncode == 0
    assert r"\u2013" in found.stdout  # the dash for what is missing
