"""Several searches side by side, whose nets are trained in one pass.

Methods and controls ask their lab for one training after the other and wait for it. Here each search runs in a thread
of its own, but only one at a time, and only until it wants a net: a thread is used as a coroutine, so nothing is ever
shared between two that run. When every search that isn't over wants a net, those that fit together are trained in one
pass, in the calling thread, which also holds the claims. What doesn't fit is trained by itself.

A pass has a place for every search, whether or not it wants a net at the moment: the bits of a result depend on how
many places there are, but not on who has the others. So the same command gives the same bits after a kill.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from tombola.engines.replicates import Place
from tombola.errors import InputError, TombolaError
from tombola.lab import POLL_SECONDS, Trainer, Wanted, train_alone, train_claimed
from tombola.recipe import Recipe
from tombola.store import Claim, ClaimLost, RunRecord
from tombola.training.checkpoint import Keeper, Slot
from tombola.training.loop import RefusedError, train_together

Result = TypeVar("Result")
Answer = RunRecord | TombolaError
ENGINES = ("auto", "masked")


def check_engine(recipe: Recipe) -> None:
    """Raise ``InputError`` where a recipe asks for an engine that trains nets one by one."""
    if recipe.engine not in ENGINES:
        raise InputError(
            f"seeds train together on engine 'masked', but the recipe asks for {recipe.engine!r}: "
            "leave the engine out, or train the seeds one by one"
        )


def side_by_side(works: Sequence[Callable[[Trainer], Result]]) -> list[Result]:
    """Do all works, each with a trainer for its labs, and return what they return, in order.

    A work that fails with a ``TombolaError`` leaves the others alone: the first such error is raised when all are over.
    """
    searches = [_Search(work) for work in works]
    passes = _Passes(len(works))
    try:
        for search in searches:
            search.go_on()
        while wanting := {n: s.wanted for n, s in enumerate(searches) if s.wanted is not None}:
            answers = passes.train(wanting)
            for number, answer in answers.items():
                searches[number].go_on(answer)
            if not answers:  # other processes are at all of them
                time.sleep(POLL_SECONDS)
    finally:
        for search in searches:
            search.leave()
    return [search.result() for search in searches]


class _Left(BaseException):
    """Thrown into a search that is not wanted any more."""


class _Search(Generic[Result]):
    """A work in a thread that runs only while it is told to go on, until it wants a net or is over."""

    def __init__(self, work: Callable[[Trainer], Result]) -> None:
        self.wanted: Wanted | None = None
        self._work = work
        self._answer: Answer | None = None
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._left = self._running = False
        self._its_turn, self._our_turn = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name="search", daemon=True)

    def go_on(self, answer: Answer | None = None) -> None:
        """Let it run, with the answer to what it wanted, until it wants something again.

        Raises what ended it, unless that is a ``TombolaError``.
        """
        self.wanted, self._answer, self._running = None, answer, True
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._its_turn.release()
        self._our_turn.acquire()
        self._running = False
        if self._error is not None and not isinstance(self._error, TombolaError):
            raise self._error

    def leave(self) -> None:
        """End it. One that is running, as the main thread was interrupted, ends when it next wants a net."""
        self._left = True
        self._its_turn.release()
        if self._thread.ident is not None and not self._running:
            self._thread.join()

    def result(self) -> Result:
        """What it returned; raises what it failed with."""
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._work(self._ask))
        except _Left:
            pass
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
            self._error = error
        finally:
            self._our_turn.release()

    def _ask(self, wanted: Wanted) -> RunRecord:
        """The trainer of its labs: hand over, and wait."""
        if threading.current_thread() is not self._thread:  # somebody goes on with a lab when all is over
            return train_alone(wanted)
        if not self._left:
            self.wanted = wanted
            self._our_turn.release()
            self._its_turn.acquire()
        if self._left:
            raise _Left
        if not isinstance(self._answer, RunRecord):
            assert self._answer is not None
            raise self._answer
        return self._answer


class _Keeper:
    """A claim's checkpoint. That the claim is lost is told at the end: until then the others in the pass go on."""

    def __init__(self, checkpoint: Keeper) -> None:
        self._checkpoint = checkpoint

    def save(self, data: bytes) -> None:
        with suppress(ClaimLost):
            self._checkpoint.save(data)

    def load(self) -> bytes | None:
        return self._checkpoint.load()


