"""The entries of a ``state_dict`` as a manifest lists them, for every file that holds a ticket.

A manifest says of each entry its name, shape and dtype, how its mask is coded where it has one, and the one value that
all of it has, where that is so. What comes from a file is checked before anything is made of it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Generic, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from tombola.errors import TicketError
from tombola.sealed import DTYPES, MAX_DIMENSIONS, tensor_bytes

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Strict(BaseModel):
    """A part of a manifest: nothing is converted, and no field is unknown."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class MaskEntry(Strict):
    """A mask: the name of its code, how many bytes that takes, and how many entries are kept."""

    code: Annotated[str, Field(max_length=32)]
    bytes: Annotated[int, Field(ge=0)]
    kept: Annotated[int, Field(ge=0)]


class Entry(Strict):
    """A tensor: ``dtype`` is a key of ``DTYPES``, ``constant`` the bytes of its only value in hexadecimal."""

    name: Annotated[str, Field(max_length=1000)]
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_DIMENSIONS)]
    dtype: Annotated[str, Field(max_length=8)]
    mask: MaskEntry | None = None
    constant: Annotated[str, Field(pattern="^([0-9a-f]{2})+$", max_length=16)] | None = None

    def numbers(self, raw: bytes, count: int) -> Tensor:
        """That many values of the entry's dtype, of their bytes; ``TicketError`` where they can't be."""
        dtype = DTYPES[self.dtype]
        if len(raw) != count * dtype.itemsize or (dtype == torch.bool and any(byte > 1 for byte in raw)):
            raise TicketError(f"{len(raw)} bytes can't be {count:,} {self.dtype} values of the ticket's {self.name!r}")
        return tensor_of(raw, dtype)


_E = TypeVar("_E", bound=Entry)


class Manifest(Strict, Generic[_E]):
    """What a file says of its ticket: the entries in the order of the ``state_dict``, and the ticket's origin."""

    entries: Annotated[list[_E], Field(max_length=100_000)]
    origin: dict[str, Any]

    @classmethod
    def of(cls, found: Any, what: str) -> Self:
        """The manifest that JSON gave; ``TicketError`` says where it is wrong. ``what`` names the file's content."""
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise TicketError(f"the manifest of the {what} is wrong at {where}: {first['msg']}") from error

    def check_bounds(self, max_entries: int) -> None:
        """``TicketError`` for a name that occurs twice, more than ``max_entries`` values, or an unknown dtype."""
        if len({entry.name for entry in self.entries}) != len(self.entries):
            raise TicketError("the ticket lists a name twice")
        # A size of 0 counts as 1, so that the others of its shape are bounded too.
        total = sum(math.prod(max(size, 1) for size in entry.shape) for entry in self.entries)
        if total > max_entries:
            raise TicketError(
                f"the ticket has {total:,} values, and at most {max_entries:,} are read; raise max_entries"
            )
        for entry in self.entries:
            if entry.dtype not in DTYPES:
                raise TicketError(f"the ticket's {entry.name!r} has an unknown dtype, {entry.dtype!r}")


def described(name: str, value: Tensor) -> dict[str, Any]:
    """What ``Entry`` has to have of a tensor, as JSON."""
    return {"name": name, "shape": list(value.shape), "dtype": _DTYPE_NAMES[value.dtype]}


def constant_of(value: Tensor) -> str | None:
    """The bytes of the one value that every entry has, bit for bit, in hexadecimal; None where they differ."""
    if value.numel() == 0:
        return None
    raw = tensor_bytes(value).reshape(value.numel(), -1)
    return raw[0].numpy().tobytes().hex() if torch.equal(raw, raw[:1].expand_as(raw)) else None


def tensor_of(raw: bytes | bytearray, dtype: torch.dtype = torch.uint8) -> Tensor:
    """The values in a row that have these bytes, in memory of their own."""
    return torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)


def among_zeros(kept: Tensor, mask: Tensor) -> Tensor:
    """A tensor of the mask's shape: the kept values where it is True, row-major and bit for bit, and 0 elsewhere."""
    # An assignment by index would take a single value through a Python number, and lose the payload of a half's NaN.
    return torch.zeros(mask.shape, dtype=kept.dtype).masked_scatter_(mask, kept)


def read(path: Path, what: str, max_entries: int, headers: int) -> bytes:
    """The bytes of a file of at most ``max_entries`` values and ``headers`` bytes besides.

    Raises ``TicketError`` where there is no such file or it can't be read; ``what`` names in it what was looked for.
    """
    try:
        if path.exists() and not path.is_file():
            found = "folder" if path.is_dir() else "device or a pipe"
            raise TicketError(f"no {what} at {path}: this is a {found}, not a {what}")
        # The widest dtypes take 8 bytes an entry, and a mask at most one bit.
        if (size := path.stat().st_size) > (most := 9 * max_entries + headers):
            raise TicketError(f"{path} has {size:,} bytes, and at most {most:,} are read; see max_entries")
        return path.read_bytes()
    except TicketError:
        raise
    except FileNotFoundError as error:
        raise TicketError(f"no {what} at {path}") from error
    except (OSError, ValueError) as error:
        raise TicketError(f"can't read a {what} from {path}: {error}") from error
