"""Masks as pruning leaves them, which aren't scattered evenly: whole inputs and units die, layers differ.

Fully connected nets: iterative magnitude pruning of LeNet-300-100 with the layers' shares of Frankle & Carbin (2019),
each round trained shortly from the initial weights. Convolutional nets: global magnitude pruning after a short dense
training. Data are MNIST and CIFAR-10 where the data root has them; else the embedded digits, enlarged and shifted, and
synthetic images, and ``Data.told`` says which. Masks are kept in the system's temporary folder, so that programs share
them.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import tombola as tb
from tombola.engines import Plan, open_session
from tombola.seeds import stream
from tombola.tasks.data.arrays import split
from tombola.tasks.data.digits import load_digits
from tombola.tasks.data.root import data_root
from tombola.tasks.task import Splits

ROUNDS = 26
LENET_STEPS, CONV_STEPS = 900, 200


@dataclass(frozen=True)
class Data:
    """Splits, and what they show, for people."""

    splits: Splits
    told: str


@dataclass(frozen=True)
class Masks:
    """Masks of one net, densest first."""

    masks: tuple[tb.Mask, ...]

    def nearest(self, density: float) -> tb.Mask:
        """The mask whose density is closest, as a ratio."""
        return min(self.masks, key=lambda mask: max(mask.density / density, density / mask.density))


def grey_images() -> Data:
    """55,000 training and 5,000 validation images of 28x28, or a little fewer."""
    if has("MNIST/raw/train-images-idx3-ubyte"):
        return Data(tb.get_task("mnist-lenet300").splits(0), "MNIST")
    return Data(_enlarged_digits(), "scikit-learn's digits, enlarged to 20x20 within 28x28 and shifted (no MNIST here)")


def colour_images(quick: bool = False) -> Data:
    """Training and validation images of 32x32 in three colours; with ``quick`` always synthetic ones."""
    if not quick and has("cifar-10-batches-bin/data_batch_1.bin", "cifar-10-binary.tar"):
        return Data(tb.get_task("cifar10-conv2").splits(0), "CIFAR-10")
    told = "synthetic colour images" + ("" if quick else " (no CIFAR-10 here)")
    return Data(Splits(_synthetic(1_000 if quick else 10_000, 1), _synthetic(1_000, 2), None), told)


def has(*files: str) -> bool:
    """Whether the data root holds one of these files, as it is or compressed."""
    return any((data_root() / f"{name}{ending}").exists() for name in files for ending in ("", ".gz"))


def lenet_task(data: Data) -> tb.Task:
    """LeNet-300-100 on these images, with the paper's recipe."""
    known = tb.get_task("mnist-lenet300")
    return tb.Task(
        name="lenet300-benchmark",
        model=known.model,
        load=lambda root, seed, progress: data.splits,
        recipe=known.recipe,
        relative_rates=known.relative_rates,
    )


def lenet_masks(data: Data) -> Masks:
    """The masks of 26 rounds, 100 % to 0.4 %; they take some ten seconds to make."""
    task = lenet_task(data)

    def rounds() -> Iterable[tb.Mask]:
        start = task.build(0).state_dict()
        allocation = tb.Layerwise(0.2, task.relative_rates)
        shapes = {name: tuple(p.shape) for name, p in tb.prunable(task.build(0)).items()}
        mask = tb.Mask.full(task.build(0))
        for number in range(ROUNDS):
            yield mask
            trained = _trained(task, start, mask, data, task.recipe, LENET_STEPS)
            scores = tb.score(trained, "magnitude", mask=mask)
            mask = tb.prune(scores, allocation.density_after(number + 1, shapes), allocation, within=mask)

    return _kept(f"lenet300/{data.told}/{LENET_STEPS}/{ROUNDS}", rounds)


def conv_masks(
    name: str, build: Callable[[], nn.Module], recipe: tb.Recipe, data: Data, densities: Iterable[float], quick: bool
) -> Masks:
    """Global magnitude masks of a net trained for 200 dense steps, which may take minutes; with ``quick`` for one."""
    steps, wanted = 1 if quick else CONV_STEPS, tuple(densities)
    task = tb.Task(name=name, model=build, load=lambda root, seed, progress: data.splits, recipe=recipe)

    def pruned() -> Iterable[tb.Mask]:
        start = task.build(0).state_dict()
        trained = _trained(task, start, tb.Mask.full(task.build(0)), data, recipe, steps, engine="masked")
        return [tb.prune(tb.score(trained, "magnitude"), density) for density in wanted]

    return _kept(f"{name}/{recipe.identity()}/{data.told}/{steps}/{wanted}", pruned)


def _trained(
    task: tb.Task,
    start: dict[str, torch.Tensor],
    mask: tb.Mask,
    data: Data,
    recipe: tb.Recipe,
    steps: int,
    engine: str = "sparse",
) -> nn.Module:
    model = task.build(0)
    model.load_state_dict(start)
    session = open_session(Plan(engine, ""), model, mask, task, data.splits.train, recipe, 0)
    session.stretch(steps)
    return session.model


def _kept(about: str, make: Callable[[], Iterable[tb.Mask]]) -> Masks:
    """Masks from the temporary folder, made at first use."""
    key = hashlib.sha256(f"{about}/{tb.__version__}/{torch.__version__}".encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / "tombola-benchmark-masks" / f"{key}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"{i:03}/{name}": kept for i, mask in enumerate(make()) for name, kept in mask.items()}
        part = path.with_suffix(f".{os.getpid()}")
        save_file(tensors, part)
        part.replace(path)
    masks: dict[str, dict[str, torch.Tensor]] = {}
    for entry, kept in sorted(load_file(path).items()):
        number, _, name = entry.partition("/")
        masks.setdefault(number, {})[name] = kept
    return Masks(tuple(tb.Mask(tensors) for _, tensors in sorted(masks.items())))


def _enlarged_digits() -> Splits:
    """The digits at 20x20 in the middle of 28x28, and shifted by up to two pixels each way: 25 of each."""
    (train, test) = (_enlarged(part) for part in load_digits())
    kept, held_out = split(len(train), 5_000, 0)
    return Splits(train.select(kept), train.select(held_out), test)


def _enlarged(digits: tb.Arrays) -> tb.Arrays:
    large = F.interpolate(digits.x.float(), size=20, mode="bilinear").round_().to(torch.uint8)
    shifts = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
    x = torch.cat([F.pad(large, (4 + right, 4 - right, 4 + down, 4 - down)) for down, right in shifts])
    return tb.Arrays(x, digits.y.repeat(len(shifts)), mean=(0.147,), std=(0.261,))


def _synthetic(count: int, seed: int) -> tb.Arrays:
    """Ten fixed colour patterns under noise, one label in ten random."""
    patterns = torch.randint(0, 160, (10, 3, 32, 32), generator=stream(0, "patterns"), dtype=torch.uint8)
    generator = stream(seed, "examples")
    shown = torch.randint(10, (count,), generator=generator)
    noise = torch.randint(0, 96, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    wrong = torch.rand(count, generator=generator) < 0.1
    y = torch.where(wrong, torch.randint(10, (count,), generator=generator), shown)
    return tb.Arrays(patterns[shown] + noise, y, mean=(0.5,), std=(0.25,))
