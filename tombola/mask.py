"""Masks: which entries of which weight tensors a network keeps.

A mask is explicit (booleans, never inferred from zeros) and immutable. Unstructured masks, whole output channels
and whole layers are all the same type.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tombola.errors import InputError, suggestion

# Weight tensors that masks cover, by the type of module that owns them. Biases and normalisation parameters never.
_WEIGHTS: tuple[tuple[tuple[type[nn.Module], ...], Callable[[str], bool]], ...] = (
    ((nn.Linear, nn.Bilinear), lambda name: name == "weight"),
    ((nn.modules.conv._ConvNd,), lambda name: name == "weight"),
    ((nn.RNNBase, nn.RNNCellBase), lambda name: name.startswith("weight_")),
    ((nn.MultiheadAttention,), lambda name: name.endswith("proj_weight")),
)


def prunable(model: nn.Module, *, embeddings: bool = False) -> dict[str, nn.Parameter]:
    """The prunable parameters of a model, by their names in ``model.named_parameters()``, in that order.

    Weights of linear, bilinear, convolution (plain and transposed), recurrent and attention layers, and with
    ``embeddings=True`` of embeddings. Never biases or normalisation parameters. A weight that several modules share is
    listed once, under its first name.
    """
    wanted: set[int] = set()
    for module in model.modules():
        for types, is_weight in _WEIGHTS:
            if isinstance(module, types):
                wanted.update(id(p) for n, p in module.named_parameters(recurse=False) if is_weight(n))
        if embeddings and isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            wanted.add(id(module.weight))
    return {name: p for name, p in model.named_parameters() if id(p) in wanted}


def left_to_prune(names: Iterable[str], unpruned: Iterable[str]) -> list[str]:
    """The names that no pattern (``fnmatch``) of what is left unpruned fits."""
    patterns = list(unpruned)
    return [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


@dataclass(frozen=True, slots=True)
class LayerDensity:
    """What a mask keeps of one prunable parameter. ``density`` is kept / total, 1 for a tensor without entries."""

    name: str
    shape: tuple[int, ...]
    kept: int
    total: int

    @property
    def density(self) -> float:
        """Kept / total."""
        return self.kept / self.total if self.total else 1.0


class Mask(Mapping[str, Tensor]):
    """For each prunable parameter, which entries are kept: a read-only mapping from name to a bool tensor on the CPU.

    The tensors are copied in. Treat what comes out as read-only too. Two masks are equal when they cover the same
    parameters and keep the same entries.

    Raises ``InputError`` where a value is not a bool tensor.
    """

    __slots__ = ("_kept", "_tensors")

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor) or tensor.dtype != torch.bool:
                got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise InputError(f"a mask holds bool tensors, but {name!r} is {got}; compare with a threshold first")
        self._tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
        self._kept = {name: int(t.sum()) for name, t in self._tensors.items()}

    @classmethod
    def full(cls, model: nn.Module, *, embeddings: bool = False) -> Mask:
        """The mask that keeps every entry of the model's prunable parameters: the dense net."""
        return cls(
            {n: torch.ones(p.shape, dtype=torch.bool) for n, p in prunable(model, embeddings=embeddings).items()}
        )

    @classmethod
    def of_channels(cls, shapes: Mapping[str, tuple[int, ...]], kept: Mapping[str, Tensor]) -> Mask:
        """A structured mask: whole output channels (slices of dimension 0) kept or dropped.

        ``shapes`` gives every covered parameter's shape; ``kept`` a bool vector of length ``shape[0]`` for those that
        lose channels. Parameters that ``kept`` doesn't name are kept whole. The weights of a transposed convolution
        have its input channels in dimension 0.
        """
        unknown = [name for name in kept if name not in shapes]
        if unknown:
            raise InputError(f"no parameter {unknown[0]!r} to take channels from.{suggestion(unknown[0], shapes)}")
        tensors = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
        for name, rows in kept.items():
            shape = shapes[name]
            if tuple(rows.shape) != tuple(shape[:1]) or not shape:
                raise InputError(
                    f"{name!r} has {shape[0] if shape else 'no'} output channels, "
                    f"but got a vector of shape {tuple(rows.shape)}"
                )
            tensors[name] = rows.reshape(-1, *(1,) * (len(shape) - 1)).expand(shape)
        return cls(tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self.keys() == other.keys() and all(torch.equal(self[n], other[n]) for n in self)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __le__(self, other: Mask) -> bool:
        """Whether everything kept here is kept in ``other`` too."""
        self._check_same_shapes(other)
        return all(bool((other[n] | ~self[n]).all()) for n in self)

    def __and__(self, other: Mask) -> Mask:
        """What both masks keep."""
        self._check_same_shapes(other)
        return Mask({n: self[n] & other[n] for n in self})

    def __repr__(self) -> str:
        return f"Mask({self.kept:,} of {self.total:,} kept in {len(self)} layers, density {self.density:.4%})"

    @property
    def kept(self) -> int:
        """How many entries are kept."""
        return sum(self._kept.values())

    @property
    def total(self) -> int:
        """How many entries there are."""
        return sum(t.numel() for t in self._tensors.values())

    @property
    def density(self) -> float:
        """Kept / all prunable entries, 0 to 1; 1 for a mask that covers nothing."""
        return self.kept / self.total if self.total else 1.0

    @property
    def digest(self) -> str:
        """SHA-256 of names, shapes and kept entries: the same for equal masks, on every machine."""
        digest = hashlib.sha256()
        for name in sorted(self):
            tensor = self[name]
            digest.update(f"{name}:{tuple(tensor.shape)}:".encode())
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def layers(self) -> list[LayerDensity]:
        """What is kept of each parameter, in the model's order."""
        return [LayerDensity(n, tuple(t.shape), self._kept[n], t.numel()) for n, t in self._tensors.items()]

    def collapsed(self) -> list[str]:
        """Names of the layers of which nothing is kept, though something is kept elsewhere (layer collapse)."""
        return [n for n, k in self._kept.items() if k == 0 and self[n].numel()] if self.kept else []

    def channels(self) -> dict[str, Tensor]:
        """For each parameter, the bool vector of output channels (dimension 0) of which anything is kept.

        A tensor without dimensions counts as one channel.
        """
        return {n: t.unsqueeze(-1).flatten(1).any(dim=1) if t.dim() else t.reshape(1) for n, t in self._tensors.items()}

    def distance(self, other: Mask) -> float:
        """Normalised Hamming distance, 0 to 1: the share of entries on which the masks differ (You et al. 2020)."""
        self._check_same_shapes(other)
        return sum(int((self[n] ^ other[n]).sum()) for n in self) / self.total if self.total else 0.0

    def overlap(self, other: Mask) -> float:
        """Jaccard index, 0 to 1: entries kept by both / entries kept by either. 1 when both keep nothing."""
        self._check_same_shapes(other)
        either = sum(int((self[n] | other[n]).sum()) for n in self)
        return sum(int((self[n] & other[n]).sum()) for n in self) / either if either else 1.0

    def shuffled(self, generator: torch.Generator) -> Mask:
        """Kept positions permuted at random inside each layer: same count in every layer, different entries.

        The control for "do the positions matter, given the layer densities?" (Frankle et al. 2021). A layer that
        could differ always does: a permutation that happens to change nothing is drawn again.
        """
        tensors = {}
        for name, tensor in self._tensors.items():
            drawn = tensor
            while torch.equal(drawn, tensor) and 0 < self._kept[name] < tensor.numel():
                order = torch.randperm(tensor.numel(), generator=generator)
                drawn = tensor.flatten()[order].reshape(tensor.shape)
            tensors[name] = drawn
        return Mask(tensors)

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> None:
        """Set every pruned weight of ``model`` to exactly 0.0, in place. Names and shapes must fit the model."""
        for name, parameter in self.parameters(model).items():
            parameter.masked_fill_(~self[name].to(parameter.device), 0.0)

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters of ``model`` that are covered; ``InputError`` where a name is missing or a shape differs."""
        own = dict(model.named_parameters())
        for name, tensor in self._tensors.items():
            if name not in own:
                raise InputError(f"the mask covers {name!r}, which the model doesn't have.{suggestion(name, own)}")
            if own[name].shape != tensor.shape:
                raise InputError(
                    f"the mask of {name!r} has shape {tuple(tensor.shape)}, but the model's is {tuple(own[name].shape)}"
                )
        return {name: own[name] for name in self._tensors}

    def _check_same_shapes(self, other: Mask) -> None:
        mine = {n: tuple(t.shape) for n, t in self._tensors.items()}
        theirs = {n: tuple(t.shape) for n, t in other._tensors.items()}
        if mine != theirs:
            differing = sorted(n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n))
            raise InputError(
                f"the two masks don't cover the same parameters; they differ at {', '.join(differing[:3])}"
            )
