"""Sealed files: a JSON manifest and tensors with one hash over all of it, as a safetensors file.

Tickets, checkpoints and the weights of runs are written and read here. Any safetensors reader opens them; nothing is
ever unpickled. The metadata entry ``tombola`` holds ``{"format", "kind", "manifest", "sha256"}`` as JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from tombola.errors import InputError, TicketError

FORMAT = 1
HEADER_LIMIT = 16 * 2**20
MAX_DIMENSIONS = 64
DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


def seal(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor], *, kind: str) -> bytes:
    """The bytes of a sealed file: the same for the same input, on every machine.

    ``kind`` says what the file is, such as ``ticket``. The manifest is anything JSON can say, infinities and NaN
    included; it comes back with lists for tuples and strings for keys. Tensors may be on any device, share memory and
    have any strides; those of a dtype that isn't in ``DTYPES`` raise ``InputError``.
    """
    owned, plain = _apart(tensors), plain_json(manifest)
    document = {"format": FORMAT, "kind": kind, "manifest": plain, "sha256": content_hash(kind, plain, owned)}
    data = save_tensors(owned, {"tombola": canonical_json(document)})
    if (length := int.from_bytes(data[:8], "little")) > HEADER_LIMIT:
        raise InputError(f"a manifest and the tensors' names must fit in {HEADER_LIMIT:,} bytes, but take {length:,}")
    return data


def unseal(data: bytes, *, kind: str, limit: int = HEADER_LIMIT) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The manifest and the tensors (by name) of a sealed file of this kind, with its hash checked.

    ``limit`` bounds the header, that is the manifest and the tensors' names, in bytes. Raises ``TicketError`` for
    anything but an undamaged file of this kind and of a known format.
    """
    document = _document(_header(data, limit))
    if document["kind"] != kind:
        raise TicketError(f"expected a Tombola file of the kind {kind!r}, but got one of the kind {document['kind']!r}")
    try:
        tensors = load_tensors(data)
    except (SafetensorError, RuntimeError) as error:
        raise TicketError(f"the file is damaged or truncated: its tensors can't be read ({error})") from error
    try:
        found = content_hash(kind, document["manifest"], tensors)
    except InputError as error:
        raise TicketError(f"the file is damaged: {error}") from error
    if document["sha256"] != found:
        raise TicketError(f"the file is damaged: its content has the hash {found}, which isn't the one in its header")
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bool and bool((tensor_bytes(tensor) > 1).any()):
            raise TicketError(f"the bool tensor {name!r} has bytes that are neither 0 nor 1")
    return document["manifest"], {name: tensors[name] for name in sorted(tensors)}


def content_hash(kind: str, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over a kind, a manifest and every tensor's name, dtype, shape and bytes, whatever their order."""
    digest = hashlib.sha256()
    order = sorted(tensors)
    forms = [[name, str(tensors[name].dtype).removeprefix("torch."), list(tensors[name].shape)] for name in order]
    digest.update(canonical_json([kind, manifest, forms]).encode())
    for name in order:
        digest.update(tensor_bytes(tensors[name]).numpy().data)
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor's entries, row-major, as uint8; without a copy where it lies contiguous in main memory."""
    return _plain_tensor(tensor).reshape(-1).view(torch.uint8)


def json_hash(value: Any) -> str:
    """SHA-256 of a value as ``canonical_json`` writes it: 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and ASCII only; ``InputError`` where the value isn't JSON."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InputError(f"only what JSON can say can be written to a file: {error}") from error
    except RecursionError as error:
        raise InputError("only what JSON can say can be written to a file, but this is nested too deep") from error


def plain_json(value: Any) -> Any:
    """A copy of the value as a JSON file would give it back: lists for tuples, strings for keys."""
    try:
        return json.loads(canonical_json(value))
    except RecursionError as error:
        raise InputError("only what JSON can say can be written to a file, but this is nested too deep") from error


def _plain_tensor(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous and each in memory of its own, as safetensors wants them."""
    owned: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if name == "__metadata__":
            raise InputError("a tensor of a file can't have the name '__metadata__', which the format keeps for itself")
        if tensor.layout != torch.strided or tensor.dtype not in DTYPES.values() or tensor.dim() > MAX_DIMENSIONS:
            form = f"{tensor.layout}, {tensor.dtype}, {tensor.dim()} dimensions"
            raise InputError(f"a tensor of a file must be dense, of a common dtype and shape, but {name!r} is {form}")
        own = _plain_tensor(tensor)
        if own.untyped_storage().data_ptr() in storages:
            own = own.clone()
        storages.add(own.untyped_storage().data_ptr())
        owned[name] = own
    return owned


def _header(data: bytes, limit: int) -> dict[str, Any]:
    if len(data) < 8:
        raise TicketError(f"not a Tombola file, or a truncated one: it has only {len(data)} bytes")
    length = int.from_bytes(data[:8], "little")
    if length > limit:
        raise TicketError(f"not a Tombola file: its header would take {length:,} bytes, and at most {limit:,} are read")
    if length > len(data) - 8:
        raise TicketError(
            f"the file is truncated: its header takes {length:,} bytes, but only {len(data) - 8:,} follow"
        )
    header = _parse(data[8 : 8 + length])
    for name, entry in header.items():
        if name != "__metadata__":
            _check_entry(name, entry)
    return header


def _document(header: Mapping[str, Any]) -> dict[str, Any]:
    metadata = header.get("__metadata__")
    text = metadata.get("tombola") if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise TicketError("not a Tombola file: the metadata entry 'tombola' is missing")
    document = _parse(text)
    number = document.get("format")
    if type(number) is int and number > FORMAT:
        raise TicketError(f"the file has format {number}, but this Tombola reads up to {FORMAT}: upgrade Tombola")
    if document.keys() != {"format", "kind", "manifest", "sha256"} or type(number) is not int or number != FORMAT:
        raise TicketError(f"the file is damaged: its metadata isn't that of a Tombola file of format {FORMAT}")
    if not isinstance(document["manifest"], dict):
        raise TicketError("the file is damaged: its manifest isn't a JSON object")
    return document


def _parse(text: bytes | str) -> dict[str, Any]:
    try:
        # bytes are decoded here: left to itself, json would also take UTF-16, which no other reader of the format does
        text = text.decode() if isinstance(text, bytes) else text
        found = json.loads(text, object_pairs_hook=_without_duplicates)
    except ValueError as error:
        raise TicketError(f"not a Tombola file, or a damaged one: its header isn't JSON ({error})") from error
    except RecursionError as error:
        raise TicketError("not a Tombola file, or a damaged one: its header is nested too deep") from error
    if not isinstance(found, dict):
        raise TicketError("not a Tombola file, or a damaged one: its header isn't a JSON object")
    return found


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return found


def _check_entry(name: str, entry: Any) -> None:
    """Refuse what the reader of safetensors would take for an error of its own: unknown dtypes, impossible shapes."""
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise TicketError(f"the file is damaged: the tensor {name!r} has no valid shape")
    if len(shape) > MAX_DIMENSIONS or math.prod(max(size, 1) for size in shape) >= 2**48:
        raise TicketError(f"the file is damaged: the tensor {name!r} can't have the shape {shape}")
    if entry.get("dtype") not in tuple(DTYPES):
        raise TicketError(f"the tensor {name!r} has the dtype {entry.get('dtype')!r}, which Tombola files don't hold")
