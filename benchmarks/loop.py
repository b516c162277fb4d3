"""What a whole training costs: Tombola's loop against the same work written by hand around a DataLoader.

LeNet-300-100, 2,000 steps of batch 60 with fused Adam, dense, one thread; loss and accuracy on 5,000 validation images
before the first step and after every 100, and the best state kept. 55,000 synthetic training images of MNIST's shape.

Loops: ``Lab.train`` with a new store, so with checksums of data and start and the stored result; ``train``, the loop
under it; a ``DataLoader`` over a ``TensorDataset`` of normalised images; and a ``DataLoader`` over a dataset that
converts and normalises one image at a time, as code around torchvision does (here without its detour through PIL, so
cheaper than that). Both DataLoaders work in the process itself (``num_workers=0``).
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timing import begin, duration, header, images, interleaved, ratio, table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import tombola as tb
from tombola.tasks.task import Splits
from tombola.training.loop import train

BATCH, EVERY, EVALUATION_BATCH, LR = 60, 100, 1000, 1.2e-3
LAB = "Lab.train, with a store"
Loader = DataLoader[tuple[Tensor, Tensor]]


class ImageByImage(Dataset[tuple[Tensor, int]]):
    """Converts and normalises each image when it is asked for."""

    def __init__(self, data: tb.Arrays) -> None:
        self.images, self.labels = data.x, data.y.tolist()
        self.mean, self.std = data.mean[0], data.std[0]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return (self.images[index].float() / 255 - self.mean) / self.std, self.labels[index]


def in_one_piece(data: tb.Arrays) -> TensorDataset:
    """All images normalised beforehand."""
    return TensorDataset(*data.take(torch.arange(len(data))))


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader) -> tuple[float, float]:
    """Mean loss and accuracy over a data set."""
    model.eval()
    loss, right, seen = 0.0, 0, 0
    for x, y in loader:
        out = model(x)
        loss += float(F.cross_entropy(out, y, reduction="sum"))
        right += int((out.argmax(dim=1) == y).sum())
        seen += len(y)
    model.train()
    return loss / seen, right / seen


def by_hand(model: nn.Module, training: Loader, validation: Loader, steps: int) -> float:
    """An ordinary training loop with early stopping after the fact; the lowest validation loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    best, best_state, step = evaluate(model, validation)[0], copy.deepcopy(model.state_dict()), 0
    while True:
        for x, y in training:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
            if step % EVERY == 0:
                judged = evaluate(model, validation)[0]
                if judged < best:
                    best, best_state = judged, copy.deepcopy(model.state_dict())
            if step == steps:
                model.load_state_dict(best_state)
                return best


def with_loaders(task: tb.Task, data: Dataset[Any], held_out: Dataset[Any], steps: int) -> float:
    training: Loader = DataLoader(data, batch_size=BATCH, shuffle=True)
    return by_hand(task.build(0), training, DataLoader(held_out, batch_size=EVALUATION_BATCH), steps)


def main() -> None:
    quick = begin(__doc__ or "")
    repeats, steps = (3, 100) if quick else (5, 2000)
    title = header(
        f"A training of LeNet-300-100, {steps:,} steps of batch 60 with evaluations on 5,000 images", repeats
    )
    data, held_out = images(55_000, seed=1), images(5_000, seed=2)

    def load(root: Path | None, seed: int, progress: object) -> Splits:
        return Splits(replace(data), replace(held_out), None)  # new objects: they don't know their checksums yet

    task = tb.Task(name="synthetic", model=tb.get_task("mnist-lenet300").model, load=load)
    recipe = tb.Recipe(steps=tb.Duration(steps), batch=BATCH, lr=LR, evaluate_every=tb.Duration(EVERY), engine="masked")

    def through_lab() -> None:
        with tempfile.TemporaryDirectory() as folder, tb.Store(folder) as store:
            tb.Lab(task, store, recipe=recipe).train(0)

    def through_train() -> None:
        model = task.build(0)
        train(task, task.splits(0), recipe, 0, model, tb.Mask.full(model))

    whole, held_out_whole = in_one_piece(data), in_one_piece(held_out)
    single, held_out_single = ImageByImage(data), ImageByImage(held_out)
    arms: dict[str, Callable[[], object]] = {
        LAB: through_lab,
        "train, the loop under it": through_train,
        "DataLoader, TensorDataset": lambda: with_loaders(task, whole, held_out_whole, steps),
        "DataLoader, image by image": lambda: with_loaders(task, single, held_out_single, steps),
    }
    times = interleaved(arms, repeats)
    print(title)
    rows = [(name, duration(taken, digits=2), ratio(taken, times[LAB])) for name, taken in times.items()]
    print(table(("loop", "seconds", "against Lab.train"), rows))


if __name__ == "__main__":
    main()
