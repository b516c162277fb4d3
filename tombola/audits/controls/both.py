"""The control that changes two things at once: the random ticket of Morcos et al. (2019).

Every other control changes one thing. This one says how far a ticket is ahead of having none, and not what of it
matters; ``shuffled`` and ``reinit`` beside it tell that apart.
"""

from __future__ import annotations

from tombola.audits.controls.base import Control, Subject, own_stream, trained
from tombola.lab import Run
from tombola.seeds import stream


def random_ticket(subject: Subject, draw: int) -> Run:
    """Kept positions shuffled within each layer, and a fresh draw of the whole initial state (Morcos et al. 2019).

    Their random tickets differ from a ticket in structure and in initial values. Layer densities stay here, which
    makes the control the stronger one.
    """
    run = subject.round.run
    names = own_stream(run, "random_ticket", draw)
    mask = subject.round.mask.shuffled(stream(run.seed, *names, "mask"))
    fresh = run.lab.task.build(run.seed, *names).state_dict()
    return trained(subject, "random_ticket", draw, start=dict(fresh), mask=mask)


BOTH = (
    Control(
        "random_ticket",
        "Positions shuffled within each layer and fresh initial values: two things at once.",
        "positions and values",
        random_ticket,
    ),
)
