"""Tables of tiles: which pixels a convolution's kernels work on together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tombola.engines.sparse.conv_kernels import LIVE, PAIRS, TILE_SLOTS

Ints = NDArray[np.int64]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""First and end of groups of images, rows and columns."""


@dataclass(frozen=True)
class Places:
    """Where pixels lie, in bytes: the first one, and the steps to the next group of images, row and column."""

    first: int
    group: int
    row: int
    column: int

    @property
    def steps(self) -> tuple[int, int, int]:
        """The three steps."""
        return self.group, self.row, self.column

    def of(self, pixels: Ints) -> Ints:
        """Offsets of pixels given as rows of group, row, column."""
        return self.first + pixels @ np.array(self.steps)


@dataclass(frozen=True)
class Tiles:
    """Tiles for sets of groups of images; the tiles for the first ``n`` groups of a set are rows
    ``starts[n - 1]`` to ``starts[n]``."""

    table: Ints
    starts: NDArray[np.int32]
    sets: int

    @property
    def full(self) -> bool:
        """Whether all pixels of all tiles are live."""
        return bool((self.table[:, -1] == LIVE).all())


def tile_tables(groups: int, height: int, width: int, x: Places, y: Places) -> Tiles:
    """Tiles for all pixels of a result, its sets as small as leaves few places of a tile empty."""
    sets = [n for n in (1, 2, 4, 8, 16) if n <= groups]
    waste = [2 * PAIRS * len(_tiles(n, height, width, x, y)) / (n * height * width) for n in sets]
    chosen = next((n for n, w in zip(sets, waste, strict=True) if w <= 1.15), sets[int(np.argmin(waste))])
    parts = [_tiles(n, height, width, x, y) for n in range(1, chosen + 1)]
    return Tiles(
        np.ascontiguousarray(np.concatenate(parts)), np.cumsum([0] + [len(p) for p in parts]).astype(np.int32), chosen
    )


def surroundings(sets: int, height: int, width: int, stride: tuple[int, int], taps: Ints) -> int:
    """How many pixels of one channel of the source a tile meets, at most; ``taps`` are rows of row and column."""
    far = 1 << 20  # a pitch at which no two pixels meet by chance
    places = Places(0, far * far, stride[0] * far, stride[1])
    table = tile_tables(sets, height, width, places, places).table
    pixels = (table[:, :PAIRS, None] + table[:, 2 * PAIRS, None, None] * np.arange(2)).reshape(-1, 2 * PAIRS, 1)
    reach = np.unique(taps @ np.array([far, 1]))
    return max(np.unique(tile + reach).size for tile in pixels[:: max(1, len(pixels) // 8)])


def _tiles(groups: int, height: int, width: int, x: Places, y: Places) -> Ints:
    return np.concatenate([_tile(first, axis, x, y) for first, axis in _pieces(((0, groups), (0, height), (0, width)))])


def _pieces(box: Box) -> Iterator[tuple[Ints, int | None]]:
    """The box as pieces of pairs of neighbours along one axis: the first pixel of every pair, and the axis."""
    sizes = [end - first for first, end in box]
    even = [axis for axis in (2, 1, 0) if sizes[axis] % 2 == 0]
    if even or max(sizes) == 1:
        axis = even[0] if even else None
        steps = [2 if a == axis else 1 for a in range(3)]
        grid = np.meshgrid(*[np.arange(*ends, step) for ends, step in zip(box, steps, strict=True)], indexing="ij")
        pixels = np.stack([g.ravel() for g in grid], axis=1)
        strip = pixels[:, 1] // (2 if axis == 0 else max(1, PAIRS // 2))
        yield pixels[np.lexsort((pixels[:, 1], pixels[:, 2], strip, pixels[:, 0]))], axis
        return
    longest = int(np.argmax(sizes))
    for ends in ((box[longest][0], box[longest][1] - 1), (box[longest][1] - 1, box[longest][1])):
        part = list(box)
        part[longest] = ends
        yield from _pieces((part[0], part[1], part[2]))


def _tile(first: Ints, axis: int | None, x: Places, y: Places) -> Ints:
    """Rows of the table: pairs eight by eight, the last filled up with its own last pair, which isn't live there."""
    count = -(-len(first) // PAIRS)
    index = np.minimum(np.arange(count * PAIRS), len(first) - 1)
    live = (np.arange(count * PAIRS) < len(first)).reshape(count, PAIRS) @ (1 << np.arange(PAIRS))
    steps = [0, 0] if axis is None else [x.steps[axis], y.steps[axis]]
    live = live if axis is None else live | live << PAIRS
    columns = [
        x.of(first)[index].reshape(count, PAIRS),
        y.of(first)[index].reshape(count, PAIRS),
        np.broadcast_to(np.array(steps), (count, 2)),
        live[:, None],
    ]
    table: Ints = np.concatenate(columns, axis=1)
    assert table.shape[1] == TILE_SLOTS
    return table
