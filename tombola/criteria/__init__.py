"""Criteria: each scores every prunable entry; the highest are kept.

A criterion is a function from ``Weights`` to scores. A new one is one function and one line of registration::

    @register("magnitude")
    def magnitude(weights: Weights) -> Scores:
        return {name: w.abs() for name, w in weights.final.items()}

A function of your own works wherever a name does: ``tb.score(model, my_criterion)``,
``tombola draw TASK --criterion mypackage.module:function``.
"""

from __future__ import annotations

from tombola.criteria import magnitude as _magnitude  # noqa: F401  (registers its criteria)
from tombola.criteria import zhou as _zhou  # noqa: F401
from tombola.criteria.base import (
    CRITERIA,
    Criterion,
    Loss,
    Scores,
    Traits,
    Weights,
    compensated,
    criterion,
    register,
    score,
    traits,
)
from tombola.criteria.grasp import Grasp
from tombola.criteria.mlprune import MLPrune
from tombola.criteria.obd import Obd
from tombola.criteria.obs import Obs
from tombola.criteria.snip import Force, Snip
from tombola.criteria.synflow import SynFlow

__all__ = [
    "CRITERIA",
    "Criterion",
    "Force",
    "Grasp",
    "Loss",
    "MLPrune",
    "Obd",
    "Obs",
    "Scores",
    "Snip",
    "SynFlow",
    "Traits",
    "Weights",
    "compensated",
    "criterion",
    "register",
    "score",
    "traits",
]
