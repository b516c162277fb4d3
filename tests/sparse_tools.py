"""Batches in the layouts of the sparse engine, and calls of its kernels: shared by the tests of its layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from tombola.engines.sparse import parts
from tombola.engines.sparse.parts import COUNT, FRAME_SLOTS, ORDER, Activation, Call, Floats, padded
from tombola.engines.sparse.run import run_once

COUNTS = st.sampled_from([1, 15, 16, 17, 60, 64, 65, 130])
JUNK = np.float32(1e20)
"""What the padding of a value may hold: were it to leak into a sum, nothing else would be seen of it."""


def run(
    calls: list[Call], count: int, threads: int = 1, order: NDArray[np.int64] | None = None, **slots: float
) -> NDArray[np.int64]:
    """Carry out calls on a batch of ``count``, each by all threads before the next; the frame afterwards.

    ``order`` are the examples of the batch. ``slots`` fill further places of the frame, by their names in lower case.
    """
    frame = np.zeros(FRAME_SLOTS, np.int64)
    frame[COUNT // 8] = count
    if order is not None:
        frame[ORDER // 8] = order.ctypes.data
    for name, number in slots.items():
        frame[getattr(parts, name.upper()) // 8 :].view(np.float64)[0] = number
    for call in calls:
        args = call.packed()
        table = np.array([[call.kernel.address, args.ctypes.data]], np.int64)
        for thread in range(threads):
            run_once(table, frame.ctypes.data, thread, threads)
    return frame


def pixels(a: Activation, array: Floats) -> NDArray[Any]:
    """The inside of an activation of images, as a view: groups, channels, rows, columns, 16."""
    whole = array.reshape(-1, a.channels, a.height + 2 * a.halo, a.width + 2 * a.halo, 16)
    return whole[:, :, a.halo : a.halo + a.height, a.halo : a.halo + a.width]


def spread(a: Activation, array: Floats, batch: NDArray[Any], junk: np.float32) -> None:
    """Put a batch in torch's layout where it belongs, with ``junk`` in the padding."""
    room = np.full((padded(len(batch)), a.channels, a.height, a.width), junk)
    room[: len(batch)] = batch.reshape(len(batch), *room.shape[1:])
    if a.images:
        pixels(a, array)[: len(room) // 16] = room.reshape(-1, 16, *room.shape[1:]).transpose(0, 2, 3, 4, 1)
    else:
        array[: room.size] = np.concatenate([room[t : t + 64, :, 0, 0].T.ravel() for t in range(0, len(room), 64)])


def collect(a: Activation, array: Floats, count: int) -> NDArray[Any]:
    """The opposite: all groups that hold any of ``count`` examples, with the padding, in torch's layout."""
    size = padded(count)
    if a.images:
        return pixels(a, array)[: size // 16].transpose(0, 4, 1, 2, 3).reshape(size, a.channels, a.height, a.width)
    tiles = [array[64 * a.channels * t : a.channels * min(64 * (t + 1), size)] for t in range(-(-size // 64))]
    return np.concatenate([t.reshape(a.channels, -1).T for t in tiles])[:, :, None, None]


def allocated(count: int, shape: tuple[int, ...], halo: int = 0, rectified: bool = False) -> Activation:
    """An activation with room for one group more than it needs; tiled where ``shape`` has no height and width."""
    channels, height, width = shape if len(shape) == 3 else (shape[0], 1, 1)
    a = Activation(padded(count) + 16, channels, height, width, len(shape) == 3, halo, rectified)
    a.allocate(gradient=True)
    return a


def assert_untouched_around(a: Activation, array: Floats, count: int) -> None:
    """Zeros in the halo and beyond the batch."""
    rest = array.copy()
    if a.images:
        pixels(a, rest)[: padded(count) // 16] = 0
    else:
        rest[: padded(count) * a.channels] = 0
    assert not rest.any()


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    if draw(st.booleans()):
        return (draw(st.integers(1, 40)),)
    return draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 7))


def drawn(seed: int, count: int, shape: tuple[int, ...], number: int) -> list[NDArray[np.float32]]:
    """Small whole numbers, so that sums are exact and zeros are many."""
    generator = np.random.default_rng(seed)
    wide = shape if len(shape) == 3 else (*shape, 1, 1)
    return [generator.integers(-3, 4, (count, *wide)).astype(np.float32) for _ in range(number)]
