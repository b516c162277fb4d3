"""From a data set to the splits of one seed, for the built-in tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tombola.seeds import stream
from tombola.tasks.data.arrays import Arrays, split
from tombola.tasks.data.augment import Augmented
from tombola.tasks.data.digits import load_digits
from tombola.tasks.data.download import Progress
from tombola.tasks.data.imagenet import load_imagenet
from tombola.tasks.data.root import data_root
from tombola.tasks.task import LoadSplits, Splits

Load = Callable[..., tuple[Any, Any]]


def splits_of(load: Load, validation: int, *, examples: int | None = None) -> LoadSplits:
    """Splits of a data set: its own test part, and a random validation part of its training part, by the seed.

    With ``examples`` only so many are trained on, drawn by the seed's stream ``subset``, or all where there are fewer.
    """

    def splits(root: Path | None, seed: int, progress: Progress | None) -> Splits:
        whole, test = load(data_root(root), progress=progress)
        kept, held_out = split(len(whole), validation, seed)
        train = whole.select(kept)
        if examples is not None and examples < len(train):
            order = torch.randperm(len(train), generator=stream(seed, "subset"))
            train = train.select(order[:examples].sort().values)
        return Splits(train, whole.select(held_out), test)

    return splits


def augmented_splits(load: Load, validation: int, *, flip: bool = True, examples: int | None = None) -> LoadSplits:
    """As ``splits_of``, with the training images cropped after padding by 4 pixels, and flipped where asked for."""

    def splits(root: Path | None, seed: int, progress: Progress | None) -> Splits:
        plain = splits_of(load, validation, examples=examples)(root, seed, progress)
        assert isinstance(plain.train, Arrays)
        return Splits(Augmented(plain.train, flip=flip), plain.validation, plain.test)

    return splits


def imagenet_splits(validation: int) -> LoadSplits:
    """ImageNet from its folders: the validation part as the test part, and validation images out of the training's."""

    def splits(root: Path | None, seed: int, progress: Progress | None) -> Splits:
        train, test = load_imagenet(data_root(root))
        kept, held_out = split(len(train), validation, seed)
        return Splits(train.select(kept), train.select(held_out), test)

    return splits


def digits(root: Path, *, progress: Progress | None) -> tuple[Arrays, Arrays]:
    """The embedded digits, as if they were loaded from a data root."""
    return load_digits()
