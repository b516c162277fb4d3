"""The loop: every step of a stretch, every call of a step, in one piece of compiled code.

Threads work on the same program side by side, each on its share of every call, and wait for each other between calls.
Who waits long lets others run: on a machine with fewer free cores than threads the program is slow, but it goes on.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from tombola.engines.sparse.kernel import entry, helper
from tombola.engines.sparse.memory import add_atomically, call, load_atomically, store_f64, store_i64
from tombola.engines.sparse.parts import (
    CORRECTION_1,
    CORRECTION_2,
    COUNT,
    FRAME_SLOTS,
    NEXT_COUNT,
    NEXT_ORDER,
    ORDER,
    RATE,
    Call,
)

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

_give_way = types.ExternalFunction("sched_yield", types.int32())
_SPINS = 2000


@helper
def wait(barrier, arrived):
    """Come to the barrier and wait until ``arrived`` threads have, counted from the beginning."""
    add_atomically(barrier, 1)
    spins = 0
    while load_atomically(barrier) < arrived:
        spins += 1
        if spins > _SPINS:
            _give_way()


@helper
def each_call(table, frame, thread, threads, barrier, arrived):
    """Carry out the calls in order; the number of arrivals at the barrier afterwards."""
    for i in range(table.shape[0]):
        call(table[i, 0], table[i, 1], frame, thread, threads)
        if threads > 1:
            arrived += threads
            wait(barrier, arrived)
    return arrived


@entry
def run_once(table, frame, thread, threads):
    """Carry out every call once, as one of ``threads`` threads that are called one after the other."""
    for i in range(table.shape[0]):
        call(table[i, 0], table[i, 1], frame, thread, threads)


@entry
def run_steps(table, order, counts, rates, corrections, frame, thread, threads, barrier):
    """Carry out every call for each batch: ``counts`` indices of ``order`` after the other."""
    at, arrived = order, 0
    for s in range(counts.shape[0]):
        store_i64(frame + COUNT, counts[s])
        store_i64(frame + ORDER, at)
        at += 8 * counts[s]
        store_i64(frame + NEXT_ORDER, at)
        store_i64(frame + NEXT_COUNT, counts[s + 1] if s + 1 < counts.shape[0] else 0)
        store_f64(frame + RATE, rates[s])
        store_f64(frame + CORRECTION_1, corrections[s, 0])
        store_f64(frame + CORRECTION_2, corrections[s, 1])
        arrived = each_call(table, frame, thread, threads, barrier, arrived)


class Table:
    """Calls made ready to run: addresses of kernels and of their arguments."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls
        self._packed = [c.packed() for c in calls]
        rows = [(c.kernel.address, p.ctypes.data) for c, p in zip(calls, self._packed, strict=True)]
        self.rows: NDArray[np.int64] = np.array(rows, dtype=np.int64).reshape(-1, 2)

    def run(
        self,
        order: NDArray[np.int64],
        counts: NDArray[np.int64],
        rates: NDArray[np.float64] | None = None,
        corrections: NDArray[np.float64] | None = None,
        *,
        threads: int = 1,
    ) -> NDArray[np.int64]:
        """Carry out all calls for batch after batch; the frame of the first thread afterwards.

        ``order`` holds the indices of all batches in a row, ``counts`` how many each has.
        """
        rates = np.zeros(len(counts)) if rates is None else rates
        corrections = np.ones((len(counts), 2)) if corrections is None else corrections
        frames = np.zeros((threads, FRAME_SLOTS), dtype=np.int64)
        barrier = np.zeros(1, dtype=np.int64)

        def work(thread: int) -> None:
            run_steps(
                self.rows,
                order.ctypes.data,
                counts,
                rates,
                corrections,
                frames[thread].ctypes.data,
                thread,
                threads,
                barrier.ctypes.data,
            )

        others = [threading.Thread(target=work, args=(t,)) for t in range(1, threads)]
        for other in others:
            other.start()
        work(0)
        for other in others:
            other.join()
        return frames[0]


def as_float(slot: Any) -> float:
    """A slot of a frame that holds a float64."""
    return float(np.int64(slot).view(np.float64))
