"""Draw a ticket: a method's rounds, the rule that ends them, the choice of the ticket, and the controls beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tombola.asked import allocation_of, controls_of, densities, draw_recipe
from tombola.audits.controls import DENSE_RATE, Subject, dense_rate, get_control
from tombola.criteria import register, score
from tombola.errors import InputError, TombolaError
from tombola.events import Event, Watcher
from tombola.lab import Lab, Run
from tombola.mask import Mask
from tombola.methods import Round, Search, get_method
from tombola.methods.base import Scoring, Survivors
from tombola.recipe import DrawRecipe
from tombola.sealed import json_hash
from tombola.store import DrawRecord, Store, told_in_training
from tombola.tasks import Task, get_task
from tombola.ticket import Ticket
from tombola.version import versions


@dataclass(frozen=True)
class ControlRun:
    """A control's run beside the round whose ticket it checks."""

    arm: str
    draw: int
    round: int
    run: Run
    density: float
    """What it keeps, as a share of the weights that the ticket's mask covers: of a smaller net too."""


@dataclass
class Draw:
    """A search for a ticket: its rounds so far, its controls, and the round whose ticket was chosen."""

    recipe: DrawRecipe
    lab: Lab
    rounds: list[Round] = field(default_factory=list)
    controls: list[ControlRun] = field(default_factory=list)

    @cached_property
    def search(self) -> Search:
        """What its method and its controls work with: one for all, so that they share what it has looked up.

        Raises ``InputError`` for a criterion that fails, and for a ladder or control rounds that can't be.
        """
        return _search(self.recipe, self.lab)

    @property
    def id(self) -> str:
        """The draw's identity, 64 hexadecimal digits: its recipe, and the dense run that it starts from."""
        return draw_id(self.recipe, self.rounds[0].run.id)

    def inside(self, round: Round) -> bool:
        """Whether a round is at most the margin below the dense net: on validation data, at the early-stop step."""
        dense, own = (r.run.metric("stop", "validation") for r in (self.rounds[0], round))
        if dense is None or own is None or round.run.diverged:
            return False
        gain = own - dense if self.lab.task.higher_is_better else dense - own
        return gain >= -self.recipe.margin - 1e-6  # shares of a few examples are no exact binary fractions

    @property
    def chosen(self) -> Round:
        """The sparsest round inside the margin (validation selects); the dense round when no other is.

        With ``stop_at_margin`` the rounds end at the first one outside, so this is the last ticket inside.
        """
        return [r for r in self.rounds if r.number == 0 or self.inside(r)][-1]

    def ticket(self, round: Round | None = None) -> Ticket:
        """The ticket of a round, of the chosen one by default.

        Of a method that was asked for a density, not to search for one, it is the best of its tickets where none is
        inside the margin.
        """
        round = (self.chosen if self.chosen.number else self._best) if round is None else round
        origin = {
            "task": self.recipe.task,
            "method": self.recipe.method,
            "seed": self.recipe.seed,
            "round": round.number,
            "recipe": self.recipe.identity(),
            "run": round.run.id,
            "data": self.lab.data_digest(self.recipe.seed),
            "versions": versions(),
            "results": {"dense": _results(self.rounds[0].run), "ticket": _results(round.run)},
        }
        return Ticket(round.mask, round.values, origin)

    @property
    def _best(self) -> Round:
        """The dense round, or of a method without a ladder the ticket with the best validation metric."""
        if not get_method(self.recipe.method).straight or len(self.rounds) == 1:
            return self.rounds[0]
        sign = 1 if self.lab.task.higher_is_better else -1

        def judged(round: Round) -> float:
            found = round.run.metric("stop", "validation")
            return -math.inf if found is None else sign * found

        return max(self.rounds[1:], key=judged)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each run. Metrics are those on test data where the task has any, else on validation data."""
        rows = [self._row("ticket", 0, r.number, r.run, r.run.final_mask.density) | _spent(r) for r in self.rounds]
        rows += [self._row(c.arm, c.draw, c.round, c.run, c.density) for c in self.controls]
        return rows

    def _row(self, arm: str, draw: int, number: int, run: Run, density: float) -> dict[str, Any]:
        judged: Any = "validation" if self.lab.splits(run.seed).test is None else "test"
        return {
            "seed": run.seed,
            "arm": arm,
            "draw": draw,
            "round": number,
            "density": density,
            "stop_step": run.summary["stop_step"],
            "stop_metric": run.metric("stop", judged),
            "end_metric": run.metric("end", judged),
            "validation_metric": run.metric("stop", "validation"),
            "seconds": run.summary["seconds"],
            "status": run.record.status,
            "run": run.id,
        }

    def curves(self) -> list[dict[str, Any]]:
        """One row for each evaluation of each run."""
        metric = self.lab.task.metric
        arms = [("ticket", 0, r.number, r.run, r.run.final_mask.density) for r in self.rounds]
        arms += [(c.arm, c.draw, c.round, c.run, c.density) for c in self.controls]
        return [
            {
                "seed": run.seed,
                "arm": arm,
                "draw": draw,
                "round": number,
                "density": density,
                "step": row["step"],
                "train_loss": row["train_loss"],
                "validation_loss": row["validation_loss"],
                "validation_metric": row[f"validation_{metric}"],
                **told_in_training(row, metric),
            }
            for arm, draw, number, run, density in arms
            for row in run.history
        ]

    def layers(self) -> list[dict[str, Any]]:
        """One row for each layer of each round's mask."""
        return [
            {
                "seed": self.recipe.seed,
                "round": round.number,
                "density": round.mask.density,
                "layer": layer.name,
                "layer_density": layer.density,
                "kept": layer.kept,
                "total": layer.total,
            }
            for round in self.rounds
            for layer in round.mask.layers()
        ]


