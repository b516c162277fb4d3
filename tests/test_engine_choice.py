"""Which engine a run gets: decided once, with a reason, kept with the run; and what can't be is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import pytest
import torch
from llvmlite import binding
from torch import Tensor, nn
from toy import same, toy_data, toy_task

import tombola as tb
from tombola.engines import Plan, begin, choice, open_session
from tombola.engines.sparse import kernel
from tombola.engines.tracing import UnsupportedError
from tombola.mask import Mask
from tombola.tasks.task import Splits, Task, cross_entropy, examples
from tombola.training.checkpoint import Slot
from tombola.training.loop import train


def plain_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))


def image_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(12, 3))


def image_task(**recipe: Any) -> Task:
    x, y = toy_data(100)
    return toy_task(model=image_net, train=(x.reshape(-1, 1, 3, 4), y), test=None, recipe=recipe)


def pruned(net: nn.Module, density: float) -> Mask:
    return tb.prune(tb.score(net, "magnitude"), density)


def chosen(task: Task, density: float = 0.1) -> Plan:
    net = task.model()
    return begin(net, pruned(net, density), task, examples(task.train), task.recipe, 0)[0]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TOMBOLA_CACHE", str(tmp_path))
    kernel.cache_folder.cache_clear()
    yield tmp_path
    kernel.cache_folder.cache_clear()


class Measuring:
    """In place of a measurement: seconds that are made up, and a note of what was asked."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds
        self.asked: list[str] = []

    def __call__(self, engine: str, *about: Any) -> float:
        self.asked.append(engine)
        return self.seconds[engine]


def test_without_convolutions_sparse_kernels_are_taken_at_every_density() -> None:
    for density in (0.01, 0.5, 1.0):
        plan = chosen(toy_task(model=plain_net), density)
        assert plan.engine == "sparse"
        assert "without convolutions" in plan.reason
        assert f"{100 * density:.3g} % of the weights" in plan.reason or density == 0.01
        assert plan.layers.keys() == {"0", "2"}


def test_convolutions_with_little_work_left_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_measure", Measuring())
    plan = chosen(image_task(), 0.05)
    assert plan.engine == "sparse"
    assert "of the convolutions' work; below 25 %" in plan.reason


@pytest.mark.parametrize("best", ["sparse", "masked"])
def test_otherwise_both_are_measured_once_and_the_faster_one_is_taken(
    best: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring = Measuring(**({"sparse": 0.2, "masked": 0.3} if best == "sparse" else {"sparse": 0.3, "masked": 0.2}))
    monkeypatch.setattr(choice, "_measure", measuring)
    task = image_task()

    def choose(density: float, task: Task = task) -> Plan:
        net = image_net()
        return choice._choose(net, pruned(net, density), task, examples(task.train), task.recipe)

    plan = choose(0.8)
    assert plan.engine == best
    assert "measured on this machine: sparse" in plan.reason
    assert sorted(measuring.asked) == ["masked", "sparse"]
    kernel.cache_folder.cache_clear()  # as another process, which finds what this one left
    assert choose(0.8) == plan
    assert len(measuring.asked) == 2
    assert len(list(own_cache.rglob("choices/*.json"))) == len(list(own_cache.rglob("choices/*"))) == 1
    for other in (image_task(batch=7), image_task(threads=2), image_task(optimizer="sgd", lr=0.1)):
        choose(0.8, other)
    choose(0.5)
    assert len(measuring.asked) == 10


def test_of_two_measurements_at_the_same_time_the_first_counts(own_cache: Path) -> None:
    def overtaken() -> dict[str, float]:
        assert choice._remembered("key", lambda: {"sparse": 1.0}) == {"sparse": 1.0}
        return {"sparse": 2.0}

    assert choice._remembered("key", overtaken) == {"sparse": 1.0}
    assert choice._remembered("key", lambda: {"sparse": 3.0}) == {"sparse": 1.0}


def test_a_measurement_trains_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    task, net = image_task(), image_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    for engine in ("sparse", "masked"):
        assert choice._measure(engine, net, Mask.full(net), task, examples(task.train), task.recipe) > 0
    assert same(net.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)


def other_loss(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model, batch)


def sigmoid_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 40), nn.Sigmoid(), nn.Linear(40, 3))


