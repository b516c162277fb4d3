"""The deep convolutional nets: names, counts, shapes, how they are drawn, and that every engine can express them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tombola as tb
from tombola.engines.channels import batch_norm_affine
from tombola.engines.sparse.session import plan_program
from tombola.errors import InputError
from tombola.mask import Mask, prunable
from tombola.seeds import global_stream
from tombola.tasks.data.arrays import Arrays
from tombola.tasks.models import digits_resnet, imagenet_resnet, resnet, resnet18, vgg

COUNTS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vgg11": (lambda: vgg(11), 9_222_848),
    "vgg13": (lambda: vgg(13), 9_407_168),
    "vgg16": (lambda: vgg(16), 14_715_584),
    "vgg16 of 100 classes": (lambda: vgg(16, classes=100), 14_761_664),
    "vgg19": (lambda: vgg(19), 20_024_000),
    "vgg19 of 200 classes": (lambda: vgg(19, classes=200), 20_121_280),
    "vgg11 of a quarter": (lambda: vgg(11, width=16), 577_712),
    "resnet20": (lambda: resnet(20), 270_896),
    "resnet20 of half": (lambda: resnet(20, width=8), 67_992),
    "resnet32": (lambda: resnet(32), 464_432),
    "resnet32 of double width": (lambda: resnet(32, width=32), 1_855_584),
    "resnet32 of double width, 100 classes": (lambda: resnet(32, width=32, classes=100), 1_867_104),
    "resnet44": (lambda: resnet(44), 657_968),
    "resnet56": (lambda: resnet(56), 851_504),
    "resnet110": (lambda: resnet(110), 1_722_416),
    "resnet18": (resnet18, 11_164_352),
    "imagenet resnet18": (lambda: imagenet_resnet(18), 11_678_912),
    "imagenet resnet50": (lambda: imagenet_resnet(50), 25_502_912),
    "digits": (digits_resnet, 19_408),
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_number_of_weights_is_the_papers(name: str) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in prunable(COUNTS[name][0]()).values()) == COUNTS[name][1]


def test_names_count_layers_and_poolings() -> None:
    assert [name for name, _ in vgg(11, width=1).named_children() if not name.startswith(("norm", "relu"))] == [
        *("conv1", "pool2", "conv3", "pool4", "conv5", "conv6", "pool7", "conv8", "conv9", "pool10"),
        *("conv11", "conv12", "pool13", "flatten", "fc"),
    ]
    names = list(prunable(resnet(20)))
    assert names[:3] == ["conv.weight", "block1.conv1.weight", "block1.conv2.weight"]
    assert [n for n in names if "shortcut" in n] == ["block4.shortcut.0.weight", "block7.shortcut.0.weight"]
    assert names[-1] == "fc.weight"


def normalised(model: nn.Module, name: str, x: Tensor) -> Tensor:
    scale, shift = batch_norm_affine(model.get_submodule(name))
    return x * scale[None, :, None, None] + shift[None, :, None, None]


def moved_(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, with statistics and scales that are not all alike."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_var, module.weight):
                assert tensor is not None
                tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator)
            assert module.running_mean is not None
            module.running_mean.data = torch.randn(module.num_features, generator=generator)
    return model.eval()


@torch.no_grad()
def test_vgg_is_convolutions_poolings_and_one_linear_layer() -> None:
    model = moved_(vgg(13, width=2, classes=7)).double()
    weights = prunable(model)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    x, pool = images, {3: 2, 6: 2, 9: 2, 12: 2}
    for number in (1, 2, 4, 5, 7, 8, 10, 11, 13, 14):
        x = normalised(model, f"norm{number}", F.conv2d(x, weights[f"conv{number}.weight"], padding=1)).relu()
        if number + 1 in pool:
            x = F.max_pool2d(x, 2)
    expected = x.mean((2, 3)) @ weights["fc.weight"].T
    torch.testing.assert_close(model(images), expected)


@torch.no_grad()
def test_resnet_adds_what_its_blocks_make_to_what_they_take() -> None:
    model = moved_(resnet(20, width=2, classes=7)).double()
    weights = prunable(model)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    x = normalised(model, "norm", F.conv2d(images, weights["conv.weight"], padding=1)).relu()
    for number in range(1, 10):
        block, stride = f"block{number}", 2 if number in (4, 7) else 1
        y = normalised(model, f"{block}.norm1", F.conv2d(x, weights[f"{block}.conv1.weight"], None, stride, 1)).relu()
        y = normalised(model, f"{block}.norm2", F.conv2d(y, weights[f"{block}.conv2.weight"], None, 1, 1))
        if stride == 2:
            x = normalised(model, f"{block}.shortcut.1", F.conv2d(x, weights[f"{block}.shortcut.0.weight"], stride=2))
        x = (y + x).relu()
    torch.testing.assert_close(model(images), x.mean((2, 3)) @ weights["fc.weight"].T)


@torch.no_grad()
def test_resnet50_has_bottlenecks_whose_middle_takes_the_stride() -> None:
    model = moved_(imagenet_resnet(50, width=2, classes=5)).double()
    weights = prunable(model)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    x = normalised(model, "norm", F.conv2d(images, weights["conv.weight"], None, 2, 3)).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    for number in range(1, 17):
        block, stride = f"block{number}", 2 if number in (4, 8, 14) else 1
        y = normalised(model, f"{block}.norm1", F.conv2d(x, weights[f"{block}.conv1.weight"])).relu()
        y = normalised(model, f"{block}.norm2", F.conv2d(y, weights[f"{block}.conv2.weight"], None, stride, 1)).relu()
        y = normalised(model, f"{block}.norm3", F.conv2d(y, weights[f"{block}.conv3.weight"]))
        if number in (1, 4, 8, 14):
            cut = F.conv2d(x, weights[f"{block}.shortcut.0.weight"], stride=stride)
            x = normalised(model, f"{block}.shortcut.1", cut)
        x = (y + x).relu()
    torch.testing.assert_close(model(images), x.mean((2, 3)) @ weights["fc.weight"].T)
    assert [p.shape[0] for n, p in weights.items() if n.endswith("conv3.weight")] == [8] * 3 + [16] * 4 + [32] * 6 + [
        64
    ] * 3


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("build", [lambda: vgg(16, width=2, classes=6), lambda: resnet18(width=2, classes=6)])
def test_larger_images_fit_too(build: Callable[[], nn.Module], side: int) -> None:
    assert build()(torch.randn(2, 3, side, side)).shape == (2, 6)


@pytest.mark.parametrize("build", [lambda: vgg(11, width=16), lambda: resnet(20), digits_resnet])
def test_weights_are_he_normal_and_biases_zero(build: Callable[[], nn.Module]) -> None:
    with global_stream(0, "init"):
        model = build()
    weights = prunable(model)
    for name, p in model.named_parameters():
        values = p.detach().double()
        if name not in weights:
            assert bool((values == (0 if name.endswith("bias") else 1)).all())
            continue
        std, count = math.sqrt(2 / math.prod(p.shape[1:])), p.numel()
        assert abs(float(values.mean())) < 4 * std / math.sqrt(count)
        assert abs(float(values.std()) - std) < 4 * std / math.sqrt(2 * count)


SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "vgg19": (lambda: vgg(19, width=2), (3, 32, 32)),
    "vgg19 on larger images": (lambda: vgg(19, width=2), (3, 64, 64)),
    "resnet32": (lambda: resnet(32, width=2), (3, 32, 32)),
    "resnet18": (lambda: resnet18(width=2), (3, 64, 64)),
    "imagenet resnet50": (lambda: imagenet_resnet(50, width=2, classes=10), (3, 64, 64)),
    "digits": (lambda: digits_resnet(width=4), (1, 8, 8)),
}


@pytest.mark.parametrize("name", SMALL)
def test_the_sparse_engine_can_express_the_net(name: str) -> None:
    build, shape = SMALL[name]
    data = Arrays(torch.zeros(8, *shape, dtype=torch.uint8), torch.arange(8), (0.5,), (0.25,))
    recipe = tb.Recipe(batch=8, optimizer="sgd", lr=0.1, momentum=0.9)
    task = tb.Task(model=build, train=data, recipe=recipe)
    model = task.build(0)
    program = plan_program(model, Mask.full(model), task, data, recipe)
    assert program.output.channels == 10


@pytest.mark.parametrize("depth", [0, 10, 12, 18, "11"])
def test_other_depths_are_refused(depth: int) -> None:
    with pytest.raises(InputError, match="the depth of a VGG must be 11, 13, 16 or 19, but got"):
        vgg(depth)
    with pytest.raises(InputError, match="the depth of a ResNet for CIFAR must be 20, 32, 44, 56 or 110, but got"):
        resnet(depth)
    if depth != 18:
        with pytest.raises(InputError, match="the depth of a ResNet for ImageNet must be 18 or 50, but got"):
            imagenet_resnet(depth)
