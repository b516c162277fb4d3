"""TensorBoard, W&B and MLflow have what the store keeps; trackers by name, and on the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cli_tools import TINY, call
from toy import toy_task
from tracked import ABOUT, SUMMARY, event, interrupted, one_run, tell

import tombola as tb
from tombola.lab import Lab
from tombola.tracking import Tracking, get_tracker, read_events
from tombola.tracking.mlflow import Mlflow
from tombola.tracking.tensorboard import TensorBoard
from tombola.tracking.wandb import Wandb

# Trackers of other makers


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show of a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    read = accumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    tags = read.Tags()
    assert "config/text_summary" in tags["tensors"]
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in tags["scalars"]}


def check_curves(found: dict[str, list[tuple[int, float]]], run: tb.Run) -> None:
    for name in ("train_loss", "validation_loss", "validation_accuracy"):
        told = [(row["step"], row[name]) for row in run.history if row[name] is not None]
        assert [at for at, _ in found[name]] == [at for at, _ in told]
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in told], rel=1e-6)
    ((at, accuracy),) = found["end/test_accuracy"]
    assert at == 60
    assert accuracy == pytest.approx(run.summary["end"]["test_accuracy"], rel=1e-6)


def test_tensorboard_has_each_run_in_a_folder(store: tb.Store, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with Tracking([TensorBoard(tmp_path / "tb")]) as tracking:
        trained = [Lab(toy_task(name="a/b %"), store, watcher=tracking).train(seed) for seed in (0, 1)]
    assert len(list((tmp_path / "tb").iterdir())) == 2
    for run in trained:
        check_curves(curves(tmp_path / "tb" / f"a_b_ticket_100.00_seed_{run.seed}_{run.id[:8]}"), run)


def test_tensorboard_shows_each_step_of_a_resumed_run_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = interrupted(tmp_path, lambda: TensorBoard(tmp_path / "tb"))
    (folder,) = (tmp_path / "tb").iterdir()
    assert len(list(folder.iterdir())) == 2
    check_curves(curves(folder), run)


class FakeWandb(ModuleType):
    """As much of W&B as is used, to look at what it is given."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.calls: list[tuple[Any, ...]] = []

    def Settings(self, **settings: Any) -> dict[str, Any]:  # noqa: N802 - theirs
        return settings

    def init(self, **given: Any) -> Any:
        self.inits.append(given)
        run, calls = ModuleType("run"), self.calls
        run.log = lambda values, step: calls.append((given["id"], step, values))  # type: ignore[attr-defined]
        run.finish = lambda exit_code: calls.append((given["id"], exit_code))  # type: ignore[attr-defined]
        run.summary = {}  # type: ignore[attr-defined]
        return run


def test_wandb_is_given_a_run_of_its_own_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    a, b = one_run("a" * 64), one_run("b" * 64, SUMMARY | {"end": None})
    tell([Wandb()], *(one for pair in zip(a, b, strict=True) for one in pair), event("start", "c" * 64))
    assert [given["id"] for given in fake.inits] == ["a" * 32, "b" * 32, "c" * 32]
    first = fake.inits[0]
    assert (first["project"], first["group"], first["job_type"]) == ("tombola", "toy", "ticket")
    assert first["name"] == "toy ticket 21.00% seed 3 aaaaaaaa"
    assert (first["config"]["recipe"], first["config"]["run"]) == (ABOUT["full_recipe"], "a" * 64)
    assert first["reinit"] == "create_new"
    assert fake.calls[:2] == [("a" * 32, 0, {"validation_loss": 1.0}), ("b" * 32, 0, {"validation_loss": 1.0})]
    assert [one for one in fake.calls if len(one) == 2] == [("a" * 32, 0), ("b" * 32, 1), ("c" * 32, 1)]


