"""The built-in nets: names, counts, shapes, and the distribution they are drawn from."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tombola.errors import InputError
from tombola.mask import prunable
from tombola.seeds import global_stream
from tombola.tasks.models import conv_net, gaussian_glorot_, lenet5, lenet300, mlp

NETS: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...], dict[str, tuple[int, ...]]]] = {
    "lenet300": (
        lenet300,
        266_200,
        (1, 28, 28),
        {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "fc3.weight": (10, 100)},
    ),
    "lenet5": (
        lenet5,
        430_500,
        (1, 28, 28),
        {
            "conv1.weight": (20, 1, 5, 5),
            "conv2.weight": (50, 20, 5, 5),
            "fc1.weight": (500, 800),
            "fc2.weight": (10, 500),
        },
    ),
    "conv2": (
        lambda: conv_net(2),
        4_300_992,
        (3, 32, 32),
        {
            "conv1.weight": (64, 3, 3, 3),
            "conv2.weight": (64, 64, 3, 3),
            "fc1.weight": (256, 16 * 16 * 64),
            "fc2.weight": (256, 256),
            "fc3.weight": (10, 256),
        },
    ),
    "conv4": (
        lambda: conv_net(4),
        2_425_024,
        (3, 32, 32),
        {
            "conv1.weight": (64, 3, 3, 3),
            "conv2.weight": (64, 64, 3, 3),
            "conv3.weight": (128, 64, 3, 3),
            "conv4.weight": (128, 128, 3, 3),
            "fc1.weight": (256, 8 * 8 * 128),
            "fc2.weight": (256, 256),
            "fc3.weight": (10, 256),
        },
    ),
    "conv6": (
        lambda: conv_net(6),
        2_261_184,
        (3, 32, 32),
        {
            "conv1.weight": (64, 3, 3, 3),
            "conv2.weight": (64, 64, 3, 3),
            "conv3.weight": (128, 64, 3, 3),
            "conv4.weight": (128, 128, 3, 3),
            "conv5.weight": (256, 128, 3, 3),
            "conv6.weight": (256, 256, 3, 3),
            "fc1.weight": (256, 4 * 4 * 256),
            "fc2.weight": (256, 256),
            "fc3.weight": (10, 256),
        },
    ),
}


def build(name: str) -> nn.Module:
    with global_stream(0, "init"):
        return NETS[name][0]()


@pytest.mark.parametrize("name", NETS)
def test_names_shapes_and_counts_are_the_papers(name: str) -> None:
    _, count, _, shapes = NETS[name]
    model = build(name)
    assert {n: tuple(p.shape) for n, p in prunable(model).items()} == shapes
    assert sum(p.numel() for p in prunable(model).values()) == count
    names = [n for weight in shapes for n in (weight, weight.replace("weight", "bias"))]
    assert [n for n, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("name", NETS)
def test_ten_logits_for_each_image(name: str) -> None:
    images = torch.randn(3, *NETS[name][2])
    logits = build(name)(images)
    assert logits.shape == (3, 10)
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("name", NETS)
def test_weights_are_gaussian_glorot_and_biases_zero(name: str) -> None:
    for n, p in build(name).named_parameters():
        values = p.detach().double()
        if n.endswith("bias"):
            assert not values.any()
            continue
        field = math.prod(p.shape[2:])
        std = math.sqrt(2 / (field * (p.shape[0] + p.shape[1])))
        count = p.numel()
        assert abs(float(values.mean())) < 3 * std / math.sqrt(count)
        assert abs(float(values.std()) - std) < 3 * std / math.sqrt(2 * count)
        # Of a normal distribution 68.27 % lie within one deviation; of a uniform one of that deviation 57.7 % do.
        assert abs(float((values.abs() < std).double().mean()) - 0.6827) < 3 * math.sqrt(0.6827 * 0.3173 / count)


def test_the_draw_is_decided_by_the_global_state() -> None:
    first, again = build("lenet300"), build("lenet300")
    with global_stream(1, "init"):
        other = lenet300()
    for p, q, r in zip(prunable(first).values(), prunable(again).values(), prunable(other).values(), strict=True):
        assert torch.equal(p, q)
        assert not bool((p == r).all())


def test_mlp_flattens_and_has_a_relu_between_layers() -> None:
    model = mlp(4, 3, 2)
    assert [type(layer) for layer in model.children()] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
    first, last = (dict(model.named_parameters())[f"fc{i}.weight"] for i in (1, 2))
    x = torch.randn(5, 2, 2)
    assert torch.equal(model(x), x.reshape(5, 4).matmul(first.T).relu().matmul(last.T))


def test_conv_nets_pool_after_every_pair() -> None:
    layers = [name for name, _ in conv_net(4).named_children()]
    assert layers == [
        *("conv1", "conv_relu1", "conv2", "conv_relu2", "pool1", "conv3", "conv_relu3", "conv4", "conv_relu4", "pool2"),
        *("flatten", "fc1", "fc_relu1", "fc2", "fc_relu2", "fc3"),
    ]


def test_glorot_leaves_other_modules_alone_and_does_without_biases() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3, bias=False), nn.BatchNorm2d(2), nn.Linear(2, 2))
    assert gaussian_glorot_(model) is model
    parameters = dict(model.named_parameters())
    assert parameters["1.weight"].tolist() == [1, 1]
    assert parameters["2.bias"].tolist() == [0, 0]
    assert list(parameters) == ["0.weight", "1.weight", "1.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("depth", [0, 1, 3, 5, 8, -2])
def test_other_depths_are_refused(depth: int) -> None:
    with pytest.raises(InputError, match=f"the depth of a convolutional net must be 2, 4 or 6, but got {depth}"):
        conv_net(depth)
