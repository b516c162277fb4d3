"""What a sparse convolution costs, forward and both gradients, against the dense one of torch (oneDNN).

3x3 convolutions with padding 1 and no bias, one thread. The dense ones run as `F.conv2d` and its backward pass, in
both memory layouts; the faster of the two is what ratios refer to. bf16 is the same under autocast: half the bits, and
on processors with instructions for it twice the speed. The sparse ones run the calls of a training step. Every arm
repeats its work for a while, so that caches are as warm as they get at that size.

Masks keep the largest weights of one layer: Gaussian ones whose output channels differ in scale (log-normal, sigma
0.5), so that channels keep very different numbers, as they do after training. Density is that of the layer. GFLOP/s
counts two operations for each kept weight, image and pixel, three times: only the work that there is to do.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timing import begin, duration, header, interleaved, ratio, table

from tombola.engines.sparse.convolution import Convolution, halos
from tombola.engines.sparse.parts import COUNT, FRAME_SLOTS, Activation, Call, Floats
from tombola.engines.sparse.run import run_once

DENSITIES = (0.2, 0.1, 0.05, 0.02)
LAYOUTS = {"nchw": torch.contiguous_format, "channels last": torch.channels_last}
COLUMNS = (
    "density",
    "forward, ms",
    "input gradient, ms",
    "weight gradient, ms",
    "together, ms",
    "GFLOP/s",
    "times as fast as fp32",
    "times as fast as bf16",
)


class Shape(NamedTuple):
    batch: int
    inputs: int
    outputs: int
    size: int

    def __str__(self) -> str:
        return f"{self.inputs} to {self.outputs} channels, {self.size}x{self.size} pixels, batch {self.batch}"


SHAPES = (
    Shape(60, 64, 64, 32),
    Shape(60, 64, 128, 16),
    Shape(60, 128, 128, 16),
    Shape(128, 16, 16, 32),
    Shape(128, 32, 32, 16),
    Shape(128, 64, 64, 8),
)


class Arm(NamedTuple):
    name: str
    part: object


def dense(shape: Shape, layout: torch.memory_format, bf16: bool, times: int) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    images = (shape.batch, shape.inputs, shape.size, shape.size)
    x = torch.randn(images, generator=generator).to(memory_format=layout).requires_grad_()
    weight = torch.randn(shape.outputs, shape.inputs, 3, 3, generator=generator).to(memory_format=layout)
    weight.requires_grad_()
    dy = torch.randn(shape.batch, shape.outputs, shape.size, shape.size, generator=generator)
    dy = dy.to(memory_format=layout, dtype=torch.bfloat16 if bf16 else torch.float32)

    def work() -> None:
        for _ in range(times):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                y = F.conv2d(x, weight, padding=1)
            torch.autograd.grad(y, (x, weight), dy)

    return work


def magnitude_mask(shape: Shape, density: float) -> NDArray[np.bool_]:
    generator = np.random.default_rng(0)
    scale = np.exp(0.5 * generator.standard_normal((shape.outputs, 1, 1, 1)))
    score = np.abs(scale * generator.standard_normal((shape.outputs, shape.inputs, 3, 3)))
    mask: NDArray[np.bool_] = score >= np.sort(score, axis=None)[-round(density * score.size)]
    return mask


def filled(images: Activation, array: Floats, seed: int) -> None:
    halo, rows, columns = images.halo, images.height, images.width
    whole = array.reshape(-1, images.channels, rows + 2 * halo, columns + 2 * halo, 16)
    inside = whole[:, :, halo : halo + rows, halo : halo + columns]
    inside[:] = np.random.default_rng(seed).standard_normal(inside.shape, np.float32)


def sparse(shape: Shape, density: float, times: int) -> tuple[dict[str, Callable[[], None]], int]:
    """What to time, and the number of kept weights."""
    x = Activation(shape.batch, shape.inputs, shape.size, shape.size, images=True)
    y = Activation(shape.batch, shape.outputs, shape.size, shape.size, images=True)
    x.halo, y.halo = halos(x, y, (3, 3), (1, 1), (1, 1), (1, 1))
    layer = Convolution("layer", magnitude_mask(shape, density), x, y, padding=(1, 1), bias=False)
    x.allocate(gradient=True)
    y.allocate(gradient=True)
    filled(x, x.value, 1)
    filled(y, y.gradient, 2)
    layer.weight.value[:] = np.random.default_rng(3).standard_normal(layer.weight.value.size)
    weight_gradient, *input_gradient = layer.backward(input_gradient=True, accumulate=False)
    parts = {
        "forward": layer.forward(training=True),
        "input gradient": input_gradient,
        "weight gradient": [weight_gradient],
    }
    parts["together"] = [call for part in parts.values() for call in part]
    return {name: running(calls, shape.batch, times) for name, calls in parts.items()}, layer.weight.value.size


def running(calls: list[Call], batch: int, times: int) -> Callable[[], None]:
    packed = [call.packed() for call in calls]
    addresses = np.array([(c.kernel.address, p.ctypes.data) for c, p in zip(calls, packed, strict=True)], np.int64)
    frame = np.zeros(FRAME_SLOTS, np.int64)
    frame[COUNT // 8] = batch

    def work(_kept: object = (calls, packed)) -> None:
        for _ in range(times):
            run_once(addresses, frame.ctypes.data, 0, 1)

    return work


def measured(shape: Shape, repeats: int, times: int) -> str:
    arms: dict[Arm, Callable[[], object]] = {}
    for name, layout in LAYOUTS.items():
        for bf16 in (False, True):
            arms[Arm("bf16" if bf16 else "fp32", name)] = dense(shape, layout, bf16, times)
    kept = {}
    for density in DENSITIES:
        parts, kept[density] = sparse(shape, density, times)
        arms |= {Arm(name, density): work for name, work in parts.items()}
    taken = interleaved(arms, repeats)
    best = {
        kind: min((taken[Arm(kind, layout)] for layout in LAYOUTS), key=statistics.median) for kind in ("fp32", "bf16")
    }
    of = partial(duration, unit=times * 1e-3, digits=2)
    rows = []
    for density in DENSITIES:
        together = taken[Arm("together", density)]
        work = 6 * shape.batch * shape.size**2 * kept[density] * times
        rows.append(
            (
                f"{density:.0%}",
                *(of(taken[Arm(part, density)]) for part in ("forward", "input gradient", "weight gradient")),
                of(together),
                f"{work / statistics.median(together) / 1e9:.0f}",
                ratio(best["fp32"], together),
                ratio(best["bf16"], together),
            )
        )
    dense_times = "; ".join(
        f"{kind} " + ", ".join(f"{of(taken[Arm(kind, layout)])} ms {layout}" for layout in LAYOUTS) for kind in best
    )
    return f"{shape}. Dense: {dense_times}.\n\n{table(COLUMNS, rows)}\n"


def main() -> None:
    quick = begin(__doc__ or "")
    repeats, times = (3, 1) if quick else (9, 3)
    print(header("Sparse and dense 3x3 convolutions, forward and backward, one thread", repeats))
    for shape in SHAPES:
        print(measured(shape, repeats, times), flush=True)


if __name__ == "__main__":
    main()
