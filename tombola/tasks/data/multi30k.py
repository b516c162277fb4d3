"""Multi30k (Elliott et al. 2016): image captions in English and their translations into German, a line each."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

from tombola.errors import DataError
from tombola.tasks.data.download import Progress
from tombola.tasks.data.sources import MULTI30K, obtain

_PARTS = ("train", "val", "test_2016_flickr")
_MOST_BYTES = 2**24
"""Of one file, unpacked; the largest original has 2.1 MB."""


@dataclass(frozen=True)
class Parallel:
    """Sentences and their translations, as many of the one as of the other."""

    source: tuple[str, ...]
    target: tuple[str, ...]


def load_multi30k(
    root: Path, *, download: bool = True, progress: Progress | None = None
) -> tuple[Parallel, Parallel, Parallel]:
    """Multi30k's training, validation and test part (2016): 29,000, 1,014 and 1,000 sentences, English to German.

    The files are ``root/multi30k/PART.en`` and ``.de``, gzipped or not, of the parts ``train``, ``val`` and
    ``test_2016_flickr``: those of task 1, as they were written, not cut into words. ``DataError`` where one is missing
    or damaged.
    """
    folder = root / MULTI30K.folder
    missing = [f for f in MULTI30K.files if not _file(folder, f.name).is_file()]
    if missing:
        obtain(MULTI30K, root, missing, download=download, progress=progress)
    train, validation, test = (_parallel(folder, part) for part in _PARTS)
    return train, validation, test


def _file(folder: Path, name: str) -> Path:
    """The unpacked file if it is there, else the gzipped one."""
    unpacked = folder / name.removesuffix(".gz")
    return unpacked if unpacked.is_file() else folder / name


def _parallel(folder: Path, part: str) -> Parallel:
    paths = [_file(folder, f"{part}.{language}.gz") for language in ("en", "de")]
    source, target = (_lines(path) for path in paths)
    if len(source) != len(target):
        raise DataError(
            f"there must be one translation for each sentence, but {paths[0]} has {len(source):,} lines and "
            f"{paths[1]} {len(target):,}"
        )
    return Parallel(source, target)


def _lines(path: Path) -> tuple[str, ...]:
    """The lines without space at their ends; none may be empty."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise DataError(f"{path} must not hold more than {_MOST_BYTES:,} bytes, but does")
        text = content.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read: {error}; delete it or replace it by a good copy") from error
    lines = tuple(line.strip() for line in text.removesuffix("\n").split("\n"))
    if not all(lines):
        raise DataError(f"every line of {path} must hold a sentence, but line {lines.index('') + 1} is empty")
    return lines
