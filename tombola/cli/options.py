"""Command-line options made from the fields of a recipe, so that Python, TOML and flags never drift apart."""

from __future__ import annotations

import tomllib
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel

from tombola.durations import Duration
from tombola.errors import InputError, suggestion

Function = TypeVar("Function", bound=Callable[..., Any])


class Pairs(click.ParamType[tuple[str, float]]):
    """``KEY=NUMBER``."""

    name = "KEY=NUMBER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """The pair; a usage error for anything else."""
        key, _, number = str(value).partition("=")
        try:
            return key, float(number)
        except ValueError:
            self.fail(f"{value!r} is not of the form KEY=NUMBER, e.g. 'fc3.weight=0.5'", param, ctx)


def recipe_options(model: type[BaseModel], *, skip: tuple[str, ...] = ()) -> Callable[[Function], Function]:
    """A decorator that adds an option for each field of ``model``: unset unless given, so that only those override."""

    def add(function: Function) -> Function:
        for name, field in reversed(model.model_fields.items()):
            if name not in skip:
                function = _option(name, field.annotation, field.default, field.description or "")(function)
        return function

    return add


def _option(name: str, annotation: Any, default: Any, text: str) -> Callable[[Function], Function]:
    flag = "--" + name.replace("_", "-")
    annotation = _without_none(annotation)
    given = default is not None and default not in ((), {}) and not isinstance(default, BaseModel)
    text += f" [{default}]" if given and annotation is not bool else ""
    if annotation is bool:
        return click.option(f"{flag}/--no-{name.replace('_', '-')}", name, default=None, help=text)
    if get_origin(annotation) is dict:
        return click.option(flag[:-1], name, type=Pairs(), multiple=True, help=text)
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)[0]
        if get_origin(inner) is Literal:
            singular = flag.removesuffix("s")
            return click.option(
                singular, name, type=click.Choice(get_args(inner)), multiple=True, help=f"{text} (repeatable)"
            )
        return click.option(flag, name, callback=_listed, metavar="A,B,...", help=text)
    if get_origin(annotation) is Literal:
        options = [str(value) for value in get_args(annotation)]
        return click.option(flag, name, type=click.Choice(options), help=text)
    if annotation is Duration:
        return click.option(flag, name, metavar="DURATION", help=text)
    kind = annotation if annotation in (int, float) else str
    return click.option(flag, name, type=kind, help=text)


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is not None and hasattr(annotation, "__metadata__"):
        return get_args(annotation)[0]
    return annotation


def _listed(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [part.strip() for part in value.split(",") if part.strip()]


def given(options: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """The fields of ``model`` that were given on the command line, as the model takes them."""
    chosen = {}
    for name, field in model.model_fields.items():
        value = options.get(name)
        if value is None or value == ():
            continue
        if isinstance(value, tuple) and get_origin(_without_none(field.annotation)) is dict:
            value = dict(value)
        literal = (
            get_args(_without_none(field.annotation)) if get_origin(_without_none(field.annotation)) is Literal else ()
        )
        if literal and isinstance(literal[0], int):
            value = int(str(value))
        chosen[name] = value
    return chosen


def from_file(path: Path | None, model: type[BaseModel]) -> dict[str, Any]:
    """The fields a TOML recipe sets. ``InputError`` for a file that can't be read and for fields that don't exist."""
    if path is None:
        return {}
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"the recipe {path} can't be read: {error}") from error
    check_fields(found, model, str(path))
    training = found.get("training")
    if isinstance(training, dict) and "training" in model.model_fields:
        check_fields(training, model.model_fields["training"].annotation, f"{path}, [training]")  # type: ignore[arg-type]
    return found


def check_fields(found: Mapping[str, Any], model: type[BaseModel], where: str) -> None:
    """``InputError`` with the nearest field for one that the recipe doesn't have."""
    for name in found:
        if name not in model.model_fields:
            raise InputError(f"{where}: a recipe has no field {name!r}.{suggestion(name, model.model_fields)}")


def seeds(text: str) -> list[int]:
    """``"0"``, ``"0,3,5"`` or ``"0-4"`` as a list of seeds."""
    found: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            found += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
        found = []
    if not found or min(found) < 0:
        raise InputError(f"seeds are whole numbers of 0 or more, like 0 or 0,1,2 or 0-4, but got {text!r}")
    return list(dict.fromkeys(found))
