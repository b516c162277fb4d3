"""Stores with made-up draws and runs, for the tests of what is read from a store alone."""

from __future__ import annotations

import hashlib
import json
import math
import random
from typing import Any

import torch

from tombola.mask import Mask
from tombola.store import Store
from tombola.ticket import Ticket

SHAPES = {"fc1.weight": (30, 64), "fc2.weight": (10, 30)}
VERSIONS = {"tombola": "0.1.0", "torch": "2.13.0", "python": "3.11.7"}
TRAINING = 10_000_000  # operations of the dense training


def an_id(*words: object) -> str:
    return hashlib.sha256(repr(words).encode()).hexdigest()


def a_mask(density: float, seed: int = 0, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Mask:
    """Every layer at this density, at least one weight each; the first is kept in its first rows."""
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        kept = max(1, round(density * math.prod(shape)))
        order = torch.randperm(math.prod(shape), generator=g)
        tensors[name] = (order < kept).reshape(shape)
    return Mask(tensors)


def add_run(
    store: Store,
    run_id: str,
    mask: Mask,
    *,
    seed: int = 0,
    task: str = "made-up",
    arm: str = "ticket",
    accuracy: float = 0.9,
    evaluations: int = 10,
    status: str = "finished",
) -> dict[str, Any]:
    """Enter a finished run, and give its row of a draw but for the number of its round."""
    noise = random.Random(run_id)
    history = []
    for at in range(evaluations + 1):
        value = accuracy * (1 - math.exp(-3 * at / evaluations)) + noise.gauss(0, 0.002)
        losses = {"train_loss": None if at == 0 else 1 - value, "validation_loss": 1.1 - value}
        history.append({"step": 20 * at, **losses, "validation_accuracy": value})
    values = {name: kept.float() * noise.random() for name, kept in mask.items()}
    reached = {f"{data}_accuracy": accuracy + shift for data, shift in (("validation", 0.01), ("test", 0.0))}
    flops = round(mask.density * TRAINING)
    summary = {"steps": 20 * evaluations, "seconds": 2.0, "engine": "masked", "stop_step": 100, "flops": flops}
    summary |= {"stop": reached, "end": reached, "versions": VERSIONS}
    about = {"task": {"name": task}, "seed": seed, "arm": arm, "density": mask.density, "full_recipe": {"batch": 60}}
    if (claim := store.claim(run_id, about)) is not None:
        with claim:
            blobs = {
                "final": Ticket(mask, values, {}).to_bytes(),
                "history": "".join(json.dumps(row) + "\n" for row in history).encode(),
            }
            claim.finish(summary, blobs, status=status)
    lost = status == "diverged"
    return {
        **{"seed": seed, "arm": arm, "draw": 0, "density": mask.density, "status": status, "run": run_id},
        **{"stop_step": 100, "seconds": 2.0, "validation_metric": None if lost else accuracy + 0.01},
        **{"stop_metric": None if lost else accuracy, "end_metric": None if lost else accuracy - 0.002},
    }


def add_draw(
    store: Store,
    *,
    task: str = "made-up",
    method: str = "imp",
    seed: int = 0,
    rounds: int = 3,
    controls: tuple[str, ...] = (),
    status: str = "finished",
    shapes: dict[str, tuple[int, ...]] = SHAPES,
    evaluations: int = 10,
    gain: float = 0.0,
    **recipe: Any,
) -> str:
    """Enter a draw with its runs, halving the density in each round, and give its id."""
    rows: list[dict[str, Any]] = []
    spent = 0
    for number in range(rounds + 1):
        mask = a_mask(0.5**number, seed, shapes)
        for arm in ("ticket", *(controls if number else ())):
            words = (task, seed) if number == 0 else (task, method, seed, arm, number, recipe)
            accuracy = 0.9 + gain * (number > 0) - 0.002 * number - 0.001 * seed - (0.01 if arm != "ticket" else 0.0)
            at = {"seed": seed, "task": task, "arm": arm, "accuracy": accuracy, "evaluations": evaluations}
            row = add_run(store, an_id(*words), mask, **at)
            row |= {"round": number, "chosen": arm == "ticket" and number == rounds}
            if arm == "ticket":
                flops = round(mask.density * TRAINING)
                row |= {"find_seconds": 2.0 * number, "find_flops": spent, "train_seconds": 2.0, "train_flops": flops}
                row["bytes"] = 4 * mask.kept + 100
                spent += flops
            rows.append(row)
    about = {"task": task, "seed": seed, "metric": "accuracy"}
    about["recipe"] = {"task": task, "method": method, "seed": seed, "rounds": rounds, **recipe}
    draw_id = an_id("draw", task, method, seed, recipe)
    store.save_draw(draw_id, about, rows, status)
    return draw_id
