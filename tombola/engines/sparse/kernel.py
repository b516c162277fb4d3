"""Compiled kernels: machine code that a program calls by address, compiled at first use and kept on disk.

numba's own cache notices edits of the file that holds a function, but not of the modules this one uses. So the cache
folder is named after everything that decides the machine code: our sources, numba, LLVM, the processor.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import platformdirs
from llvmlite import binding
from numba import types

from tombola.version import __version__

SIGNATURE = types.void(types.int64, types.int64, types.int64, types.int64)
"""What every kernel takes: address of its arguments, address of the step's frame, its thread, the number of threads."""

compile_seconds: dict[str, float] = {}
"""How long each kernel took to compile, or to load from disk, in this process."""


class Kernel:
    """A function of ``(args, frame, thread, threads)``, all int64, that is compiled when its address is first asked."""

    def __init__(self, function: Callable[[int, int, int, int], None]) -> None:
        self.function, self.name = function, function.__name__
        self._compiled: Any = None

    @property
    def address(self) -> int:
        """Where the machine code is."""
        if self._compiled is None:
            began = time.perf_counter()
            self._compiled = _cached(numba.cfunc(SIGNATURE, nopython=True, error_model="numpy", cache=True))(
                self.function
            )
            compile_seconds[self.name] = time.perf_counter() - began
        return int(self._compiled.address)


def kernel(function: Callable[[int, int, int, int], None]) -> Kernel:
    """Make a kernel of a function."""
    return Kernel(function)


_made: Counter[str] = Counter()


def helper(function: Callable[..., Any]) -> Any:
    """A function that kernels call; it is compiled into each of them.

    Helpers made by one factory, which have one name, get different ones. numba tells such functions apart by a number
    that counts what a process has compiled: machine code from two processes, loaded into a third, could call the other
    one's helper.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    _made[name] += 1
    if "<locals>" in name:
        function.__qualname__ += f"_{_made[name]}"
    return numba.njit(nogil=True, error_model="numpy", inline="never")(function)


def entry(function: Callable[..., Any]) -> Any:
    """A function that Python calls, without the interpreter's lock while it runs; kept on disk as kernels are."""
    return _cached(numba.njit(nogil=True, error_model="numpy", cache=True))(function)


def _cached(decorate: Callable[..., Any]) -> Callable[..., Any]:
    def decorated(function: Callable[..., Any]) -> Any:
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(cache_folder())
        try:
            return decorate(function)
        finally:
            numba.config.CACHE_DIR = before

    return decorated


@cache
def cache_folder() -> Path:
    """Where machine code is kept: below ``TOMBOLA_CACHE`` or the user's cache folder, one folder per version key."""
    root = Path(os.environ.get("TOMBOLA_CACHE") or platformdirs.user_cache_path("tombola"))
    folder = root / "kernels" / version_key()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:  # a home that can't be written: compile anew in every process rather than fail
        return Path(tempfile.mkdtemp(prefix="tombola-kernels-"))


@cache
def version_key() -> str:
    """A short hash of everything that decides the machine code."""
    digest = hashlib.sha256(f"{__version__}/{numba.__version__}/{llvmlite.__version__}".encode())
    # An explicit choice of processor, e.g. to try narrower registers, compiles to other code.
    chosen = (numba.config.CPU_NAME, numba.config.CPU_FEATURES)
    features = sorted(name for name, there in binding.get_host_cpu_features().items() if there)
    digest.update(repr((chosen, binding.get_host_cpu_name(), features)).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
