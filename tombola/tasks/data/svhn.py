"""SVHN, the cropped digits of street view house numbers (Netzer et al. 2011): MATLAB files in torchvision's place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tombola.errors import DataError
from tombola.tasks.data.arrays import Arrays
from tombola.tasks.data.download import Progress
from tombola.tasks.data.matlab import read_mat
from tombola.tasks.data.sources import SVHN, obtain

_CLASSES = 10
_MOST = 600_000 * 3 * 32 * 32  # bytes: more images than in any part of the original


def load_svhn(root: Path, *, download: bool = True, progress: Progress | None = None) -> tuple[Arrays, Arrays]:
    """SVHN's training and test part (73,257 and 26,032), uint8 of shape (N, 3, 32, 32); downloaded if need be.

    The files are ``root/train_32x32.mat`` and ``root/test_32x32.mat``; the original's class 10 is the digit 0.
    ``DataError`` where one is missing or damaged.
    """
    missing = [file for file in SVHN.files if not (root / file.name).is_file()]
    if missing:
        obtain(SVHN, root, missing, download=download, progress=progress)
    train, test = (_read(root / file.name) for file in SVHN.files)
    return train, test


def _read(path: Path) -> Arrays:
    arrays = read_mat(path, ("X", "y"), limit=_MOST)
    x, y = arrays["X"], arrays["y"]
    if x.dtype != np.uint8 or x.shape[:3] != (32, 32, 3) or x.ndim != 4 or y.shape != (x.shape[3], 1) or not y.size:
        raise DataError(
            f"{path} must hold X, uint8 of shape (32, 32, 3, N), and y of shape (N, 1), with N above 0, but X is "
            f"{x.dtype} of shape {x.shape} and y has shape {y.shape}"
        )
    strange = y[~np.isin(y, np.arange(1, _CLASSES + 1))]
    if strange.size:
        raise DataError(f"labels in {path} must be 1 to {_CLASSES}, but one is {strange[0]}")
    images = np.ascontiguousarray(x.transpose(3, 2, 0, 1))
    return Arrays(
        torch.from_numpy(images),
        torch.from_numpy(y[:, 0].astype(np.int64) % _CLASSES),
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
    )
