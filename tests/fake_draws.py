"""Made-up rows of a draw, for the tests of its tables and figures."""

from __future__ import annotations

import math
import random
from typing import Any

Row = dict[str, Any]
LAYERS = {"fc1.weight": 235_200, "fc2.weight": 30_000, "fc3.weight": 1_000}


def run(number: int, arm: str = "ticket", **changes: Any) -> Row:
    """A finished run; what a test is about is in ``changes``."""
    row: Row = {"seed": 0, "arm": arm, "draw": 0, "round": number, "density": 0.8**number, "status": "finished"}
    row |= {"stop_step": 1000, "stop_metric": 0.96, "end_metric": 0.95, "validation_metric": 0.97, "seconds": 2.0}
    return row | changes


def fake_draw(seeds: int = 3, rounds: int = 13, draws: int = 3) -> tuple[list[Row], list[Row], list[Row]]:
    """Rounds, curves and layers shaped like a real search on digits: the ticket gains, then falls; controls fall."""
    noise = random.Random(7)
    table: list[Row] = []
    curves: list[Row] = []
    layers: list[Row] = []
    for seed in range(seeds):
        for number in range(rounds + 1):
            kept = {
                name: round(size * (0.9 if name == "fc3.weight" else 0.8) ** number) for name, size in LAYERS.items()
            }
            density = sum(kept.values()) / sum(LAYERS.values())
            for name, total in LAYERS.items():
                share = {"layer": name, "layer_density": kept[name] / total, "kept": kept[name], "total": total}
                layers.append({"seed": seed, "round": number, "density": density, **share})
            arms = [("ticket", 0)]
            if number in (3, 6, 9, 12):
                arms += [("reinit", d) for d in range(draws)] + ([("random", 0)] if draws > 1 else [])
            for arm, draw in arms:
                depth = -math.log(density)
                gain = {
                    "ticket": 0.006 * depth * math.exp(1 - depth / 1.2) - 0.0016 * max(0, depth - 2) ** 2,
                    "reinit": -0.004 * depth**1.6,
                    "random": -0.01 * depth**2.8,
                }[arm]
                top = 0.965 + gain + noise.gauss(0, 0.0012)
                speed = 1100 * {"ticket": 1 - 0.2 * depth + 0.07 * depth**2, "reinit": 1 + 0.9 * depth}.get(
                    arm, 1 + depth
                )
                step = int(round(speed * noise.uniform(0.85, 1.15), -2))
                lost = arm == "random" and number == 12 and seed == 1
                result: Row = {
                    "stop_step": None,
                    "stop_metric": None,
                    "end_metric": math.nan,
                    "validation_metric": None,
                }
                if not lost:
                    result = {
                        "stop_step": step,
                        "stop_metric": top,
                        "end_metric": top - 0.003,
                        "validation_metric": top,
                    }
                key = {"seed": seed, "arm": arm, "draw": draw, "round": number, "density": density}
                table.append({**key, **result, "seconds": 21.5 * density, "status": "diverged" if lost else "finished"})
                for at in range(20, 10_001, 20):
                    value = (
                        top - 0.85 * math.exp(-6 * at / speed) - 0.04 / (1 + at / speed * 3) + noise.gauss(0, 0.0008)
                    )
                    curves.append({**key, "step": at, "validation_loss": 1 - value, "validation_metric": value})
    return table, curves, layers
