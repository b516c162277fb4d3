"""The same promises on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy import same, toy_task

import tombola as tb
from tombola.events import Event
from tombola.lab import Lab

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


def test_training_on_a_gpu_learns_masks_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    task = toy_task(recipe={"device": "cuda", "lr": 0.01})
    mask = tb.prune(tb.score(task.build(0), "magnitude"), 0.5)

    def stop(event: Event) -> None:
        if event.kind == "step" and event.row is not None and event.row["step"] == 40:
            raise InterruptedError

    with tb.Store(tmp_path / "a") as store, tb.Store(tmp_path / "b") as calm:
        with pytest.raises(InterruptedError):
            Lab(task, store, watcher=stop, checkpoint_every=0.0).train(0, mask=mask)
        run = Lab(task, store, checkpoint_every=0.0).train(0, mask=mask)
        straight = Lab(task, calm).train(0, mask=mask)
    assert same(run.final, straight.final)
    assert run.summary["end"]["test_accuracy"] > 0.6
    for name, kept in mask.items():
        assert bool((run.final[name][~kept] == 0).all())


def test_gpu_and_cpu_agree_over_a_few_steps(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store:
        runs = [
            Lab(toy_task(model=plain, recipe={"device": device, "steps": "5it", "evaluate_every": "1it"}), store).train(
                0
            )
            for device in ("cpu", "cuda")
        ]
    for a, b in zip(*(run.history for run in runs), strict=True):
        assert a["validation_loss"] == pytest.approx(b["validation_loss"], rel=1e-4)


def plain() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(12, 24), torch.nn.ReLU(), torch.nn.Linear(24, 3))


def test_score_prune_and_guard_on_a_gpu() -> None:
    net = plain().cuda()
    mask = tb.prune(tb.score(net, "magnitude"), 0.3)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    scaler = torch.amp.GradScaler("cuda")
    with tb.guard(net, optimizer, mask):
        for _ in range(5):
            optimizer.zero_grad()
            with torch.autocast("cuda"):
                loss = net(torch.randn(32, 12, device="cuda")).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            for name, kept in mask.items():
                assert bool((net.get_parameter(name).cpu()[~kept] == 0).all())
