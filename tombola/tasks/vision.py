"""The built-in image tasks: networks, data and recipes of Frankle & Carbin (2019), figure 2, and the default."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tombola.durations import Duration
from tombola.recipe import Recipe
from tombola.tasks.data.arrays import Arrays, split
from tombola.tasks.data.cifar import load_cifar10
from tombola.tasks.data.digits import load_digits
from tombola.tasks.data.download import Progress
from tombola.tasks.data.idx import load_fashion_mnist, load_mnist
from tombola.tasks.data.root import data_root
from tombola.tasks.models import conv_net, lenet5, lenet300, mlp
from tombola.tasks.task import LoadSplits, Splits, Task

Load = Callable[..., tuple[Arrays, Arrays]]


def _splits(load: Load, validation: int) -> LoadSplits:
    """Splits of a data set: its own test part, and a random validation part of its training part, by the seed."""

    def splits(root: Path | None, seed: int, progress: Progress | None) -> Splits:
        train, test = load(data_root(root), progress=progress)
        kept, held_out = split(len(train), validation, seed)
        return Splits(train.select(kept), train.select(held_out), test)

    return splits


def _digits(root: Path, *, progress: Progress | None) -> tuple[Arrays, Arrays]:
    return load_digits()


_LENET = Recipe(steps=Duration(50_000), batch=60, optimizer="adam", lr=1.2e-3)
_HALF_OUTPUT = {"fc3.weight": 0.5}
_CONV = {"conv*": 0.5, "fc3.weight": 0.5}

_ALL = (
    Task(
        name="digits-mlp",
        model=lambda: mlp(64, 300, 100, 10),
        load=_splits(_digits, 300),
        recipe=Recipe(steps=Duration(1_500), batch=60, optimizer="adam", lr=1.2e-3, evaluate_every=Duration(25)),
        relative_rates=_HALF_OUTPUT,
        rounds=15,
        margin=0.01,
        description="MLP 300-100 on scikit-learn's 8x8 digits, embedded: no download",
    ),
    Task(
        name="mnist-lenet300",
        model=lenet300,
        load=_splits(load_mnist, 5_000),
        recipe=_LENET,
        relative_rates=_HALF_OUTPUT,
        rounds=20,
        description="LeNet-300-100 on MNIST, the recipe of Frankle & Carbin (2019)",
    ),
    Task(
        name="fashion-lenet300",
        model=lenet300,
        load=_splits(load_fashion_mnist, 5_000),
        recipe=_LENET,
        relative_rates=_HALF_OUTPUT,
        rounds=20,
        description="LeNet-300-100 on Fashion-MNIST, with the recipe of mnist-lenet300",
    ),
    Task(
        name="mnist-lenet5",
        model=lenet5,
        load=_splits(load_mnist, 5_000),
        recipe=_LENET,
        relative_rates={"fc2.weight": 0.5},
        rounds=20,
        description="LeNet-5 (20-50-500) on MNIST, with the recipe of mnist-lenet300",
    ),
    Task(
        name="cifar10-conv2",
        model=lambda: conv_net(2),
        load=_splits(load_cifar10, 5_000),
        recipe=Recipe(steps=Duration(20_000), batch=60, optimizer="adam", lr=2e-4),
        relative_rates=_CONV,
        rounds=20,
        description="Conv-2 on CIFAR-10, the recipe of Frankle & Carbin (2019)",
    ),
    Task(
        name="cifar10-conv4",
        model=lambda: conv_net(4),
        load=_splits(load_cifar10, 5_000),
        recipe=Recipe(steps=Duration(25_000), batch=60, optimizer="adam", lr=3e-4),
        relative_rates=_CONV,
        rounds=20,
        description="Conv-4 on CIFAR-10, the recipe of Frankle & Carbin (2019)",
    ),
    Task(
        name="cifar10-conv6",
        model=lambda: conv_net(6),
        load=_splits(load_cifar10, 5_000),
        recipe=Recipe(steps=Duration(30_000), batch=60, optimizer="adam", lr=3e-4),
        relative_rates={"conv*": 0.75, "fc3.weight": 0.5},
        rounds=20,
        description="Conv-6 on CIFAR-10, the recipe of Frankle & Carbin (2019)",
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
