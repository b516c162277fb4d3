"""Supermasks: masks under which an untrained net does well, found by training scores alone (Zhou et al. 2019)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from tombola.methods.base import Method, Round, Search, any_engine
from tombola.recipe import DrawRecipe, Recipe, checked


@dataclass(frozen=True)
class Supermask(Method):
    """Train a score for every weight, the weights themselves staying as they are drawn; the mask is what scores choose.

    By default the untrained net under that mask is what is judged (survivors ``keep``); ``reset`` trains it, from the
    same values. Scores are trained by SGD at a rate of their own, for as long as nets are. ``trains`` is ``scores`` or
    ``top_scores`` (see ``tombola.engines.scores``); the first finds its own density, so it has one round, and none
    (with a warning) where no weight is more likely in the net than not.
    """

    allocation: str | None = "global"
    survivors: tuple[str, ...] = ("keep", "reset")
    straight: bool = True
    trains: str = "scores"
    rates: Mapping[str, float] = field(default_factory=dict)

    prunes: ClassVar = "during"
    scores: ClassVar = False
    spreads: ClassVar = False

    @property
    def settings(self) -> Mapping[str, float]:
        """``lr``, ``momentum`` and ``weight_decay`` of the training of scores."""
        return self.rates

    def check_settings(self, recipe: DrawRecipe) -> None:
        """``InputError`` for values that a recipe doesn't take."""
        self.recipe(recipe.training, self.chosen(recipe.settings), None if self.trains == "scores" else 0.5)

    def __call__(self, search: Search) -> Iterator[Round]:
        """The rounds, each a training of scores."""
        lab, dense = search.lab, search.dense()
        yield Round(0, dense.mask, dense.start, dense)
        whole = search.whole(dense.model())
        densities: Sequence[float | None] = [None] if self.trains == "scores" else search.densities
        for number, density in enumerate(densities, start=1):
            recipe = self.recipe(lab.recipe, self.chosen(search.settings), density)
            arm = "scores" if density is None else f"scores for {density:.2%}"
            run = lab.train(search.seed, start=dense.start, mask=whole, recipe=recipe, arm=arm)
            if run.final_mask.kept:
                yield search.judged(number, dense, run, run.final_mask)
            else:
                warnings.warn(
                    f"after {run.summary['steps']:,} steps no weight is more likely in the net than not, "
                    "so there is no ticket: train longer, or raise the rate of scores (settings: lr)",
                    stacklevel=2,
                )

    def recipe(self, training: Recipe, chosen: Mapping[str, float], density: float | None) -> Recipe:
        """The recipe of a training of scores, in which ``density`` of each layer is in the net."""
        own = {"optimizer": "sgd", "nesterov": False, "trains": self.trains, "engine": any_engine(training), **chosen}
        return checked(Recipe, {**training.model_dump(), **own, "score_density": density})
