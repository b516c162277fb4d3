"""Audit a ticket: repeat its draw on several seeds beside every control, and judge it in plain words.

Where a ticket says how it was drawn, and drawing it again gives the very same ticket, the claim is about the way it was
found: each seed draws a ticket of its own, trained on the initial weights and in the data order of its own dense net.
Any other ticket is judged as it is: the same mask and values, over several data orders, which the dense net and the
controls share.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tombola.asked import draw_recipe
from tombola.auditing.claims import Claim, claim_of, claim_of_record, given_recipe, numbers
from tombola.auditing.provenance import compared
from tombola.audits.controls import CONTROLS, DENSE_RATE, get_control
from tombola.audits.verdict import Verdict, check_strictness, judge
from tombola.draws import Draw, finish
from tombola.errors import InputError
from tombola.events import Watcher
from tombola.execution import carry_out
from tombola.lab import Lab
from tombola.methods import get_method
from tombola.recipe import DrawRecipe, checked
from tombola.sealed import json_hash
from tombola.store import Store
from tombola.tasks import Examples, Task, is_known
from tombola.ticket import Ticket

__all__ = [
    "SEEDS",
    "Audit",
    "Claim",
    "How",
    "Runner",
    "audit",
    "carry_out_audit",
    "claim_of",
    "claim_of_record",
    "numbers",
]

SEEDS = 5
DRAWS = 3

At = Literal["stop", "end"]


@dataclass(frozen=True)
class Audit:
    """A verdict and what it rests on."""

    claim: Claim
    replicates: Literal["seeds", "orders"]
    """What the numbers in ``seed`` of the rows are: seeds, or data orders where a ticket was judged as it is."""
    draws: tuple[Draw, ...]
    rows: tuple[dict[str, Any], ...]
    verdict: Verdict

    @property
    def id(self) -> str:
        """The audit's identity, 64 hexadecimal digits: what was judged, beside what, on which seeds, and how strictly.

        Draws tell all but the last: their identities are of recipe, seed, controls and data.
        """
        judged = self.verdict
        about = {
            "draws": sorted(draw.id for draw in self.draws),
            "ticket": None if self.claim.ticket is None else self.claim.ticket.digest,
            **{"round": judged.round, "metric": judged.metric, "at": judged.at, "alpha": judged.alpha},
            **{"margin": judged.margin, "speed_margin": judged.speed_margin},
        }
        return json_hash({"audit": about})

    def as_dict(self) -> dict[str, Any]:
        """The verdict, and what it rests on, as JSON has it."""
        recipe = self.draws[0].recipe.model_dump(mode="json")
        about: dict[str, Any] = {
            "id": self.id,
            "task": self.claim.task.name,
            "replicates": self.replicates,
            self.replicates: sorted({row["seed"] for row in self.rows}),
            "draws": [draw.id for draw in self.draws],
        }
        about |= {"ticket": None if self.claim.ticket is None else self.claim.ticket.digest}
        return {**about, "verdict": self.verdict.as_dict(), "recipe": {k: v for k, v in recipe.items() if k != "seed"}}


@dataclass(frozen=True)
class How:
    """How a claim is judged: see ``audit``. ``InputError`` for what is out of range."""

    controls: tuple[str, ...] | None = None
    control_draws: int = DRAWS
    dense_rates: tuple[float, ...] = ()
    margin: float | None = None
    speed_margin: float = 0.1
    alpha: float = 0.05
    at: At = "stop"
    as_it_is: bool = False

    def __post_init__(self) -> None:
        check_strictness(margin=self.margin or 0.0, alpha=self.alpha, speed_margin=self.speed_margin, at=self.at)
        for name in self.controls or ():
            get_control(name)


def audit(
    ticket: Ticket | str | Path,
    *,
    seeds: int | Sequence[int] = SEEDS,
    task: str | Task | None = None,
    controls: Sequence[str] | None = None,
    control_draws: int = DRAWS,
    dense_rates: Sequence[float] = (),
    margin: float | None = None,
    speed_margin: float = 0.1,
    alpha: float = 0.05,
    at: At = "stop",
    as_it_is: bool = False,
    store: str | Path = "runs",
    data_root: str | Path | None = None,
    jobs: int = 1,
    watcher: Watcher | None = None,
) -> Verdict:
    """Judge a ticket against its dense net and its controls: arms, intervals, whether it wins, and why.

    :param ticket: a ticket or the file of one.
    :param seeds: how many, counted from the ticket's own, or which ones; as many data orders, counted from 0, where it
        is judged as it is.
    :param task: the task that it is trained on, or its name, for a ticket that doesn't say; a task of your own.
    :param controls: names of ``tombola.audits.controls.CONTROLS``; default: all that its method can have, without
        those that search anew after training.
    :param control_draws: of each control that draws at random, for each seed.
    :param dense_rates: learning rates that the dense net is trained with beside the recipe's; the one that is best on
        validation data, over all seeds, is what the ticket is judged against.
    :param margin: the smallest difference in the metric that matters; default: the one of its draw.
    :param speed_margin: the smallest difference in the early-stop step that matters, as a share of the dense net's.
    :param alpha: level of every one-sided test.
    :param at: judged at the early-stop step or at the end of training.
    :param as_it_is: judge the very mask and values over data orders, whatever the ticket says of its origin.

    Every training is kept in ``store``, and so is the verdict. Raises ``InputError`` for what can't be judged,
    ``TicketError`` for a damaged file.
    """
    if not isinstance(store, (str, Path)):
        raise InputError(f"an audit opens its store itself, in each process: give its folder, not {store!r}")
    found = ticket if isinstance(ticket, Ticket) else Ticket.load(ticket)
    how = How(
        controls=None if controls is None else tuple(controls),
        control_draws=control_draws,
        dense_rates=tuple(dense_rates),
        margin=margin,
        speed_margin=speed_margin,
        alpha=alpha,
        at=at,
        as_it_is=as_it_is,
    )
    claim, root = claim_of(found, task), Path(data_root) if data_root else None
    run = Runner(claim.task, str(store), root, jobs, watcher)
    return carry_out_audit(claim, numbers(claim, seeds), how, run).verdict


@dataclass(frozen=True)
class Runner:
    """Carries out draws of a task: one that the library knows in ``jobs`` processes, another in this one."""

    task: Task
    store: str
    data_root: Path | None = None
    jobs: int = 1
    watcher: Watcher | None = None

    def __call__(self, recipes: Sequence[DrawRecipe]) -> list[Draw]:
        """The finished draws, with their controls."""
        if is_known(self.task):
            where: dict[str, Any] = {"store": self.store, "data_root": self.data_root}
            return carry_out(recipes, **where, jobs=self.jobs, watcher=self.watcher)
        if self.jobs > 1:
            raise InputError(
                f"a task of your own is judged in one process, but {self.jobs} are asked for: leave out jobs"
            )
        return [finish(Draw(recipe, self.lab(recipe))) for recipe in recipes]

    def lab(self, recipe: DrawRecipe) -> Lab:
        """A lab for a recipe's training."""
        return Lab(self.task, Store(self.store), recipe=recipe.training, data_root=self.data_root, watcher=self.watcher)


