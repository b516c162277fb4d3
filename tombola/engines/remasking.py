"""The state of a session as it goes on under another mask."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tombola.mask import Mask


def remasked(state: Mapping[str, Tensor], mask: Mask, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A session's state under another mask. ``values`` are whole tensors of parameters that take on others.

    What the mask prunes is 0, and what is 0 begins anew: its moments are 0 too.
    """
    changed = dict(state)
    for name, kept in mask.items():
        value = state[f"model.{name}"] if values is None or name not in values else values[name]
        changed[f"model.{name}"] = value.masked_fill(~kept, 0.0)
    for entry, moment in state.items():
        kind, _, rest = entry.partition(".")
        name = rest.rpartition(".")[0]
        if kind == "optimizer" and name in mask and moment.shape == mask[name].shape:
            changed[entry] = moment.masked_fill(changed[f"model.{name}"] == 0, 0.0)
    return changed
