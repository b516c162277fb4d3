"""Tickets whose layers have few distinct values, in a file of few bytes: Deep Compression's last stage and its file.

A compressed file is a sealed file (see ``tombola.sealed``) with two tensors of bytes: ``manifest``, the JSON that says
what there is, deflated, and ``data``, one part after the other in the order of the manifest's entries. A covered layer
has its mask in the shortest code of ``tombola.shipping.positions``, its distinct values, and for each kept weight which
of them it has, Huffman-coded. What no mask covers lies there as it is, or is a constant in the manifest.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from tombola.atomic import write_atomic
from tombola.entries import Entry, Manifest, Strict, among_zeros, constant_of, described, read, tensor_of
from tombola.errors import InputError, TicketError, TombolaError
from tombola.mask import Mask
from tombola.sealed import DTYPES, HEADER_LIMIT, canonical_json, seal, tensor_bytes, unseal
from tombola.shipping import positions
from tombola.shipping.huffman import decode_with_lengths, encode_with_lengths
from tombola.shipping.sharing import MOST_VALUES, patterns, shared_ticket
from tombola.shipping.sizes import Sizes, layer_sizes, other_sizes
from tombola.ticket import MAX_ENTRIES, Ticket

SUFFIX = ".tdc"

_KIND = "compressed"


def compress(ticket: Ticket, path: str | Path, bits: int | Mapping[str, int] | None = None) -> Sizes:
    """Write a ticket to a compressed file, all of it or nothing; a file that is there is replaced.

    Nothing is lost: ``decompress`` gives an equal ticket, mask and values bit for bit (-0.0 and NaN included). With
    ``bits`` it is the ticket that ``shared_ticket`` makes of this one, with at most 2**bits values a layer.

    Returns what the ticket takes at each stage and in the file. Raises ``InputError`` where a layer has more than 4096
    distinct values, and as ``share`` does.
    """
    path, ticket = Path(path), ticket if bits is None else shared_ticket(ticket, bits)
    data, sizes = to_bytes(ticket)
    if from_bytes(data, max_entries=2**63) != ticket:
        raise TombolaError("the compressed ticket can't be read back as it was, so no file was written; report this")
    try:
        write_atomic(path, data)
    except OSError as error:
        raise InputError(f"can't write a compressed ticket to {path}: {error.strerror or error}") from error
    return sizes


def decompress(path: str | Path, *, max_entries: int = MAX_ENTRIES) -> Ticket:
    """The ticket of a compressed file.

    Raises ``TicketError`` for anything but an undamaged file of a ticket with at most ``max_entries`` values, pruned
    ones included.
    """
    data = read(Path(path), "compressed ticket", max_entries, 2 * HEADER_LIMIT)
    try:
        return from_bytes(data, max_entries=max_entries)
    except TicketError as error:
        raise TicketError(f"{path}: {error}") from error


def to_bytes(ticket: Ticket) -> tuple[bytes, Sizes]:
    """The bytes of the ticket's compressed file, and what it takes at each stage; ``InputError`` as for ``compress``.

    The bytes are the same for equal tickets with the same order of values and the same version of zlib.
    """
    entries, parts, layers = [], [], []
    for name, value in ticket.values.items():
        entry = described(name, value)
        entries.append(entry)
        if name not in ticket.mask:
            if (constant := constant_of(value)) is not None:
                entry["constant"] = constant
            else:
                parts.append(tensor_bytes(value).numpy().tobytes())
            continue
        mask = ticket.mask[name]
        code, where = positions.encode(mask)
        distinct, which = _shared(value[mask], name)
        entry["mask"] = {"code": code, "bytes": len(where), "kept": int(mask.sum())}
        entry["values"] = {"distinct": distinct, "bytes": len(which)}
        parts += [where, which]
        layers.append(layer_sizes(name, mask, distinct, value.dtype.itemsize, len(where) + len(which)))
    data = b"".join(parts)
    sealed = seal(
        {}, {"manifest": _deflated({"entries": entries, "origin": ticket.origin}), "data": tensor_of(data)}, kind=_KIND
    )
    others = [value for name, value in ticket.values.items() if name not in ticket.mask]
    stored = len(data) - sum(layer.huffman for layer in layers)
    return sealed, Sizes(tuple(layers), other_sizes(others, stored), len(sealed))


def from_bytes(data: bytes, *, max_entries: int = MAX_ENTRIES) -> Ticket:
    """The ticket of a compressed file's bytes; ``TicketError`` as for ``decompress``."""
    manifest, parts = _opened(data)
    _check(manifest, len(parts), max_entries)
    masks: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    at = 0
    for entry in manifest.entries:
        shape = tuple(entry.shape)
        if entry.mask and entry.values:
            where, at = parts[at : at + entry.mask.bytes], at + entry.mask.bytes
            which, at = parts[at : at + entry.values.bytes], at + entry.values.bytes
            masks[entry.name] = positions.decode(entry.mask.code, where, shape, entry.mask.kept)
            kept = _looked_up(entry, entry.values.distinct, which, entry.mask.kept)
            values[entry.name] = among_zeros(kept, masks[entry.name])
        elif entry.constant is not None:
            raw = bytes.fromhex(entry.constant)
            values[entry.name] = entry.numbers(raw, 1).repeat(math.prod(shape)).reshape(shape)
        else:
            raw, at = parts[at : at + entry.bytes], at + entry.bytes
            values[entry.name] = entry.numbers(raw, math.prod(shape)).reshape(shape)
    try:
        return Ticket(Mask(masks), values, manifest.origin)
    except InputError as error:
        raise TicketError(str(error)) from error


