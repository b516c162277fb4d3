"""What may happen to trainings in one pass on the way: interruptions, claims of other processes, kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kill_driver
import pytest
import torch
from sqlalchemy import update
from test_replicates import mlp, normalised
from test_resume import ENVIRONMENT
from together_tools import (
    SEEDS,
    all_runs,
    digest,
    double,
    masked_alone,
    single,
    together,
    trained,
)

import tombola as tb
from tombola.engines.masked import MaskedSession
from tombola.engines.replicates import Place
from tombola.events import Event
from tombola.lab import Lab, Trainer
from tombola.mask import Mask
from tombola.store.catalogue import runs
from tombola.together import side_by_side
from tombola.training.checkpoint import Slot


class Held:
    """Holds a checkpoint."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def save(self, data: bytes) -> None:
        self.data = data

    def load(self) -> bytes:
        return self.data


def stop_at(step: int, seed: int, error: type[BaseException] = KeyboardInterrupt) -> Callable[[Event], None]:
    def watch(event: Event) -> None:
        if event.kind == "step" and event.seed == seed and event.row is not None and event.row["step"] == step:
            raise error

    return watch


def interrupted(task: tb.Task, store: tb.Store, step: int = 18) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(task, store, [{"seed": seed} for seed in SEEDS], stop_at(step, SEEDS[-1]))
    assert {run.status for run in store.runs()} == {"interrupted"}
    assert not [thread for thread in threading.enumerate() if thread.name == "search"]


def test_an_interrupt_while_a_search_is_at_work_ends_it_when_it_next_wants_a_net(store: tb.Store) -> None:
    left, interrupted = threading.Event(), threading.Event()

    def busy(trainer: Trainer) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupted.wait(60)
            Lab(single(mlp), store, trainer=trainer).train(0)
        finally:
            left.set()

    with pytest.raises(KeyboardInterrupt):
        side_by_side([busy, busy])
    interrupted.set()
    assert left.wait(60)
    assert not store.runs()


def checkpoint_of(store: Path, run_id: str) -> Path:
    (found,) = (path for path in (store / "checkpoints").rglob("*") if path.name == run_id)
    return found


@pytest.fixture
def calm(other: tb.Store) -> tuple[tb.Task, list[tb.Run]]:
    task = single(normalised)
    return task, trained(task, other, [{"seed": seed} for seed in SEEDS])


def test_an_interrupted_pass_goes_on_to_the_same_bits(store: tb.Store, calm: Any, passes: list[Any]) -> None:
    task, wanted = calm
    interrupted(task, store)
    events: list[Event] = []
    got = trained(task, store, [{"seed": seed} for seed in SEEDS], events.append)
    assert [e.row["step"] for e in events if e.kind == "step" and e.row] == [18] * 3 + [24] * 3
    assert [digest(run) for run in got] == [digest(run) for run in wanted]
    assert passes == [SEEDS] * 2


def test_nets_whose_checkpoints_are_at_different_steps_go_on_in_passes_of_their_own(
    store: tb.Store, calm: Any, passes: list[Any], tmp_path: Path
) -> None:
    task, wanted = calm
    interrupted(task, store)
    checkpoint_of(tmp_path / "runs", wanted[1].id).unlink()
    got = trained(task, store, [{"seed": seed} for seed in SEEDS])
    assert passes == [SEEDS, (3, 3, 11), (0, 0, 0)]
    assert [digest(run) for run in got] == [digest(run) for run in wanted]


def test_each_by_itself_can_go_on_from_a_pass_to_the_same_bits(store: tb.Store, calm: Any, passes: list[Any]) -> None:
    task, wanted = calm
    interrupted(task, store)
    got = [Lab(task, store).train(seed) for seed in SEEDS]
    assert passes[1:] == [(seed,) * 3 for seed in SEEDS]
    assert [digest(run) for run in got] == [digest(run) for run in wanted]


def test_the_masked_engine_can_go_on_from_a_checkpoint_of_a_pass(
    store: tb.Store, other: tb.Store, tmp_path: Path
) -> None:
    task = double(normalised)
    run = Lab(task, other, trainer=masked_alone).train(SEEDS[1])
    interrupted(task, store)
    saved = Slot(Held(checkpoint_of(tmp_path / "runs", run.id).read_bytes()), run.id).saved
    assert saved is not None
    assert saved.progress.place == Place(1, 3)
    assert saved.step == 12
    model = task.build(SEEDS[1])
    session = MaskedSession(model, Mask.full(model), task, task.splits(SEEDS[1]).train, task.recipe, SEEDS[1])
    session.load(saved.state)
    session.stretch(12)
    for name, value in run.final.items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-7)


