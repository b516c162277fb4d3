"""Rivals: the ticket's mask, trained from the final values of the net that was pruned (Renda et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable

from tombola.audits.controls.base import Asked, Control, Subject
from tombola.audits.controls.pruned import values_after
from tombola.durations import Duration
from tombola.errors import InputError
from tombola.lab import Run
from tombola.methods import Method
from tombola.methods.base import Survivors
from tombola.methods.given import Given
from tombola.methods.supermask import Supermask


def rival(name: str, kind: str) -> Callable[[Subject, int], Run]:
    """The training of the rival ``name``: the same mask with these survivors.

    The values are the final ones of the net that the last round has pruned, compensated for that where the criterion
    does so. LR rewinding replays the schedule from the step that the ticket is rewound to, so that both take as long;
    fine-tuning takes as long as the whole training.

    Raises ``InputError`` where no net was trained before it was pruned.
    """

    def train(subject: Subject, draw: int) -> Run:
        search, method = subject.found_by(name)
        if (reason := _untrained(method)) is not None or not subject.round.search:
            raise InputError(f"control {name!r} {reason or _NO_NET}: leave it out")
        back_to = search.survivors.back_to if kind == "lr-rewind" else Duration(0)
        recipe = Survivors(kind, back_to).recipe(search.lab, search.seed)
        mask = subject.round.mask
        values = values_after(subject, search, mask)
        return search.lab.train(search.seed, start=values, mask=mask, recipe=recipe, arm=name, draw=draw)

    return train


def _untrained(method: Method) -> str | None:
    if method.prunes == "before" or isinstance(method, Supermask):
        return "trains the final values of the net that was pruned, but this method prunes an untrained one"
    return _NO_NET if isinstance(method, Given) else None


_NO_NET = "trains the final values of the net that was pruned, but this ticket comes without that net"


def _reason(kind: str) -> Callable[[Asked], str | None]:
    def reason(asked: Asked) -> str | None:
        if asked.recipe.survivors == kind:
            return f"trains the ticket's mask in another way than the ticket, but survivors is {kind!r} already"
        return _untrained(asked.method)

    return reason


def _rival(name: str, kind: str, text: str) -> Control:
    return Control(name, text, "recipe", rival(name, kind), draws=False, reason=_reason(kind))


RIVALS = (
    _rival("lr_rewind", "lr-rewind", "The same mask on final values, with the learning rates replayed."),
    _rival("fine_tune", "fine-tune", "The same mask on final values, trained on at the last learning rate."),
)
