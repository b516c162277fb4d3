"""WikiText-2, word level (Merity et al. 2017): text files under the data root, or the archive as it was published."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from tombola.errors import DataError
from tombola.tasks.data.download import Progress
from tombola.tasks.data.sources import WIKITEXT2, obtain
from tombola.tasks.data.texts import lines_of, read_bytes

_FOLDER = "wikitext-2"
_PARTS = ("train", "valid", "test")
_MOST_BYTES = 2**26
"""Of one part; the largest original has 10.8 MB."""
END = "<eos>"
"""The token at the end of each line."""


def load_wikitext2(
    root: Path, *, download: bool = True, progress: Progress | None = None
) -> tuple[list[str], list[str], list[str]]:
    """The tokens of WikiText-2's training, validation and test part: 2,088,628, 217,646 and 245,569 of 33,278 kinds.

    A token is what stands between spaces, and ``<eos>`` at the end of each line, of empty ones too. Files
    ``root/wikitext-2/PART.txt`` or ``wiki.PART.tokens`` of the parts ``train``, ``valid`` and ``test`` are read as they
    stand; where one is missing, all are read from ``root/wikitext-2-v1.zip``, which is downloaded if need be and never
    unpacked.

    Raises ``DataError`` where something is missing, damaged, empty or no UTF-8.
    """
    paths = [_file(root / _FOLDER, part) for part in _PARTS]
    if all(path.is_file() for path in paths):
        train, validation, test = (_tokens(read_bytes(path, _MOST_BYTES), path) for path in paths)
        return train, validation, test
    archive = root / WIKITEXT2.files[0].name
    if not archive.is_file():
        missing = ", ".join(path.name for path in paths if not path.is_file())
        note = f"Not in {root / _FOLDER}: {missing}. The text is read from the archive once that is in place."
        obtain(WIKITEXT2, root, WIKITEXT2.files, download=download, progress=progress, note=note)
    train, validation, test = (_tokens(text, archive) for text in _members(archive))
    return train, validation, test


def _file(folder: Path, part: str) -> Path:
    """The file under its original name if it is there, else under its short one."""
    original = folder / f"wiki.{part}.tokens"
    return original if original.is_file() else folder / f"{part}.txt"


def _members(archive: Path) -> list[bytes]:
    try:
        with zipfile.ZipFile(archive) as opened:
            texts = []
            for part in _PARTS:
                name = f"{_FOLDER}/wiki.{part}.tokens"
                if name not in opened.namelist():
                    raise DataError(f"{archive} must hold {name}, but doesn't")
                if opened.getinfo(name).file_size > _MOST_BYTES:
                    raise DataError(f"{name} in {archive} must not exceed {_MOST_BYTES:,} bytes, but does")
                texts.append(opened.read(name))
            return texts
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError) as error:
        raise DataError(f"{archive} can't be read: {error}; if it is damaged, delete it") from error


def _tokens(text: bytes, path: Path) -> list[str]:
    lines = lines_of(text, path)
    if not text.strip():
        raise DataError(f"{path} must hold text, but is empty; replace it by a good copy")
    return [token for line in lines for token in (*line.split(), END)]
