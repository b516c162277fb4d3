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
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from tombola.atomic import write_atomic
from tombola.coding import decode, encode
from tombola.errors import InputError, TicketError, suggestion
from tombola.mask import Mask
from tombola.sealed import (
    DTYPES,
    HEADER_LIMIT,
    MAX_DIMENSIONS,
    canonical_json,
    content_hash,
    plain_json,
    seal,
    tensor_bytes,
    unseal,
)

MAX_ENTRIES = 2**30

_KIND = "ticket"
_MASKS = "masks"  # the tensor of all the masks' bytes; the values' tensors have the prefix
_VALUES = "values."
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


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
        data = _read(Path(path), max_entries)
        try:
            return cls.from_bytes(data, max_entries=max_entries)
        except TicketError as error:
            raise TicketError(f"{path}: {error}") from error

    def to_bytes(self) -> bytes:
        """The bytes of the ticket's file: the same for equal tickets with the same order of values."""
        entries: list[dict[str, Any]] = []
        tensors, masks = {}, bytearray()
        for name, value in self.values.items():
            entry: dict[str, Any] = {"name": name, "shape": list(value.shape), "dtype": _DTYPE_NAMES[value.dtype]}
            if name in self.mask:
                code, data = encode(self.mask[name])
                value = value[self.mask[name]]
                entry["mask"] = {"code": code, "bytes": len(data), "kept": value.numel()}
                masks += data
            if (constant := _constant(value)) is not None:
                entry["constant"] = constant
            else:
                tensors[_VALUES + name] = value
            entries.append(entry)
        tensors[_MASKS] = torch.frombuffer(masks, dtype=torch.uint8) if masks else torch.empty(0, dtype=torch.uint8)
        manifest = {"entries": entries, "origin": self.origin}
        _manifest(manifest)  # what could not be read back is not written either
        return seal(manifest, tensors, kind=_KIND)

    @classmethod
    def from_bytes(cls, data: bytes, *, max_entries: int = MAX_ENTRIES) -> Ticket:
        """The ticket of a file's bytes; ``TicketError`` as for ``load``."""
        found, tensors = unseal(data, kind=_KIND)
        manifest = _manifest(found)
        _check(manifest, tensors, max_entries)
        masks: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        blob, at = tensors[_MASKS].numpy().tobytes(), 0
        for entry in manifest.entries:
            value = _stored(entry, tensors.get(_VALUES + entry.name))
            if entry.mask:
                coded, at = blob[at : at + entry.mask.bytes], at + entry.mask.bytes
                masks[entry.name] = decode(entry.mask.code, coded, tuple(entry.shape), entry.mask.kept)
                whole = torch.zeros(entry.shape, dtype=value.dtype)
                whole[masks[entry.name]] = value
                values[entry.name] = whole
            else:
                values[entry.name] = value.reshape(entry.shape)
        try:
            return cls(Mask(masks), values, manifest.origin)
        except InputError as error:
            raise TicketError(str(error)) from error


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _MaskEntry(_Strict):
    code: Annotated[str, Field(max_length=32)]
    bytes: Annotated[int, Field(ge=0)]
    kept: Annotated[int, Field(ge=0)]


class _Entry(_Strict):
    name: Annotated[str, Field(max_length=1000)]
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_DIMENSIONS)]
    dtype: Annotated[str, Field(max_length=8)]
    mask: _MaskEntry | None = None
    constant: Annotated[str, Field(pattern="^([0-9a-f]{2})+$", max_length=16)] | None = None

    @property
    def stored(self) -> int:
        """How many values the file has for this entry, one by one or as a constant."""
        return self.mask.kept if self.mask else math.prod(self.shape)


class _Manifest(_Strict):
    entries: Annotated[list[_Entry], Field(max_length=100_000)]
    origin: dict[str, Any]


def _owned(name: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype not in _DTYPE_NAMES:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"a ticket's values are tensors of common dtypes, but {name!r} is {got}")
    return value.detach().to("cpu", copy=True).contiguous()


def _manifest(found: dict[str, Any]) -> _Manifest:
    try:
        return _Manifest.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TicketError(f"the ticket's manifest is wrong at {where}: {first['msg']}") from error


def _read(path: Path, max_entries: int) -> bytes:
    try:
        if path.is_dir():
            raise TicketError("this is a folder, not a ticket file")
        if path.exists() and not path.is_file():
            raise TicketError("this is a device or a pipe, not a ticket file")
        # The widest dtypes take 8 bytes an entry, and a mask at most one bit.
        if path.stat().st_size > (most := 9 * max_entries + HEADER_LIMIT):
            raise TicketError(
                f"the file has {path.stat().st_size:,} bytes, and at most {most:,} are read; see max_entries"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise TicketError(f"no ticket file at {path}") from error
    except (OSError, ValueError) as error:
        raise TicketError(f"can't read a ticket from {path}: {error}") from error


def _check(manifest: _Manifest, tensors: Mapping[str, Tensor], max_entries: int) -> None:
    """That manifest and tensors fit together and within bounds, before memory is taken for what they describe."""
    names = [entry.name for entry in manifest.entries]
    if len(set(names)) != len(names):
        raise TicketError("the ticket lists a name twice")
    # A size of 0 counts as 1, so that the others of its shape are bounded too.
    total = sum(math.prod(max(size, 1) for size in entry.shape) for entry in manifest.entries)
    if total > max_entries:
        raise TicketError(f"the ticket has {total:,} values, and at most {max_entries:,} are read; raise max_entries")
    for entry in manifest.entries:
        if entry.dtype not in DTYPES:
            raise TicketError(f"the ticket's {entry.name!r} has an unknown dtype, {entry.dtype!r}")
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
    dtype = DTYPES[entry.dtype]
    if entry.constant is not None:
        raw = bytearray.fromhex(entry.constant)
        if len(raw) != dtype.itemsize or (dtype == torch.bool and raw[0] > 1):
            raise TicketError(f"{entry.constant!r} is no {entry.dtype} value for the ticket's {entry.name!r}")
        return torch.frombuffer(raw, dtype=dtype).repeat(entry.stored)
    shape = (entry.stored,) if entry.mask else tuple(entry.shape)
    if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != shape:
        got = "nothing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
        raise TicketError(f"the ticket needs {entry.dtype} values of shape {shape} for {entry.name!r}, but has {got}")
    return tensor


def _constant(value: Tensor) -> str | None:
    """The bytes of the one value that every entry has, bit for bit, in hexadecimal; None where they differ."""
    if value.numel() == 0:
        return None
    raw = tensor_bytes(value).reshape(value.numel(), -1)
    return raw[0].numpy().tobytes().hex() if torch.equal(raw, raw[:1].expand_as(raw)) else None


load = Ticket.load