def wide_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 60), nn.ReLU(), nn.Linear(60, 40), nn.ReLU(), nn.Linear(40, 3))


def frozen_net() -> nn.Module:
    net = wide_net()
    net.get_parameter("0.bias").requires_grad_(False)
    return net


X, Y = toy_data(100)
OTHERWISE: list[tuple[str, dict[str, Any], str]] = [
    ("operation Sigmoid", {"model": sigmoid_net}, "compact"),
    ("operation Dropout", {}, "masked"),
    ("loss isn't tombola.tasks.cross_entropy", {"model": wide_net, "loss": other_loss}, "compact"),
    ("metrics aren't", {"model": wide_net, "metrics": lambda m, b: {"accuracy": m(b[0]).mean()}}, "compact"),
    ("aren't held in memory", {"model": wide_net, "train": [(X[i], Y[i]) for i in range(100)]}, "compact"),
    ("'0.bias' is frozen", {"model": frozen_net}, "compact"),
    ("label -100", {"model": wide_net, "train": (X, torch.where(Y > 1, -100, Y))}, "compact"),
    ("operation Sigmoid", {"model": sigmoid_net, "density": 1.0}, "masked"),
]


@pytest.mark.parametrize(("why", "changes", "engine"), OTHERWISE, ids=[why for why, _, _ in OTHERWISE])
def test_what_sparse_kernels_cannot_do_is_done_otherwise_and_the_reason_is_told(
    why: str, changes: dict[str, Any], engine: str
) -> None:
    density = changes.get("density", 0.05)
    task = toy_task(**{name: value for name, value in changes.items() if name != "density"})
    net = task.model()
    plan, session = begin(net, pruned(net, density), task, examples(task.train), task.recipe, 0)
    assert plan.engine == engine
    assert why in plan.reason
    assert ("compaction leaves" in plan.reason) == (engine == "compact")
    session.stretch(2)
    # Asked for, it is refused: no other engine is taken instead.
    with pytest.raises(tb.InputError, match=f"the sparse engine can't run this training: .*{why}.*use engine auto"):
        begin(task.model(), pruned(net, density), task, examples(task.train), tb.Recipe(engine="sparse"), 0)


def test_a_label_that_the_net_has_no_output_for_never_reaches_a_kernel() -> None:
    task = toy_task(model=plain_net, train=(X, Y + 1), recipe={"engine": "sparse"})
    with pytest.raises(UnsupportedError, match="the label 3 is none of the net's 3 outputs"):
        chosen(task)


def test_engines_asked_for_that_cannot_do_it_are_refused() -> None:
    with pytest.raises(tb.InputError, match=r"the compact engine can't run this training: dropout"):
        chosen(toy_task(recipe={"engine": "compact"}))
    if not torch.cuda.is_available():
        with pytest.raises(tb.InputError, match="'cuda' can't be used here"):
            chosen(toy_task(recipe={"device": "cuda"}))
    task = toy_task(model=plain_net)
    with pytest.raises(tb.InputError, match=r"unknown engine 'spares'\. Did you mean 'sparse'\?"):
        open_session(Plan("spares", ""), plain_net(), Mask({}), task, examples(task.train), task.recipe, 0)


@pytest.mark.parametrize("engine", ["masked", "compact", "sparse"])
def test_an_engine_asked_for_is_the_one_that_runs(engine: str) -> None:
    assert chosen(toy_task(model=plain_net, recipe={"engine": engine})).engine == engine


class Held:
    """A checkpoint in memory."""

    data: bytes | None = None

    def save(self, data: bytes) -> None:
        self.data = data

    def load(self) -> bytes | None:
        return self.data


class KilledError(Exception):
    pass


