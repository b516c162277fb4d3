"""What verbs write to standard output: sentences, tables, trees, JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tombola.errors import InputError

# Without a terminal nothing is folded, so that a log can be searched line by line.
WIDE = 10_000

_DEEPEST = 12


def inert(text: object, keep: str = "") -> str:
    """The text with everything a terminal could obey, or that could deceive a reader, written as an escape.

    ``keep`` has characters that may stay, such as a newline.
    """
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in str(text))


def document(value: Any) -> None:
    """Print one JSON document, of a record its fields. JSON has no NaN and no infinities: they become null."""
    try:
        click.echo(json.dumps(_finite(value), indent=2, allow_nan=False))
    except RecursionError as error:
        raise InputError("this is nested too deep to be printed as JSON") from error


def _finite(value: Any) -> Any:
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sentence(text: str) -> None:
    """Print a text, wrapped between words on a terminal and in one line elsewhere."""
    _console().print(Text(text), soft_wrap=not sys.stdout.isatty())


def table(made: Table) -> None:
    """Print a table, folded into the terminal's width, or as wide as it is elsewhere."""
    console = _console()
    if sys.stdout.isatty():
        console.print(made)
        return
    with console.capture() as capture:
        console.print(made)
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def columns(header: Mapping[str, str], rows: list[list[str]]) -> Table:
    """A plain table; ``header`` maps each column's name to ``left`` or ``right``. Cells are shown as they are."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in header.items():
        made.add_column(name, justify="right" if justify == "right" else "left", vertical="top", overflow="fold")
    for row in rows:
        made.add_row(*(Text(inert(cell)) for cell in row))
    return made


def tree(name: str, value: Any, depth: int = 0) -> None:
    """Print nested values, one in a line."""
    pad = "  " * depth
    if isinstance(value, Mapping) and value and depth < _DEEPEST:
        click.echo(f"{pad}{inert(name)}:")
        for key, part in value.items():
            tree(str(key), part, depth + 1)
        return
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    click.echo(f"{pad}{inert(name)}: {inert(shown)}")


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
