"""The tasks of deep nets: recipes as the papers have them, splits with augmented training images, a net that learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tombola as tb
from tombola.engines import Plan, open_session
from tombola.engines.sparse.session import plan_program
from tombola.errors import DataError
from tombola.mask import Mask, prunable
from tombola.recipe import DrawRecipe
from tombola.tasks.data.arrays import Arrays
from tombola.tasks.data.augment import Augmented
from tombola.tasks.data.imagenet import ImageFolder
from tombola.tasks.deep import DEEP
from tombola.tasks.loading import augmented_splits, imagenet_splits, splits_of

WEIGHTS = {
    "digits-conv": 19_408,
    "cifar10-vgg11-quick": 577_712,
    "cifar10-resnet20-quick": 67_992,
    "cifar10-vgg11": 9_222_848,
    "cifar10-vgg16": 14_715_584,
    "cifar100-vgg16": 14_761_664,
    "cifar10-vgg19": 20_024_000,
    "cifar100-vgg19": 20_070_080,
    "cifar10-resnet20": 270_896,
    "cifar10-resnet18": 270_896,
    "cifar10-resnet32": 1_855_584,
    "cifar100-resnet32": 1_867_104,
    "svhn-resnet20": 270_896,
    "tiny-imagenet-resnet18": 11_261_632,
    "tiny-imagenet-vgg19": 20_121_280,
    "imagenet-resnet50": 25_502_912,
    "places365-resnet50": 24_202_432,
}
CLASSES = {"cifar100": 100, "tiny": 200, "imagenet": 1000, "places365": 365}


def test_every_task_has_its_net_and_can_be_drawn_from_as_it_stands() -> None:
    assert [task.name for task in DEEP] == list(WEIGHTS)
    for task in DEEP:
        assert tb.get_task(task.name) is task
        with torch.device("meta"):
            model = task.model()
        assert sum(p.numel() for p in prunable(model).values()) == WEIGHTS[task.name]
        assert model.get_submodule("fc").out_features == CLASSES.get(task.name.split("-")[0], 10)
        DrawRecipe(task=task.name, rounds=task.rounds, allocation=task.allocation, training=task.recipe)


@pytest.mark.parametrize("name", ["cifar10-vgg19", "cifar100-vgg19", "cifar10-resnet32", "cifar100-resnet32"])
def test_grasps_recipe_falls_to_a_tenth_at_half_and_three_quarters(name: str) -> None:
    recipe = tb.get_task(name).recipe
    per_epoch = recipe.steps_per_epoch(45_000)
    assert per_epoch == 352
    assert recipe.steps.steps(per_epoch) == 160 * 352
    rates = [round(recipe.lr_at(epoch * per_epoch, per_epoch), 9) for epoch in (0, 79, 80, 119, 120, 159)]
    assert rates == [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    assert (recipe.optimizer, recipe.momentum, recipe.nesterov, recipe.batch) == ("sgd", 0.9, False, 128)
    assert recipe.weight_decay == (5e-4 if "vgg" in name else 1e-4)


@pytest.mark.parametrize("name", ["cifar10-vgg16", "cifar100-vgg16"])
def test_synflows_recipe_uses_nesterov_and_drops_at_60_and_120(name: str) -> None:
    recipe = tb.get_task(name).recipe
    rates = [round(recipe.lr_at(epoch * 352, 352), 9) for epoch in (59, 60, 119, 120)]
    assert rates == [0.1, 0.01, 0.01, 0.001]
    assert (recipe.nesterov, recipe.weight_decay, recipe.batch) == (True, 1e-4, 128)


def test_the_resnet18_of_the_lottery_ticket_paper_warms_up_to_its_first_drop() -> None:
    recipe = tb.get_task("cifar10-resnet18").recipe
    assert recipe.steps.steps(352) == 30_000
    rates = [round(recipe.lr_at(step, 352), 9) for step in (0, 10_000, 19_999, 20_000, 25_000)]
    assert rates == [0, 0.015, 0.0299985, 0.003, 0.0003]


def fake(n: int = 60, test: int = 5, side: int = 8) -> Any:
    """A loader of images that can be told apart."""
    x = torch.arange(n + test)[:, None, None, None].expand(-1, 3, side, side).to(torch.uint8).contiguous()
    whole = Arrays(x, torch.arange(n + test) % 10, (0.5,), (0.25,))
    return lambda root, progress=None: (whole.select(torch.arange(n)), whole.select(torch.arange(n, n + test)))


def numbers(data: Any) -> list[int]:
    plain = data.plain if isinstance(data, Augmented) else data
    return [int(image[0, 0, 0]) for image in plain.x]


@pytest.mark.parametrize("flip", [True, False])
def test_training_images_vary_and_those_that_judge_do_not(tmp_path: Path, flip: bool) -> None:
    splits = augmented_splits(fake(), 12, flip=flip)(tmp_path, 0, None)
    assert isinstance(splits.train, Augmented)
    assert (splits.train.pad, splits.train.flip) == (4, flip)
    assert isinstance(splits.validation, Arrays)
    assert isinstance(splits.test, Arrays)
    assert sorted(numbers(splits.train) + numbers(splits.validation)) == list(range(60))
    assert len(splits.validation) == 12
    plain = splits_of(fake(), 12)(tmp_path, 0, None)
    assert numbers(plain.validation) == numbers(splits.validation)
    assert splits.digest != plain.digest


def test_a_subset_is_drawn_by_the_seed_from_what_is_not_held_out(tmp_path: Path) -> None:
    load = augmented_splits(fake(), 12, examples=20)
    first, again, other = (load(tmp_path, seed, None) for seed in (0, 0, 1))
    assert len(set(numbers(first.train))) == 20
    assert not set(numbers(first.train)) & set(numbers(first.validation))
    assert first.digest == again.digest != other.digest
    assert numbers(first.train) != numbers(other.train)
    assert len(augmented_splits(fake(), 12, examples=1000)(tmp_path, 0, None).train) == 48


def test_imagenet_needs_its_folders(tmp_path: Path) -> None:
    task = tb.get_task("imagenet-resnet50")
    with pytest.raises(DataError, match=r"image-net\.org"):
        task.splits(0, tmp_path)
    for part in ("train", "val"):
        for name in ("n01", "n02"):
            (tmp_path / "imagenet" / part / name).mkdir(parents=True)
            for number in range(4):
                (tmp_path / "imagenet" / part / name / f"{number}.JPEG").touch()
    splits = imagenet_splits(3)(tmp_path, 0, None)
    assert isinstance(splits.train, ImageFolder)
    assert isinstance(splits.validation, ImageFolder)
    assert isinstance(splits.test, ImageFolder)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (5, 3, 8)
    assert not set(splits.train.files) & set(splits.validation.files)


@pytest.mark.parametrize("name", ["cifar10-vgg11-quick", "cifar10-resnet20-quick"])
def test_the_sparse_engine_can_express_the_quick_tasks(name: str) -> None:
    task = tb.get_task(name)
    train, _ = fake(side=32)(None)
    model = task.build(0)
    plan_program(model, Mask.full(model), task, train, task.recipe)


def test_the_small_net_learns_the_digits() -> None:
    task = tb.get_task("digits-conv")
    splits, model = task.splits(0), task.build(0)
    session = open_session(Plan("masked", ""), model, Mask.full(model), task, splits.train, task.recipe, 0)
    before = session.evaluate(splits.validation)["accuracy"]
    session.stretch(120)
    assert before < 0.3
    assert session.evaluate(splits.validation)["accuracy"] > 0.85
