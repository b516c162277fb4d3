"""``tombola doctor``: what this machine can do, the versions, the data found."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tombola.cli import output
from tombola.cli.options import Verb, data_root_option, json_option, store_option
from tombola.errors import TombolaError

if TYPE_CHECKING:
    from tombola.tasks.data.sources import Source


@click.command("doctor", cls=Verb)
@store_option()
@data_root_option()
@json_option()
def command(store: str, data_root: Path | None, as_json: bool) -> int:
    """Report what this machine can do and which data it has. Exit status 1 where something is wrong."""
    report, problems = examine(store, data_root)
    if as_json:
        output.document({**report, "problems": problems})
    else:
        for section, found in report.items():
            output.tree(section, found)
        for problem in problems:
            click.echo(f"Problem: {output.inert(problem)}")
    return 1 if problems else 0


def examine(store: str, data_root: Path | None) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Everything ``doctor`` reports, as plain values, and what is wrong."""
    from tombola.engines import ENGINES
    from tombola.version import versions

    problems: list[str] = []

    def tried(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return part()
        except TombolaError as error:
            problems.append(str(error))
            return {"problem": str(error)}

    report = {
        "versions": versions(),
        "machine": _machine(),
        "engines": {**dict.fromkeys(ENGINES, "ready"), "sparse": _kernels()},
        "data": tried(lambda: _data(data_root)),
        "store": {"place": store, **tried(lambda: _store(store))},
    }
    return report, problems


def _machine() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "torch threads": f"{torch.get_num_threads()} by default; runs use the recipe's (1)",
        "gpus": ", ".join(gpus) or "none",
    }


def _kernels() -> str:
    from tombola.engines.sparse.kernel import cache_folder

    number = sum(1 for _ in cache_folder().rglob("*.nbi"))
    return f"ready, {f'{number} kernels' if number else 'kernels to be compiled at first use'} in {cache_folder()}"


def _data(data_root: Path | None) -> dict[str, str]:
    from tombola.tasks.data.root import configuration_path
    from tombola.tasks.data.root import data_root as root_of
    from tombola.tasks.data.sources import SOURCES

    root, configuration = root_of(data_root), configuration_path()
    there = "" if configuration.exists() else " (not there, nor needed)"
    found = {source.title: _found(source, root) for source in SOURCES.values()}
    return {"root": str(root), "configuration": f"{configuration}{there}", "digits": "embedded", **found}


def _found(source: Source, root: Path) -> str:
    """Found where a task loads it without a download."""
    parts = source.found(root)
    there = [path.parent for path in parts if path is not None]
    if there and None not in parts:
        return f"found in {os.path.commonpath(there)}"
    if there:
        how = "the rest is downloaded when first needed" if source.files else "you must put the rest there"
        return f"only in part in {os.path.commonpath(there)}: {how}"
    how = f"downloaded when first needed ({source.size_in_words})" if source.files else "you must put it there"
    return f"not in {root / source.folder}: {how}"


def _store(store: str) -> dict[str, str]:
    from tombola.cli.places import opened

    if "://" not in store and not Path(store).expanduser().exists():
        return {"state": "not there yet: made when first needed"}
    with opened(store) as found:
        return {"state": f"draws: {len(found.draws())}, runs: {len(found.runs())}"}
