"""The built-in tasks of deep convolutional nets: those of the pruning papers, and small ones for a CPU.

Networks, data and recipes are the papers' where a description names one. What they leave open is decided alike
everywhere: validation images are set apart from the training images by the seed, training images are cropped after
padding by 4 pixels and flipped, and weight decay acts on all parameters.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tombola.durations import Duration
from tombola.extras import IMAGES
from tombola.recipe import Recipe
from tombola.tasks.data.cifar import load_cifar10, load_cifar100
from tombola.tasks.data.places import load_places365
from tombola.tasks.data.svhn import load_svhn
from tombola.tasks.data.tiny_imagenet import load_tiny_imagenet
from tombola.tasks.loading import augmented_splits, digits, imagenet_splits, splits_of
from tombola.tasks.models import digits_resnet, imagenet_resnet, resnet, resnet18, vgg
from tombola.tasks.task import Task


def _sgd(epochs: float, drops: tuple[float, ...], **changes: Any) -> Recipe:
    """SGD with momentum 0.9, batches of 128, and a learning rate of 0.1 that falls to a tenth at each drop (epochs)."""
    fields: dict[str, Any] = {
        "steps": Duration(epochs, "ep"),
        "batch": 128,
        "optimizer": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "lr_schedule": "steps",
        "milestones": tuple(Duration(drop, "ep") for drop in drops),
        "evaluate_every": Duration(1, "ep"),
    }
    return Recipe(**(fields | changes))


_GRASP_VGG = _sgd(160, (80, 120), weight_decay=5e-4)
_GRASP_RESNET = _sgd(160, (80, 120))
_SYNFLOW = _sgd(160, (60, 120), nesterov=True)
QUICK_TRAINING = Recipe(
    steps=Duration(6, "ep"),
    batch=64,
    optimizer="sgd",
    lr=0.1,
    momentum=0.9,
    nesterov=True,
    weight_decay=5e-4,
    lr_schedule="cosine",
    warmup=Duration(1, "ep"),
    evaluate_every=Duration(1, "ep"),
)

_CIFAR10, _CIFAR100 = augmented_splits(load_cifar10, 5_000), augmented_splits(load_cifar100, 5_000)
_TINY = augmented_splits(load_tiny_imagenet, 10_000)

DEEP = (
    Task(
        name="digits-conv",
        model=digits_resnet,
        scaled=digits_resnet,
        load=splits_of(digits, 300),
        input_shape=(1, 8, 8),
        recipe=Recipe(
            steps=Duration(300),
            batch=60,
            optimizer="sgd",
            lr=0.1,
            momentum=0.9,
            weight_decay=5e-4,
            lr_schedule="cosine",
            warmup=Duration(50),
            evaluate_every=Duration(25),
        ),
        allocation="global",
        rounds=12,
        margin=0.01,
        description="A small ResNet (two blocks, 19,408 weights) on scikit-learn's 8x8 digits, embedded: no download",
    ),
    Task(
        name="cifar10-vgg11-quick",
        model=lambda: vgg(11, width=16),
        scaled=partial(vgg, 11, width=16),
        load=augmented_splits(load_cifar10, 5_000, examples=20_000),
        data_sets=("cifar10",),
        input_shape=(3, 32, 32),
        recipe=QUICK_TRAINING,
        allocation="global",
        rounds=10,
        margin=0.01,
        description="VGG-11 of a quarter of the width (16) on 20,000 training images of CIFAR-10, 6 epochs, for a CPU",
    ),
    Task(
        name="cifar10-resnet20-quick",
        model=lambda: resnet(20, width=8),
        scaled=partial(resnet, 20, width=8),
        load=augmented_splits(load_cifar10, 5_000, examples=20_000),
        data_sets=("cifar10",),
        input_shape=(3, 32, 32),
        recipe=QUICK_TRAINING.model_copy(update={"steps": Duration(4, "ep"), "lr": 0.2}),
        allocation="global",
        rounds=10,
        margin=0.01,
        description="ResNet-20 of half the width (8) on 20,000 training images of CIFAR-10, 4 epochs, for a CPU",
    ),
    Task(
        name="cifar10-vgg11",
        model=lambda: vgg(11),
        scaled=partial(vgg, 11),
        load=_CIFAR10,
        data_sets=("cifar10",),
        input_shape=(3, 32, 32),
        recipe=_GRASP_VGG,
        allocation="global",
        rounds=15,
        description="VGG-11 on CIFAR-10, with the recipe of cifar10-vgg19",
    ),
    Task(
        name="cifar10-vgg16",
        model=lambda: vgg(16),
        scaled=partial(vgg, 16),
        load=_CIFAR10,
        data_sets=("cifar10",),
        input_shape=(3, 32, 32),
        recipe=_SYNFLOW,
        allocation="global",
        rounds=20,
        description="VGG-16 on CIFAR-10, the recipe of Tanaka et al. (2020)",
    ),
    Task(
        name="cifar100-vgg16",
        model=lambda: vgg(16, classes=100),
        scaled=partial(vgg, 16, classes=100),
        load=_CIFAR100,
        data_sets=("cifar100",),
        input_shape=(3, 32, 32),
        recipe=_SYNFLOW,
        allocation="global",
        rounds=20,
        description="VGG-16 on CIFAR-100, the recipe of Tanaka et al. (2020)",
    ),
    Task(
        name="cifar10-vgg19",
        model=lambda: vgg(19),
        scaled=partial(vgg, 19),
        load=_CIFAR10,
        data_sets=("cifar10",),
        input_shape=(3, 32, 32),
        recipe=_GRASP_VGG,
        allocation="global",
        rounds=18,
        description="VGG-19 on CIFAR-10, the recipe of Wang et al. (2020)",
    ),
    Task(
        name="cifar100-vgg19",
        model=lambda: vgg(19, classes=100),
        scaled=partial(vgg, 19, classes=100),
        load=_CIFAR100,
        data_sets=("cifar100",),
        input_shape=(3, 32, 32),
        recipe=_GRASP_VGG,
        allocation="global",
        rounds=18,
        description="VGG-19 on CIFAR-100, the recipe of Wang et al. (2020)",
    ),
    Task(
        name="cifar10-resnet20",
        model=lambda: resnet(20),
        scaled=partial(resnet, 20),
        load=_CIFAR10,
        data_sets=("cifar10",),
        input_shape=(3, 32, 32),
        recipe=_sgd(160, (80, 120)),
        allocation="global",
        rounds=12,
        description="ResNet-20 on CIFAR-10, the standard recipe of Frankle et al. (2020); rewind to 500it or later",
    ),
    Task(
        name="cifar10-resnet18",
        model=lambda: resnet(20),
        scaled=partial(resnet, 20),
        load=_CIFAR10,
        data_sets=("cifar10",),
        input_shape=(3, 32, 32),
        recipe=_sgd(
            1,
            (),
            steps=Duration(30_000),
            lr=0.03,
            milestones=(Duration(20_000), Duration(25_000)),
            warmup=Duration(20_000),
            evaluate_every=Duration(500),
        ),
        allocation="global",
        unpruned=("*shortcut*", "fc.weight"),
        rounds=12,
        description="The ResNet-18 of Frankle & Carbin (2019), which is ResNet-20, on CIFAR-10, with their warm-up",
    ),
    Task(
        name="cifar10-resnet32",
        model=lambda: resnet(32, width=32),
        scaled=partial(resnet, 32, width=32),
        load=_CIFAR10,
        data_sets=("cifar10",),
        input_shape=(3, 32, 32),
        recipe=_GRASP_RESNET,
        allocation="global",
        rounds=18,
        description="ResNet-32 of double width (32) on CIFAR-10, the recipe of Wang et al. (2020)",
    ),
    Task(
        name="cifar100-resnet32",
        model=lambda: resnet(32, width=32, classes=100),
        scaled=partial(resnet, 32, width=32, classes=100),
        load=_CIFAR100,
        data_sets=("cifar100",),
        input_shape=(3, 32, 32),
        recipe=_GRASP_RESNET,
        allocation="global",
        rounds=18,
        description="ResNet-32 of double width (32) on CIFAR-100, the recipe of Wang et al. (2020)",
    ),
    Task(
        name="svhn-resnet20",
        model=lambda: resnet(20),
        scaled=partial(resnet, 20),
        load=augmented_splits(load_svhn, 5_000, flip=False),
        data_sets=("svhn",),
        input_shape=(3, 32, 32),
        recipe=_sgd(80, (40, 60)),
        allocation="global",
        rounds=12,
        description="ResNet-20 on SVHN without its extra part, cropped but not flipped, 80 epochs",
    ),
    Task(
        name="tiny-imagenet-resnet18",
        model=lambda: resnet18(classes=200),
        scaled=partial(resnet18, classes=200),
        load=_TINY,
        data_sets=("tiny-imagenet",),
        extra=IMAGES,
        input_shape=(3, 64, 64),
        recipe=_sgd(300, (150, 225)),
        allocation="global",
        rounds=15,
        description="ResNet-18 with a 3x3 stem on Tiny-ImageNet, with the schedule of Wang et al. (2020)",
    ),
    Task(
        name="tiny-imagenet-vgg19",
        model=lambda: vgg(19, classes=200),
        scaled=partial(vgg, 19, classes=200),
        load=_TINY,
        data_sets=("tiny-imagenet",),
        extra=IMAGES,
        input_shape=(3, 64, 64),
        recipe=_sgd(300, (150, 225), weight_decay=5e-4),
        allocation="global",
        rounds=15,
        description="VGG-19 on Tiny-ImageNet, the recipe of Wang et al. (2020)",
    ),
    Task(
        name="imagenet-resnet50",
        model=lambda: imagenet_resnet(50),
        scaled=partial(imagenet_resnet, 50),
        load=imagenet_splits(10_000),
        data_sets=("imagenet",),
        extra=IMAGES,
        input_shape=(3, 224, 224),
        recipe=_sgd(90, (30, 60, 80), batch=256, warmup=Duration(5, "ep")),
        allocation="global",
        rounds=10,
        description="ResNet-50 on ImageNet, which you must put in place, the recipe of Goyal et al. (2017), batch 256",
    ),
    Task(
        name="places365-resnet50",
        model=lambda: imagenet_resnet(50, classes=365),
        scaled=partial(imagenet_resnet, 50, classes=365),
        load=splits_of(load_places365, 10_000),
        data_sets=("places365",),
        extra=IMAGES,
        input_shape=(3, 224, 224),
        recipe=_sgd(90, (30, 60, 80), batch=256, warmup=Duration(5, "ep")),
        allocation="global",
        rounds=10,
        description="ResNet-50 on Places365-Standard (some 25 GB to download), with the recipe of imagenet-resnet50",
    ),
)
