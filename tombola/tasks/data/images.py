"""Image files, decoded by Pillow, which only the data sets of such files need: the extra ``images``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tombola.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG")
"""What the data sets hold; no other of Pillow's decoders is let near a file."""
MOST_PIXELS = 100_000_000


def open_image(data: bytes | Path, origin: str) -> Image:
    """The decoded image as RGB; ``origin`` names it in the ``DataError`` for what is no JPEG or PNG or is damaged.

    The size is checked before anything is decoded.
    """
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(
                    f"{origin} must have {MOST_PIXELS:,} pixels at most, but has {image.width}x{image.height}"
                )
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise DataError(f"{origin} can't be read as an image: {error}") from error


def pixels(image: Image) -> npt.NDArray[np.uint8]:
    """The pixels of an RGB image, uint8 of shape (3, height, width)."""
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))
