"""What each layer keeps (Wang et al. 2020, the layer-wise figure; Frankle et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tombola.diagnostics.masks import FoundMask

Row = dict[str, Any]


def layer_rows(found: Iterable[FoundMask]) -> list[Row]:
    """One row for each layer of each mask.

    ``method``, ``seed``, ``density`` (asked for), ``layer``, ``place`` (1 for the first in the model), ``kept``,
    ``total``, ``layer_density`` (kept / total, 0 to 1).
    """
    return [
        {
            "method": one.method,
            "seed": one.seed,
            "density": one.density,
            "layer": layer.name,
            "place": place,
            "kept": layer.kept,
            "total": layer.total,
            "layer_density": layer.density,
        }
        for one in found
        for place, layer in enumerate(one.mask.layers(), start=1)
    ]
