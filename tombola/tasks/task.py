"""A task: a model family, its data, its loss, its metrics, its default training recipe."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.utils.data import default_collate

from tombola.atomic import write_atomic
from tombola.batches import moved, tensors
from tombola.errors import InputError
from tombola.extras import Extra
from tombola.mask import prunable
from tombola.recipe import Recipe
from tombola.sealed import content_hash
from tombola.seeds import global_stream, stream
from tombola.tasks.data.augment import Augmented
from tombola.tasks.data.download import Progress

Loss = Callable[[nn.Module, Any], Tensor]
Metrics = Callable[[nn.Module, Any], Mapping[str, Tensor]]
Conclude = Callable[[Mapping[str, float]], Mapping[str, float]]
State = dict[str, Tensor]


@runtime_checkable
class Examples(Protocol):
    """What a task trains and is judged on: examples that are taken by index, in batches."""

    def __len__(self) -> int:
        """How many examples there are."""
        ...

    def take(self, index: Tensor) -> Any:
        """The batch of these examples (1-D int64 index)."""
        ...

    def batches(self, size: int) -> Iterator[Any]:
        """All examples in order, in batches of ``size``."""
        ...

    def to(self, device: str) -> Examples:
        """The same examples with their tensors on ``device``."""
        ...

    @property
    def digest(self) -> str:
        """A checksum of the content."""
        ...


@dataclass(frozen=True)
class Splits:
    """Training data trains, validation data selects, test data is read once per finished run."""

    train: Examples
    validation: Examples
    test: Examples | None

    @property
    def digest(self) -> str:
        """One checksum over the three parts."""
        parts = (self.train, self.validation, self.test)
        return hashlib.sha256("/".join("-" if p is None else p.digest for p in parts).encode()).hexdigest()

    def to(self, device: str) -> Splits:
        """The same splits with their tensors on ``device``."""
        if device == "cpu":
            return self
        return Splits(
            self.train.to(device), self.validation.to(device), None if self.test is None else self.test.to(device)
        )


LoadSplits = Callable[[Path | None, int, Progress | None], Splits]


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Mean softmax cross-entropy of ``model(x)`` for batches ``(x, y)``."""
    x, y = batch
    return F.cross_entropy(model(x), y)


