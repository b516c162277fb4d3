"""Sparse nets found while they train: the mask changes on the way, at a constant budget or down to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from tombola.criteria import score
from tombola.durations import Duration
from tombola.errors import InputError
from tombola.mask import Mask
from tombola.methods.base import Method, Round, Search, any_engine
from tombola.pruning import prune
from tombola.recipe import DrawRecipe, Recipe, Updates
from tombola.seeds import stream
from tombola.updates.registry import RULES, make_rule, settings_of


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
    scores: ClassVar = False

    @property
    def settings(self) -> Mapping[str, float]:
        """The rule's numbers but for the density, which is the round's."""
        return {n: float(v) for n, v in settings_of(self.rule).items() if n != _OWN and isinstance(v, (int, float))}

    def check_settings(self, recipe: DrawRecipe) -> None:
        """``InputError`` for what the rule refuses."""
        make_rule(self.rule, {**recipe.settings, **({_OWN: 0.5} if self.gradual else {})})
        if self.gradual and recipe.allocation == "layerwise":
            raise InputError(
                "gradual pruning has no rounds and so no rates by layer: allocation must be global, uniform, erk or "
                "smart_ratio, but is 'layerwise'"
            )

    def __call__(self, search: Search) -> Iterator[Round]:
        """The rounds, each a training of its own."""
        recipes = [self.recipe(search, density) for density in search.densities]
        dense = search.dense()
        yield Round(0, dense.mask, dense.start, dense)
        for number, (density, recipe) in enumerate(zip(search.densities, recipes, strict=True), start=1):
            first = self._first(search, density, number)
            arm = f"ticket to {density:.2%}" if self.gradual else "ticket"
            run = search.lab.train(search.seed, start=dense.start, mask=first, recipe=recipe, arm=arm)
            yield search.judged(number, dense, run, run.final_mask)

    def recipe(self, search: Search, density: float) -> Recipe:
        """The recipe of a training to a density. ``InputError`` where no update of its mask would ever come."""
        rule, lab = RULES[self.rule], search.lab
        _, last = lab.span(search.seed, lab.recipe)
        every = Duration.of(rule.every) if search.update_every is None else search.update_every
        until = Duration(round(rule.until * last)) if search.update_until is None else search.update_until
        settings = {name: value for name, value in search.settings.items() if value != self.settings[name]}
        updates = Updates(
            rule=self.rule,
            every=every,
            until=until,
            settings=settings | ({_OWN: density} if self.gradual else {}),
            allocation=str(search.allocation) if self.gradual else None,
        )
        engine = any_engine(lab.recipe) if lab.recipe.engine == "compact" else lab.recipe.engine
        recipe = lab.recipe.model_copy(update={"updates": updates, "engine": engine})
        recipe.updating(lab.steps_per_epoch(search.seed, recipe))  # what never comes is refused before any training
        return recipe

    @property
    def gradual(self) -> bool:
        """Whether the rule goes down to a density of its own, and so begins dense."""
        return _OWN in settings_of(self.rule)

    def _first(self, search: Search, density: float, number: int) -> Mask:
        model = search.lab.task.build(search.seed)
        whole = search.whole(model)
        if self.gradual:
            return whole
        scores = score(model, "random", mask=whole, generator=stream(search.seed, "criterion", number))
        return prune(scores, density, search.allocation, within=whole)


_OWN = "density"
