"""The version, readable without importing anything else."""

from __future__ import annotations

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """The versions that a result was computed with."""
    import platform
    from importlib.metadata import version

    import numpy
    import torch

    return {
        "tombola": __version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "numba": version("numba"),
        "python": platform.python_version(),
    }