@pytest.mark.parametrize("engine", ["sparse", "masked"])
def test_a_resumed_run_keeps_its_engine_whatever_would_be_measured_now(
    engine: str, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    task = image_task(steps="40it", evaluate_every="10it", batch=16, lr=0.01)
    splits = Splits(examples(task.train), examples(task.train), None)
    mask = pruned(image_net(), 0.8)
    other = "masked" if engine == "sparse" else "sparse"
    monkeypatch.setattr(choice, "_measure", Measuring(**{engine: 0.1, other: 0.2}))
    straight = train(task, splits, task.recipe, 3, image_net(), mask)
    assert straight.summary["engine"] == engine
    assert "measured on this machine" in straight.summary["engine_reason"]
    assert bool(straight.summary["engine_layers"]) == (engine == "sparse")

    def kill(done: int, of: int, row: Any) -> None:
        if done == 30:
            raise KilledError

    held = Held()
    with pytest.raises(KilledError):
        train(task, splits, task.recipe, 3, image_net(), mask, slot=Slot(held, "run", every=0), watch=kill)
    assert held.data is not None
    for path in own_cache.rglob("choices/*.json"):
        path.unlink()
    monkeypatch.setattr(choice, "_measure", Measuring(**{engine: 0.2, other: 0.1}))
    resumed = train(task, splits, task.recipe, 3, image_net(), mask, slot=Slot(held, "run", every=0))
    for name in ("engine", "engine_reason", "engine_layers"):
        assert resumed.summary[name] == straight.summary[name]
    assert resumed.history == straight.history
    assert same(resumed.final, straight.final)
    anew = train(task, splits, task.recipe, 3, image_net(), mask)
    assert anew.summary["engine"] == other


def test_nothing_is_compiled_or_even_imported_before_it_is_needed() -> None:
    check = (
        "import sys, tombola, tombola.engines, tombola.lab, tombola.cli.main, tombola.tasks.memory;"
        "assert not {'numba', 'llvmlite'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_the_key_of_the_kernels_changes_with_source_and_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tmp_path / "sparse"
    shutil.copytree(Path(kernel.__file__).parent, sources, ignore=shutil.ignore_patterns("__pycache__"))
    assert kernel.version_key.__wrapped__() == kernel.version_key()
    monkeypatch.setattr(kernel, "__file__", str(sources / "kernel.py"))
    keys = [kernel.version_key.__wrapped__()]
    with open(sources / "vectors.py", "a") as file:
        file.write("\n")
    keys.append(kernel.version_key.__wrapped__())
    with monkeypatch.context() as patch:
        patch.setattr(binding, "get_host_cpu_name", lambda: "another")
        keys.append(kernel.version_key.__wrapped__())
    with monkeypatch.context() as patch:
        patch.setattr(binding, "get_host_cpu_features", lambda: {"avx2": True, "avx512f": False})
        keys.append(kernel.version_key.__wrapped__())
    with monkeypatch.context() as patch:
        patch.setattr(numba.config, "CPU_NAME", "generic")
        keys.append(kernel.version_key.__wrapped__())
    assert len(set(keys)) == 5
    assert kernel.version_key.__wrapped__() == keys[1]


def compile_one(cache: Path, scratch: Path, module: str = "update", name: str = "sgd") -> None:
    code = f"from tombola.engines.sparse.{module} import {name}; assert {name}.address"
    env = os.environ | {"TOMBOLA_CACHE": str(cache), "TMPDIR": str(scratch)}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=env)


GATHER_BOTH = """
import numpy as np, torch
from sparse_tools import allocated, collect, run
from tombola.engines.sparse.gather import Source
from tombola.tasks.data.arrays import Arrays
from tombola.tasks.memory import in_memory

for x in (torch.arange(70).byte()[:, None], torch.arange(70.0)[:, None]):
    data, a, order = Arrays(x, torch.zeros(70, dtype=torch.int64), (0.0,), (1.0,)), allocated(20, (1,)), np.arange(20)
    run([Source(in_memory(data), a).batch()], 20, 1, order)
    assert np.array_equal(collect(a, a.value, 20)[:20, :, 0, 0], data.take(torch.from_numpy(order))[0].numpy())
"""


def test_machine_code_of_several_processes_works_together_in_another(tmp_path: Path) -> None:
    """These two kernels call helpers of one name, each compiled as the first of its process."""
    kept: dict[Path, int] = {}
    for name in ("gather_tiled_bytes", "gather_tiled_floats"):
        compile_one(tmp_path / "cache", tmp_path, "gather", name)
        kept |= {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.nb*")}
    assert {path.parent.parent.name for path in kept} == {kernel.version_key()}
    env = os.environ | {"TOMBOLA_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", GATHER_BOTH], check=True, env=env)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # nothing was compiled twice


def test_a_cache_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    compile_one(tmp_path / "file" / "below", tmp_path)
    assert (tmp_path / "file").read_text() == ""
