"""Supermasks: masks under which an untrained net does well, found by training scores alone (Zhou et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from tombola.methods.base import Method, Round, Search


@dataclass(frozen=True)
class Supermask(Method):
    """Train a score for every weight, the weights themselves staying as they are drawn; the mask is what scores choose.

    By default the untrained net under that mask is what is judged (survivors ``keep``); ``reset`` trains it, from the
    same values. Scores are trained by SGD at a rate of their own, for as long as nets are. ``trains`` is ``scores`` or
    ``top_scores`` (see ``tombola.engines.scores``); the first finds its own density, so it has one round.
    """

    survivors: tuple[str, ...] = ("keep", "reset")
    straight: bool = True
    trains: str = "scores"
    rates: Mapping[str, float] = field(default_factory=dict)

    prunes: ClassVar = "during"

    @property
    def settings(self) -> Mapping[str, float]:
        """``lr``, ``momentum`` and ``weight_decay`` of the training of scores."""
        return self.rates

    def __call__(self, search: Search) -> Iterator[Round]:
        """The rounds, each a training of scores."""
        lab, chosen = search.lab, {**self.settings, **search.settings}
        dense = search.dense()
        yield Round(0, dense.mask, dense.start, dense)
        whole = search.whole(dense.model())
        own = {"optimizer": "sgd", "nesterov": False, "trains": self.trains, **chosen}
        densities = search.densities if self.trains == "top_scores" else (None,)
        for number, density in enumerate(densities, start=1):
            recipe = type(lab.recipe).model_validate({**lab.recipe.model_dump(), **own, "score_density": density})
            run = lab.train(search.seed, start=dense.start, mask=whole, recipe=recipe)
            yield search.judged(number, dense, run, run.final_mask)
