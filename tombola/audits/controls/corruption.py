"""Data spoilt in one respect: labels, the order of pixels, how much there is (Su et al. 2020)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tombola.errors import InputError
from tombola.seeds import stream
from tombola.tasks.acting import acts
from tombola.tasks.data.arrays import Arrays
from tombola.tasks.data.augment import Augmented
from tombola.tasks.task import Examples, Splits, _Part, _Tensors

_AT_ONCE = 4096


@dataclass(frozen=True)
class Chance:
    """The random stream of one corruption: those of one seed share none of their draws."""

    seed: int
    names: tuple[str | int, ...]

    def stream(self, *more: int) -> torch.Generator:
        """The stream, or the one of an example."""
        return stream(self.seed, *self.names, *more)


def random_labels(data: Examples, chance: Chance) -> Examples:
    """The labels permuted at random among the examples, so that each class keeps its size."""
    data = _held(data)
    order = torch.randperm(len(data), generator=chance.stream())
    if isinstance(data, Augmented):
        return replace(data, plain=replace(data.plain, y=data.plain.y[order]))
    if isinstance(data, Arrays):
        return replace(data, y=data.y[order])
    if isinstance(data, _Tensors):
        x, y = data.tensors
        return _Tensors((x, y[order]))
    return _Relabelled(data, order)


def shuffled_pixels(data: Examples, chance: Chance) -> Examples:
    """The values of each example in an order of its own, drawn at random.

    Those of images (four dimensions) are moved pixel by pixel, all channels of one together, before cropping where
    images are cropped; those of other inputs one by one.
    """
    data = _held(data)
    if isinstance(data, Augmented):
        return replace(data, plain=replace(data.plain, x=_all_moved(data.plain.x, chance)))
    if isinstance(data, Arrays):
        return replace(data, x=_all_moved(data.x, chance))
    if isinstance(data, _Tensors):
        return _Tensors((_all_moved(data.tensors[0], chance), *data.tensors[1:]))
    return _Moved(data, chance)


def half_data(data: Examples, chance: Chance) -> Examples:
    """A random half of the examples, each of them twice, so that an epoch has as many steps as before."""
    chosen = torch.randperm(len(data), generator=chance.stream())[: (len(data) + 1) // 2]
    twice = torch.cat([chosen, chosen])[: len(data)].sort().values
    select = getattr(data, "select", None)
    return _Part(data, twice) if select is None else select(twice)


CORRUPTIONS: dict[str, Callable[[Examples, Chance], Examples]] = {
    "random_labels": random_labels,
    "shuffled_pixels": shuffled_pixels,
    "half_data": half_data,
}


def corrupted(splits: Splits, name: str, seed: int, draw: int) -> Splits:
    """Training and validation part, each spoilt in itself, and no test part: what isn't spoilt is not seen.

    ``InputError`` for data that can't be spoilt so.
    """
    if (reason := unfit(name, splits.train)) is not None:
        raise InputError(f"control {name!r} {reason}: leave it out")
    corrupt, names = CORRUPTIONS[name], ("control", name, draw)
    return Splits(
        corrupt(splits.train, Chance(seed, names)),
        corrupt(splits.validation, Chance(seed, (*names, "validation"))),
        None,
    )


def unfit(name: str, data: Examples) -> str | None:
    """Why data can't be spoilt so, as the rest of a sentence; None where they can."""
    if acts(data):
        return "spoils data that are there before the training, but these come of acting"
    batch = data.take(torch.zeros(1, dtype=torch.int64))
    parts = [part if isinstance(part, Tensor) else None for part in batch] if isinstance(batch, (tuple, list)) else []
    if name == "random_labels" and (len(parts) != 2 or None in parts):
        return "permutes labels, but batches of these data are no pairs (x, y) of tensors"
    if name == "shuffled_pixels" and not (parts and parts[0] is not None and parts[0].dim() >= 2):
        return "moves pixels, but batches of these data don't begin with a tensor of two dimensions or more"
    if name == "shuffled_pixels" and parts[0] is not None and parts[0].dtype == torch.int64:
        return "moves pixels, but batches of these data begin with whole numbers, as those of words are"
    if name == "half_data" and hasattr(data, "vary") and not hasattr(data, "select"):
        return "leaves out every other example, but these are read in an order of their own, as running text is"
    return None


class _Corrupted:
    """Examples of any kind, spoilt as they are taken. They vary from epoch to epoch where the whole ones do."""

    def __init__(self, whole: Any) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return len(self.whole)

    @property
    def vary(self) -> Any:
        """How an index says which variants to take; AttributeError where there are none."""
        return self.whole.vary

    def take(self, index: Tensor) -> Any:
        raise NotImplementedError

    def batches(self, size: int) -> Iterator[Any]:
        for part in torch.split(torch.arange(len(self)), size):
            yield self.take(part)


class _Relabelled(_Corrupted):
    def __init__(self, whole: Examples, order: Tensor) -> None:
        super().__init__(whole)
        self.order = order

    @cached_property
    def y(self) -> Tensor:
        """The classes; AttributeError where the whole ones don't tell them."""
        known: Tensor = self.whole.y
        return known[self.order.to(known.device)]

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        x, own = self.whole.take(index)
        number = index.cpu() % len(self)
        known = getattr(self, "y", None)
        if known is not None:
            return x, known[number.to(own.device)]
        return x, self.whole.take(self.order[number])[1]

    def to(self, device: str) -> _Relabelled:
        return _Relabelled(self.whole.to(device), self.order)

    @property
    def digest(self) -> str:
        words = b"relabelled" + self.whole.digest.encode() + self.order.numpy().tobytes()
        return hashlib.sha256(words).hexdigest()


class _Moved(_Corrupted):
    def __init__(self, whole: Examples, chance: Chance) -> None:
        super().__init__(whole)
        self.chance = chance

    @property
    def y(self) -> Any:
        """The classes; AttributeError where the whole ones don't tell them."""
        return self.whole.y

    def take(self, index: Tensor) -> tuple[Any, ...]:
        x, *rest = self.whole.take(index)
        return _moved(x, index.cpu() % len(self), self.chance), *rest

    def to(self, device: str) -> _Moved:
        return _Moved(self.whole.to(device), self.chance)

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"moved {self.chance}/{self.whole.digest}".encode()).hexdigest()


def _held(data: Examples) -> Examples:
    """A part of examples in memory as examples in memory, which engines know."""
    if isinstance(data, _Part) and isinstance(data.whole, Arrays):
        return data.whole.select(data.index)
    if isinstance(data, _Part) and isinstance(data.whole, _Tensors):
        return _Tensors(data.whole.take(data.index))
    return data


def _all_moved(x: Tensor, chance: Chance) -> Tensor:
    parts = torch.split(torch.arange(len(x)), _AT_ONCE)
    return torch.cat([_moved(x[part.to(x.device)], part, chance) for part in parts])


def _moved(x: Tensor, examples: Tensor, chance: Chance) -> Tensor:
    """A batch with each example in its own order; ``examples`` are their numbers."""
    flat = x.flatten(2) if x.dim() >= 4 else x.flatten(1)[:, None]
    places = flat.shape[2]
    orders = [torch.randperm(places, generator=chance.stream(number)) for number in examples.tolist()]
    index = torch.stack(orders).to(x.device)[:, None].expand_as(flat)
    return flat.gather(2, index).reshape(x.shape)
