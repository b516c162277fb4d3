"""Tickets: a mask, the values that its survivors start from, and where they came from; and the file that holds one.

A ticket file is a sealed file (see ``tombola.sealed``). Its manifest lists every entry of the ``state_dict`` in order.
Of a masked parameter only the survivors' values are stored, row-major; a parameter whose stored values are all the same
is one constant in the manifest. The masks lie in one tensor, each in the shortest of the codes of ``tombola.coding``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tombola.atomic import write_atomic
from tombola.coding import decode, encode
from tombola.entries import Entry, Manifest, among_zeros, constant_of, described, read, tensor_of
from tombola.errors import InputError, TicketError, suggestion
from tombola.mask import Mask
from tombola.sealed import DTYPES, HEADER_LIMIT, canonical_json, content_hash, plain_json, seal, unseal

MAX_ENTRIES = 2**30

_KIND = "ticket"
_MASKS = "masks"  # the tensor of all the masks' bytes; the values' tensors have the prefix
_VALUES = "values."


@dataclass(frozen=True, eq=False, repr=False)
class Ticket:
    """A mask, the values its survivors start from, and where it came from.

    ``values`` is a whole ``state_dict``, parameters and buffers. It is copied to the CPU, and what the mask prunes is
    set to exactly 0.0 in the copy. ``origin`` is anything JSON can say: task, method, seed, round, recipe, digest of
    the data, versions, results. Treat both as read-only. Two tickets are equal when mask, values (bit for bit) and
    origin are.

    Raises ``InputError`` where the mask covers what ``values`` doesn't hold, or holds in another shape.
    """

    mask: Mask
    values: Mapping[str, Tensor]
    origin: Mapping[str, Any]

    def __post_init__(self) -> None:
        values = {name: _owned(name, value) for name, value in self.values.items()}
        for name, covered in self.mask.items():
            if name not in values:
                raise InputError(f"the mask covers {name!r}, which has no values.{suggestion(name, values)}")
            if values[name].shape != covered.shape:
                raise InputError(
                    f"the mask of {name!r} has shape {tuple(covered.shape)}, "
                    f"but its values have shape {tuple(values[name].shape)}"
                )
            values[name].masked_fill_(~covered, 0)
        # The order of the values is the one that a file keeps, and a shuffle of the mask draws in the mask's order.
        object.__setattr__(self, "mask", Mask({name: self.mask[name] for name in values if name in self.mask}))
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "origin", plain_json(dict(self.origin)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ticket):
            return NotImplemented
        return self.digest == other.digest and canonical_json(self.origin) == canonical_json(other.origin)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        words = [f"{key} {self.origin[key]}" for key in ("task", "method", "seed", "round") if key in self.origin]
        return f"Ticket({', '.join([*words, f'density {self.density:.4%}', self.digest[:12]])})"

    @property
    def density(self) -> float:
        """Kept / all prunable entries, 0 to 1."""
        return self.mask.density

    @cached_property
    def digest(self) -> str:
        """SHA-256 of mask and values, not of the origin: the same for equal nets, on every machine."""
        return content_hash("ticket content", {"mask": self.mask.digest}, self.values)

    def model(self, make: Callable[[], nn.Module] | None = None) -> nn.Module:
        """A net with the ticket's values, ready to train under its mask.

        ``make`` builds the net; without it, the task that ``origin`` names does. Names and shapes must be those of the
        ticket, and ``InputError`` says where they are not.
        """
        if make is None:
            task = self.origin.get("task")
            if not isinstance(task, str):
                raise InputError(
                    "the ticket's origin names no task, so give the function that builds its net: make=..."
                )
            from tombola.tasks import get_task

            make = get_task(task).model
        net = make()
        own = {name: tuple(value.shape) for name, value in net.state_dict().items()}
        mine = {name: tuple(value.shape) for name, value in self.values.items()}
        differing = [name for name in {**own, **mine} if own.get(name) != mine.get(name)]
        if differing:
            name = differing[0]
            raise InputError(
                f"the ticket doesn't fit the net: {name!r} has shape {mine.get(name, 'none')} in the ticket and "
                f"{own.get(name, 'none')} in the net"
            )
        net.load_state_dict(self.values)
        self.mask.apply_(net)
        return net

    def save(self, path: str | Path) -> Path:
        """Write the ticket to a file, all of it or nothing; a file that is there is replaced. Returns the path."""
        path = Path(path)
        try:
            write_atomic(path, self.to_bytes())
        except OSError as error:
            raise InputError(f"can't write a ticket to {path}: {error.strerror or error}") from error
        return path

    @classmethod
    def load(cls, path: str | Path, *, max_entries: int = MAX_ENTRIES) -> Ticket:
        """Read a ticket file.

        Raises ``TicketError`` for anything but an undamaged ticket of at most ``max_entries`` values, masked ones
        included.
        """
        data = read(Path(path), "ticket file", max_entries, HEADER_LIMIT)
        try:
            return cls.from_bytes(data, max_entries=max_entries)
        except TicketError as error:
            raise TicketError(f"{path}: {error}") from error

    def to_bytes(self) -> bytes:
        """The bytes of the ticket's file: the same for equal tickets with the same order of values."""
        entries: list[dict[str, Any]] = []
        tensors, masks = {}, bytearray()
        for name, value in self.values.items():
            entry = described(name, value)
            if name in self.mask:
                code, data = encode(self.mask[name])
                value = value[self.mask[name]]
                entry["mask"] = {"code": code, "bytes": len(data), "kept": value.numel()}
                masks += data
            if (constant := constant_of(value)) is not None:
                entry["constant"] = constant
            else:
                tensors[_VALUES + name] = value
            entries.append(entry)
        tensors[_MASKS] = tensor_of(masks)
        manifest = {"entries": entries, "origin": self.origin}
        Manifest[_Entry].of(manifest, "ticket")  # what could not be read back is not written either
        return seal(manifest, tensors, kind=_KIND)

    @classmethod
    def from_bytes(cls, data: bytes, *, max_entries: int = MAX_ENTRIES) -> Ticket:
        """The ticket of a file's bytes; ``TicketError`` as for ``load``."""
        found, tensors = unseal(data, kind=_KIND)
        manifest = Manifest[_Entry].of(found, "ticket")
        _check(manifest, tensors, max_entries)
        masks: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        blob, at = tensors[_MASKS].numpy().tobytes(), 0
        for entry in manifest.entries:
            value = _stored(entry, tensors.get(_VALUES + entry.name))
            if entry.mask:
                coded, at = blob[at : at + entry.mask.bytes], at + entry.mask.bytes
                masks[entry.name] = decode(entry.mask.code, coded, tuple(entry.shape), entry.mask.kept)
                values[entry.name] = among_zeros(value, masks[entry.name])
            else:
                values[entry.name] = value.reshape(entry.shape)
        try:
            return cls(Mask(masks), values, manifest.origin)
        except InputError as error:
            raise TicketError(str(error)) from error


