"""The embedded data set: scikit-learn's 1,797 handwritten digits of 8x8 pixels, which need no download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

from tombola.errors import DataError
from tombola.seeds import stream
from tombola.tasks.data.arrays import Arrays

_TOTAL, _TEST = 1_797, 297
_STEP = 15  # a pixel is 0 to 16; as uint8 it is 0 to 240
_MEAN, _STD = 0.2872, 0.3538  # of the training part, in units of x / 255


def load_digits() -> tuple[Arrays, Arrays]:
    """Training part (1,500) and test part (297, the same ones always), uint8 of shape (N, 1, 8, 8).

    A pixel is 15 times the original's, which is 0 to 16.
    """
    path = _file()
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"scikit-learn's digits, {path}, can't be read: {error}; reinstall scikit-learn") from error
    if table.shape != (_TOTAL, 65) or table[:, :64].max() > 16 or table[:, 64].max() > 9:
        raise DataError(f"{path} must hold {_TOTAL} rows of 64 pixels, 0 to 16, and a digit; reinstall scikit-learn")
    whole = Arrays(
        torch.from_numpy(table[:, :64] * _STEP).reshape(-1, 1, 8, 8),
        torch.from_numpy(table[:, 64].astype(np.int64)),
        mean=(_MEAN,),
        std=(_STD,),
    )
    order = torch.randperm(_TOTAL, generator=stream(0, "digits", "test"))
    return whole.select(order[_TEST:].sort().values), whole.select(order[:_TEST].sort().values)


def _file() -> Path:
    """The file inside the installed package, found without importing scikit-learn, which would take a second."""
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DataError("the digits are part of scikit-learn, which is not installed; run pip install scikit-learn")
    return Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