def carry_out_audit(claim: Claim, seeds: Sequence[int], how: How, run: Runner) -> Audit:
    """Train what is missing, judge, and keep the audit in the store; the same one again takes the place of the last."""
    recipe, round, notes = claim.recipe, claim.round, [claim.untold] if claim.untold else []
    as_it_is = how.as_it_is or recipe.method == "given"
    if claim.ticket is not None:  # one that doesn't fit is refused before anything is trained
        claim.ticket.model(lambda: claim.task.build(recipe.seed))
    elif as_it_is:
        raise InputError("only the file of a ticket can be judged as it is, but a draw was named")
    if not as_it_is:
        recipe = _to_round(claim, run)
        wanted = _with_controls(run, claim.task, recipe, round, how)
        if claim.ticket is not None:
            (again,) = run([recipe])
            told = compared(claim.ticket, again, round)
            as_it_is = told is not None
            notes.append(told or "Drawn again by its recipe, the ticket is the same, bit for bit.")
    if as_it_is:
        assert claim.ticket is not None
        address = Store(run.store).put(claim.ticket.to_bytes())
        recipe, round = given_recipe(claim.task, recipe.seed, recipe.model_dump(), address), 1
        wanted = _with_controls(run, claim.task, recipe, round, how)
        count = f"{len(seeds)} data order{'s' * (len(seeds) > 1)}"
        notes.append(
            f"It is judged as it is, over {count} of seed {recipe.seed}: where seeds are named, they are those."
        )
    notes += _uncontrolled(wanted)
    repeated = [_repeat(wanted, number, as_it_is, place) for place, number in enumerate(seeds)]
    draws = run(repeated)
    rows = _numbered(draws, as_it_is)
    judged, tuned = _tuned(rows, wanted, draws[0])
    verdict = judge(
        judged,
        round=round,
        metric=draws[0].lab.task.metric,
        higher_is_better=draws[0].lab.task.higher_is_better,
        margin=recipe.margin if how.margin is None else how.margin,
        at=how.at,
        alpha=how.alpha,
        speed_margin=how.speed_margin,
        prunes=get_method(recipe.method).prunes,
    )
    verdict = replace(verdict, words=(*verdict.words, *tuned, *notes))
    found = Audit(claim, "orders" if as_it_is else "seeds", tuple(draws), tuple(rows), verdict)
    with Store(run.store) as store:
        store.save_audit(found.id, found.as_dict())
    return found


