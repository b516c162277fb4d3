"""Controls that change several things at once, for comparisons that nothing less decides.

The random ticket of Morcos et al. (2019) says how far a ticket is ahead of having none, and not what of it matters;
``shuffled`` and ``reinit`` beside it tell that apart. Where tickets are rewound, their values have been trained up to
there already, while fresh ones under the rest of the recipe have fewer steps altogether: the controls with ``_whole``
make up for that.
"""

from __future__ import annotations

from tombola.audits.controls.base import Asked, Control, Subject, own_stream, trained
from tombola.audits.controls.values import reinit
from tombola.durations import Duration
from tombola.lab import Run
from tombola.seeds import stream


def random_ticket(subject: Subject, draw: int, arm: str = "random_ticket", first: Duration | None = None) -> Run:
    """Kept positions shuffled within each layer, and a fresh draw of the whole initial state (Morcos et al. 2019).

    Their random tickets differ from a ticket in structure and in initial values. Layer densities stay here, which
    makes the control the stronger one. Schedule and data order begin where the ticket's do, or at ``first``.
    """
    run = subject.round.run
    names = own_stream(run, "random_ticket", draw)
    mask = subject.round.mask.shuffled(stream(run.seed, *names, "mask"))
    fresh = run.lab.task.build(run.seed, *names).state_dict()
    return trained(subject, arm, draw, start=dict(fresh), mask=mask, first=first)


def random_ticket_whole(subject: Subject, draw: int) -> Run:
    """The very random ticket, trained by the whole recipe from its first step on."""
    return random_ticket(subject, draw, "random_ticket_whole", first=Duration(0))


def reinit_whole(subject: Subject, draw: int) -> Run:
    """The very values of ``reinit``, trained by the whole recipe from its first step on."""
    return reinit(subject, draw, "reinit_whole", first=Duration(0))


def _rewound(asked: Asked) -> str | None:
    if asked.recipe.survivors in ("rewind", "lr-rewind"):
        return None
    return "is for tickets that are rewound to a later step (survivors 'rewind'), as others train it all anyway"


BOTH = (
    Control(
        "random_ticket",
        "Positions shuffled within each layer and fresh initial values: two things at once.",
        "positions and values",
        random_ticket,
    ),
    Control(
        "reinit_whole",
        "Of a rewound ticket: reinit, with the steps before the rewinding point too.",
        "values and steps",
        reinit_whole,
        reason=_rewound,
    ),
    Control(
        "random_ticket_whole",
        "Of a rewound ticket: random_ticket, with the steps before the rewinding point too.",
        "positions, values and steps",
        random_ticket_whole,
        reason=_rewound,
    ),
)
