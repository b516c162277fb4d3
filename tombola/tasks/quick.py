"""Tasks of minutes in two families, each with one net on several data sets, so that tickets can be carried between.

``cifar10a`` and ``cifar10b`` are the halves of CIFAR-10's training images (Morcos et al. 2019). The VGG-11 is that of
``cifar10-vgg11-quick``, with one colour where images are grey.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from tombola.durations import Duration
from tombola.recipe import Recipe
from tombola.tasks.data.cifar import HALVES, load_cifar10_half
from tombola.tasks.data.idx import load_fashion_mnist, load_mnist
from tombola.tasks.deep import QUICK_TRAINING
from tombola.tasks.loading import augmented_splits, splits_of
from tombola.tasks.models import lenet300, mlp, scaled, vgg
from tombola.tasks.task import Task

_LENET: dict[str, Any] = {
    "recipe": Recipe(steps=Duration(6_000), batch=60, optimizer="adam", lr=1.2e-3, evaluate_every=Duration(200)),
    "relative_rates": {"fc3.weight": 0.5},
    "rounds": 12,
}
_VGG: dict[str, Any] = {
    "recipe": QUICK_TRAINING.model_copy(update={"steps": Duration(4, "ep")}),
    "allocation": "global",
    "rounds": 10,
    "margin": 0.01,
}
_GREY, _COLOUR = (1, 28, 28), (3, 32, 32)
_GREY_SETS = (("mnist", "MNIST", load_mnist), ("fashion", "Fashion-MNIST", load_fashion_mnist))


def _colour_mlp(factor: float = 1.0) -> nn.Module:
    """LeNet-300-100 for 32x32 colour images: 952,600 weights."""
    return mlp(3072, scaled(300, factor), scaled(100, factor), 10)


QUICK = (
    *(
        Task(
            name=f"{name}-lenet300-quick",
            model=lenet300,
            scaled=lenet300,
            load=splits_of(load, 5_000),
            data_sets=(title.lower(),),
            input_shape=_GREY,
            description=f"LeNet-300-100 on {title}, 6,000 steps, for a CPU",
            **_LENET,
        )
        for name, title, load in _GREY_SETS
    ),
    *(
        Task(
            name=f"cifar10{half}-lenet300-quick",
            model=_colour_mlp,
            scaled=_colour_mlp,
            load=splits_of(partial(load_cifar10_half, half=half), 2_500),
            data_sets=("cifar10",),
            input_shape=_COLOUR,
            description=f"LeNet-300-100 on half {half} of CIFAR-10's training images, 6,000 steps, for a CPU",
            **_LENET,
        )
        for half in HALVES
    ),
    *(
        Task(
            name=f"{name}-vgg11-quick",
            model=partial(vgg, 11, width=16, colours=1),
            scaled=partial(vgg, 11, width=16, colours=1),
            load=splits_of(load, 5_000, examples=20_000),
            data_sets=(title.lower(),),
            input_shape=_GREY,
            description=f"VGG-11 of a quarter of the width (16) on 20,000 images of {title}, 4 epochs, for a CPU",
            **_VGG,
        )
        for name, title, load in _GREY_SETS
    ),
    *(
        Task(
            name=f"cifar10{half}-vgg11-quick",
            model=partial(vgg, 11, width=16),
            scaled=partial(vgg, 11, width=16),
            load=augmented_splits(partial(load_cifar10_half, half=half), 2_500),
            data_sets=("cifar10",),
            input_shape=_COLOUR,
            description=f"VGG-11 of a quarter of the width (16) on half {half} of CIFAR-10's training images, 4 epochs",
            **_VGG,
        )
        for half in HALVES
    ),
)
