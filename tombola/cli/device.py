"""Whether torch can use a device, found out before hours of work are planned on it."""

from __future__ import annotations

from tombola.errors import InputError


def check_device(name: str) -> None:
    """``InputError`` unless tensors can be put on the device."""
    import torch

    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise InputError(f"--device {name} can't be used here: {reason}") from error
