"""SST-2 (Socher et al. 2013): sentences of film reviews, negative (0) or positive (1), in whole sentences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tombola.errors import DataError
from tombola.tasks.data.download import Progress
from tombola.tasks.data.sources import SST2, obtain
from tombola.tasks.data.texts import lines_of, read_bytes

_MOST_BYTES = 2**24
"""Of one file; the largest original has 0.7 MB."""
_HEADING = "sentence\tlabel"


@dataclass(frozen=True)
class Labelled:
    """Sentences and the class of each, 0 or 1."""

    sentences: tuple[str, ...]
    labels: tuple[int, ...]


def load_sst2(
    root: Path, *, download: bool = True, progress: Progress | None = None
) -> tuple[Labelled, Labelled, Labelled]:
    """SST-2's training, development and test part: 6,920, 872 and 1,821 sentences.

    The files are ``root/sst2/train.tsv``, ``dev.tsv`` and ``test.tsv``: a sentence, a tab and 0 or 1 in each line, with
    or without the heading of GLUE's files. ``DataError`` where one is missing or damaged.
    """
    folder = root / SST2.folder
    missing = [file for file in SST2.files if not (folder / file.name).is_file()]
    if missing:
        obtain(SST2, root, missing, download=download, progress=progress)
    train, development, test = (_read(folder / file.name) for file in SST2.files)
    return train, development, test


def _read(path: Path) -> Labelled:
    lines = lines_of(read_bytes(path, _MOST_BYTES), path)
    first = 1 if lines[0].rstrip("\r") == _HEADING else 0
    found = [_line(path, number, line) for number, line in enumerate(lines[first:], start=first + 1)]
    if not found:
        raise DataError(f"{path} must hold sentences, but holds none; replace it by a good copy")
    sentences, labels = zip(*found, strict=True)
    return Labelled(sentences, labels)


def _line(path: Path, number: int, line: str) -> tuple[str, int]:
    sentence, tab, label = line.rstrip("\r").rpartition("\t")
    if not tab or label not in ("0", "1") or not sentence.strip():
        raise DataError(
            f"a line of {path} must be a sentence, a tab and its class, 0 or 1, but line {number} is {line[:60]!r}; "
            "GLUE hides the classes of its own test part: take the files of whole sentences, which have them"
        )
    return sentence.strip(), int(label)
