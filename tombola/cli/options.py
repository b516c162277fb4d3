"""Command-line options made from the fields of a recipe, so that Python, TOML and flags never drift apart."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel, ValidationError, create_model
from pydantic.fields import FieldInfo

from tombola.durations import Duration
from tombola.errors import InputError
from tombola.recipe import DrawRecipe
from tombola.studies.seeds import seed_list

Function = TypeVar("Function", bound=Callable[..., Any])

MANY = 6
"""Choices beyond which a help text names none of them."""
OF_METHODS = ("trains", "score_density")
"""Fields of a training's recipe that are the method's to fill in, where there is one."""
_METAVARS: dict[Any, str] = {int: "INTEGER", float: "NUMBER", str: "TEXT", Duration: "DURATION"}


class Option(click.Option):
    """An option that stands under a heading of its verb's help."""

    def __init__(self, *args: Any, section: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.section = section


class Verb(click.Command):
    """A command whose help has its options under headings, in the order in which the headings first occur."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a list of options for each heading; what has none comes last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                sections.setdefault(param.section if isinstance(param, Option) else "Other", []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def option(*names: str, section: str, **settings: Any) -> Callable[[Function], Function]:
    """``click.option`` under a heading of the help."""
    return click.option(*names, cls=Option, section=section, **settings)


def store_option(section: str = "Options") -> Callable[[Function], Function]:
    """``--store``."""
    return option(
        "--store",
        section=section,
        default="runs",
        envvar="TOMBOLA_STORE",
        callback=_named,
        metavar="FOLDER",
        help="folder of the store of runs  [default: TOMBOLA_STORE, or runs]",
    )


def data_root_option(section: str = "Options") -> Callable[[Function], Function]:
    """``--data-root``."""
    return option(
        "--data-root",
        section=section,
        callback=_folder,
        metavar="FOLDER",
        help="folder of the data sets  "
        "[default: TOMBOLA_DATA, or data_root in the configuration file, or the user's cache]",
    )


def json_option(section: str = "Options") -> Callable[[Function], Function]:
    """``--json``."""
    return option("--json", "as_json", section=section, is_flag=True, help="print one JSON document and nothing else")


def jobs_option(section: str) -> Callable[[Function], Function]:
    """``-j``, ``--jobs``: processes that work at once, 1 by default."""
    return option(
        *("-j", "--jobs"),
        section=section,
        default=1,
        type=click.IntRange(1, 1024),
        metavar="INTEGER",
        help="processes that work at once  [default: 1]",
    )


def tracker_option(section: str) -> Callable[[Function], Function]:
    """``--tracker``, which gives ``trackers``: names, none by default."""
    return option(
        *("--tracker", "trackers"),
        section=section,
        multiple=True,
        metavar="NAME",
        help="send curves to tensorboard, wandb or mlflow, or to one's own package.module:Class (repeatable)  "
        "[default: none]",
    )


def path_option(*names: str, section: str, **settings: Any) -> Callable[[Function], Function]:
    """An option that takes a path, which must not be empty."""
    return option(*names, section=section, callback=_folder, **settings)


def seeds_option(section: str, default: str = "0") -> Callable[[Function], Function]:
    """``--seed``, which gives ``seed_list``: a list of seeds, or None."""
    return option(
        *("--seed", "seed_list"),
        section=section,
        callback=seeds,
        metavar="SEEDS",
        help=f"seeds: 0, or 0,1,2, or 0-4  [default: {default}]",
    )


def densities_option(name: str, section: str, text: str) -> Callable[[Function], Function]:
    """An option for densities, each once, the densest first; None unless given. ``text`` is its help."""
    return option(name, section=section, callback=_densities, metavar="NUMBER,...", help=text)


def all_of(options: Sequence[Callable[[Any], Any]]) -> Callable[[Function], Function]:
    """One decorator for several options, in this order."""

    def add(function: Function) -> Function:
        for part in reversed(options):
            function = part(function)
        return function

    return add


def _densities(ctx: click.Context, param: click.Parameter, text: str | None) -> list[float] | None:
    if text is None:
        return None
    found: Any = _parsed(ctx, param, lambda: validated(DrawRecipe, "densities", text.split(",")))
    return sorted(set(found), reverse=True)


def _named(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and (not value.strip() or "\0" in value):
        raise click.BadParameter(f"must be a path, but got {value!r}", ctx, param)
    return value


def _folder(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    named = _named(ctx, param, value)
    return None if named is None else Path(named).expanduser()


def recipe_options(
    model: type[BaseModel], *, section: str, defaults: Mapping[str, str] | str = "", skip: tuple[str, ...] = ()
) -> Callable[[Function], Function]:
    """A decorator that adds an option for each field of ``model``: unset unless given, so that only those override.

    ``defaults`` says what holds where an option isn't given, for all of them or by field, when that isn't the model's
    default.
    """

    def add(function: Function) -> Function:
        for name, field in reversed(model.model_fields.items()):
            if name not in skip and not _is_model(field):
                default = defaults if isinstance(defaults, str) else defaults.get(name, "")
                function = _option(model, name, field, section, default)(function)
        return function

    return add


def _is_model(field: FieldInfo) -> bool:
    """Whether a field is a recipe in itself, which has no flag."""
    kind = _without_none(field.annotation)
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _option(model: type[BaseModel], name: str, field: FieldInfo, section: str, default: str) -> Any:
    kind, flag = _without_none(field.annotation), "--" + name.replace("_", "-")
    text = _help(field, default or _default(field.default))

    def make(*names: str, parse: Callable[[Any], Any] = lambda value: value, **settings: Any) -> Any:
        def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
            return None if value in (None, ()) else _parsed(ctx, param, lambda: validated(model, name, parse(value)))

        return option(*names, name, section=section, callback=callback, help=text, **settings)

    if kind is bool:
        return option(f"{flag}/--no-{flag[2:]}", name, section=section, default=None, help=text)
    if get_origin(kind) is dict:
        return make(flag.removesuffix("s"), parse=_pairs, multiple=True, metavar="NAME=NUMBER")
    if get_origin(kind) is tuple:
        return _several(make, flag, get_args(kind)[0])
    if get_origin(kind) is Literal:
        values = {str(value): value for value in get_args(kind)}
        return make(flag, parse=values.__getitem__, type=click.Choice(list(values)))
    return make(flag, metavar=_METAVARS[kind])


def _several(make: Callable[..., Any], flag: str, inner: Any) -> Any:
    """The option of a field with several values: a repeatable choice, or values with commas between."""
    if get_origin(inner) is Literal:
        names = [str(value) for value in get_args(inner)]
        shown = {"metavar": "NAME"} if len(names) > MANY else {}
        own: dict[str, Any] = {"type": click.Choice(names), "multiple": True, **shown}
        return make(flag.removesuffix("s"), parse=lambda values: list(dict.fromkeys(values)), **own)
    return make(flag, parse=_listed, metavar=f"{_METAVARS.get(_without_none(inner), 'VALUE')},...")


def _help(field: FieldInfo, default: str) -> str:
    text = field.description or ""
    if get_origin(_without_none(field.annotation)) is tuple and get_origin(get_args(field.annotation)[0]) is Literal:
        text += " (repeatable)"
    return text if "default:" in text else f"{text}  [default: {default}]"


def _default(value: Any) -> str:
    """A field's default, as one would give it on the command line."""
    if value is None or value in ((), {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _parsed(ctx: click.Context, param: click.Parameter, parse: Callable[[], Any]) -> Any:
    """What ``parse`` gives; an ``InputError`` becomes a usage error that names the option."""
    try:
        return parse()
    except InputError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def _listed(text: str) -> list[str]:
    """The parts between commas, one at least."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InputError(f"must be values with commas between, like 1,2, but got {text!r}")
    return parts


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    """The mapping of several ``NAME=NUMBER``."""
    for text in texts:
        if not all(text.rpartition("=")):
            raise InputError(f"must be of the form NAME=NUMBER, like fc3.weight=0.5, but got {text!r}")
    return {name: number for name, _, number in (text.rpartition("=") for text in texts)}


def validated(model: type[BaseModel], name: str, value: Any) -> Any:
    """The value as a field of ``model`` takes it. ``InputError`` with the rule and the value where it doesn't."""
    field = model.model_fields[name]
    one: Any = create_model("One", **{name: (field.annotation, field)})  # type: ignore[call-overload]
    try:
        return getattr(one.model_validate({name: value}), name)
    except ValidationError as error:
        raise InputError("; ".join(_refusal(problem) for problem in error.errors(include_url=False))) from error


def _refusal(problem: Any) -> str:
    """Pydantic's complaint about a value: where in it, counted from 1, the rule, what was given."""
    text = problem["msg"].removeprefix("Value error, ").partition(", unable to parse")[0]
    text = re.sub(r"^(Input|String|Tuple|List|Dictionary) should", "must", text).replace(" after validation", "")
    where = [f"value {part + 1}" if isinstance(part, int) else repr(part) for part in problem["loc"][1:]]
    if problem["type"] == "missing":
        return " ".join([*where, "is missing"])
    given = "" if "but got" in text else f", but got {problem['input']!r}"
    return " ".join([*where, text]) + given


def given(options: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """The fields of ``model`` that were given on the command line, as the model takes them."""
    return {name: options[name] for name in model.model_fields if options.get(name) is not None}


def seeds(ctx: click.Context, param: click.Parameter, text: str | None) -> list[int] | None:
    """A callback for an option: ``"0"``, ``"0,3,5"`` or ``"0-4"`` as a list of seeds, each once."""
    return None if text is None else _parsed(ctx, param, lambda: seed_list(text))
