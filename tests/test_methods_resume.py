"""Every method, interrupted at some evaluation and carried out again, comes to the same bits."""

from __future__ import annotations

import random
from typing import Any

import pytest
from toy import toy_task

import tombola as tb
from tombola.asked import draw_recipe
from tombola.draws import Draw, controls, rounds
from tombola.events import Event
from tombola.lab import Lab, Run
from tombola.methods import METHODS
from tombola.sealed import content_hash

OPTIONS: dict[str, dict[str, Any]] = {
    "early_bird": {"densities": (0.7, 0.5), "settings": {"window": 2, "distance": 1.0}},
    "supermask": {"settings": {"lr": 10.0}},
    **{name: {"densities": (0.5, 0.2), "update_every": "4it"} for name in ("gradual", "set", "dsr", "deep_r", "rigl")},
    **{name: {"rounds": 2} for name in ("imp", "one_shot", "lr_rewind", "han", "deep_compression")},
}


class StoppedError(Exception):
    pass


class Interruption:
    """Counts evaluations, and stops everything at one of them; None: at none."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.seen = at, 0

    def __call__(self, event: Event) -> None:
        if event.kind == "step":
            self.seen += 1
            if self.seen == self.at:
                raise StoppedError


def digest(run: Run) -> str:
    manifest = {"history": run.history, **{k: v for k, v in run.summary.items() if "seconds" not in k}}
    return content_hash("run", manifest, run.final)


def digests(store: tb.Store, watcher: Interruption, options: dict[str, Any]) -> dict[str, str]:
    """A digest of all that a draw leaves behind."""
    task = toy_task(recipe={"steps": "24it", "evaluate_every": "4it"})
    recipe = draw_recipe(task, {"score_per_class": 3, "score_rounds": None, **options})
    found = Draw(recipe, Lab(task, store, recipe=recipe.training, watcher=watcher, checkpoint_every=0.0))
    runs = [run for r in rounds(found) for run in (r.run, *r.search)] + [c.run for c in controls(found)]
    tickets = {f"ticket {r.number}": found.ticket(r).digest for r in found.rounds}
    return {run.id: digest(run) for run in runs} | tickets


ALIKE = ("obs", "mlprune", "iterative_snip", "force", "grasp", "synflow", "magnitude_at_init", "at_init")
"""Methods that go the same way as another one but for their scores."""


def cases() -> list[Any]:
    """Each method that searches, and those that judge what a search has trained also with its mask trained anew."""
    found = [
        (name, kind)
        for name, method in METHODS.items()
        for kind in method.survivors[:1] + (("reset",) if "keep" in method.survivors else ())
        if not method.given
    ]
    return [pytest.param(*case, marks=[pytest.mark.long] if case[0] in ALIKE else []) for case in found]


@pytest.mark.parametrize(("name", "survivors"), cases())
def test_every_method_goes_on_where_it_was_stopped(store: tb.Store, other: tb.Store, name: str, survivors: str) -> None:
    options = {"method": name, "survivors": survivors, **OPTIONS.get(name, {"densities": (0.5, 0.2)})}
    if METHODS[name].prunes == "before":
        options["score_rounds"] = 2
    if METHODS[name].trains_tickets(survivors):
        options["controls"] = ["reinit"]
    calm = Interruption()
    expected = digests(other, calm, options)
    assert calm.seen >= 14, "two nets are trained, and looked at 7 times each"
    chance = random.Random(name)
    stops = sorted(chance.sample(range(8, calm.seen + 1), 2))
    for at in stops:
        with pytest.raises(StoppedError):
            digests(store, Interruption(at if at == stops[0] else at - stops[0]), options)
    last = Interruption()
    assert digests(store, last, options) == expected
    assert last.seen < calm.seen, "what was done is not done again"
