"""Draws a toy ticket twice: once undisturbed, once killed with SIGKILL at random moments until it gets through.

Run as a program of its own, so that it may fork: a forked child needs no time to import torch, and so most kills fall
into training, pruning, checkpoints and the store. Prints one JSON document.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from toy import toy_task

import tombola as tb
from tombola.asked import draw_recipe
from tombola.draws import Draw, controls, rounds
from tombola.events import Event
from tombola.lab import Lab
from tombola.sealed import content_hash

OPTIONS = {"rounds": 2, "survivors": "rewind", "back_to": "12it", "controls": ["reinit"]}


def draw(store: Path, log: Path) -> dict[str, str]:
    """Carry out the draw, logging every evaluation, and return a digest of every result."""
    task = toy_task(recipe={"evaluate_every": "5it"})

    def watch(event: Event) -> None:
        with log.open("a") as file:
            step = event.row["step"] if event.kind == "step" and event.row else None
            file.write(json.dumps([event.kind, event.arm, event.density, step]) + "\n")

    with tb.Store(store) as opened:
        lab = Lab(task, opened, watcher=watch, checkpoint_every=0.0)
        found = Draw(draw_recipe(task, OPTIONS), lab)
        runs = [r.run for r in rounds(found)] + [c.run for c in controls(found)]
        digests = {}
        for run in runs:
            manifest = {"history": run.history, **{k: v for k, v in run.summary.items() if "seconds" not in k}}
            digests[run.id] = content_hash("run", manifest, run.final)
        return {**digests, "ticket": found.ticket(found.rounds[-1]).digest}


def child(store: Path, log: Path) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            (store.parent / f"{store.name}.json").write_text(json.dumps(draw(store, log)))
            status = 0
        finally:
            os._exit(status)
    return pid


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    began = time.monotonic()
    assert os.waitpid(child(folder / "calm", folder / "calm.log"), 0)[1] == 0
    length = time.monotonic() - began
    killed = 0
    while True:
        pid = child(folder / "killed", folder / "killed.log")
        if killed < kills:
            time.sleep(random.uniform(0.05, 0.6) * length)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            killed += 1
            continue
        assert status == 0, "a run that wasn't killed failed"
        if killed >= kills or (folder / "killed.json").exists():
            break
    print(json.dumps({"killed": killed}))


if __name__ == "__main__":
    random.seed(int(sys.argv[3]))
    main(Path(sys.argv[1]), int(sys.argv[2]))
