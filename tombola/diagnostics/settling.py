"""How channel masks settle while a net trains: their distances from epoch to epoch (You et al. 2020, section 3).

The masks are those that Early-Bird would draw after each epoch, and nothing is ever pruned. Where a ticket would be
drawn is told by the rule of ``tombola.early_bird``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tombola.diagnostics.trajectory import states
from tombola.durations import Duration
from tombola.early_bird import DISTANCE, WINDOW, channel_mask, check_rule, distances, drawn_at, scales
from tombola.errors import InputError, TombolaError
from tombola.lab import Lab
from tombola.mask import Mask

Row = dict[str, Any]


@dataclass(frozen=True)
class Looks:
    """The channel masks of one training after each of its epochs, the first of which is 1."""

    seed: int
    density: float
    """Channels kept / all channels."""
    masks: tuple[Mask, ...]
    window: int = WINDOW
    distance: float = DISTANCE

    @property
    def drawn(self) -> int | None:
        """The epoch after which a ticket is drawn; None where the training is over before."""
        found = drawn_at(self.masks, self.window, self.distance)
        return None if found is None else found + 1


def settling(
    lab: Lab, seed: int, densities: Sequence[float], *, window: int = WINDOW, distance: float = DISTANCE
) -> list[Looks]:
    """Train the dense net by the lab's recipe and look at its channel masks after every whole epoch.

    ``densities`` are of channels, each with masks of its own. The training is kept in the store with its states at
    those epochs, which later looks read. One that diverged is looked at up to there.

    Raises ``InputError`` for a net without batch normalisation and for fewer than two epochs, both before anything is
    trained, and ``TombolaError`` where the net diverges before its second epoch is over.
    """
    model = lab.task.build(seed)
    for density in densities:
        channel_mask(scales(model), density)
    check_rule(window, distance)
    recipe = lab.recipe
    per_epoch = lab.steps_per_epoch(seed, recipe)
    epochs = recipe.steps.steps(per_epoch) // per_epoch
    if epochs < 2:
        raise InputError(
            f"masks are compared between epochs, but {recipe.steps} are fewer than two epochs of {per_epoch} steps: "
            "train for longer"
        )
    steps = [per_epoch * epoch for epoch in range(1, epochs + 1)]
    run = lab.train(seed, recipe=recipe, arm="dense", keep=[Duration(step) for step in steps])
    looks: dict[float, list[Mask]] = {density: [] for density in densities}
    for state in states(run, steps).values():
        model.load_state_dict(state)
        found = scales(model)
        for density in densities:
            looks[density].append(channel_mask(found, density))
    if any(len(masks) < 2 for masks in looks.values()):
        raise TombolaError(f"the net of seed {seed} diverged before its second epoch was over: lower the learning rate")
    return [Looks(seed, density, tuple(masks), window, distance) for density, masks in looks.items()]


def settling_rows(found: Sequence[Looks]) -> list[Row]:
    """A row for each two epochs: ``seed``, ``density``, ``epoch``, one ``before``, and the ``distance`` of their masks.

    ``drawn`` is the epoch after which that seed and density has its ticket; None where it has none.
    """
    rows = []
    for looks in found:
        matrix, drawn = distances(looks.masks).tolist(), looks.drawn
        about = {"seed": looks.seed, "density": looks.density}
        rows += [
            {**about, "epoch": one + 1, "before": other + 1, "distance": matrix[one][other], "drawn": drawn}
            for one in range(len(looks.masks))
            for other in range(one)
        ]
    return rows


def recent_rows(found: Sequence[Looks]) -> list[Row]:
    """A row for each epoch but the first: ``last`` is the distance to the epoch before, ``furthest`` the largest to any
    of those in the queue, None while that isn't full; ``drawn`` is whether the ticket is drawn there."""
    rows = []
    for looks in found:
        matrix, drawn = distances(looks.masks), looks.drawn
        for epoch in range(2, len(looks.masks) + 1):
            row = matrix[epoch - 1]
            full = epoch >= looks.window
            rows.append(
                {
                    "seed": looks.seed,
                    "density": looks.density,
                    "epoch": epoch,
                    "last": float(row[epoch - 2]),
                    "furthest": float(row[epoch - looks.window : epoch - 1].max()) if full else None,
                    "drawn": epoch == drawn,
                }
            )
    return rows