@dataclass(frozen=True)
class _Claimed:
    """A net that this process has the right to train, and the number of the search that wants it."""

    number: int
    wanted: Wanted
    claim: Claim
    slot: Slot
    place: Place | None
    """Its place in a pass; None for one that is to be trained by itself."""

    def kind(self) -> tuple[object, ...]:
        """What is the same of all nets in one pass."""
        w, saved = self.wanted, self.slot.saved
        examples = len(w.lab.splits(w.seed).train)
        return id(w.lab.task), w.recipe, examples, w.keep, self.place and self.place.of, saved and saved.step


class _Passes:
    """Trains what searches want, in as few passes as will do."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._refused: set[int] = set()

    def train(self, wanting: Mapping[int, Wanted]) -> dict[int, Answer]:
        """The answers to those searches, by number; not those whose net another process is training."""
        answers: dict[int, Answer] = {}
        with ExitStack() as claims:
            held: list[_Claimed] = []
            for number, wanted in wanting.items():
                if (claim := wanted.claim()) is not None:
                    held.append(self._claimed(number, wanted, claims.enter_context(claim)))
                    wanted.tell("start")
                elif (record := wanted.stored()) is not None:
                    answers[number] = record
                else:
                    wanted.tell("waiting")
            for members in _seated([one for one in held if one.place is not None]):
                answers |= self._train_pass(members)
            for one in held:
                if one.place is None:
                    answers |= _train_alone(one)
        return answers

    def _claimed(self, number: int, wanted: Wanted, claim: Claim) -> _Claimed:
        slot = wanted.slot(_Keeper(claim.checkpoint))
        place = Place(number, self._places) if slot.saved is None else slot.saved.progress.place
        return _Claimed(number, wanted, claim, slot, None if id(wanted.lab.task) in self._refused else place)

    def _train_pass(self, members: Mapping[int, _Claimed]) -> dict[int, Answer]:
        answers: dict[int, Answer] = {}
        first = next(iter(members.values()))
        task, recipe, place = first.wanted.lab.task, first.wanted.recipe, first.place
        assert place is not None
        trainings = {n: one.wanted.training(one.slot) for n, one in members.items()}
        try:
            with closing(train_together(task, recipe, trainings, place.of)) as outcomes:
                for number, outcome in outcomes:
                    one = members[number]
                    if (record := one.wanted.finish(one.claim, outcome)) is not None:
                        answers[one.number] = record
        except RefusedError as refusal:
            warnings.warn(f"the seeds are trained one by one: {refusal}", stacklevel=2)
            self._refused.add(id(task))
            for one in members.values():
                answers |= _train_alone(one)
        except TombolaError as error:
            answers |= {one.number: error for one in members.values() if one.number not in answers}
        return answers


def _seated(held: Sequence[_Claimed]) -> list[dict[int, _Claimed]]:
    """The passes, by place. Two nets that began at the same place, by different commands, go to different ones."""
    passes: dict[tuple[object, ...], list[dict[int, _Claimed]]] = {}
    for one in held:
        assert one.place is not None
        alike = passes.setdefault(one.kind(), [])
        free = next((members for members in alike if one.place.number not in members), None)
        if free is None:
            alike.append(free := {})
        free[one.place.number] = one
    return [members for alike in passes.values() for members in alike]


def _train_alone(one: _Claimed) -> dict[int, Answer]:
    try:
        record = train_claimed(one.wanted, one.claim, one.slot)
    except TombolaError as error:
        return {one.number: error}
    return {} if record is None else {one.number: record}