class _Entry(Entry):
    @property
    def stored(self) -> int:
        """How many values the file has for this entry, one by one or as a constant."""
        return self.mask.kept if self.mask else math.prod(self.shape)


def _owned(name: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype not in DTYPES.values():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"a ticket's values are tensors of common dtypes, but {name!r} is {got}")
    return value.detach().to("cpu", copy=True).contiguous()


def _check(manifest: Manifest[_Entry], tensors: Mapping[str, Tensor], max_entries: int) -> None:
    """That manifest and tensors fit together and within bounds, before memory is taken for what they describe."""
    manifest.check_bounds(max_entries)
    for entry in manifest.entries:
        if entry.stored > math.prod(entry.shape):
            raise TicketError(f"the ticket keeps {entry.stored:,} of the {math.prod(entry.shape):,} of {entry.name!r}")
    expected = {_VALUES + entry.name for entry in manifest.entries if entry.constant is None} | {_MASKS}
    if tensors.keys() != expected:
        differing = ", ".join(sorted(tensors.keys() ^ expected)[:3])
        raise TicketError(f"the ticket's tensors are not those its manifest lists; they differ in {differing}")
    announced = sum(entry.mask.bytes for entry in manifest.entries if entry.mask)
    if tensors[_MASKS].dtype != torch.uint8 or tensors[_MASKS].shape != (announced,):
        raise TicketError(f"the ticket's masks take {announced:,} bytes, but it has {tensors[_MASKS].numel():,}")


def _stored(entry: _Entry, tensor: Tensor | None) -> Tensor:
    """The values that the file has for an entry: the survivors in a row where it is masked."""
    if entry.constant is not None:
        return entry.numbers(bytes.fromhex(entry.constant), 1).repeat(entry.stored)
    dtype = DTYPES[entry.dtype]
    shape = (entry.stored,) if entry.mask else tuple(entry.shape)
    if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != shape:
        got = "nothing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
        raise TicketError(f"the ticket needs {entry.dtype} values of shape {shape} for {entry.name!r}, but has {got}")
    return tensor


load = Ticket.load