def draw(
    task: str | Task,
    method: str = "imp",
    *,
    store: str | Path | Store = "runs",
    data_root: str | Path | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> Ticket:
    """Find a ticket and return it: the sparsest one inside the margin. Every training is kept in ``store``.

    ``options`` are fields of ``DrawRecipe``: ``tb.draw("mnist-lenet300", rounds=12, rate=0.2, seed=0)``. Fields of the
    training's recipe are given as ``training={"steps": "12000it"}``. ``criterion`` may be a function of ``Weights``.

    Raises ``InputError`` for an unknown task, method or option, ``DataError`` for missing or damaged data.
    """
    known = task if isinstance(task, Task) else get_task(task)
    own = options.get("criterion")
    if callable(own):
        options["criterion"] = f"{own.__module__}:{own.__qualname__}"
        register(options["criterion"])(own)
    recipe = draw_recipe(known, {**options, "method": method})
    opened = store if isinstance(store, Store) else Store(store)
    lab = Lab(known, opened, recipe=recipe.training, data_root=Path(data_root) if data_root else None, watcher=watcher)
    return finish(Draw(recipe, lab)).ticket()


def finish(found: Draw) -> Draw:
    """The draw, with its rounds and controls carried out."""
    for step in (rounds, controls):
        for _ in step(found):
            pass
    return found


def rounds(found: Draw) -> Iterator[Round]:
    """Carry out the rounds of a draw, entering each in the store as it is done.

    Raises ``InputError`` for a ladder or control rounds that can't be, ``TombolaError`` when the dense net diverges.
    """
    recipe = found.recipe
    for round in get_method(recipe.method)(found.search):
        found.rounds.append(round)
        record(found, "running")
        yield round
        if found.rounds[0].run.diverged:
            raise TombolaError(
                f"the dense net of seed {recipe.seed} diverged after {round.run.summary['steps']} steps, "
                "so there is nothing to prune: lower the learning rate"
            )
        if recipe.stop_at_margin and not found.inside(round):
            break
    record(found, "finished")


def numbered_masks(found: Draw) -> Iterator[tuple[int, Mask]]:
    """The masks of a draw's tickets with the numbers of their rounds, in order.

    A method that prunes before training gives them without any; for another, the draw's rounds are carried out.
    """
    method = get_method(found.recipe.method)
    if method.prunes == "before":
        yield from enumerate(method.masks(found.search), start=1)
        return
    for round in rounds(found):
        if round.number:
            yield round.number, round.mask


def _search(recipe: DrawRecipe, lab: Lab) -> Search:
    method = get_method(recipe.method)
    allocation = allocation_of(recipe)
    search = Search(
        lab=lab,
        seed=recipe.seed,
        densities=(),
        criterion=method.criterion or recipe.criterion,
        allocation=allocation,
        survivors=Survivors(recipe.survivors, recipe.back_to, recipe.fine_tune),
        strategy=recipe.strategy,
        unpruned=recipe.unpruned,
        scoring=Scoring(recipe.score_per_class, recipe.score_mode, recipe.score_rounds),
        settings=recipe.settings,
        update_every=recipe.update_every,
        update_until=recipe.update_until,
        ticket=recipe.ticket,
    )
    for name in recipe.controls:  # now that data can be had, and before any training
        get_control(name).check(lab.task, method, recipe, lambda: lab.splits(recipe.seed).train)
    net = lab.task.build(recipe.seed).to(recipe.training.device)
    whole = search.whole(net)
    if method.prunes == "after":  # a criterion that fails does so before any training
        by = search.criterion
        score(net, by, mask=whole, initial=net.state_dict(), **search.for_gradients(by))
    ladder = densities(recipe, {name: tuple(t.shape) for name, t in whole.items()}, allocation)
    outside = [number for number in recipe.control_rounds or () if not 1 <= number <= len(ladder)]
    if outside:
        raise InputError(f"controls are asked for at round {outside[0]}, but the rounds go from 1 to {len(ladder)}")
    return replace(search, densities=ladder)


def controls(found: Draw, part: int = 0, parts: int = 1) -> Iterator[ControlRun]:
    """Train the controls of a draw's rounds, and the dense net with other learning rates; with ``parts``, every
    ``parts``-th of them from ``part`` on."""
    recipe, method = found.recipe, get_method(found.recipe.method)
    rounds = {round.number: round for round in found.rounds}
    for arm, number, draw in controls_of(recipe, list(rounds)[1:])[part::parts]:
        control, round = dense_rate(recipe.dense_rates) if arm == DENSE_RATE else get_control(arm), rounds[number]
        run = control.train(Subject(round, found.search, method), draw)
        density = run.final_mask.kept / round.mask.total
        found.controls.append(ControlRun(arm, draw, number, run, density))
        yield found.controls[-1]
    if parts == 1:
        record(found, "finished")


def tell_found(rows: Iterable[Mapping[str, Any]], watcher: Watcher | None) -> None:
    """Tell a watcher of runs that the store has, by their rows."""
    if watcher is None:
        return
    for row in rows:
        watcher(Event("found", row["arm"], row["seed"], row["density"], run=row["run"]))


def draw_id(recipe: DrawRecipe, dense: str) -> str:
    """The identity of the draw by a recipe whose dense run has this one."""
    return json_hash({"recipe": recipe.identity(), "dense": dense})


def _has_costs(record: DrawRecord) -> bool:
    """Whether a draw was entered by a version that notes what tickets cost."""
    return all("find_seconds" in row for row in record.rounds if row["arm"] == "ticket")


def stored_rows(recipe: DrawRecipe, lab: Lab) -> list[dict[str, Any]] | None:
    """The rows of a draw that the store has whole, with its controls and what it cost; None of any other.

    Nothing is trained or scored for it, so that the cost of scoring is what it was when it was done.
    """
    known = lab.store.draw(draw_id(recipe, lab.dense_id(recipe.seed)))
    if known is None or known.status != "finished":
        return None
    tickets = [row["round"] for row in known.rounds if row["arm"] == "ticket" and row["round"]]
    there = {(row["arm"], row["round"], row["draw"]) for row in known.rounds}
    whole = _has_costs(known) and {*controls_of(recipe, tickets)} <= there
    if not whole or any(lab.store.run(row["run"]) is None for row in known.rounds):
        return None
    return [dict(row) for row in known.rounds]


def record(found: Draw, status: str) -> None:
    """Enter a draw in the store's catalogue, as far as it has come; what is there and finished stays."""
    known = found.lab.store.draw(found.id)
    rows = found.rows()
    if (
        known is not None
        and known.status == "finished"
        and _has_costs(known)
        and {r["run"] for r in rows} <= {r["run"] for r in known.rounds}
    ):
        return
    for row in rows:
        row["chosen"] = row["arm"] == "ticket" and row["round"] == found.chosen.number
    about = {
        "task": found.recipe.task,
        "seed": found.recipe.seed,
        "metric": found.lab.task.metric,
        "recipe": found.recipe.model_dump(mode="json"),
    }
    found.lab.store.save_draw(found.id, about, rows, status)


def _spent(round: Round) -> dict[str, Any]:
    """What a round cost: to find its mask, to train under it, to store what came of it."""
    parts = [run.flops for run in round.search]
    return {
        "find_seconds": sum(run.seconds for run in round.search) + round.scoring.seconds,
        "find_flops": None if None in parts else sum(filter(None, parts)) + round.scoring.flops,
        "train_seconds": round.run.seconds,
        "train_flops": round.run.flops,
        "bytes": round.run.bytes,
    }


def _results(run: Run) -> dict[str, Any]:
    judged: dict[str, Any] = {"stop_step": run.summary["stop_step"]}
    for when in ("stop", "end"):
        judged[when] = {k: round(v, 6) for k, v in (run.summary[when] or {}).items() if "loss" not in k}
    return judged
