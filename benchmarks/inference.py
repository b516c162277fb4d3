"""What one call of a compiled ticket costs: ``tb.compile(..., inference=True)`` against dense nets in torch and ONNX.

LeNet-300-100 and LeNet-5, one thread, batches of 1 and 256. The masks come from iterative magnitude pruning with reset,
20 % a round to 5 % of the weights, on scikit-learn's handwritten digits enlarged to 28x28; the rounds train the
compiled net. The dense nets hold the same weights, zeros where they are pruned: ``torch`` is the faster of the module
itself and ``torch.compile`` of it, both in inference mode, by the median of their times; ONNX Runtime is asked for one
thread and all of its optimisations. What isn't installed or can't be compiled here is left out, and said to be.
"""

from __future__ import annotations

import copy
import math
import statistics
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from timing import begin, duration, header, interleaved, ratio, table
from torch import Tensor, nn

import tombola as tb
from tombola.engines.sparse.modules import compile
from tombola.tasks.models import lenet5, lenet300

COLUMNS = ("net", "density", "batch", "arm", "us a call", "against Tombola")
NETS: dict[str, Callable[[], nn.Module]] = {"LeNet-300-100": lenet300, "LeNet-5": lenet5}
DENSITY, RATE, BATCHES = 0.05, 0.2, (1, 256)
TOMBOLA, EAGER, COMPILED, ONNX = "Tombola", "torch", "torch.compile", "ONNX Runtime"
Call = Callable[[], object]


def digits() -> tuple[Tensor, Tensor]:
    """Handwritten digits, enlarged from 8x8 to 24x24 pixels with a border of 2, from 0 to 1."""
    found = load_digits()
    small = torch.tensor(found.images / 16, dtype=torch.float32).unsqueeze(1)
    return F.pad(F.interpolate(small, scale_factor=3), (2, 2, 2, 2)), torch.tensor(found.target)


def train(model: nn.Module, data: tuple[Tensor, Tensor], steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1.2e-3)
    x, y = data
    for index in torch.randint(len(x), (steps, 60)):
        optimizer.zero_grad()
        F.cross_entropy(model(x[index]), y[index]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def ticket(make: Callable[[], nn.Module], data: tuple[Tensor, Tensor], steps: int) -> tuple[nn.Module, tb.Mask]:
    """A trained net, pruned weights 0, and its mask."""
    torch.manual_seed(0)
    model = make()
    initial, mask = copy.deepcopy(model.state_dict()), tb.Mask.full(model)
    train(model, data, steps)
    rounds = math.ceil(math.log(DENSITY) / math.log(1 - RATE))
    for number in range(1, rounds + 1):
        mask = tb.prune(tb.score(model, "magnitude", mask=mask), max(DENSITY, (1 - RATE) ** number), within=mask)
        model.load_state_dict(initial)
        fast = compile(model, mask, data[0][:1])
        train(fast, data, steps)
        model.load_state_dict(fast.state_dict())
    return model.eval(), mask


def in_torch(call: Callable[[Tensor], Tensor], x: Tensor, calls: int) -> None:
    with torch.inference_mode():
        for _ in range(calls):
            call(x)


def repeated(call: Callable[[], object], calls: int) -> None:
    for _ in range(calls):
        call()


def torch_compiled(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    torch._dynamo.reset()
    compiled: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False)
    in_torch(compiled, x, 5)
    return compiled


def onnx_session(model: nn.Module, x: Tensor) -> Callable[[], object]:
    import onnxruntime  # type: ignore[import-not-found,import-untyped,unused-ignore]

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = str(Path(folder) / "net.onnx")
        torch.onnx.export(model, (x,), path, dynamo=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given: dict[str, Any] = {session.get_inputs()[0].name: x.numpy()}
    return partial(session.run, None, given)


def arms(model: nn.Module, mask: tb.Mask, x: Tensor, calls: int, missing: set[str]) -> dict[str, Call]:
    """What is compared, each a call of no arguments; all must agree on the outputs."""
    fast = compile(model, mask, x, inference=True)
    found: dict[str, Call] = {
        TOMBOLA: partial(repeated, partial(fast, x.numpy()), calls),
        EAGER: partial(in_torch, model, x, calls),
    }
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    try:
        found[COMPILED] = partial(in_torch, torch_compiled(model, x), x, calls)
    except Exception as error:  # noqa: BLE001  # whatever a missing compiler raises
        missing.add(f"torch.compile doesn't work here ({type(error).__name__})")
    try:
        found[ONNX] = partial(repeated, onnx_session(model, x), calls)
    except ImportError as error:
        missing.add(f"ONNX Runtime is left out: {error}; pip install onnx onnxruntime")
    return found


def main() -> None:
    quick = begin(__doc__ or "")
    repeats, steps = (3, 5) if quick else (15, 100)
    title = header("One call of a net with 5 % of its weights, and of dense nets with the same weights", repeats)
    data, rows, missing = digits(), [], set[str]()
    for net, make in NETS.items():
        model, mask = ticket(make, data, steps)
        for batch in BATCHES:
            calls = 2 if quick else max(4, 1000 // batch)
            times = interleaved(arms(model, mask, data[0][:batch].contiguous(), calls, missing), repeats)
            best = min((EAGER, COMPILED), key=lambda arm: statistics.median(times.get(arm, [math.inf])))
            times = {arm: taken for arm, taken in times.items() if arm not in (EAGER, COMPILED) or arm == best}
            for arm, taken in times.items():
                against = "-" if arm == TOMBOLA else ratio(taken, times[TOMBOLA])
                rows.append((net, f"{mask.density:.1%}", str(batch), arm, duration(taken, calls * 1e-6, 1), against))
    print(title)
    print(table(COLUMNS, rows))
    for line in sorted(missing):
        print(f"\n{line}")


if __name__ == "__main__":
    main()
