"""What built-in tasks say that they need, and that it is true: data sets, extras, and where data sets are found."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tempfile
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bert_tools import made
from hypothesis import given, settings
from hypothesis import strategies as st

import tombola as tb
from tombola.errors import DataError, InputError
from tombola.extras import Extra
from tombola.tasks.data import sources
from tombola.tasks.data.cifar import load_cifar10, load_cifar100
from tombola.tasks.data.idx import load_fashion_mnist, load_mnist
from tombola.tasks.data.imagenet import load_imagenet
from tombola.tasks.data.multi30k import load_multi30k
from tombola.tasks.data.places import load_places365
from tombola.tasks.data.sources import SOURCES, Source
from tombola.tasks.data.sst2 import load_sst2
from tombola.tasks.data.svhn import load_svhn
from tombola.tasks.data.tiny_imagenet import load_tiny_imagenet
from tombola.tasks.data.wikitext import load_wikitext2
from tombola.tasks.pretrained import FROM_A_CHECKPOINT, TransformersTask
from tombola.tasks.task import Task

pytestmark = pytest.mark.usefixtures("no_configuration")

ROOT = Path(__file__).parents[1]
EXTRAS = {
    extra: tuple(
        dict.fromkeys(p for t in tb.TASKS.values() if t.extra and t.extra.name == extra for p in t.extra.packages)
    )
    for extra in sorted({t.extra.name for t in tb.TASKS.values() if t.extra})
}
LOADERS: dict[str, Callable[[Path], Any]] = {
    "mnist": load_mnist,
    "fashion-mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "svhn": load_svhn,
    "tiny-imagenet": load_tiny_imagenet,
    "imagenet": load_imagenet,
    "places365": load_places365,
    "wikitext2": load_wikitext2,
    "multi30k": load_multi30k,
    "sst2": load_sst2,
}


def asked_for(load: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The files that loading would download, and ``imagenet`` where it asks for that; none is downloaded."""
    asked = set()

    def refuse(file: Any, folder: Path, **_: Any) -> None:
        asked.add(file.name)
        raise DataError("no network")

    with monkeypatch.context() as patched:
        patched.setattr(sources, "fetch", refuse)
        try:
            load()
        except DataError as error:
            asked |= {"imagenet"} if "image-net.org" in str(error) else set()
    return asked


@pytest.mark.parametrize("task", tb.TASKS.values(), ids=lambda task: task.name)
def test_loading_from_an_empty_root_asks_for_the_data_set_named_and_no_other(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if task.extra is None:  # then it needs none of them
        for package in {package for packages in EXTRAS.values() for package in packages}:
            monkeypatch.setitem(sys.modules, package, None)
    asked = asked_for(partial(task.splits, 0, tmp_path), monkeypatch)
    assert len(task.data_sets) <= 1
    for name in task.data_sets:
        assert asked
        assert asked <= ({file.name for file in SOURCES[name].files} or {name})
    assert bool(asked) == bool(task.data_sets)


@pytest.mark.parametrize("task", [t for t in tb.TASKS.values() if t.extra], ids=lambda task: task.name)
def test_without_a_package_of_the_extra_the_error_says_how_to_install_it(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert task.extra is not None
    assert task.extra.missing == ()
    for package in task.extra.packages:
        monkeypatch.setitem(sys.modules, package, None)
    assert task.extra.missing == task.extra.packages
    with pytest.raises((InputError, DataError), match=re.escape(task.extra.command)):
        task.build(0) if isinstance(task, TransformersTask) else task.splits(0, tmp_path)


@pytest.mark.parametrize("name", EXTRAS)
def test_extras_are_those_of_the_project_and_bring_the_packages(name: str) -> None:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][name]
    brought = importlib.metadata.packages_distributions()
    for package in EXTRAS[name]:
        assert any(distribution.lower() in " ".join(required).lower() for distribution in brought[package])


def test_an_extra_is_missing_by_its_packages() -> None:
    extra = Extra("language", ("tokenizers", "no_such_package", "json"))
    assert extra.missing == ("no_such_package",)
    assert extra.command == "pip install 'tombola[language]'"


def test_tasks_made_of_others_need_what_those_do(tmp_path: Path) -> None:
    carried = tb.get_task("fashion-lenet300@cifar10-conv2")
    assert (carried.data_sets, carried.extra) == (("fashion-mnist",), None)
    made(tmp_path)
    for name, family in FROM_A_CHECKPOINT.items():
        task = tb.get_task(f"{name}:{tmp_path}")
        assert task.data_sets == family.data_sets
        assert (task.extra, task.rounds, task.recipe) == (family.extra, family.rounds, family.recipe)


# ---- where data sets are found


def ways(source: Source) -> list[str]:
    """All paths that could be of a data set."""
    listed = [path for part in source.parts for path in part]
    files = [f"{source.folder}/{file.name}".lstrip("/") for file in source.files]
    return sorted({*(listed or files), *(path.removesuffix(".gz") for path in (listed or files))})


def put(root: Path, path: str) -> None:
    """An empty file, or a folder where the path ends in a slash."""
    place = root / path.replace("*", "n01440764")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.mkdir() if path.endswith("/") else place.touch()


def test_every_source_has_a_loader_here() -> None:
    assert LOADERS.keys() == SOURCES.keys()


@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_data_set_is_found_where_its_loader_would_download_nothing(name: str, data: st.DataObject) -> None:
    source = SOURCES[name]
    there = data.draw(st.one_of(st.just(ways(source)), st.lists(st.sampled_from(ways(source)), unique=True)))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        root = Path(folder)
        for path in there:
            put(root, path)
        found = source.found(root)
        assert (None not in found) == (not asked_for(lambda: LOADERS[name](root), monkeypatch))
        assert all(path is None or path.is_relative_to(root) for path in found)


def test_what_has_the_name_of_a_file_but_is_a_folder_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "sst2" / "train.tsv").mkdir(parents=True)
    (tmp_path / "val_256").touch()
    assert SOURCES["sst2"].found(tmp_path) == [None] * 3
    assert SOURCES["places365"].found(tmp_path) == [None] * 4


def test_sizes_are_exact_or_said_to_be_rough() -> None:
    words = {name: source.size_in_words for name, source in SOURCES.items()}
    assert (words["mnist"], words["svhn"], words["places365"]) == ("12 MB", "246 MB", "some 25 GB")
    assert (words["imagenet"], SOURCES["imagenet"].size) == ("", None)
    assert SOURCES["sst2"].size == 720_259 + 92_057 + 188_749
    assert words["sst2"] == "1.0 MB"
