"""How long Tombola takes to start: imports and the command line's help, each in a fresh process.

The differences are what counts: ``import tombola`` beyond a bare ``import torch``, and ``tombola --help`` beyond a bare
interpreter. Files are in the page cache after the first, untimed round.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial

from timing import begin, duration, header, interleaved, table

BARE, TORCH = "python, nothing imported", "import torch"
COMMANDS = {
    BARE: (["-c", "pass"], None),
    TORCH: (["-c", "import torch"], BARE),
    "import tombola": (["-c", "import tombola"], BARE),
    "import torch, tombola": (["-c", "import torch, tombola"], TORCH),
    "import torch; from tombola import *, every public name": (["-c", "import torch; from tombola import *"], TORCH),
    "tombola --help": (["-m", "tombola", "--help"], BARE),
    "tombola draw --help": (["-m", "tombola", "draw", "--help"], BARE),
}


def in_fresh_process(arguments: list[str]) -> Callable[[], object]:
    return partial(subprocess.run, [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    quick = begin(__doc__ or "")
    repeats = 3 if quick else 11
    title = header("Starting, each time in a fresh process", repeats)
    times = interleaved({name: in_fresh_process(arguments) for name, (arguments, _) in COMMANDS.items()}, repeats)
    rows = []
    for name, taken in times.items():
        base = COMMANDS[name][1]
        beyond = "-"
        if base is not None:
            difference = statistics.median(t - b for t, b in zip(taken, times[base], strict=True))
            beyond = f"{difference * 1000:+.0f} beyond {base!r}"
        rows.append((f"`{name}`", duration(taken, 1e-3), beyond))
    print(title)
    print(table(("what", "ms", "difference, ms"), rows))


if __name__ == "__main__":
    main()
