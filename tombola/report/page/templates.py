"""The page's templates, in which every value is escaped, and its assets."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> str:
    """A template with these values, as HTML. A value that is missing is an error."""
    return _environment().get_template(template).render(**values)


@cache
def asset(name: str) -> str:
    """A file of ``assets`` as text."""
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


def embedded(value: Any) -> str:
    """A value as JSON that can stand in a ``script`` element: nothing in it reads as a tag or a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    made = Environment(
        loader=PackageLoader("tombola.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["tied"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    made.filters["embedded"] = lambda value: Markup(embedded(value))
    return made
