"""Pictures of masks: what is kept of a layer, as grids of numbers that can be drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

Grid: TypeAlias = tuple[tuple[float | None, ...], ...]

CELLS = 96
"""Of a picture, at most so many down and across; each is a mean where the layer has more."""


@dataclass(frozen=True)
class Picture:
    """What a mask keeps of one layer, as grids of numbers from 0 to ``most``; None is a gap.

    ``kind`` is "inputs" (one grid for each channel of the input, laid out as a square: how many weights of each input
    are kept), "filters" (one grid for each input channel of a convolution: the kernels of all filters, 1 where a
    weight is kept) or "weights" (one grid, outputs down and inputs across: the share that is kept, 0 to 1).
    """

    layer: str
    seed: int
    round: int
    density: float
    kind: str
    shape: tuple[int, ...]
    grids: tuple[Grid, ...]
    most: float


def picture(mask: Tensor, *, layer: str, seed: int, round: int, density: float, first: bool) -> Picture:
    """The picture of one layer's mask, of two dimensions at least; only the ``first`` shows its inputs or filters."""
    return Picture(layer, seed, round, density, **_drawn(mask, first))


def _drawn(mask: Tensor, first: bool) -> dict[str, Any]:
    """Kind, shape, grids and most."""
    shape = tuple(mask.shape)
    if first and mask.dim() == 2:
        for channels in (1, 3):
            side = math.isqrt(shape[1] // channels)
            if side > 1 and channels * side * side == shape[1]:
                counts = mask.sum(dim=0).reshape(channels, side, side)
                grids = tuple(_grid(channel) for channel in counts)
                return {"kind": "inputs", "shape": shape, "grids": grids, "most": float(shape[0])}
    if first and mask.dim() == 4 and shape[1] <= 4:
        grids = tuple(_tiles(mask[:, channel]) for channel in range(shape[1]))
        return {"kind": "filters", "shape": shape, "grids": grids, "most": 1.0}
    return {"kind": "weights", "shape": shape, "grids": (_grid(_means(mask)),), "most": 1.0}


def _grid(values: Tensor) -> Grid:
    return tuple(tuple(row) for row in values.tolist())


def _tiles(kernels: Tensor) -> Grid:
    """The kernels (filters x height x width) beside each other in a square, a gap between them."""
    count, height, width = kernels.shape
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    cells: list[list[float | None]] = [[None] * (across * (width + 1) - 1) for _ in range(down * (height + 1) - 1)]
    for number, kernel in enumerate(kernels.tolist()):
        top, left = number // across * (height + 1), number % across * (width + 1)
        for y, row in enumerate(kernel):
            cells[top + y][left : left + width] = [float(kept) for kept in row]
    return tuple(map(tuple, cells))


def _means(mask: Tensor) -> Tensor:
    """The share that is kept, outputs x inputs (a kernel is one input), in at most ``CELLS`` x ``CELLS`` cells."""
    shares = mask.float().flatten(2).mean(dim=2) if mask.dim() > 2 else mask.float()
    size = (min(CELLS, shares.shape[0]), min(CELLS, shares.shape[1]))
    return adaptive_avg_pool2d(shares[None], size)[0]
