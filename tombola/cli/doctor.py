"""``tombola doctor``: what this machine can do, the versions, the data found."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import click

_DATA = {
    "digits": None,
    "MNIST": ("MNIST/raw", "train-images-idx3-ubyte"),
    "FashionMNIST": ("FashionMNIST/raw", "train-images-idx3-ubyte"),
    "CIFAR-10": ("cifar-10-batches-bin", "data_batch_1.bin"),
}


@click.command("doctor")
@click.option("--store", default="runs", envvar="TOMBOLA_STORE", show_default=True, help="folder of the store of runs")
@click.option("--data-root", type=click.Path(path_type=Path), help="folder of the data sets (or set TOMBOLA_DATA)")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document and nothing else")
def command(store: str, data_root: Path | None, as_json: bool) -> None:
    """Report what this machine can do and which data it has."""
    report = examine(store, data_root)
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    for section, found in report.items():
        click.echo(f"{section}:")
        for name, value in found.items():
            click.echo(f"  {name}: {value}")


def examine(store: str, data_root: Path | None) -> dict[str, dict[str, Any]]:
    """Everything ``doctor`` reports, as plain values."""
    import torch

    from tombola.engines import ENGINES
    from tombola.lab import versions
    from tombola.tasks.data.root import data_root as root_of

    root = root_of(data_root)
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "versions": versions(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "cpu capability": torch.backends.cpu.get_cpu_capability(),
            "torch threads": f"{torch.get_num_threads()} by default; runs use the recipe's (1)",
            "gpus": ", ".join(gpus) or "none",
        },
        "engines": dict.fromkeys(ENGINES, "ready"),
        "data": {"root": str(root), **{name: _found(root, place) for name, place in _DATA.items()}},
        "store": {"place": store, "state": _state(store)},
    }


def _found(root: Path, place: tuple[str, str] | None) -> str:
    if place is None:
        return "embedded"
    folder, first = root / place[0], place[1]
    there = any((folder / name).exists() for name in (first, f"{first}.gz"))
    return f"found in {folder}" if there else f"not in {folder}: downloaded when first needed"


def _state(store: str) -> str:
    if "://" not in store and not Path(store).exists():
        return "not there yet: made when first needed"
    from tombola.store import Store

    with Store(store) as found:
        return f"{len(found.draws())} draws, {len(found.runs())} runs"
