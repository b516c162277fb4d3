"""One seed, many independent named streams, so that arms of an experiment can be paired.

Two runs of one seed share the streams ``init`` and ``order`` whatever else differs between them; a control
draws from a stream of its own and so changes nothing but what it is meant to change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stream_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed derived from ``seed`` and the stream's name, e.g. ``stream_seed(0, "order", 3)``.

    The derivation is SHA-256 of the words, so streams are unrelated however close their names are and stay the
    same across versions, machines and processes. The words are joined by slashes: the name ``"a/b"`` is the names
    ``"a", "b"``, and ``3`` is ``"3"``.
    """
    words = "/".join(str(part) for part in (int(seed), *names))
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "little") >> 1


def stream(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for the named stream of ``seed``."""
    return torch.Generator().manual_seed(stream_seed(seed, *names))


@contextmanager
def global_stream(seed: int, *names: str | int) -> Iterator[None]:
    """Run a block with torch's global random state set to the named stream, and restore it afterwards.

    For code that draws from the global state and takes no generator: layer constructors, dropout.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(stream_seed(seed, *names))
        yield
