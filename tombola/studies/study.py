"""A study's file: TOML with blocks of draws, each a product of lists, checked key by key.

A block names ``tasks`` and ``methods``, and may set every field of ``DrawRecipe`` but those two and the seed. A field
of one value may be a list of values, which the product then runs over; so may those of the training, in
``[draws.training]``. ``[quick]`` has what the quick size of the study has in place of the same keys, for every block,
``[draws.quick]`` for one.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from tombola.errors import InputError, suggestion
from tombola.recipe import Density, DrawRecipe, Recipe
from tombola.studies.seeds import seed_list

ERROR, LEAVE_OUT = "error", "leave out"
ENDINGS = ("rounds", "density", "densities", "stop_at_margin", "schedule")
"""Where a search ends: one of them in the quick size takes the place of all others in the full one."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def given(self) -> dict[str, Any]:
        """The keys that the file has, with their values as checked."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _seeds(value: Any) -> Any:
    return seed_list(value) if isinstance(value, str) else _listed(value)


def is_axis(name: str, model: type[BaseModel]) -> bool:
    """Whether a product runs over several values of a field: not where the field itself is a list or a table."""
    kind = model.model_fields[name].annotation
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    return get_origin(kind) not in (tuple, dict) and not (isinstance(kind, type) and issubclass(kind, BaseModel))


def _keys(model: type[BaseModel], *skip: str) -> dict[str, Any]:
    """The fields of a recipe as a block may have them: as they are, or where a product can run over them a list."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        kind: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        if is_axis(name, model):
            kind = Annotated[tuple[kind, ...], BeforeValidator(_listed), Field(min_length=1)]
        if name not in skip:
            found[name] = (kind, None)
    return found


_Names = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)]
_SeedList = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_seeds), Field(min_length=1)]

_Training = create_model("Training", __base__=_Strict, **_keys(Recipe, "start"))
_OWN: dict[str, Any] = {
    "tasks": (_Names, None),
    "methods": (_Names, None),
    "channel_densities": (tuple[Density, ...], None),
    "refused": (Literal["error", "leave out"], ERROR),
    "training": (_Training, None),
}
_Part = create_model("Part", __base__=_Strict, **_OWN, **_keys(DrawRecipe, "task", "method", "seed", "training"))
_Block = create_model("Block", __base__=_Part, quick=(_Part, None))
_Quick = create_model("Quick", __base__=_Part, seeds=(_SeedList, None))
_Blocks: Any = Annotated[types.GenericAlias(list, (_Block,)), Field(min_length=1)]
_FILE: dict[str, Any] = {
    "name": (Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_-]*$", max_length=80)], ...),
    "description": (str, ""),
    "seeds": (_SeedList, (0,)),
    "draws": (_Blocks, ...),
    "quick": (_Quick, None),
}
_File = create_model("File", __base__=_Strict, **_FILE)

_PLACES: dict[Any, str] = {
    _File: "at the top of the file",
    _Block: "under [[draws]]",
    _Training: "under [draws.training]",
}


@dataclass(frozen=True)
class Block:
    """A product of draws: fixed options, and what is gone through. ``number`` counts from 1 in the file."""

    number: int
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    options: Mapping[str, Any]
    """Keys of the block that are fields of ``DrawRecipe``, and ``channel_densities``; several values in tuples."""
    training: Mapping[str, Any]
    """The same of ``Recipe``."""
    leaves_out: bool
    """Whether a draw that can't be is left out, and no error."""


