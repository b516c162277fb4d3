"""Controls whose mask is found on data that are spoilt, and then trained on the true ones (Su et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tombola.audits.controls.base import Asked, Control, Subject, lab_of, trained
from tombola.audits.controls.corruption import corrupted, unfit
from tombola.criteria import criterion, score, traits
from tombola.errors import TombolaError
from tombola.lab import Lab, Run
from tombola.mask import Mask
from tombola.methods import Method, Search
from tombola.methods.base import Survivors
from tombola.methods.given import Given
from tombola.tasks.task import examples


def found_on(name: str) -> Callable[[Subject, int], Run]:
    """The training of the control ``name``: the whole search on spoilt data, then its mask on the true ones.

    The search begins with the true initial values, and its runs are in the store beside all others; one of a method
    that prunes before training trains nothing. It sees no example as it is: validation data are spoilt alike, each in
    itself, though masks depend on training data alone. The mask is trained as the ticket's is, from the values that
    the ticket's weights had before masking; where these are trained ones, a position that an earlier round has pruned
    starts at the 0 that it has.

    Raises ``TombolaError`` where the search comes to no such round, as its net diverged.
    """

    def train(subject: Subject, draw: int) -> Run:
        search, method = subject.found_by(name)
        task = search.lab.task
        splits = corrupted(search.lab.splits(search.seed), name, search.seed, draw)
        parts: dict[str, Any] = {"train": splits.train, "validation": splits.validation, "test": None, "load": None}
        spoilt = replace(task, name=f"{task.name}, {name}", **parts)
        mask = _mask(search, method, lab_of(search.lab, spoilt), subject.round.number)
        if mask is None:
            raise TombolaError(
                f"control {name!r} found no mask for round {subject.round.number}: the search on spoilt data ended "
                "before, as its net diverged or settled on none; train longer or at a lower learning rate"
            )
        return trained(subject, name, draw, mask=mask)

    return train


def _mask(search: Search, method: Method, lab: Lab, number: int) -> Mask | None:
    """The mask of a round of the same search in another lab."""
    if method.prunes == "before":
        found: Iterator[tuple[int, Mask]] = enumerate(method.masks(replace(search, lab=lab)), start=1)
    else:
        # What is found during a training doesn't depend on what is trained from it afterwards.
        survivors = Survivors("keep") if method.prunes == "during" else search.survivors
        rounds = method(replace(search, lab=lab, survivors=survivors))
        found = ((round.number, round.mask) for round in rounds)
    return next((mask for n, mask in found if n == number), None)


def _reason(name: str) -> Callable[[Asked], str | None]:
    def reason(asked: Asked) -> str | None:
        if isinstance(asked.method, Given):
            return f"searches anew on spoilt data, but {asked.who} searches for nothing"
        if asked.method.prunes == "before" and not _looks(asked):
            return (
                f"spoils the data that weights are scored on, but {asked.criterion} looks at no data, so that nothing "
                "would change"
            )
        if asked.data is not None:
            return unfit(name, asked.data())
        return None if asked.task.load is not None else unfit(name, examples(asked.task.train))

    return reason


def _looks(asked: Asked) -> bool:
    """Whether the criterion of a method that prunes untrained nets looks at data."""
    if traits(criterion(asked.criterion)).data_free:
        return False
    task = asked.task
    model = task.build(asked.recipe.seed)
    try:
        score(model, asked.criterion, batches=_Tripwire(), loss=task.loss, initial=model.state_dict())
    except _LookedError:
        return True
    return False


class _LookedError(Exception):
    """Data were looked at."""


class _Tripwire:
    """Batches that tell when they are looked at."""

    def __iter__(self) -> Iterator[Any]:
        raise _LookedError


def _spoilt(name: str, text: str) -> Control:
    return Control(name, text, "data of the scores", found_on(name), reason=_reason(name))


DATA = (
    _spoilt("random_labels", "The mask found anew on labels permuted at random."),
    _spoilt("shuffled_pixels", "The mask found anew on inputs whose pixels are permuted, each in its own way."),
    _spoilt("half_data", "The mask found anew on a random half of the training examples."),
)
