"""What a ticket's last pruning began with: the net that was pruned, and what it could choose from."""

from __future__ import annotations

from tombola.audits.controls.base import Subject
from tombola.criteria import compensated
from tombola.mask import Mask
from tombola.methods import Search
from tombola.tasks.task import State


def chosen_from(subject: Subject) -> Mask:
    """The weights that the last pruning of a trained net chose from, of the layers that the ticket's mask covers."""
    before = subject.round.search[-1].final_mask
    return Mask({name: before[name] for name in subject.round.mask})


def values_after(subject: Subject, search: Search, mask: Mask) -> State:
    """The final values of the net that was pruned, as they are once it is pruned to ``mask``: compensated for that
    where the criterion does so."""
    pruned = subject.round.search[-1]
    model, by = pruned.model().to(search.lab.recipe.device), search.criterion
    own = compensated(model, by, mask, mask=chosen_from(subject), **search.for_gradients(by))
    return {**pruned.final, **(own or {})}
