"""Which part of a ticket matters: what is lost when one part of it is destroyed and the rest is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tombola.audits.outcomes import Judged, family
from tombola.audits.pairing import TICKET, Arm, Quantity, compare

Matter = Literal["matters", "does not matter", "can't tell"]

# The part, the arm that has it, and the arm in which it alone is destroyed. Signs are told apart from magnitudes among
# values that are drawn anew, because without the ticket's magnitudes both arms differ in nothing but the signs.
PARTS = (
    ("positions within the layers", TICKET, "shuffled"),
    ("layer densities (against uniform ones)", "shuffled", "random_uniform"),
    ("layer densities (against ERK's)", "shuffled", "random_erk"),
    ("layer densities (against the smart ratio's)", "shuffled", "random_smart_ratio"),
    ("initial values", TICKET, "reinit"),
    ("which weight has which initial value", TICKET, "values_shuffled"),
    ("signs of the initial values", "signed_reinit", "reinit"),
    ("magnitudes of the initial values (against fresh ones)", TICKET, "signed_reinit"),
    ("magnitudes of the initial values (against one constant)", TICKET, "signed_constant"),
    ("order of the scores", TICKET, "inverted"),
    ("labels that the scores see", TICKET, "random_labels"),
    ("images that the scores see", TICKET, "shuffled_pixels"),
    ("all of the data that the scores see", TICKET, "half_data"),
)
_AS_MATTER: Mapping[str, Matter] = {"beats": "matters", "does as well": "does not matter"}


@dataclass(frozen=True, slots=True)
class Part:
    """What is lost (mean difference with its interval) when a part of the ticket is destroyed, and whether it matters.

    ``matters``: the arm that keeps the part is shown to be better. ``does not matter``: the arm without it is shown to
    be less than the margin worse.
    """

    part: str
    kept: str
    destroyed: str
    judged: Judged
    matter: Matter


def blame(arms: Mapping[str, Arm], judged: Mapping[str, Judged], quantity: Quantity, alpha: float) -> list[Part]:
    """The parts that the arms tell about, in the order of ``PARTS``.

    ``judged`` are the ticket's comparisons with its controls, so that a part and its control never say two things.
    Comparisons of two controls with each other are a family of their own, corrected for its number.
    """
    there = [(part, kept, lost) for part, kept, lost in PARTS if {kept, lost} <= arms.keys()]
    between = [
        compare(arms[kept], arms[lost], quantity)
        for _, kept, lost in there
        if kept != TICKET and arms[kept].values.keys() & arms[lost].values.keys()
    ]
    among = {(one.compared.ours, one.compared.theirs): one for one in family(between, alpha)}
    among |= {(TICKET, arm): one for arm, one in judged.items()}
    return [
        Part(part, kept, lost, among[kept, lost], _AS_MATTER.get(among[kept, lost].outcome, "can't tell"))
        for part, kept, lost in there
        if (kept, lost) in among
    ]