@dataclass(frozen=True)
class Study:
    """A study as its file describes it, in both sizes."""

    source: Mapping[str, Any]
    """The file's content, as TOML gives it."""
    where: str
    """The file's name, for messages."""
    name: str
    description: str
    _seeds: tuple[int, ...]
    _blocks: tuple[Mapping[str, Any], ...]
    _quick: Mapping[str, Any]

    def seeds(self, quick: bool) -> tuple[int, ...]:
        """The seeds of a size."""
        return tuple(dict.fromkeys(self._quick.get("seeds", self._seeds) if quick else self._seeds))

    def blocks(self, quick: bool) -> list[Block]:
        """The blocks of a size. ``InputError`` for one without tasks or methods."""
        return [self._block(number, given, quick) for number, given in enumerate(self._blocks, start=1)]

    def _block(self, number: int, given: Mapping[str, Any], quick: bool) -> Block:
        found = {key: value for key, value in given.items() if key != "quick"}
        if quick:
            for other in (self._quick, given["quick"].given() if "quick" in given else {}):
                found = _in_place(found, other)
        for key in ("tasks", "methods"):
            if key not in found:
                raise InputError(f"{self.where}: [[draws]] {number} must name its {key}: {key} = [...]")
        training = found.pop("training", None)
        tasks, methods = found.pop("tasks"), found.pop("methods")
        refused = found.pop("refused", ERROR)
        own = {} if training is None else training.given()
        return Block(number, tasks, methods, found, own, refused == LEAVE_OUT)


def _in_place(found: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a block with those of a quick size in their place."""
    ends = ENDINGS if any(key in other for key in ENDINGS) else ()
    return {key: value for key, value in found.items() if key not in ends} | {
        key: value for key, value in other.items() if key != "seeds"
    }


def read_study(source: Mapping[str, Any], where: str) -> Study:
    """A study of a TOML file's content; ``where`` is the file's name in messages.

    Raises ``InputError`` with the file, the key, the rule and the value for everything that is wrong, and for a key
    that there isn't with the nearest that there is.
    """
    try:
        found: Any = _File.model_validate(source)
    except ValidationError as error:
        lines = [_refusal(problem, source) for problem in error.errors(include_url=False)]
        raise InputError(f"{where}: " + "\n".join(lines)) from error
    quick = {} if found.quick is None else found.quick.given()
    blocks = tuple(block.given() for block in found.draws)
    return Study(source, where, found.name, found.description, found.seeds, blocks, quick)


def _refusal(problem: Any, source: Any) -> str:
    """Pydantic's complaint: where in the file, the rule, what was given."""
    model, where = _place(problem["loc"], source)
    if problem["type"] == "extra_forbidden":
        *_, key = problem["loc"]
        return f"there is no key {key!r}{where}.{_remedy(str(key), model)}"
    if problem["type"] == "missing" and problem["loc"][-1] in _File.model_fields:
        return f"{problem['loc'][-1]!r} is missing {_PLACES[model]}"
    text = problem["msg"].removeprefix("Value error, ").partition(", unable to parse")[0]
    text = re.sub(r"^(Input|String|Tuple|List|Dictionary|Value) should", "must", text).replace(" after validation", "")
    text = re.sub(r"dictionary( or instance of \w+)?$", "table", text)
    return f"{where.removeprefix(' in ')}: {text}" + ("" if "but got" in text else f", but got {problem['input']!r}")


def _place(loc: tuple[str | int, ...], source: Any) -> tuple[Any, str]:
    """The model that the last key of a place in the file belongs to, and the place in words."""
    model: Any = _File
    words: list[str] = []
    models = {(_File, "draws"): _Block, (_File, "quick"): _Quick, (_Block, "quick"): _Part}
    for number, step in enumerate(loc, start=1):
        into = _Training if step == "training" else models.get((model, str(step)))
        if isinstance(step, int):
            if isinstance(source, list):  # a value that stands alone has no number
                words.append(str(step + 1) if words[-1] == "[[draws]]" else f"value {step + 1}")
                source = source[step] if step < len(source) else None
            continue
        source = source.get(step) if isinstance(source, Mapping) else None
        if into is not None and (number < len(loc) or source is not None):
            words.append("[[draws]]" if step == "draws" else f"[{step}]")
            model = into
        elif step in model.model_fields:
            words.append(step)
    return model, " in " + " ".join(words) if words else ""


def _remedy(key: str, model: Any) -> str:
    """Where a key stands that isn't here, or the nearest one that is."""
    key = {"task": "tasks", "method": "methods", "seed": "seeds"}.get(key, key)
    if key in model.model_fields:
        return f" Did you mean {key!r}?"
    for other in (_Training, _Block, _File):
        if other is not model and key in other.model_fields:
            return f" {key!r} belongs {_PLACES[other]}."
    return suggestion(key, model.model_fields)