class _ValuesEntry(Strict):
    distinct: Annotated[int, Field(ge=0, le=MOST_VALUES)]
    bytes: Annotated[int, Field(ge=0)]


class _Entry(Entry):
    values: _ValuesEntry | None = None

    @property
    def bytes(self) -> int:
        """How many bytes of the data are this entry's."""
        if self.mask and self.values:
            return self.mask.bytes + self.values.bytes
        return 0 if self.constant is not None else math.prod(self.shape) * DTYPES[self.dtype].itemsize


def _shared(kept: Tensor, name: str) -> tuple[int, bytes]:
    """How many distinct values there are, and the bytes of these and of which of them each entry has."""
    distinct, which = np.unique(patterns(kept), return_inverse=True)
    if distinct.size > MOST_VALUES:
        raise InputError(
            f"a compressed file holds at most {MOST_VALUES:,} distinct values of a layer, but {name!r} has "
            f"{distinct.size:,}: share the weights first, or give bits (5 is usual)"
        )
    return distinct.size, distinct.tobytes() + encode_with_lengths(which.reshape(-1), distinct.size)


def _deflated(manifest: dict[str, Any]) -> Tensor:
    text = canonical_json(manifest).encode()
    if len(text) > HEADER_LIMIT:
        raise InputError(f"a manifest must fit in {HEADER_LIMIT:,} bytes, but takes {len(text):,}")
    Manifest[_Entry].of(manifest, "compressed ticket")  # what could not be read back is not written either
    return tensor_of(zlib.compress(text, 9))


def _opened(data: bytes) -> tuple[Manifest[_Entry], bytes]:
    found, tensors = unseal(data, kind=_KIND)
    if found or tensors.keys() != {"manifest", "data"} or any(t.dtype != torch.uint8 for t in tensors.values()):
        raise TicketError("a compressed ticket has two tensors of bytes, manifest and data, and nothing else")
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(tensors["manifest"].numpy().tobytes(), HEADER_LIMIT)
        if not inflater.eof or inflater.unused_data:
            raise TicketError(f"the manifest is cut off, longer than {HEADER_LIMIT:,} bytes, or has something after it")
        return Manifest[_Entry].of(json.loads(text.decode()), "compressed ticket"), tensors["data"].numpy().tobytes()
    except (zlib.error, ValueError, RecursionError) as error:
        if isinstance(error, TicketError):
            raise
        raise TicketError(f"the manifest can't be read: {error}") from error


def _check(manifest: Manifest[_Entry], size: int, max_entries: int) -> None:
    """That the manifest is within bounds and fits the data, before memory is taken for what it describes."""
    manifest.check_bounds(max_entries)
    for entry in manifest.entries:
        if bool(entry.mask) != bool(entry.values) or (entry.mask and entry.constant is not None):
            raise TicketError(f"the ticket's {entry.name!r} has a mask without values, values without a mask, or both")
    announced = sum(entry.bytes for entry in manifest.entries)
    if announced != size:
        raise TicketError(f"the ticket's data take {announced:,} bytes, but it has {size:,}")


def _looked_up(entry: _Entry, distinct: int, data: bytes, kept: int) -> Tensor:
    """The kept values of a covered layer, row-major."""
    end = distinct * DTYPES[entry.dtype].itemsize
    values = entry.numbers(data[:end], distinct)
    which = decode_with_lengths(data[end:], kept, distinct)
    return values.index_select(0, torch.from_numpy(which.astype(np.int32)))
