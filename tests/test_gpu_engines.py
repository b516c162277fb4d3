"""Recorded steps: what leads up to and follows a recording is proven anywhere, the recording itself on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_replicates import OPTIMIZERS, SEEDS, check_close, mlp, normalised, starts
from torch import Tensor, nn
from toy import same, toy_data, toy_net, toy_task

import tombola as tb
from tombola.engines.graphs import RECORDED, Capture, Result, StepGraph
from tombola.engines.masked import MaskedSession, set_rate
from tombola.engines.replicates import ReplicatedSession
from tombola.events import Event
from tombola.lab import Lab, Trainer
from tombola.tasks.task import Examples, examples
from tombola.together import side_by_side

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
WHOLE = 32


def open_masked(task: tb.Task, train: Examples | None = None) -> MaskedSession:
    model = task.build(0)
    mask = tb.prune(tb.score(model, "magnitude"), 0.4)
    data = examples(task.train).to(task.recipe.device) if train is None else train
    return MaskedSession(model, mask, task, data, task.recipe, seed=3)


def open_replicates(task: tb.Task) -> ReplicatedSession:
    models, masks, _ = starts(task)
    return ReplicatedSession(models, masks, task, examples(task.train).to(task.recipe.device), task.recipe, SEEDS)


class StandIn:
    """Keeps to the rules of a CUDA graph on a CPU: nothing is computed while recording, every replay runs the step on
    the tensors it was recorded with, and its loss appears in the place of the recorded one."""

    def __init__(self, session: MaskedSession | ReplicatedSession, *shape: int) -> None:
        self.session, self.shape, self.replays = session, shape, 0

    def places(self) -> dict[str, int]:
        return {name: tensor.data_ptr() for name, tensor in self.session.tensors().items()}

    def capture(self, step: Callable[[], Result], device: torch.device) -> tuple[Callable[[], None], Result]:
        places, loss = self.places(), torch.full(self.shape, torch.nan)

        def replay() -> None:
            assert self.places() == places
            loss.copy_(step()[0])
            self.replays += 1

        return replay, (loss, WHOLE)


def recording(session: MaskedSession) -> StandIn:
    stand_in = StandIn(session)
    session._graph = StepGraph(WHOLE, stand_in.capture)
    return stand_in


@pytest.mark.parametrize("options", OPTIMIZERS)
def test_recorded_steps_have_the_bits_of_plain_ones(options: dict[str, Any]) -> None:
    task = toy_task(model=normalised, recipe=options)
    plain, recorded = open_masked(task), open_masked(task)
    stand_in = recording(recorded)
    before = torch.get_rng_state()
    for steps in (1, 9, 8):
        assert recorded.stretch(steps) == plain.stretch(steps)
        assert same(recorded.state(), plain.state())
    assert recorded.note == RECORDED
    assert stand_in.replays == 16  # of 18 steps: 250 examples make seven whole batches an epoch, and one of 26
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("options", OPTIMIZERS)
def test_a_state_is_loaded_into_the_tensors_of_the_recording(options: dict[str, Any]) -> None:
    task = toy_task(model=normalised, recipe=options)
    plain, used, fresh = open_masked(task), open_masked(task), open_masked(task)
    recording(used)
    recording(fresh)
    start = plain.state()
    used.stretch(4)
    used.load(start)  # the beginning knows nothing of momentum: what is there is set back to zero
    plain.stretch(6)
    used.stretch(6)
    assert same({n: used.state()[n] for n in plain.state()}, plain.state())
    middle = plain.state()
    plain.stretch(12)
    used.stretch(1)
    for session in (used, fresh):
        session.load(middle)
        session.stretch(12)  # the fresh one records in the middle of the training
        assert same(session.state(), plain.state())


def test_replicates_are_recorded_to_the_same_bits() -> None:
    task = toy_task(model=normalised, recipe={"optimizer": "adamw", "weight_decay": 0.1})
    plain, recorded = open_replicates(task), open_replicates(task)
    stand_in = StandIn(recorded, 3)
    recorded._graph = StepGraph(WHOLE, stand_in.capture)
    assert recorded.stretch(10) == plain.stretch(10)
    assert stand_in.replays == 9
    for replicate in range(3):
        assert same(recorded.state(replicate), plain.state(replicate))


def runs_as_it_is(task: tb.Task, why: str, capture: Capture | None = None) -> None:
    plain, session = open_masked(task), open_masked(task)
    stand_in = recording(session)
    if capture is not None:
        session._graph = StepGraph(WHOLE, capture)
    assert session.stretch(10) == plain.stretch(10)
    assert same(session.state(), plain.state())
    assert why in session.note
    assert stand_in.replays == 0


def test_a_step_that_draws_random_numbers_runs_as_it_is() -> None:
    runs_as_it_is(toy_task(), "draws random numbers")


def test_a_step_that_replaces_a_tensor_runs_as_it_is() -> None:
    class Remembers(nn.Linear):
        def __init__(self) -> None:
            super().__init__(12, 3)
            self.register_buffer("seen", torch.zeros(12))

        def forward(self, x: Tensor) -> Tensor:
            self.seen = 0.9 * self.seen + x.mean(dim=0)
            return super().forward(x - self.seen)

    runs_as_it_is(toy_task(model=Remembers), "new tensor in the place of 'model.seen'")


def test_a_capture_that_fails_leaves_the_training_as_it_was() -> None:
    def broken(step: Callable[[], Result], device: torch.device) -> tuple[Callable[[], None], Result]:
        raise RuntimeError("operation not permitted when stream is capturing\nand a trace")

    note = "not recorded as a CUDA graph: operation not permitted when stream is capturing"
    runs_as_it_is(toy_task(model=normalised), note, broken)


def test_a_step_that_is_wrong_in_itself_says_so_and_changes_nothing() -> None:
    def wrong(model: nn.Module, batch: Any) -> Tensor:
        if model.training:
            model[1].running_mean += 1
            raise RuntimeError("the net has no such output")
        return F.cross_entropy(model(batch[0]), batch[1])

    session = open_masked(toy_task(model=normalised, loss=wrong))
    recording(session)
    with pytest.raises(RuntimeError, match="no such output"):
        session.stretch(1)
    assert torch.equal(session.model[1].running_mean, torch.ones(20))  # the one step that was run as it is


@pytest.mark.parametrize("options", OPTIMIZERS)
def test_a_rate_kept_in_a_tensor_follows_the_schedule(options: dict[str, Any]) -> None:
    schedule = {"lr_schedule": "steps", "milestones": ("4it", "6it"), "gamma": 0.5, "warmup": "2it"}
    task = toy_task(model=mlp, recipe=options | schedule)
    number, tensor = open_masked(task), open_masked(task)
    rate = torch.tensor(task.recipe.lr)
    for group in tensor.optimizer.param_groups:
        group["lr"] = rate
    for _ in range(10):
        number.stretch(1)
        tensor.stretch(1)
        assert float(rate) == pytest.approx(number.optimizer.param_groups[0]["lr"])
        check_close(tensor.state(), number.state(), rtol=1e-3, atol=1e-5)
    assert tensor.optimizer.param_groups[0]["lr"] is rate
    set_rate(tensor.optimizer, 0.25)
    assert float(rate) == 0.25


# From here on, a GPU.


def on_gpu(net: Callable[[], nn.Module], options: dict[str, Any]) -> tb.Task:
    return toy_task(model=net, recipe={"device": "cuda", **options})


def as_it_is(session: MaskedSession) -> MaskedSession:
    session._graph = None
    return session


def pictures(n: int) -> tuple[Tensor, Tensor]:
    x, y = toy_data(n)
    return x.reshape(n, 1, 3, 4), y


def conv() -> nn.Module:
    body = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(16, 3))


@needs_gpu
@pytest.mark.parametrize("options", OPTIMIZERS)
def test_a_recorded_step_on_a_gpu_is_the_step_as_it_is(options: dict[str, Any]) -> None:
    task = on_gpu(mlp, options)
    plain, recorded = as_it_is(open_masked(task)), open_masked(task)
    for _ in range(18):
        assert recorded.stretch(1) == pytest.approx(plain.stretch(1), rel=1e-5)
        check_close(recorded.state(), plain.state(), rtol=1e-3, atol=1e-5)
    assert recorded.note == RECORDED


@needs_gpu
@pytest.mark.parametrize("options", OPTIMIZERS)
def test_pruned_weights_stay_zero_in_recorded_steps(options: dict[str, Any]) -> None:
    task = on_gpu(mlp, options)
    session = open_masked(task)
    mask = tb.prune(tb.score(task.build(0), "magnitude"), 0.4)
    before = session.state()
    for _ in range(10):
        session.stretch(1)
        for name, kept in mask.items():
            assert bool((session.model.get_parameter(name).cpu()[~kept] == 0).all())
    assert session.note == RECORDED
    assert not same(before, {n: session.state()[n] for n in before})


@needs_gpu
def test_convolutions_and_normalisation_are_recorded() -> None:
    for task in (toy_task(model=conv, train=pictures(250), recipe={"device": "cuda"}), on_gpu(normalised, {})):
        plain, recorded = as_it_is(open_masked(task)), open_masked(task)
        assert recorded.stretch(1) == pytest.approx(plain.stretch(1), rel=1e-4)
        assert recorded.stretch(15) == pytest.approx(plain.stretch(15), rel=1e-2)
        assert recorded.note == RECORDED
        counts = [v for n, v in recorded.state().items() if n.endswith("num_batches_tracked")]
        assert all(int(count) == 16 for count in counts)


@needs_gpu
@pytest.mark.parametrize("options", OPTIMIZERS)
def test_on_a_gpu_stretches_and_resumes_change_no_bit(options: dict[str, Any]) -> None:
    task = on_gpu(mlp, options)
    straight, broken, fresh = open_masked(task), open_masked(task), open_masked(task)
    straight.stretch(5)
    broken.stretch(2)
    broken.stretch(3)
    middle = straight.state()
    assert same(middle, broken.state())
    straight.stretch(15)
    broken.stretch(4)
    for session in (broken, fresh):
        places = {n: t.data_ptr() for n, t in session.tensors().items()}
        session.load(middle)
        assert places.items() <= {n: t.data_ptr() for n, t in session.tensors().items()}.items()
        session.stretch(15)
        assert same(session.state(), straight.state())


@needs_gpu
def test_what_cant_be_recorded_on_a_gpu_runs_as_it_is() -> None:
    dropping = open_masked(on_gpu(toy_net, {}))
    dropping.stretch(9)
    assert "random numbers" in dropping.note

    x, y = toy_data(250)
    rows = torch.utils.data.TensorDataset(x, y)
    fetching = open_masked(on_gpu(mlp, {}), examples(rows).to("cuda"))
    fetching.stretch(9)
    assert fetching.note.startswith("not recorded as a CUDA graph")

    def curious(model: nn.Module, batch: Any) -> Tensor:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        return loss * 2 if loss.item() > 100 else loss

    waiting = open_masked(toy_task(model=mlp, loss=curious, recipe={"device": "cuda"}))
    waiting.stretch(9)
    assert waiting.note.startswith("not recorded as a CUDA graph")

    after = open_masked(on_gpu(mlp, {}))  # none of these refusals harms the next recording
    after.stretch(9)
    assert after.note == RECORDED


@needs_gpu
@pytest.mark.parametrize("options", OPTIMIZERS)
def test_replicates_on_a_gpu_are_what_they_are_alone(options: dict[str, Any]) -> None:
    task = on_gpu(mlp, options)
    together = open_replicates(task)
    models, masks, _ = starts(task)
    data = examples(task.train).to("cuda")
    alone = [
        MaskedSession(model, mask, task, data, task.recipe, seed)
        for model, mask, seed in zip(models, masks, SEEDS, strict=True)
    ]
    for _ in range(10):
        losses = together.stretch(1)
        assert losses == pytest.approx([session.stretch(1) for session in alone], rel=1e-4)
    assert together.note == RECORDED
    for replicate, (session, mask) in enumerate(zip(alone, masks, strict=True)):
        check_close(together.state(replicate), session.state(), rtol=1e-2, atol=1e-4)
        for name, kept in mask.items():
            assert bool((together.model(replicate).get_parameter(name).cpu()[~kept] == 0).all())


@needs_gpu
def test_trainings_together_on_a_gpu_are_what_they_are_alone_and_resume_to_the_same_bits(tmp_path: Path) -> None:
    task = on_gpu(mlp, {"steps": "24it", "evaluate_every": "6it", "lr": 0.01})

    def stop(event: Event) -> None:
        if event.kind == "step" and event.seed == SEEDS[-1] and event.done == 18:
            raise KeyboardInterrupt

    def trained(store: tb.Store, watcher: Any = None) -> list[tb.Run]:
        def work(seed: int) -> Callable[[Trainer], tb.Run]:
            return lambda trainer: Lab(task, store, watcher=watcher, checkpoint_every=0.0, trainer=trainer).train(seed)

        return side_by_side([work(seed) for seed in SEEDS])

    with tb.Store(tmp_path / "a") as store, tb.Store(tmp_path / "b") as calm, tb.Store(tmp_path / "c") as alone:
        with pytest.raises(KeyboardInterrupt):
            trained(store, stop)
        straight = trained(calm)
        for ours, theirs in zip(trained(store), straight, strict=True):
            assert same(ours.final, theirs.final)
            assert ours.history == theirs.history
        for run in straight:
            assert run.summary["engine_reason"] == "replicated: 3 nets in one pass"
            single = Lab(task, alone).train(run.seed)
            assert single.id == run.id
            for a, b in zip(run.history, single.history, strict=True):
                assert a["validation_loss"] == pytest.approx(b["validation_loss"], rel=1e-2)
