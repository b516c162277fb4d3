"""Tombola draws winning lottery tickets from neural networks, proves that they win, and runs them fast.

The whole public API is here; names are imported when first used, so that ``import tombola`` costs little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tombola.version import __version__

if TYPE_CHECKING:
    from tombola.at_init import prune_at_init
    from tombola.auditing import audit
    from tombola.audits.verdict import Verdict
    from tombola.costs import Cost, cost
    from tombola.criteria import Weights, compensated, register, score
    from tombola.draws import draw
    from tombola.durations import Duration
    from tombola.engines.slimming import slimmed
    from tombola.engines.sparse.modules import compile
    from tombola.errors import DataError, InputError, StoreError, TicketError, TombolaError
    from tombola.guarding import Guard, guard
    from tombola.lab import Lab, Run
    from tombola.mask import LayerDensity, Mask, prunable
    from tombola.pruning import Layerwise, prune
    from tombola.recipe import DrawRecipe, Recipe
    from tombola.shipping.compressed import compress, decompress
    from tombola.store import Store
    from tombola.tasks import TASKS, Task, get_task
    from tombola.tasks.data.arrays import Arrays
    from tombola.ticket import Ticket, load
    from tombola.transferring import transfer

_HOME = {
    "Arrays": "tombola.tasks.data.arrays",
    "Cost": "tombola.costs",
    "DataError": "tombola.errors",
    "DrawRecipe": "tombola.recipe",
    "Duration": "tombola.durations",
    "Guard": "tombola.guarding",
    "InputError": "tombola.errors",
    "Lab": "tombola.lab",
    "LayerDensity": "tombola.mask",
    "Layerwise": "tombola.pruning",
    "Mask": "tombola.mask",
    "Recipe": "tombola.recipe",
    "Run": "tombola.lab",
    "Store": "tombola.store",
    "StoreError": "tombola.errors",
    "TASKS": "tombola.tasks",
    "Task": "tombola.tasks",
    "Ticket": "tombola.ticket",
    "TicketError": "tombola.errors",
    "TombolaError": "tombola.errors",
    "Verdict": "tombola.audits.verdict",
    "Weights": "tombola.criteria",
    "audit": "tombola.auditing",
    "compensated": "tombola.criteria",
    "compile": "tombola.engines.sparse.modules",
    "compress": "tombola.shipping.compressed",
    "cost": "tombola.costs",
    "decompress": "tombola.shipping.compressed",
    "draw": "tombola.draws",
    "get_task": "tombola.tasks",
    "guard": "tombola.guarding",
    "load": "tombola.ticket",
    "prunable": "tombola.mask",
    "prune": "tombola.pruning",
    "prune_at_init": "tombola.at_init",
    "register": "tombola.criteria",
    "score": "tombola.criteria",
    "slimmed": "tombola.engines.slimming",
    "transfer": "tombola.transferring",
}

__all__ = [
    "TASKS",
    "Arrays",
    "Cost",
    "DataError",
    "DrawRecipe",
    "Duration",
    "Guard",
    "InputError",
    "Lab",
    "LayerDensity",
    "Layerwise",
    "Mask",
    "Recipe",
    "Run",
    "Store",
    "StoreError",
    "Task",
    "Ticket",
    "TicketError",
    "TombolaError",
    "Verdict",
    "Weights",
    "__version__",
    "audit",
    "compensated",
    "compile",
    "compress",
    "cost",
    "decompress",
    "draw",
    "get_task",
    "guard",
    "load",
    "prunable",
    "prune",
    "prune_at_init",
    "register",
    "score",
    "slimmed",
    "transfer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tombola' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
