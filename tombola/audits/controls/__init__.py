"""Controls: each trains a ticket's net again with exactly one thing changed.

That needs a net that was trained from its ticket's values, under its mask, as those of most methods are. Where a search
has trained the very net that is its ticket (survivors ``keep``, and the shared values of Deep Compression) there is no
training to repeat, and controls are refused: survivors ``reset`` train the mask that was found, and have them.

Some are no such thing: ``lr_rewind`` and ``fine_tune`` are rivals, other ways to train the same mask, ``small_dense``
is another net, and those in ``both`` change several things. A new control is a ``Control`` in the tuple of its family's
file.
"""

from __future__ import annotations

from tombola.audits.controls.architecture import ARCHITECTURE
from tombola.audits.controls.base import Control, Subject
from tombola.audits.controls.both import BOTH
from tombola.audits.controls.data import DATA
from tombola.audits.controls.dense import DENSE_RATE, dense_rate
from tombola.audits.controls.positions import POSITIONS
from tombola.audits.controls.rivals import RIVALS
from tombola.audits.controls.scores import SCORES
from tombola.audits.controls.values import VALUES
from tombola.errors import InputError, suggestion

CONTROLS: dict[str, Control] = {
    control.name: control for control in (*VALUES, *POSITIONS, *BOTH, *SCORES, *DATA, *ARCHITECTURE, *RIVALS)
}


def get_control(name: str) -> Control:
    """The control of that name; ``InputError`` with the nearest one for a name that is not known."""
    if name not in CONTROLS:
        raise InputError(f"unknown control {name!r}.{suggestion(name, CONTROLS)}")
    return CONTROLS[name]


__all__ = ["CONTROLS", "DENSE_RATE", "Control", "Subject", "dense_rate", "get_control"]
