"""What the benchmarks share: loops timed in turn, ratios, and a header that says where and how they were measured.

The loops to compare, the arms, run in one process, one after the other, in every repeat again and every other time in
reverse order. A ratio is the median over the repeats of two times of the same repeat, so that what slows the machine
for longer than a repeat cancels.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy
import torch

import tombola as tb

# One benchmark just ended, and this one, are a load of 1 by themselves; more than that, with no processor to spare, is
# other work that takes processor time.
BUSY = 0.5 + max(0.5, (os.cpu_count() or 1) - 1.0)

Arm = TypeVar("Arm", bound=Hashable)


def begin(about: str) -> bool:
    """Read the command line, hold torch to one thread, and say whether a quick run is asked for."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats of little work: to see that it runs")
    quick: bool = parser.parse_args().quick
    torch.set_num_threads(1)
    return quick


def header(about: str, repeats: int | None) -> str:
    """What was measured, on which machine, with which versions, how often; and a warning where it wasn't idle.

    ``repeats`` is None where the figures are no medians of interleaved repeats.
    """
    often = "" if repeats is None else f" Median of {repeats} interleaved repeats (in brackets the middle half)."
    lines = [
        f"{about}.",
        f"Machine: {_processor()}, {os.cpu_count()} processors, torch on {torch.get_num_threads()} thread. "
        f"Versions: tombola {tb.__version__}, torch {torch.__version__}, numpy {numpy.__version__}, "
        f"numba {version('numba')}, Python {platform.python_version()}.{often}",
    ]
    load = os.getloadavg()[0]
    if load > BUSY:
        lines.append(
            f"Warning: the machine isn't idle (load average {load:.1f} on {os.cpu_count()} processors): "
            "measure again when it is."
        )
    return "\n\n".join(lines) + "\n"


def interleaved(arms: Mapping[Arm, Callable[[], object]], repeats: int) -> dict[Arm, list[float]]:
    """Seconds that each arm takes, by repeat. Each runs once beforehand, untimed."""
    for arm in arms.values():
        arm()
    times: dict[Arm, list[float]] = {name: [] for name in arms}
    for repeat in range(repeats):
        for name in arms if repeat % 2 == 0 else reversed(list(arms)):
            gc.collect()
            began = time.perf_counter()
            arms[name]()
            times[name].append(time.perf_counter() - began)
    return times


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """``1.07 (1.05 to 1.10)``: the median of the ratios within repeats, and their middle half."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def duration(seconds: Sequence[float], unit: float = 1.0, digits: int = 0) -> str:
    """The median, in units of so many seconds."""
    return f"{statistics.median(seconds) / unit:.{digits}f}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    ruled = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in ruled)


def images(count: int, seed: int) -> tb.Arrays:
    """Synthetic images of MNIST's shape and type: ten fixed patterns, each example one of them under noise.

    One label in ten is random, so that the loss stays above zero: gradients that underflow would cost time of their
    own.
    """
    patterns = torch.randint(0, 160, (10, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(seed)
    shown = torch.randint(10, (count,), generator=generator)
    noise = torch.randint(0, 96, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
    wrong = torch.rand(count, generator=generator) < 0.1
    y = torch.where(wrong, torch.randint(10, (count,), generator=generator), shown)
    return tb.Arrays(patterns[shown] + noise, y, mean=(0.5,), std=(0.25,))


def _processor() -> str:
    """The processor's model as Linux names it, or what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
