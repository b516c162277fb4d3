"""What scoring weights takes: seconds of the processor, and floating-point operations."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


@dataclass
class Work:
    """Seconds of the processor, and operations of products and convolutions, two a multiply-add."""

    seconds: float = 0.0
    flops: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.seconds + other.seconds, self.flops + other.flops)


@contextmanager
def measured() -> Iterator[Work]:
    """Measure the work of a block, which stays bit for bit what it is; what is given is filled in at its end.

    Operations are counted as torch carries them out, backward passes and ``vmap`` included.
    """
    work, began = Work(), time.process_time()
    with _Counter() as counter:  # type: ignore[no-untyped-call]
        yield work
    work.seconds, work.flops = time.process_time() - began, counter.flops


class _Counting:
    """Not written into the mode itself: torch wraps what it finds there, and imports its compiler for that, seconds
    long. Torch's own ``FlopCounterMode`` does so too, and takes two to four times as long as the work."""

    flops = 0

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        out = function(*args, **given)
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **given, out_val=out)
        return out


class _Counter(_Counting, TorchDispatchMode):  # type: ignore[no-untyped-call]
    pass
