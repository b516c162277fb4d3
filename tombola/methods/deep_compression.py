"""Deep Compression: prune and fine-tune, share the values that are left, tune what they share (Han et al. 2016)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tombola.durations import Duration
from tombola.errors import InputError
from tombola.lab import Run
from tombola.mask import Mask
from tombola.methods.base import Round, Search, any_engine
from tombola.methods.iterative import Iterative
from tombola.recipe import DrawRecipe
from tombola.shipping.sharing import MOST_BITS, share


@dataclass(frozen=True)
class DeepCompression(Iterative):
    """Prune as ``han`` does; at each density share the survivors' values by k-means and train the centroids.

    The ticket is the tuned net, whose layers have few values each; ``tombola compress`` codes it into a file. Pruning
    goes on from the nets before sharing. Centroids are trained at the rate of fine-tuning.
    """

    @property
    def settings(self) -> Mapping[str, float]:
        """``bits`` of a linear layer's indices, and ``conv_bits`` of a convolution's: 2 to that power are its values
        at most (5 and 8, section 5 of the paper). ``tuning``: length of the training of centroids, as a share of that
        of survivors; the default is ours."""
        return {"bits": 5, "conv_bits": 8, "tuning": 0.1}

    def check_settings(self, recipe: DrawRecipe) -> None:
        """``InputError`` for bits that aren't whole numbers from 1 to 12, and a tuning that isn't above 0."""
        chosen = self.chosen(recipe.settings)
        for name in ("bits", "conv_bits"):
            if chosen[name] not in range(1, MOST_BITS + 1):
                raise InputError(f"{name} must be a whole number from 1 to {MOST_BITS}, but got {chosen[name]:g}")
        if not chosen["tuning"] > 0:
            raise InputError(f"tuning must be a share of the steps, above 0, but got {chosen['tuning']:g}")

    def trains_tickets(self, survivors: str) -> bool:
        """The ticket is the tuned net itself."""
        return False

    def __call__(self, search: Search) -> Iterator[Round]:
        """The rounds of the pruning, each with its values shared."""
        chosen = self.chosen(search.settings)
        for found in super().__call__(search):
            if found.number == 0 or found.run.diverged:
                yield found
                continue
            bits = {name: int(chosen["bits" if kept.dim() <= 2 else "conv_bits"]) for name, kept in found.mask.items()}
            tuned = _tuned(search, found.run, found.mask, bits, chosen["tuning"])
            yield Round(found.number, found.mask, tuned.final, tuned, (*found.search, found.run), found.scoring)


def _tuned(search: Search, run: Run, mask: Mask, bits: Mapping[str, int], share_of_steps: float) -> Run:
    lab = search.lab
    _, steps = lab.span(search.seed, run.recipe)
    length = Duration(max(1, round(share_of_steps * steps)))
    changes = {"trains": "centroids", "steps": length, "engine": any_engine(run.recipe)}
    recipe = run.recipe.model_copy(update=changes)
    return lab.train(search.seed, start=share(run.final, mask, bits), mask=mask, recipe=recipe, arm="shared values")
