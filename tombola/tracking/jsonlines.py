"""Events of runs as lines of JSON: a file that any program can read while it is being written."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tombola.errors import InputError

EVENTS = "events.jsonl"
"""The name of the file in a folder of results."""
_OPENING = b'{"time": '


class JsonLines:
    """A tracker that writes one JSON object a line, each at once, to the end of a file.

    ``time`` (seconds since 1970), ``kind`` (start, step, done), ``run``, ``arm``, ``seed``, ``density``, ``step``,
    ``status`` and ``values``: the config of a start, the row of an evaluation, the summary of what is done. ``step`` is
    null but for evaluations, ``status`` but for what is done.

    The file and its folder are made with the first line. Raises ``InputError`` for a file that holds something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: BinaryIO | None = None
        self._told: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            _check(self.path)

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        """Write the config of a run."""
        self._told[run] = {"run": run, **{name: config[name] for name in ("arm", "seed", "density")}}
        self._write("start", run, values=config)

    def log(self, run: str, step: int, values: Mapping[str, float | None]) -> None:
        """Write an evaluation."""
        self._write("step", run, step=step, values=values)

    def finish(self, run: str, summary: Mapping[str, Any], status: str) -> None:
        """Write the summary of a run."""
        self._write("done", run, status=status, values=summary)
        del self._told[run]

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _write(
        self, kind: str, run: str, *, values: Mapping[str, Any], step: int | None = None, status: str | None = None
    ) -> None:
        line = {"time": time.time(), "kind": kind, **self._told[run], "step": step, "status": status, "values": values}
        text = json.dumps(_finite(line), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        if self._file is None:
            self._file = _open(self.path)
        if self._file.write(text) < len(text):
            raise OSError(f"{self.path} can't be written to its end: the disk may be full")


def _finite(value: Any) -> Any:
    """The value with None for what isn't finite, which JSON has no word for."""
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open(path: Path) -> BinaryIO:
    """The file, for lines at its end; an unfinished one, as a full disk or a loss of power leaves it, is taken away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        _check(path)
        with path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    return path.open("ab", buffering=0)


def _check(path: Path) -> None:
    """``InputError`` for a file that holds something other than events, which must not be spoilt."""
    try:
        with path.open("rb") as file:
            beginning = file.read(len(_OPENING))
    except OSError as error:
        raise InputError(f"events can't be written to {path}: {error.strerror or error}; give another file") from error
    if beginning != _OPENING[: len(beginning)]:
        raise InputError(f"events are added to the end of a file of events, but {path} holds something else; move it")


def read_events(path: str | Path) -> list[dict[str, Any]]:
    """The events of a file that ``JsonLines`` has written or is writing, in order; an unfinished last line is left out.

    An evaluation that was written twice, as its training went on from a checkpoint, is given once: as it was written
    last, in its first place. Raises ``InputError`` for a file that can't be read or holds something else.
    """
    try:
        *lines, _ = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"events can't be read from {path}: {error.strerror or error}") from error
    found: dict[Any, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
            key = (event["run"], event["step"]) if event["kind"] == "step" else number
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} must have one event a line, but line {number} is none") from error
        found[key] = event
    return list(found.values())
