"""Slimming (Liu et al. 2017, You et al. 2020): from a mask of channels to a mask of weights, and to the smaller net.

A channel that is dropped has the scale and the shift of its batch normalisation pruned, so that it is exactly 0 from
then on, and with them the weights that no longer influence the output: the filters that make the channel and the
weights that read it. In a residual net the last batch normalisation of a branch adds 0 to a dropped channel of the
stream, whose other summands stay; its filters go all the same. (The authors' code leaves these layers and those of
shortcuts whole.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from tombola.early_bird import scales
from tombola.engines.channels import Depthwise, Weighted
from tombola.engines.compaction import compact
from tombola.engines.liveness import Liveness, analyse
from tombola.engines.tracing import trace
from tombola.errors import InputError, suggestion
from tombola.mask import Mask


def slim_mask(model: nn.Module, channels: Mask, example: Tensor | Sequence[Tensor]) -> Mask:
    """The mask of a net without the channels that a channel mask drops.

    Parameters
    ----------
    model
        The net; it is not changed.
    channels
        For scales of batch normalisations, by parameter name, the bool vector of channels that are kept.
    example
        One batch of inputs, a tensor or a tuple of tensors: shapes are taken from it.

    The mask covers every prunable parameter, and scale and shift of every batch normalisation that ``channels`` names.
    Where a value goes through an operation whose channels can't be followed, the weights behind it stay.

    Raises ``UnsupportedError`` where the net can't be traced, ``InputError`` where ``channels`` names something else
    than scales, and where it or the example doesn't fit the net.
    """
    own = dict(model.named_parameters())
    known = scales(model)
    for name in channels:
        if name not in known:
            raise InputError(
                f"a channel mask names scales of batch normalisations, but {name!r} is none.{suggestion(name, known)}"
            )
    shifts = {name: f"{name.removesuffix('weight')}bias" for name in channels}
    silent = Mask({**channels, **{shift: channels[name] for name, shift in shifts.items() if shift in own}})
    traced = trace(model, silent, example)
    weights = _influential(Mask.full(model), analyse(traced, silent, frozen=False, spare=False))
    return Mask({name: {**weights, **silent}[name] for name in own if name in weights or name in silent})


def slimmed(model: nn.Module, mask: Mask, example: Tensor | Sequence[Tensor]) -> nn.Module:
    """The physically smaller net: it computes what the masked net computes, in training and in evaluation.

    Parameters have the names that they have in ``model``, which is not changed; nothing is shared. The mask may be any;
    what it prunes of a channel that stays is 0 in the smaller net. ``tombola.engines.compaction`` gives the way back.

    Raises ``UnsupportedError`` where the net can't be traced, ``InputError`` where mask or example don't fit it.
    """
    return compact(model, mask, example).model


def _influential(whole: Mask, live: Liveness) -> Mapping[str, Tensor]:
    """The weights that lead from channels that aren't 0 to channels that matter; all where that can't be followed."""
    kept = dict(whole)
    for node, rule in live.rules.items():
        if isinstance(rule, Weighted):
            name, rows = f"{node.target}.weight", live.delivered[node]
            if isinstance(rule, Depthwise):
                entries = (rows & live.known[rule.sources[0]].ne(0))[:, None]
            else:
                columns = live.required[node, rule.sources[0]]
                assert columns is not None
                entries = rows[:, None] & columns
            kept[name] = entries.reshape(*entries.shape, *(1,) * (kept[name].dim() - 2)).expand_as(kept[name])
    return kept