def test_a_net_begun_by_itself_ends_by_itself(store: tb.Store, other: tb.Store, passes: list[Any]) -> None:
    task = single(normalised, engine="masked")
    with pytest.raises(KeyboardInterrupt):
        Lab(task, store, watcher=stop_at(18, 0), checkpoint_every=0.0).train(0)
    got = trained(task, store, [{"seed": seed} for seed in SEEDS])
    assert passes == [(3, 3, 11)]
    assert digest(got[1]) == digest(Lab(task, other).train(0))


def test_a_net_of_another_process_is_waited_for_while_the_others_train(
    store: tb.Store, other: tb.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tombola.together.POLL_SECONDS", 0.01)
    task = single(mlp)
    elsewhere = Lab(task, other).train(0)
    claim = store.claim(elsewhere.id, elsewhere.record.about)
    assert claim is not None
    said: list[tuple[str, int]] = []

    def watch(event: Event) -> None:
        said.append((event.kind, event.seed))
        if said.count(("waiting", 0)) == 3 and event.kind == "waiting":
            blobs = {name: other.read(elsewhere.record, name) for name in elsewhere.record.blobs}
            claim.finish(elsewhere.record.summary, blobs)

    got = trained(task, store, [{"seed": seed} for seed in SEEDS], watch)
    assert digest(got[1]) == digest(elsewhere)
    assert ("start", 0) not in said
    assert said.index(("done", 3)) < len(said) - 1 - said[::-1].index(("waiting", 0))


def test_a_claim_that_is_lost_on_the_way_leaves_the_others_alone(
    store: tb.Store, calm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tombola.together.POLL_SECONDS", 0.01)
    monkeypatch.setattr("tombola.store.owners.HEARTBEAT_SECONDS", 0.01)
    task, wanted = calm
    lost = wanted[1].id

    def hand(**values: Any) -> None:
        with store._catalogue.writing() as connection:
            connection.execute(update(runs).where(runs.c.id == lost).values(**values))

    starts: list[int] = []

    def watch(event: Event) -> None:
        if event.kind == "start":
            starts.append(event.seed)
        if event.kind == "step" and event.seed == 3 and event.done == 12 and len(starts) == 3:
            hand(token="f" * 32)  # another process has taken it over ...
        if event.kind == "waiting":
            hand(token=None, status="interrupted")  # ... and gives it up

    got = trained(task, store, [{"seed": seed} for seed in SEEDS], watch)
    assert starts == [3, 0, 11, 0]
    assert [digest(run) for run in got] == [digest(run) for run in wanted]


# ---- kill -9


def draw(store: Path, log: Path) -> dict[str, str]:
    """What ``kill_driver`` repeats until it gets through."""
    task = single(normalised, evaluate_every="4it")

    def watch(event: Event) -> None:
        with log.open("a") as file:
            file.write(json.dumps([event.kind, event.run]) + "\n")

    options: dict[str, Any] = {"rounds": 1, "survivors": "rewind", "back_to": "12it", "controls": ["reinit"]}
    with tb.Store(store) as opened:
        draws = together(task, opened, watcher=watch, **options)
        digests = {run.id: digest(run) for run in all_runs(draws)}
        return digests | {str(d.recipe.seed): d.ticket(d.rounds[-1]).digest for d in draws}


def test_killed_at_random_moments_it_gives_the_same_bits(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path), "4"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["killed"] > 0
    calm, killed = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("calm", "killed"))
    assert killed == calm
    assert len(calm) == 3 * (3 + 1), "dense, a round, its control, and the ticket of each"
    lines = [json.loads(line) for line in (tmp_path / "killed.log").read_text().splitlines()]
    finished = [run for kind, run in lines if kind == "done"]
    assert len(finished) == len(set(finished)), "a finished run is never computed twice"


if __name__ == "__main__":
    kill_driver.draw = draw
    kill_driver.main(Path(sys.argv[1]), int(sys.argv[2]))