def accuracy(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Loss and share of right answers of a classifier, in one pass over the batch."""
    x, y = batch
    out = model(x)
    return {"loss": F.cross_entropy(out, y), "accuracy": (out.argmax(dim=1) == y).float().mean()}


@dataclass(frozen=True)
class Task:
    """What to train, on what, judged by what. Built-in tasks have names; bring your own by filling in the first fields.

    Parameters
    ----------
    model
        Makes the net, with freshly drawn weights. Called with torch's global random state set to the seed's stream.
    train, validation, test
        Each a tuple of tensors ``(x, y)``, a map-style ``torch.utils.data.Dataset``, or anything with the methods of
        ``Examples``. Without ``validation``, a tenth of ``train`` is set aside by the seed.
    loss
        ``loss(model, batch)``, a scalar tensor, the mean over the batch.
    metrics
        ``metrics(model, batch)``, names to scalar means over the batch; if it gives ``"loss"`` too, that is used and
        the loss is not computed twice.
    conclude
        What the means over a whole set come to, where a metric is no mean: the perplexity of a mean loss, BLEU of
        counts. Called with the means of what ``metrics`` gives and of ``"loss"``; what it gives takes their place,
        ``"loss"`` included.
    metric
        The metric that judges, among those; ``higher_is_better`` says which way.
    name
        Part of the identity of its runs. Give two tasks that differ in anything but data and initial weights different
        names: code is not looked into beyond the source of ``loss``.
    recipe, allocation, relative_rates, unpruned, rounds, margin
        Defaults for training and for drawing. A margin below the noise of the validation metric chooses by chance: of
        300 examples at 97 %, one standard error is a hundredth.
    embeddings
        Whether the weights of embeddings may be pruned like others.
    load
        For built-in tasks: ``load(root, seed, progress)`` gives the splits in place of the three fields.
    data_sets
        For built-in tasks: the data sets that ``load`` takes from the data root, by their names in
        ``tasks/data/sources.py``. None for games and for data that come with a dependency.
    extra
        For built-in tasks: what must be installed beside Tombola.
    input_shape
        The shape of one input. What needs no more than that, such as SynFlow, then does without the data.
    scaled
        ``scaled(factor)``: a net of the same family with all hidden widths times ``factor``, rounded, at least 1. The
        control ``small_dense`` needs it.
    """

    model: Callable[[], nn.Module]
    train: Any = None
    validation: Any = None
    test: Any = None
    loss: Loss = cross_entropy
    metrics: Metrics = accuracy
    conclude: Conclude | None = None
    metric: str = "accuracy"
    higher_is_better: bool = True
    name: str = "custom"
    recipe: Recipe = field(default_factory=Recipe)
    allocation: str = "layerwise"
    relative_rates: Mapping[str, float] = field(default_factory=dict)
    unpruned: tuple[str, ...] = ()
    embeddings: bool = False
    rounds: int = 12
    margin: float = 0.005
    load: LoadSplits | None = None
    data_sets: tuple[str, ...] = ()
    extra: Extra | None = None
    input_shape: tuple[int, ...] | None = None
    scaled: Callable[[float], nn.Module] | None = None
    description: str = ""

    def __post_init__(self) -> None:
        if self.train is None and self.load is None:
            raise InputError("a task needs data: give train=(x, y), a map-style dataset, or an object with take(index)")

    def splits(self, seed: int, root: Path | None = None, progress: Progress | None = None) -> Splits:
        """The data of one seed. ``root`` is the data root of built-in tasks; ``progress`` hears of their downloads."""
        if self.load is not None:
            return self.load(root, seed, progress)
        train, test = examples(self.train), None if self.test is None else examples(self.test)
        if self.validation is not None:
            return Splits(train, examples(self.validation), test)
        order = torch.randperm(len(train), generator=stream(seed, "split"))
        held_out = max(1, len(train) // 10)
        kept, validation = order[held_out:].sort().values, order[:held_out].sort().values
        if isinstance(train, Augmented):
            return Splits(train.select(kept), train.plain.select(validation), test)
        return Splits(_Part(train, kept), _Part(train, validation), test)

    def build(self, seed: int, *names: str | int) -> nn.Module:
        """The net with the initial weights of ``seed``, or of a control's stream, e.g. ``("control", "reinit", 0)``."""
        with global_stream(seed, *(names or ("init",))):
            return self.model()

    def prunable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters of a net of the task that a mask may cover, by name."""
        return prunable(model, embeddings=self.embeddings)

    def export(self, net: nn.Module, folder: Path, root: Path | None = None) -> Path:
        """Write a net of the task to a folder, for use elsewhere; the path of what was written.

        Here ``model.safetensors``, the state_dict by name. Nets of a library are written in its own format, with what
        else it needs to load them; ``root`` is the data root, which that may have to be made from.
        """
        values = {name: value.detach().cpu().contiguous().clone() for name, value in net.state_dict().items()}
        path = folder / "model.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save_tensors(values))
        return path

    def carried_from(self, source: Task) -> Task | None:
        """This task for tickets of ``source``, where nets of its kind have rules of their own for that.

        None where the general ones hold (see ``tasks/adapting``). ``InputError`` for two that don't go together.
        """
        return None

    def head(self) -> Callable[[str], bool] | None:
        """Whether a name of a state is part of a head, which is not carried to another task, by ``carried_from``'s
        rules; None where the general ones hold."""
        return None

    def identity(self) -> dict[str, Any]:
        """What of the task itself, beside data and initial weights, decides a run."""
        known: dict[str, Any] = {"name": self.name}
        if self.load is None:
            known["loss"] = _source(self.loss)
        return known


def examples(given: Any) -> Examples:
    """What was given as data, as ``Examples``. ``InputError`` for what can't be taken by index."""
    if isinstance(given, Examples):
        return given
    if isinstance(given, (tuple, list)) and given and all(isinstance(t, Tensor) for t in given):
        return _Tensors(tuple(given))
    if hasattr(given, "__len__") and hasattr(given, "__getitem__") and not isinstance(given, str) and len(given):
        return _Indexed(given)
    raise InputError(
        "data must be a tuple of tensors (x, y), a map-style dataset, or an object with take(index), "
        f"and hold at least one example, but got a {type(given).__name__}"
    )


class _Tensors:
    """Tensors of one length, indexed together; a batch is a tuple of them, in their own dtypes."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        lengths = {len(t) if t.dim() else 0 for t in tensors}
        if len(lengths) != 1 or 0 in lengths:
            raise InputError(
                f"data tensors must be equally long, 1 or more, but have shapes {[tuple(t.shape) for t in tensors]}"
            )
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def take(self, index: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.index_select(0, index.to(t.device)) for t in self.tensors)

    def batches(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        return zip(*(torch.split(t, size) for t in self.tensors), strict=True)

    def to(self, device: str) -> _Tensors:
        return _Tensors(tuple(t.to(device) for t in self.tensors))

    @property
    def digest(self) -> str:
        return content_hash("data", {}, {str(i): t.detach().cpu() for i, t in enumerate(self.tensors)})


class _Indexed:
    """A map-style dataset. Its checksum covers its length and its first, middle and last example."""

    def __init__(self, dataset: Any, device: str = "cpu") -> None:
        self.dataset, self.device = dataset, device

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, index: Tensor) -> Any:
        return moved(default_collate([self.dataset[i] for i in index.tolist()]), self.device)

    def batches(self, size: int) -> Iterator[Any]:
        for first in range(0, len(self), size):
            yield self.take(torch.arange(first, min(first + size, len(self))))

    def to(self, device: str) -> _Indexed:
        return _Indexed(self.dataset, device)

    @property
    def digest(self) -> str:
        sample = tensors(self.take(torch.tensor([0, len(self) // 2, len(self) - 1])))
        about = {"type": type(self.dataset).__qualname__, "length": len(self)}
        return content_hash("data", about, {str(i): t.cpu() for i, t in enumerate(sample)})


class _Part:
    """Some of the examples of another set."""

    def __init__(self, whole: Examples, index: Tensor) -> None:
        self.whole, self.index = whole, index

    def __len__(self) -> int:
        return len(self.index)

    def take(self, index: Tensor) -> Any:
        return self.whole.take(self.index[index.to(self.index.device)])

    def batches(self, size: int) -> Iterator[Any]:
        for part in torch.split(self.index, size):
            yield self.whole.take(part)

    def to(self, device: str) -> _Part:
        return _Part(self.whole.to(device), self.index.to(device))

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.whole.digest.encode() + self.index.cpu().numpy().tobytes()).hexdigest()


def _source(function: Callable[..., Any]) -> str:
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        text = getattr(function, "__qualname__", repr(type(function)))
    return hashlib.sha256(text.encode()).hexdigest()
