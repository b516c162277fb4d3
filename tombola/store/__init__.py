"""The store of runs: every training by its recipe's hash, complete or absent, shared by all processes."""

from tombola.store.claims import Checkpoint, Claim, ClaimLost
from tombola.store.records import (
    AuditRecord,
    DrawRecord,
    RunRecord,
    as_seen,
    judging,
    kind_of,
    minute,
    only,
    told_in_training,
    value_at,
)
from tombola.store.store import Store, is_there
from tombola.store.sweep import GcReport

__all__ = [
    "AuditRecord",
    "Checkpoint",
    "Claim",
    "ClaimLost",
    "DrawRecord",
    "GcReport",
    "RunRecord",
    "Store",
    "as_seen",
    "is_there",
    "judging",
    "kind_of",
    "minute",
    "only",
    "told_in_training",
    "value_at",
]
