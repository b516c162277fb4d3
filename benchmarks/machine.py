"""What this machine's arithmetic can do on one thread: the limits that other benchmarks' figures are shares of.

Multiply-adds of float32 from registers alone; with one 64-byte operand each from the first, second and third level of
cache, which is what a sparse kernel does; and torch's matrix product, which takes its operands from registers most of
the time. Each is the best of many tries: a limit is what nothing exceeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import begin, header, table

from tombola.engines.sparse.kernel import entry
from tombola.engines.sparse.memory import broadcast, load, store, zeros
from tombola.engines.sparse.parts import aligned
from tombola.engines.sparse.vectors import fma

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

WIDTHS = (64, 96, 128, 192)
"""Lanes that are worked on at once; which of them keeps every unit busy and fits the registers differs by machine."""
DEFAULT_CACHES = {1: 32 << 10, 2: 512 << 10, 3: 8 << 20}


@dataclass(frozen=True)
class Limits:
    """Billions of float32 operations a second on one thread; a multiply-add is two."""

    registers: float
    first: float
    second: float
    third: float
    product: float

    def share(self, rate: float) -> str:
        """A rate as a share of the multiply-adds fed from the first-level cache."""
        return f"{rate / self.first:.0%}"


def _register_loop(lanes: int) -> Any:
    @entry
    def from_registers(turns, out):
        a, b, acc = broadcast(np.float32(0.999), lanes), broadcast(np.float32(0.5), lanes), zeros(lanes)
        for _ in range(turns):
            acc = fma(a, acc, b)
        store(out, acc)

    return from_registers


def _memory_loop(lanes: int) -> Any:
    @entry
    def from_memory(turns, address, size, out):
        factor, acc = np.float32(0.999), zeros(lanes)
        for _ in range(turns):
            for at in range(address, address + size, 4 * lanes):
                acc = fma(factor, load(at, lanes), acc)
        store(out, acc)

    return from_memory


def limits(quick: bool = False) -> Limits:
    """Measure; some seconds, or with ``quick`` a moment."""
    tries = 5 if quick else 40
    out = aligned(max(WIDTHS))
    registers = max(_registers(lanes, out, tries) for lanes in WIDTHS)
    fed = {level: max(_memory(lanes, size, out, tries) for lanes in WIDTHS) for level, size in _working_sets().items()}
    product = max(_product(size, max(2, tries // 8)) for size in (1024, 1536, 2048))
    return Limits(registers, fed[1], fed[2], fed[3], product)


def _registers(lanes: int, out: Any, tries: int) -> float:
    loop, turns = _register_loop(lanes), 200_000
    return 2e-9 * lanes * turns / _best(lambda: loop(turns, out.ctypes.data), tries)


def _memory(lanes: int, size: int, out: Any, tries: int) -> float:
    size = size // (4 * lanes) * 4 * lanes
    loop, data, turns = _memory_loop(lanes), aligned(size // 4), max(1, (16 << 20) // size)
    return 2e-9 * (size // 4) * turns / _best(lambda: loop(turns, data.ctypes.data, size, out.ctypes.data), tries)


def _product(size: int, tries: int) -> float:
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    return 2e-9 * size**3 / _best(lambda: torch.mm(a, b, out=out), tries)


def _best(work: Callable[[], object], tries: int) -> float:
    work()
    times = []
    for _ in range(tries):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def _working_sets() -> dict[int, int]:
    """By level of cache, bytes that fit it well and no level below: half of it, of the third, which is shared, a
    quarter."""
    caches = DEFAULT_CACHES | _caches()
    return {1: caches[1] // 2, 2: caches[2] // 2, 3: max(2 * caches[2], caches[3] // 4)}


def _caches() -> dict[int, int]:
    """Bytes of the first processor's caches, as far as Linux tells."""
    sizes = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if (index / "type").read_text().strip() in ("Data", "Unified"):
            size = (index / "size").read_text().strip()
            sizes[int((index / "level").read_text())] = int(size.rstrip("KM")) << (20 if size.endswith("M") else 10)
    return sizes


def described(found: Limits) -> str:
    """The limits in one line, to stand above a table of shares."""
    return (
        f"Limits, one thread, GFLOP/s: multiply-adds from registers {found.registers:.0f}; with an operand from the "
        f"caches {found.first:.0f}, {found.second:.0f} and {found.third:.0f} (first, second, third level); "
        f"torch.mm {found.product:.0f}.\n"
    )


def main() -> None:
    quick = begin(__doc__ or "")
    found = limits(quick)
    sets = _working_sets()
    rows = [("multiply-adds, all operands in registers", "-", found.registers)]
    for level, rate in ((1, found.first), (2, found.second), (3, found.third)):
        rows.append((f"one 64-byte operand from cache level {level}", f"{sets[level] >> 10:,} KiB", rate))
    rows.append(("torch.mm, 1024 to 2048 square", "-", found.product))
    print(header("Limits of float32 arithmetic on one thread, each the best of many tries", None))
    print(table(("what", "working set", "GFLOP/s"), [(name, size, f"{rate:.1f}") for name, size, rate in rows]))


if __name__ == "__main__":
    main()
