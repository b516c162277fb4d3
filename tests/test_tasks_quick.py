"""The quick tasks of one net on several data sets, and the halves of CIFAR-10 that two of them are of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tombola as tb
from tombola.engines.sparse.session import plan_program
from tombola.mask import Mask, prunable
from tombola.recipe import DrawRecipe
from tombola.tasks.data.arrays import Arrays
from tombola.tasks.data.augment import Augmented
from tombola.tasks.data.cifar import HALVES, load_cifar10, load_cifar10_half
from tombola.tasks.loading import splits_of
from tombola.tasks.quick import QUICK

pytestmark = pytest.mark.usefixtures("no_configuration")

WEIGHTS = {
    "mnist-lenet300-quick": 266_200,
    "fashion-lenet300-quick": 266_200,
    "cifar10a-lenet300-quick": 952_600,
    "cifar10b-lenet300-quick": 952_600,
    "mnist-vgg11-quick": 577_424,
    "fashion-vgg11-quick": 577_424,
    "cifar10a-vgg11-quick": 577_712,
    "cifar10b-vgg11-quick": 577_712,
}


def write(root: Path, per_class: int = 22) -> None:
    """CIFAR-10's files with so many training images of each class, and one more of class 3; all differ."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    labels = np.array([*np.tile(np.arange(10), per_class), 3], dtype=np.uint8)
    records = np.zeros((len(labels), 3073), np.uint8)
    records[:, 0] = labels
    records[:, 1], records[:, 2] = np.arange(len(labels)) % 256, np.arange(len(labels)) // 256
    for number, part in enumerate(np.array_split(records, 5), start=1):
        (folder / f"data_batch_{number}.bin").write_bytes(part.tobytes())
    (folder / "test_batch.bin").write_bytes(records[:4].tobytes())


def keys(data: Arrays) -> set[tuple[int, int]]:
    """What tells the images apart."""
    return {(int(x[0, 0, 0]), int(x[0, 0, 1])) for x in data.x}


def test_the_halves_are_disjoint_balanced_and_the_same_always(tmp_path: Path) -> None:
    write(tmp_path)
    whole, test = load_cifar10(tmp_path)
    (a, judged), (b, other) = (load_cifar10_half(tmp_path, half=half) for half in HALVES)
    assert (len(a), len(b)) == (111, 110)
    assert not keys(a) & keys(b)
    assert keys(a) | keys(b) == keys(whole)
    assert a.y.bincount().tolist() == [11, 11, 11, 12, *[11] * 6]
    assert b.y.bincount().tolist() == [11] * 10
    assert judged.digest == other.digest == test.digest
    assert load_cifar10_half(tmp_path, half="a")[0].digest == a.digest
    assert a.mean == whole.mean
    first, second = (set(half.x[half.y == 0][:, 0, 0, 0].tolist()) for half in (a, b))
    assert min(first) < max(second)
    assert min(second) < max(first), "at random, not one after the other"


def test_every_quick_task_can_be_drawn_from_as_it_stands() -> None:
    assert [task.name for task in QUICK] == list(WEIGHTS)
    for task in QUICK:
        assert tb.get_task(task.name) is task
        with torch.device("meta"):
            model = task.model()
        assert sum(p.numel() for p in prunable(model).values()) == WEIGHTS[task.name]
        assert task.input_shape is not None
        assert task.model().eval()(torch.zeros(2, *task.input_shape)).shape == (2, 10)
        DrawRecipe(task=task.name, rounds=task.rounds, allocation=task.allocation, training=task.recipe)


def test_nets_of_one_family_are_the_same_nets() -> None:
    for family in ("lenet300", "vgg11"):
        for one, other in (("mnist", "fashion"), ("cifar10a", "cifar10b")):
            name = f"{other}-{family}-quick"
            assert tb.get_task(f"{name}@{one}-{family}-quick") is tb.get_task(name)


def test_data_of_the_halves_are_split_by_the_seed(tmp_path: Path) -> None:
    write(tmp_path, 300)
    a, b = (tb.get_task(f"cifar10{half}-vgg11-quick") for half in HALVES)
    with pytest.raises(tb.InputError, match="the validation part must be 1 to"):
        a.splits(0, tmp_path)  # 2,500 of 25,000
    load = splits_of(lambda root, progress: load_cifar10_half(root, half="b", progress=progress), 100)
    first, again, other = (load(tmp_path, seed, None) for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert (len(first.train), len(first.validation)) == (1400, 100)
    assert b.load is not None


def test_a_subset_is_drawn_by_the_seed(tmp_path: Path) -> None:
    x = torch.arange(60, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
    whole = Arrays(x, torch.arange(60) % 10, (0.5,), (0.25,))
    load = splits_of(lambda root, progress: (whole, whole), 12, examples=20)
    few, again, other = (load(tmp_path, seed, None) for seed in (0, 0, 1))
    assert (len(few.train), len(few.validation)) == (20, 12)
    assert few.digest == again.digest != other.digest
    assert isinstance(few.train, Arrays)
    assert isinstance(few.validation, Arrays)
    ours, judged = ({int(i[0, 0, 0]) for i in data.x} for data in (few.train, few.validation))
    assert len(ours) == 20
    assert not ours & judged


@pytest.mark.parametrize("name", ["mnist-vgg11-quick", "cifar10a-vgg11-quick", "cifar10a-lenet300-quick"])
def test_the_sparse_engine_can_express_them(name: str) -> None:
    task = tb.get_task(name)
    assert task.input_shape is not None
    x = torch.zeros(200, *task.input_shape, dtype=torch.uint8)
    plain = Arrays(x, torch.arange(200) % 10, (0.5,), (0.25,))
    model = task.build(0)
    plan_program(model, Mask.full(model), task, Augmented(plain) if "cifar10a-vgg" in name else plain, task.recipe)
