"""From a net to a program: what is computed is what torch computes, and what can't be is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sparse_tools import collect, run, spread
from torch import Tensor, nn

from tombola.engines.compaction import compact
from tombola.engines.sparse.elementwise import Rectify, Sum
from tombola.engines.sparse.program import Program
from tombola.engines.sparse.translate import translate
from tombola.engines.tracing import UnsupportedError, trace
from tombola.mask import Mask

COUNT = 21
IMAGES, ROWS = (2, 6, 6), (12,)
Forward = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    """Some modules, and a way through them."""

    def __init__(self, forward: Forward, **modules: nn.Module) -> None:
        super().__init__()
        self.way = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.way(self, x)
        return out


def net_of(way: Forward, shape: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    if shape == IMAGES:
        modules: dict[str, nn.Module] = {
            "a": nn.Conv2d(2, 4, 3, padding=1),
            "b": nn.Conv2d(4, 4, 3, padding=1),
            "c": nn.Conv2d(2, 4, 1),
        }
    else:
        modules = {"a": nn.Linear(12, 4), "b": nn.Linear(4, 4), "c": nn.Linear(12, 4)}
    net = Net(way, relu=nn.ReLU(), same=nn.Identity(), **modules)
    with torch.no_grad():
        out = net(torch.zeros(2, *shape))
    return Net(lambda self, x: self.end(torch.flatten(self.net(x), 1)), net=net, end=nn.Linear(out[0].numel(), 3))


def translated(net: nn.Module, shape: tuple[int, ...]) -> Program:
    return translate(trace(net, Mask({}), torch.zeros(2, *shape)), Mask({}), 64)


def assert_same(net: nn.Module, program: Program, x: Tensor, columns: NDArray[np.int64] | None = None) -> None:
    """Output and gradients of every parameter are those of the net, in training."""
    dy = torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(1))
    program.read(net.state_dict())
    rows = x.flatten(1).numpy() if columns is None else x.flatten(1).numpy()[:, columns]
    spread(program.input, program.input.value, rows, np.float32(0))
    run(program.forward(training=True), COUNT)
    net.double().zero_grad()
    expected = net.train()(x.double())
    found = collect(program.output, program.output.value, COUNT)[:COUNT, :, 0, 0]
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    if program.output.rectified:
        dy *= expected.detach() > 0
    spread(program.output, program.output.gradient, dy.numpy(), np.float32(0))
    run(program.backward(), COUNT)
    expected.backward(dy.double())
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    for parameter in program.parameters:
        gradient = gradients[parameter.name]
        assert gradient is not None
        flat = gradient.flatten().numpy()
        exact = flat if parameter.order is None else flat[parameter.order]
        np.testing.assert_allclose(parameter.gradient, exact, rtol=1e-4, atol=1e-4, err_msg=parameter.name)


BOTH: dict[str, Forward] = {
    "a ReLU of its own layer": lambda n, x: n.b(n.relu(n.a(x))),
    "torch.relu": lambda n, x: n.b(torch.relu(n.a(x))),
    "a method": lambda n, x: n.b(n.a(x).relu()),
    "in place": lambda n, x: n.b(F.relu(n.a(x), inplace=True)),
    "relu_": lambda n, x: n.b(n.a(x).relu_()),
    "a value that is rectified and used as it is": lambda n, x: (lambda h: n.b(h) + torch.relu(h))(n.a(x)),
    "a ReLU of a ReLU": lambda n, x: n.b(torch.relu(torch.relu(n.a(x)))),
    "a ReLU of the input": lambda n, x: n.b(n.a(torch.relu(x))),
    "nothing between": lambda n, x: n.b(n.same(n.a(x)).contiguous()),
    "the same twice": lambda n, x: (lambda h: n.b(h + h))(n.a(x)),
    "a value used three times": lambda n, x: (lambda h: torch.add(n.b(h), h) + torch.relu(h))(torch.relu(n.a(x))),
    "the input used twice": lambda n, x: n.b((n.a(x) + n.c(x)).relu()),
    "a sum of rectified values": lambda n, x: n.b(torch.relu(n.a(x)) + torch.relu(n.c(x))),
    "a sum in place": lambda n, x: n.b(n.a(x).add_(n.c(x))),
    "the method add": lambda n, x: torch.relu(n.a(x).add(n.b(n.c(x)))),
}
ONLY_IMAGES: dict[str, Forward] = {
    "max_pool2d": lambda n, x: F.max_pool2d(n.a(x), 2),
    "max_pool2d, by names": lambda n, x: F.max_pool2d(n.a(x), kernel_size=3, stride=2, padding=1),
    "max_pool2d, rectangular": lambda n, x: F.max_pool2d(torch.relu(n.a(x)), (2, 3), (1, 2)),
    "avg_pool2d": lambda n, x: F.avg_pool2d(n.a(x), 2),
    "max_pool2d, part windows": lambda n, x: F.max_pool2d(n.a(x), 4, 3, ceil_mode=True),
    "avg_pool2d, without padding": lambda n, x: F.avg_pool2d(n.a(x), 3, 2, 1, True, False),
    "avg_pool2d, by size": lambda n, x: (lambda h: F.avg_pool2d(h, h.size()[3]))(n.a(x)),
    "avg_pool2d, by shape": lambda n, x: (lambda h: F.avg_pool2d(h, (h.shape[2], h.size(dim=-1))))(n.a(x)),
    "view": lambda n, x: (lambda h: h.view(h.size(0), -1))(n.a(x)),
    "reshape": lambda n, x: (lambda h: h.reshape(h.shape[0], -1))(torch.relu(n.a(x))),
    "avg_pool2d, in order": lambda n, x: F.avg_pool2d(torch.relu(n.a(x)), 3, 2, 1),
    "adaptive_avg_pool2d": lambda n, x: F.adaptive_avg_pool2d(n.a(x), (3, 2)),
    "a mean": lambda n, x: torch.relu(n.a(x)).mean((2, 3)),
    "a mean that keeps dimensions": lambda n, x: n.b(n.a(x).mean([-1, -2], keepdim=True)),
    "torch.mean": lambda n, x: torch.mean(n.a(x), dim=(3, 2)),
    "pooling of the input": lambda n, x: n.b(n.a(F.avg_pool2d(x, 2))),
    "two ways to one pixel": lambda n, x: n.a(x).mean((2, 3)) + torch.flatten(F.adaptive_avg_pool2d(n.c(x), 1), 1),
}
CASES = [(name, way, shape) for shape in (ROWS, IMAGES) for name, way in BOTH.items()]
CASES += [(name, way, IMAGES) for name, way in ONLY_IMAGES.items()]


@pytest.mark.parametrize(("name", "way", "shape"), CASES, ids=[f"{name}-{len(shape)}" for name, _, shape in CASES])
def test_the_forms_that_torch_knows(name: str, way: Forward, shape: tuple[int, ...]) -> None:
    net = net_of(way, shape)
    x = torch.randn(COUNT, *shape, generator=torch.Generator().manual_seed(2))
    assert_same(net, translated(net, shape), x)


def test_a_relu_is_part_of_the_layer_before_it_where_nothing_else_sees_that() -> None:
    fused = translated(net_of(BOTH["a ReLU of its own layer"], ROWS), ROWS)
    assert not any(isinstance(step.layer, Rectify) for step in fused.steps)
    apart = translated(net_of(BOTH["a value that is rectified and used as it is"], ROWS), ROWS)
    assert [type(step.layer) for step in apart.steps].count(Rectify) == 1
    rectified = translated(net_of(BOTH["the input used twice"], ROWS), ROWS)
    (total,) = [step for step in rectified.steps if isinstance(step.layer, Sum)]
    assert total.output.rectified


def test_the_last_layer_may_be_rectified() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3), nn.ReLU())
    assert_same(net, translated(net, ROWS), torch.randn(COUNT, *ROWS))


@pytest.mark.parametrize("images", [False, True])
def test_layers_read_around_channels_that_only_others_need(images: bool) -> None:
    """Two users of one value need different channels of it: each reads those of its kept weights."""
    torch.manual_seed(0)
    shape = IMAGES if images else ROWS

    def layer(inputs: int, outputs: int) -> nn.Module:
        return nn.Conv2d(inputs, outputs, 3, padding=1) if images else nn.Linear(inputs, outputs)

    def way(n: Any, x: Tensor) -> Any:
        h = torch.relu(n.first(x))
        return n.end(torch.flatten(n.left(h) + n.right(h), 1))

    net = Net(
        way,
        first=layer(shape[0], 8),
        left=layer(8, 4),
        right=layer(8, 4),
        end=nn.Linear(4 * (36 if images else 1), 3),
    )
    mask = {name: torch.ones_like(tensor) for name, tensor in Mask.full(net).items()}
    mask["left.weight"][:, :3] = False
    mask["right.weight"][:, 2:6] = False
    mask["left.weight"][1] = False
    mask["first.weight"][:, 1] = False  # a column of the data, or a channel, that is never read
    kept = Mask(mask)
    kept.apply_(net)
    example = torch.zeros(2, *shape)
    small = compact(net, kept, example)
    assert sum(name.startswith("select_") for name, _ in small.model.named_modules()) >= 2
    program = translate(trace(small.model, small.mask, example), small.mask, 64)
    assert program.columns is not None
    assert not (set(program.columns) & set(range(36, 72) if images else [1]))
    assert_same(small.model.float(), program, torch.randn(COUNT, *shape), program.columns)


REFUSED: list[tuple[str, Forward, tuple[int, ...]]] = [
    ("sigmoid", lambda n, x: torch.sigmoid(n.a(x)), ROWS),
    ("gelu", lambda n, x: F.gelu(n.a(x)), IMAGES),
    ("cat", lambda n, x: torch.cat([n.a(x), n.c(x)], 1), ROWS),
    ("mul", lambda n, x: n.a(x) * 2, ROWS),
    ("add .* of anything but two values of one shape", lambda n, x: n.a(x) + 1, ROWS),
    ("add", lambda n, x: 1 + n.a(x), ROWS),
    ("add .* of anything but two values", lambda n, x: torch.add(n.a(x), n.c(x), alpha=2), ROWS),
    ("add .* of one shape", lambda n, x: n.a(x) + F.adaptive_avg_pool2d(n.c(x), 1), IMAGES),
    ("adaptive_avg_pool2d .*6x6 to 4x6, which isn't a divisor", lambda n, x: F.adaptive_avg_pool2d(x, (4, 6)), IMAGES),
    ("max_pool2d .*dilation", lambda n, x: F.max_pool2d(n.a(x), 2, dilation=2), IMAGES),
    ("avg_pool2d .*divisor", lambda n, x: F.avg_pool2d(n.a(x), 2, divisor_override=3), IMAGES),
    ("mean .*rows and columns", lambda n, x: n.a(x).mean(1, keepdim=True), ROWS),
    ("mean .*rows and columns", lambda n, x: n.a(x).mean((1, 2), keepdim=True), IMAGES),
    ("flatten .*shape", lambda n, x: torch.flatten(n.a(x), 2), IMAGES),
    ("module 'net.b' is used twice", lambda n, x: n.b(n.b(n.a(x))), ROWS),
]


@pytest.mark.parametrize(("named", "way", "shape"), REFUSED, ids=[name for name, _, _ in REFUSED])
def test_what_has_no_layer_is_named(named: str, way: Forward, shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedError, match=named):
        translated(net_of(way, shape), shape)


MODULES: list[tuple[str, nn.Module, tuple[int, ...]]] = [
    ("Sigmoid", nn.Sigmoid(), ROWS),
    ("Dropout", nn.Dropout(0.5), ROWS),
    ("LayerNorm", nn.LayerNorm(12), ROWS),
    ("MaxPool2d .*dilation", nn.MaxPool2d(2, dilation=2), IMAGES),
    ("AvgPool2d .*divisor", nn.AvgPool2d(2, divisor_override=3), IMAGES),
    ("Conv2d .*padding mode 'reflect'", nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), IMAGES),
    ("ConvTranspose2d", nn.ConvTranspose2d(2, 2, 3), IMAGES),
    ("Linear .*images", nn.Linear(6, 6), IMAGES),
]


@pytest.mark.parametrize(("named", "module", "shape"), MODULES, ids=[name for name, _, _ in MODULES])
def test_modules_that_have_no_layer_are_named(named: str, module: nn.Module, shape: tuple[int, ...]) -> None:
    with torch.no_grad():
        size = module(torch.zeros(2, *shape))[0].numel()
    with pytest.raises(UnsupportedError, match=named):
        translated(nn.Sequential(module, nn.Flatten(), nn.Linear(size, 3)), shape)


def test_inputs_and_outputs_of_other_kinds_are_named() -> None:
    with pytest.raises(UnsupportedError, match=r"\(N, classes\)"):
        translated(nn.Sequential(nn.Conv2d(2, 3, 1)), IMAGES)
    with pytest.raises(UnsupportedError, match="shape"):
        translated(nn.Linear(6, 3), (2, 6))

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            out: Tensor = self.fc(x + y)
            return out

    with pytest.raises(UnsupportedError, match="2 inputs"):
        translate(trace(Two(), Mask({}), (torch.zeros(2, 4), torch.zeros(2, 4))), Mask({}), 64)

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.fc(x), x

    with pytest.raises(UnsupportedError):
        translated(Pair(), (4,))
