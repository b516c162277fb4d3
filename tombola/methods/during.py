"""Sparse nets found while they train: the mask changes on the way, at a constant budget or down to it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from tombola.criteria import score
from tombola.durations import Duration
from tombola.mask import Mask
from tombola.methods.base import Method, Round, Search
from tombola.pruning import prune
from tombola.recipe import Recipe, Updates
from tombola.seeds import stream
from tombola.updates.registry import RULES, make_rule


@dataclass(frozen=True)
class During(Method):
    """Train once for each density, from the initial weights, with a rule that updates the mask on the way.

    A rule with a budget begins with a random mask of that density, the one of ``random_at_init`` with the same
    allocation; gradual pruning begins dense. By default the net trained so is what is judged (survivors ``keep``): the
    ticket has its final mask and final values. Other survivors train the mask that was found once more.
    """

    survivors: tuple[str, ...] = ("keep", "reset", "rewind", "fine-tune")
    straight: bool = True
    rule: str = ""

    prunes: ClassVar = "during"
    updates: ClassVar = True

    @property
    def settings(self) -> Mapping[str, float]:
        """The rule's settings but for the density, which is the round's."""
        fields = {f.name: f for f in dataclasses.fields(RULES[self.rule])}  # type: ignore[arg-type]
        return {n: math.nan if f.default is dataclasses.MISSING else f.default for n, f in fields.items() if n != _OWN}

    def __call__(self, search: Search) -> Iterator[Round]:
        """The rounds, each a training of its own."""
        recipes = [self.recipe(search, density) for density in search.densities]
        dense = search.dense()
        yield Round(0, dense.mask, dense.start, dense)
        for number, (density, recipe) in enumerate(zip(search.densities, recipes, strict=True), start=1):
            first = self._first(search, density, number)
            run = search.lab.train(search.seed, start=dense.start, mask=first, recipe=recipe)
            yield search.judged(number, dense, run, run.final_mask)

    def recipe(self, search: Search, density: float) -> Recipe:
        """The recipe of a training to a density. ``InputError`` for settings that the rule refuses."""
        rule, lab = RULES[self.rule], search.lab
        settings = {**search.settings, **({_OWN: density} if self.gradual else {})}
        make_rule(self.rule, settings)  # what it refuses is refused before anything is trained
        steps = lab.recipe.steps.steps(lab.steps_per_epoch(search.seed, lab.recipe))
        updates = Updates(
            rule=self.rule,
            every=search.update_every or Duration.of(rule.every),
            until=search.update_until or Duration(round(rule.until * steps)),
            settings=settings,
            allocation=search.allocation if self.gradual else None,
        )
        return lab.recipe.model_copy(update={"updates": updates})

    @property
    def gradual(self) -> bool:
        """Whether the rule goes down to a density of its own, and so begins dense."""
        return any(field.name == _OWN for field in dataclasses.fields(RULES[self.rule]))  # type: ignore[arg-type]

    def _first(self, search: Search, density: float, number: int) -> Mask:
        model = search.lab.task.build(search.seed)
        whole = search.whole(model)
        if self.gradual:
            return whole
        scores = score(model, "random", mask=whole, generator=stream(search.seed, "criterion", number))
        return prune(scores, density, search.allocation, within=whole)


_OWN = "density"
