"""Which engine a run gets when its recipe says ``auto``: decided once, before the run begins, and kept with it.

The sparse engine wherever it can express the net, unless so much of the work of a convolutional net is left that
dense kernels may be as fast: then both train a few steps, and the faster one is taken. What was measured is kept on
disk, so that the same net at the same densities gets the same engine on this machine. What the sparse engine can't
express is compacted where that removes a tenth of the work or more, and else runs masked.
"""

from __future__ import annotations

import copy
import json
import math
import os
import secrets
import statistics
import time
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import nn

from tombola.atomic import TEMPORARY
from tombola.costs import Cost, LayerCost, cost
from tombola.engines.base import Plan, Session, check_batch, check_device, open_session
from tombola.engines.compact import supports
from tombola.engines.compaction import compact
from tombola.engines.tracing import UnsupportedError
from tombola.mask import Mask
from tombola.recipe import Recipe
from tombola.sealed import json_hash
from tombola.tasks.acting import acts
from tombola.tasks.task import Examples, Task

GREY = 0.25
"""Share of the multiply-adds of convolutions above which the engines are measured against each other."""
OFTEN = 10
"""Steps between updates of the mask below which new indices take longer than the sparse engine gains: LeNet-300-100's
take 13 to 18 ms, its masked step 1.6 ms."""
WORTH_COMPACTING = 0.9
"""Share of the multiply-adds that compaction must leave at most."""


def begin(
    model: nn.Module,
    mask: Mask,
    task: Task,
    train: Examples,
    recipe: Recipe,
    seed: int,
    plan: Plan | None = None,
) -> tuple[Plan, Session]:
    """A session for a training, and the plan it follows: the one given (of a run that goes on), or a new one.

    Raises ``InputError`` where the device can't be used or the data can't be taken in such batches, and
    ``UnsupportedError`` where the engine asked for can't do it.
    """
    check_device(recipe)
    check_batch(train, recipe)
    if plan is None:
        plan = (
            Plan(recipe.engine, "asked for") if recipe.engine != "auto" else _choose(model, mask, task, train, recipe)
        )
    session = open_session(plan, model, mask, task, train, recipe, seed)
    # A run that goes on may have another mask by now, but tells of its beginning.
    return Plan(plan.engine, plan.reason, plan.layers or dict(session.layers)), session


def compiles_first(recipe: Recipe) -> bool:
    """Whether a training may begin with the compiling of kernels, which this machine has none of yet."""
    if (
        recipe.trains != "weights"
        or recipe.engine not in ("auto", "sparse")
        or torch.device(recipe.device).type != "cpu"
    ):
        return False
    from tombola.engines.sparse.kernel import cache_folder

    return next(cache_folder().rglob("*.nbi"), None) is None


def _choose(model: nn.Module, mask: Mask, task: Task, train: Examples, recipe: Recipe) -> Plan:
    if recipe.trains != "weights":
        return Plan("masked", f"only the masked engine trains {recipe.trains.replace('_', ' ')}")
    if acts(train):
        return Plan("masked", "training data that come of acting need the net after every step")
    if recipe.updates is not None:
        every = recipe.updates.every.steps(recipe.steps_per_epoch(len(train)))
        if every < OFTEN:
            return Plan(
                "masked", f"the mask is updated every {every} steps, which sparse indices would be made anew for"
            )
    from tombola.engines.sparse.session import plan_program

    args = (mask, task, train, recipe)
    try:
        plan_program(model, *args)
    except UnsupportedError as error:
        return _without_sparse(model, mask, task, train, recipe, str(error))
    work = cost(model, mask, example=train.take(torch.zeros(2, dtype=torch.int64))[0])
    share = _share_of_convolutions(work)
    kept = f"{100 * mask.density:.3g} % of the weights are kept"
    if share is None:
        return Plan("sparse", f"{kept}; without convolutions sparse kernels win at every density")
    kept += f", {100 * share:.3g} % of the convolutions' work"
    if share <= GREY:
        return Plan("sparse", f"{kept}; below {100 * GREY:g} % sparse kernels win")
    seconds = _remembered(_key(work, recipe), lambda: {e: _measure(e, model, *args) for e in ("sparse", "masked")})
    best = min(seconds, key=lambda engine: seconds[engine])
    told = ", ".join(f"{engine} {1000 * s:.3g} ms" for engine, s in seconds.items())
    return Plan(best, f"{kept}; a step measured on this machine: {told}")


def _without_sparse(model: nn.Module, mask: Mask, task: Task, train: Examples, recipe: Recipe, why: str) -> Plan:
    why = f"the sparse engine can't: {why}"
    example = train.take(torch.zeros(2, dtype=torch.int64))
    if (
        recipe.updates is not None
        or mask.density == 1
        or supports(model, task, train) is not None
        or not isinstance(example, (tuple, list))
    ):
        return Plan("masked", why)
    small = compact(model, mask, example[0])
    left = cost(small.model, example=example[0]).flops / max(1, cost(model, example=example[0]).flops)
    why += f"; compaction leaves {100 * left:.3g} % of the work"
    return Plan("compact" if left <= WORTH_COMPACTING else "masked", why)


def _share_of_convolutions(work: Cost) -> float | None:
    """Kept multiply-adds of all convolutions over all they have; None for a net without."""
    convolutions = [layer for layer in work.layers if len(layer.shape) > 2]
    total = sum(layer.flops for layer in convolutions)
    return sum(layer.kept_flops for layer in convolutions) / total if total else None


def _measure(engine: str, model: nn.Module, mask: Mask, task: Task, train: Examples, recipe: Recipe) -> float:
    """Seconds of a step: the median of three, after one to warm up."""
    session = open_session(Plan(engine, ""), copy.deepcopy(model), mask, task, train, recipe, 0)
    session.stretch(1)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        session.stretch(1)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _key(work: Cost, recipe: Recipe) -> str:
    """What a measurement is good for: shapes, the kept shares in steps of a tenth, batch, threads, code, machine."""
    from tombola.engines.sparse.kernel import version_key

    layers = [[layer.name, layer.shape, layer.uses, _tenths(layer)] for layer in work.layers]
    about = {"layers": layers, "batch": recipe.batch, "threads": recipe.threads, "code": version_key()}
    return json_hash(about | {"optimizer": recipe.optimizer})[:24]


def _tenths(layer: LayerCost) -> int:
    """The kept share on a logarithmic scale: densities less than a tenth apart count as the same."""
    return round(10 * math.log(max(layer.kept, 1) / max(layer.weights, 1)))


def _remembered(key: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """A measurement made once on this machine: of several processes that make it at the same time, the first counts."""
    from tombola.engines.sparse.kernel import cache_folder

    path = cache_folder() / "choices" / f"{key}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{secrets.token_hex(8)}{TEMPORARY}")
        part.write_text(json.dumps(measure()))
        with suppress(FileExistsError):
            os.link(part, path)
        part.unlink()
    return {str(engine): float(seconds) for engine, seconds in json.loads(path.read_bytes()).items()}
