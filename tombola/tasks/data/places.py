"""Places365-Standard (Zhou et al. 2018) in its images of 256x256: lists of files and classes, and folders of images."""

from __future__ import annotations

import re
from pathlib import Path

from tombola.errors import DataError
from tombola.extras import IMAGES
from tombola.tasks.data.download import Progress
from tombola.tasks.data.imagenet import ImageFolder
from tombola.tasks.data.sources import PLACES365, obtain
from tombola.tasks.data.unpacking import extract_members

CLASSES = 365
_MOST_IMAGES = 2_000_000
_MOST_BYTES = 2**22
"""Of one image; the originals take some ten thousand."""
_MOST_LISTED = 2**28
_LINE = re.compile(r"/?((?:[\w-]+/)*[\w-]+\.jpg) (\d{1,3})")
_LISTS, _TRAIN, _TEST = PLACES365.files
_PARTS = (
    ("places365_train_standard.txt", _TRAIN, "data_256", "data_256_standard"),
    ("places365_val.txt", _TEST, "val_256", "val_256"),
)
"""Of each part its list, its archive, the folder in there, and the folder in the data root."""


def load_places365(
    root: Path, *, download: bool = True, progress: Progress | None = None
) -> tuple[ImageFolder, ImageFolder]:
    """The standard training part and, as the test part, the labelled validation part (1,803,460 and 36,500).

    In torchvision's places: the lists ``places365_train_standard.txt`` and ``places365_val.txt`` in ``root``, the
    images in ``root/data_256_standard`` and ``root/val_256``. What is missing is taken from the archives in ``root``,
    which are downloaded if need be (some 25 GB). The official test part has no labels and is left alone.

    Raises ``DataError`` where something is missing or damaged, ``InputError`` where Pillow is not installed.
    """
    IMAGES.require("this data set's reader of images")
    missing = [name for name, *_ in _PARTS if not (root / name).is_file()]
    wanted = [(archive, folder) for _, archive, _, folder in _PARTS if not (root / folder).is_dir()]
    archives = [*([_LISTS] if missing else []), *(archive for archive, _ in wanted)]
    away = [file for file in archives if not (root / file.name).is_file()]
    if away:
        obtain(PLACES365, root, away, download=download, progress=progress)
    if missing:
        extract_members(root / _LISTS.name, {name: name for name in missing}, root, limit=_MOST_LISTED)
    train, test = (_part(root, *part) for part in ((p[0], p[1].name, p[2], p[3]) for p in _PARTS))
    return train, test


def _part(root: Path, listed: str, archive: str, inside: str, folder: str) -> ImageFolder:
    names, labels = _listed(root / listed)
    if not (root / folder).is_dir():
        members = {f"{inside}/{name}": name for name in names}
        extract_members(root / archive, members, root / folder, limit=_MOST_BYTES)
    return ImageFolder(root / folder, names, labels)


def _listed(path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The images and classes of a list, which leads to no other folder."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read: {error}") from error
    if not 1 <= len(lines) <= _MOST_IMAGES:
        raise DataError(f"{path} must name 1 to {_MOST_IMAGES:,} images, but names {len(lines):,}")
    found = [_LINE.fullmatch(line) for line in lines]
    for line, match in zip(lines, found, strict=True):
        if match is None or int(match[2]) >= CLASSES:
            raise DataError(
                f"each line of {path} must be an image and a class below {CLASSES}, like /a/airfield/00000001.jpg 0, "
                f"but one is {line[:80]!r}"
            )
    return tuple(m[1] for m in found if m), tuple(int(m[2]) for m in found if m)