def controls_for(task: Task, recipe: DrawRecipe, data: Callable[[], Examples] | None = None) -> tuple[str, ...]:
    """The controls that a draw gets where none are named: all that what it trains on, which ``data`` gives,
    allows, but random tickets and costly searches."""
    method = get_method(recipe.method)
    if not method.trains_tickets(recipe.survivors):
        return ()
    free = method.prunes == "before"  # to search anew on other data then costs no training
    left_out = ("positions and values", "positions, values and steps", *(() if free else ("data of the scores",)))
    wanted = [control for control in CONTROLS.values() if control.changes not in left_out]
    return tuple(control.name for control in wanted if control.refusal(task, method, recipe, data) is None)


def _uncontrolled(recipe: DrawRecipe) -> list[str]:
    """A sentence where no control can be, as the search for the ticket has trained its net."""
    method = get_method(recipe.method)
    if method.trains_tickets(recipe.survivors):
        return []
    others = [kind for kind in method.survivors if method.trains_tickets(kind)]
    instead = f"drawn with survivors {' or '.join(others)} it can have them" if others else "its method knows no other"
    return [f"The search for it has trained its net, so controls have no training to repeat: {instead}."]


def _to_round(claim: Claim, run: Runner) -> DrawRecipe:
    """The recipe of a claim's draw, ended with its round: the densities of the rounds up to there are its own."""
    recipe, method = claim.recipe, get_method(claim.recipe.method)
    ladder = list(Draw(recipe, run.lab(recipe)).search.densities)
    changes: dict[str, Any] = {"stop_at_margin": False, "controls": (), "control_rounds": None, "dense_rates": ()}
    if claim.round > len(ladder):
        raise InputError(
            f"the draw's rounds go from 1 to {len(ladder)}, but round {claim.round} is to be judged: judge a ticket "
            "that says so as it is"
        )
    if method.densities or not method.straight:  # others find a density of their own
        changes |= {"densities": tuple(ladder[: claim.round]), "rounds": None, "density": None, "schedule": "geometric"}
    return checked(DrawRecipe, {**recipe.model_dump(), **changes})


def _with_controls(run: Runner, task: Task, recipe: DrawRecipe, round: int, how: How) -> DrawRecipe:
    named = how.controls
    if named is None:
        named = controls_for(task, recipe, lambda: run.lab(recipe).splits(recipe.seed).train)
    changes = {"controls": named, "control_draws": how.control_draws, "dense_rates": how.dense_rates}
    return draw_recipe(task, {**recipe.model_dump(), **changes, "control_rounds": (round,) if named else None})


def _repeat(recipe: DrawRecipe, number: int, as_it_is: bool, place: int) -> DrawRecipe:
    if not as_it_is:
        return recipe.model_copy(update={"seed": number})
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"order": place})})


def _numbered(draws: Sequence[Draw], as_it_is: bool) -> list[dict[str, Any]]:
    """The rows of all draws; where one seed has several data orders, those are what ``seed`` counts."""
    found = []
    for draw in draws:
        order = {"seed": draw.recipe.training.order} if as_it_is else {}
        found += [{**row, **order} for row in draw.rows()]
    return found


def _tuned(
    rows: Sequence[dict[str, Any]], recipe: DrawRecipe, draw: Draw
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The rows to judge by, where the dense net has the learning rate that is best on validation data; and which.

    A low rate may be best and slow. Then the dense net of the recipe's own rate lends its early-stop steps, lest the
    ticket win in speed by nothing but its learning rate.
    """
    plain = [row for row in rows if row["arm"] != DENSE_RATE]
    if not recipe.dense_rates:
        return plain, ()
    rates = {recipe.training.lr: [row for row in plain if row["round"] == 0]}
    rates |= {
        lr: [r for r in rows if (r["arm"], r["draw"]) == (DENSE_RATE, i)] for i, lr in enumerate(recipe.dense_rates)
    }
    sign = 1 if draw.lab.task.higher_is_better else -1
    means = {lr: _mean([row["validation_metric"] for row in own], sign) for lr, own in rates.items()}
    best = max(means, key=lambda lr: means[lr])
    chosen = [{**row, "arm": "ticket", "draw": 0} for row in rates[best]]
    listed = ", ".join(f"{lr:g}" for lr in sorted(rates))
    said = [f"The dense net is tuned: of the learning rates {listed}, {best:g} is best on validation data."]
    own = {row["seed"]: row["stop_step"] for row in rates[recipe.training.lr]}
    sooner, later = (statistics.fmean(steps) for steps in (own.values(), (row["stop_step"] for row in chosen)))
    if sooner < later:
        chosen = [{**row, "stop_step": own[row["seed"]]} for row in chosen]
        said.append(
            f"In speed the ticket is judged against the recipe's own rate, {recipe.training.lr:g}, with which the "
            f"dense net stops at step {sooner:,.0f}, before step {later:,.0f} of the tuned one."
        )
    return [*chosen, *(row for row in plain if row["round"])], tuple(said)


def _mean(values: Sequence[float | None], sign: int) -> float:
    return -math.inf if None in values else sign * statistics.fmean(v for v in values if v is not None)
