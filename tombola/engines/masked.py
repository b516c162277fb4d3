"""The masked engine: dense arithmetic with zeros, an ordinary torch loop. The reference for every other engine."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tombola.errors import TombolaError
from tombola.mask import Mask
from tombola.recipe import Recipe
from tombola.seeds import stream, stream_seed
from tombola.tasks.task import Examples, Task, size_of


class MaskedSession:
    """One training on dense tensors. Pruned weights start at 0.0 and get no gradient, so no step moves them.

    Cleared gradients also keep the optimiser's moments of pruned weights at 0.0: the state is that of the kept weights
    only, as it is on an engine that stores no others. The zeros are checked after every stretch.
    """

    def __init__(self, model: nn.Module, mask: Mask, task: Task, train: Examples, recipe: Recipe, seed: int) -> None:
        self.model = model.to(recipe.device)
        self.task, self.recipe, self.seed, self.train = task, recipe, seed, train
        mask.apply_(model)
        covered = mask.parameters(model)
        self._pruned = {name: p for name, p in covered.items() if not bool(mask[name].all())}
        self._weights = list(self._pruned.values())
        # A product with 0 and 1 is far faster than a masked fill; infinities, which it makes NaN, end the run anyway.
        self._keep = [mask[name].to(p.device, p.dtype) for name, p in self._pruned.items()]
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.model, recipe)
        self.steps_per_epoch = recipe.steps_per_epoch(len(train))
        self.step = recipe.start.steps(self.steps_per_epoch)
        self._noise = stream_seed(seed, "noise")
        self._order: tuple[int, tuple[Tensor, ...]] = (-1, ())

    def stretch(self, steps: int) -> float:
        """Train for ``steps`` steps; the mean training loss over their examples."""
        self.model.train()
        device = self.recipe.device
        total, seen = torch.zeros((), dtype=torch.float64, device=device), 0
        with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else ()):
            for _ in range(steps):
                batch = self.train.take(self._index(self.step).to(device))
                # Dropout and the like draw from the global state: seeded by step, so that bits depend on no stretch's
                # length.
                _seed_noise((self._noise + self.step) % 2**63, device)
                loss = self._train_on(batch)
                size = size_of(batch)
                total.add_(loss, alpha=size)
                seen += size
                self.step += 1
        self._check_zeros()
        return float(total) / max(seen, 1)

    def _train_on(self, batch: object) -> Tensor:
        rate = self.recipe.lr_at(self.step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.task.loss(self.model, batch)
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [(w.grad, keep) for w, keep in zip(self._weights, self._keep, strict=True) if w.grad is not None]
        if gradients:
            torch._foreach_mul_([g for g, _ in gradients], [keep for _, keep in gradients])
        self.optimizer.step()
        return loss.detach()

    def _index(self, step: int) -> Tensor:
        """The examples of one step: the epoch's permutation comes from the seed's ``order`` stream."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            order = torch.randperm(len(self.train), generator=stream(self.seed, "order", epoch))
            self._order = (epoch, torch.split(order, self.recipe.batch))
        return self._order[1][position]

    def _check_zeros(self) -> None:
        for (name, parameter), keep in zip(self._pruned.items(), self._keep, strict=True):
            value = parameter.detach()
            if not torch.equal(value * keep, value) and bool(torch.isfinite(value).all()):
                raise TombolaError(
                    f"pruned weights of {name!r} moved away from zero at step {self.step}: this is a defect"
                )

    def state(self) -> dict[str, Tensor]:
        """The model's state_dict under ``model.``, the optimiser's tensors under ``optimizer.NAME.``, and the step."""
        state = {f"model.{name}": value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    state[f"optimizer.{name}.{key}"] = value.detach().cpu().clone()
        state["step"] = torch.tensor(self.step)
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state()``."""
        self.model.load_state_dict({n[len("model.") :]: v for n, v in state.items() if n.startswith("model.")})
        for name, parameter in self.model.named_parameters():
            prefix = f"optimizer.{name}."
            for key, value in state.items():
                if key.startswith(prefix):
                    # Adam keeps its step count on the CPU unless fused; everything of the weight's shape lives beside
                    # it.
                    where = parameter.device if value.dim() else self._step_device(parameter)
                    self.optimizer.state[parameter][key[len(prefix) :]] = value.clone().to(where)
        self.step = int(state["step"])

    def _step_device(self, parameter: Tensor) -> torch.device:
        fused = any(group.get("fused") for group in self.optimizer.param_groups)
        return parameter.device if fused else torch.device("cpu")


def _seed_noise(seed: int, device: str) -> None:
    torch.default_generator.manual_seed(seed)
    if device.startswith("cuda"):
        torch.cuda.manual_seed(seed)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over the parameters that want a gradient; fused where the device has it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    fused = torch.device(recipe.device).type in ("cpu", "cuda") and all(p.is_floating_point() for p in parameters)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
            fused=fused,
        )
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(
        parameters, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay, fused=fused
    )
