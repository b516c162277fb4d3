"""Recipes as TOML files: read with every field checked, and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from tombola import toml
from tombola.cli import output
from tombola.cli.options import validated
from tombola.errors import InputError, suggestion
from tombola.recipe import DrawRecipe, Recipe


def read(path: Path) -> dict[str, Any]:
    """The fields that a TOML recipe of a draw sets.

    Raises ``InputError`` with the file's name for one that can't be read, for a field that doesn't exist, with the
    nearest that does, and for a value that breaks its field's rule.
    """
    found = toml.read(path, f"the recipe {path}")
    training = found.pop("training", {})
    if not isinstance(training, Mapping):
        raise InputError(f"{path}: training must be a table, [training], but got {training!r}")
    recipe = _checked(found, DrawRecipe, str(path))
    return {**recipe, "training": _checked(training, Recipe, f"{path}, [training]")}


def _checked(found: Mapping[str, Any], model: type[BaseModel], where: str) -> dict[str, Any]:
    checked = {}
    for name, value in found.items():
        if name not in model.model_fields:
            raise InputError(f"{where}: a recipe has no field {name!r}.{_remedy(name, model)}")
        try:
            checked[name] = validated(model, name, value)
        except InputError as error:
            raise InputError(f"{where}: {name}: {error}") from error
    return checked


def _remedy(name: str, model: type[BaseModel]) -> str:
    """Where a field stands that isn't here, or the nearest one that is."""
    if model is DrawRecipe and name in Recipe.model_fields:
        return " It belongs under [training]."
    if model is Recipe and name in DrawRecipe.model_fields:
        return " It belongs above [training]."
    return suggestion(name, [known for known in model.model_fields if known != "training"])


def show(recipe: DrawRecipe, as_json: bool) -> None:
    """Print the whole recipe, as TOML or as one JSON document."""
    if as_json:
        output.document(recipe.model_dump(mode="json"))
    else:
        click.echo(written(recipe), nl=False)


def written(recipe: DrawRecipe) -> str:
    """The whole recipe as TOML."""
    import tomli_w

    return tomli_w.dumps(_without_none(recipe.model_dump(mode="json")))


def _without_none(value: Any) -> Any:
    """TOML has no null: what is unset is left out."""
    if isinstance(value, dict):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    return value