def test_wandb_works_offline(store: tb.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed: pip install 'tombola[wandb]'")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    with Tracking([Wandb()]) as tracking:
        run = Lab(toy_task(), store, watcher=tracking).train(0)
        tracking(event("start"))  # and one that is open still
    for own in (run.id[:32], "a" * 32):
        (written,) = tmp_path.glob(f"wandb/offline-run-*-{own}/run-{own}.wandb")
        assert b"validation_accuracy" in written.read_bytes() or own == "a" * 32


def test_mlflow_has_each_run_and_goes_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'tombola[mlflow]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # its databases need more packages than its client
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    run = interrupted(tmp_path, Mlflow)
    tell([Mlflow()], *one_run("b" * 64, SUMMARY | {"end": None}), event("start", "c" * 64))
    client = mlflow.tracking.MlflowClient()
    experiment = client.get_experiment_by_name("tombola").experiment_id
    found = {one.data.tags["tombola.run"]: one for one in client.search_runs([experiment])}
    assert {name[0]: one.info.status for name, one in found.items() if name != run.id} == {"b": "FAILED", "c": "KILLED"}
    theirs = found[run.id]
    assert theirs.info.status == "FINISHED"
    assert theirs.info.run_name == f"toy ticket 100.00% seed 0 {run.id[:8]}"
    assert theirs.data.params["recipe/lr"] == "0.01"
    assert theirs.data.metrics["end/test_accuracy"] == run.summary["end"]["test_accuracy"]
    points = {(m.step, m.value) for m in client.get_metric_history(theirs.info.run_id, "validation_loss")}
    assert points == {(row["step"], row["validation_loss"]) for row in run.history}


# Trackers by name


@pytest.mark.parametrize(
    ("name", "module"), [("wandb", "wandb"), ("mlflow", "mlflow.tracking"), ("tensorboard", "torch.utils.tensorboard")]
)
def test_a_missing_package_is_named_with_its_extra(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(tb.InputError, match=rf"not installed .*; run pip install 'tombola\[{name}\]'"):
        get_tracker(name, tmp_path)


OWN = """
class Mine:
    told = []
    def start(self, run, config): self.told.append(config["name"])
    def log(self, run, step, values): pass
    def finish(self, run, summary, status): self.told.append(status)
    def close(self): self.told.append("closed")

class Half:
    def start(self, run, config): pass

class Broken:
    def __init__(self): raise KeyError("key")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_trackers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_trackers", raising=False)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wand", "unknown tracker 'wand'. Did you mean 'wandb'"),
        (".own:Mine", "unknown tracker"),
        ("own_trackers:", "package.module:Class"),
        ("no_such_module:Mine", "can't be made: ModuleNotFoundError"),
        ("own_trackers:Nobody", "can't be made: AttributeError"),
        ("own_trackers:Broken", "can't be made: KeyError"),
        ("own_trackers:Half", "must have the methods start, log, finish and close, but is a Half"),
    ],
)
def test_trackers_that_cannot_be_had_are_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(tb.InputError, match=message):
        get_tracker(name, tmp_path)


@pytest.mark.usefixtures("own")
def test_the_command_line_tells_trackers(tmp_path: Path) -> None:
    tracked = ("--store", tmp_path / "runs", "--tracker", "own_trackers:Mine")
    drawn = ("draw", "digits-mlp", *TINY, *tracked, "--rounds", 1, "--out", tmp_path / "out")
    assert call(*drawn).status == 0
    mine = sys.modules["own_trackers"].Mine
    assert [told.rsplit(" ", 1)[0] for told in mine.told] == [
        *("digits-mlp dense 100.00% seed 0", "finished"),
        *("digits-mlp imp ticket 80.20% seed 0", "finished"),
        "closed",
    ]
    log, events = tmp_path / "log" / "train.jsonl", tmp_path / "out" / "events.jsonl"
    before = read_events(events)
    assert {e["arm"] for e in before} == {"dense", "ticket"}
    assert call(*drawn).status == 0  # all of it is in the store
    assert read_events(events) == before
    assert call("train", "digits-mlp", *tracked, "--steps", "30it", "--log", log).status == 0
    assert [e["step"] for e in read_events(log) if e["kind"] == "step"][-1] == 30
    refused = call("draw", "digits-mlp", *TINY, "--tracker", "wand", "--out", tmp_path / "other")
    assert (refused.status, refused.out) == (2, "")
    assert not (tmp_path / "other").exists()
