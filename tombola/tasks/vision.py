"""The built-in tasks of small nets: those of Frankle & Carbin (2019), figure 2, with their recipes, and the default."""

from __future__ import annotations

from functools import partial

from tombola.durations import Duration
from tombola.recipe import Recipe
from tombola.tasks.data.cifar import load_cifar10
from tombola.tasks.data.idx import load_fashion_mnist, load_mnist
from tombola.tasks.loading import digits, splits_of
from tombola.tasks.models import conv_net, lenet5, lenet300, mlp, scaled
from tombola.tasks.task import Task

_LENET = Recipe(steps=Duration(50_000), batch=60, optimizer="adam", lr=1.2e-3)
_HALF_OUTPUT = {"fc3.weight": 0.5}
_CONV = {"conv*": 0.5, "fc3.weight": 0.5}

SMALL = (
    Task(
        name="digits-mlp",
        model=lambda: mlp(64, 300, 100, 10),
        scaled=lambda factor: mlp(64, scaled(300, factor), scaled(100, factor), 10),
        load=splits_of(digits, 300),
        input_shape=(1, 8, 8),
        recipe=Recipe(steps=Duration(1_500), batch=60, optimizer="adam", lr=1.2e-3, evaluate_every=Duration(25)),
        relative_rates=_HALF_OUTPUT,
        rounds=15,
        margin=0.01,
        description="MLP 300-100 on scikit-learn's 8x8 digits, embedded: no download",
    ),
    Task(
        name="mnist-lenet300",
        model=lenet300,
        scaled=lenet300,
        load=splits_of(load_mnist, 5_000),
        data_sets=("mnist",),
        input_shape=(1, 28, 28),
        recipe=_LENET,
        relative_rates=_HALF_OUTPUT,
        rounds=20,
        description="LeNet-300-100 on MNIST, the recipe of Frankle & Carbin (2019)",
    ),
    Task(
        name="fashion-lenet300",
        model=lenet300,
        scaled=lenet300,
        load=splits_of(load_fashion_mnist, 5_000),
        data_sets=("fashion-mnist",),
        input_shape=(1, 28, 28),
        recipe=_LENET,
        relative_rates=_HALF_OUTPUT,
        rounds=20,
        description="LeNet-300-100 on Fashion-MNIST, with the recipe of mnist-lenet300",
    ),
    Task(
        name="mnist-lenet5",
        model=lenet5,
        scaled=lenet5,
        load=splits_of(load_mnist, 5_000),
        data_sets=("mnist",),
        input_shape=(1, 28, 28),
        recipe=_LENET,
        relative_rates={"fc2.weight": 0.5},
        rounds=20,
        description="LeNet-5 (20-50-500) on MNIST, with the recipe of mnist-lenet300",
    ),
    Task(
        name="cifar10-conv2",
        model=lambda: conv_net(2),
        scaled=partial(conv_net, 2),
        load=splits_of(load_cifar10, 5_000),
        data_sets=("cifar10",),
        input_shape=(3, 32, 32),
        recipe=Recipe(steps=Duration(20_000), batch=60, optimizer="adam", lr=2e-4),
        relative_rates=_CONV,
        rounds=20,
        description="Conv-2 on CIFAR-10, the recipe of Frankle & Carbin (2019)",
    ),
    Task(
        name="cifar10-conv4",
        model=lambda: conv_net(4),
        scaled=partial(conv_net, 4),
        load=splits_of(load_cifar10, 5_000),
        data_sets=("cifar10",),
        input_shape=(3, 32, 32),
        recipe=Recipe(steps=Duration(25_000), batch=60, optimizer="adam", lr=3e-4),
        relative_rates=_CONV,
        rounds=20,
        description="Conv-4 on CIFAR-10, the recipe of Frankle & Carbin (2019)",
    ),
    Task(
        name="cifar10-conv6",
        model=lambda: conv_net(6),
        scaled=partial(conv_net, 6),
        load=splits_of(load_cifar10, 5_000),
        data_sets=("cifar10",),
        input_shape=(3, 32, 32),
        recipe=Recipe(steps=Duration(30_000), batch=60, optimizer="adam", lr=3e-4),
        relative_rates={"conv*": 0.75, "fc3.weight": 0.5},
        rounds=20,
        description="Conv-6 on CIFAR-10, the recipe of Frankle & Carbin (2019)",
    ),
)
