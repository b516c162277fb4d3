"""The masked engine: dense arithmetic with zeros, an ordinary torch loop. The reference for every other engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tombola.batches import size_of
from tombola.engines.evaluation import evaluate
from tombola.engines.graphs import Result, StepGraph
from tombola.errors import TombolaError
from tombola.mask import Mask
from tombola.recipe import Recipe
from tombola.seeds import stream, stream_seed
from tombola.tasks.acting import acts
from tombola.tasks.task import Examples, Loss, Task


class MaskedSession:
    """One training on dense tensors. Pruned weights start at 0.0 and get no gradient, so no step moves them.

    Cleared gradients also keep the optimiser's moments of pruned weights at 0.0: the state is that of the kept weights
    only, as it is on an engine that stores no others. The zeros are checked after every stretch. On CUDA the steps are
    recorded and replayed where that can be done.
    """

    def __init__(self, model: nn.Module, mask: Mask, task: Task, train: Examples, recipe: Recipe, seed: int) -> None:
        self.model = model.to(recipe.device)
        self.task, self.recipe, self.seed, self.train = task, recipe, seed, train
        self._cover(mask)
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._trained: dict[str, Tensor] = dict(self.model.named_parameters())
        self.optimizer = make_optimizer(self.model, recipe)
        self._loss = loss_in_precision(task, recipe)
        self._scales = batch_norm_scales(self.model) if recipe.scale_l1 else {}
        self.steps_per_epoch = recipe.steps_per_epoch(len(train))
        self.step = recipe.start.steps(self.steps_per_epoch)
        self._order: tuple[int, tuple[Tensor, ...]] = (-1, ())
        self._play = train.play(seed, recipe) if acts(train) else None
        self._graph = self._new_graph()

    layers: Mapping[str, str] = {}

    def _cover(self, mask: Mask) -> None:
        """Prune by a mask from now on."""
        self.mask = mask
        mask.apply_(self.model)
        covered = mask.parameters(self.model)
        self._pruned = {name: p for name, p in covered.items() if not bool(mask[name].all())}
        self._weights = list(self._pruned.values())
        # A product with 0 and 1 is far faster than a masked fill; infinities, which it makes NaN, end the run anyway.
        self._keep = [mask[name].to(p.device, p.dtype) for name, p in self._pruned.items()]

    def _new_graph(self) -> StepGraph | None:
        on_cuda = torch.device(self.recipe.device).type == "cuda" and self._play is None
        return StepGraph(min(self.recipe.batch, len(self.train))) if on_cuda else None

    @property
    def note(self) -> str:
        """On CUDA, once a step has been taken: that steps are recorded as a CUDA graph, or why not. Else empty."""
        return "" if self._graph is None else self._graph.note

    def stretch(self, steps: int) -> float:
        """Train for ``steps`` steps; the mean training loss over their examples."""
        self.model.train()
        device = self.recipe.device
        total, seen = torch.zeros((), dtype=torch.float64, device=device), 0
        with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else ()):
            for _ in range(steps):
                # Dropout and the like draw from the global state: seeded by step, so that bits depend on no stretch's
                # length.
                seed_noise(self.seed, self.step, device)
                set_rate(self.optimizer, self.recipe.lr_at(self.step, self.steps_per_epoch))
                loss, size = self._advance()
                total.add_(loss, alpha=size)
                seen += size
                self.step += 1
        self._check_zeros()
        return float(total) / max(seen, 1)

    def _advance(self) -> Result:
        if self._play is not None:
            batch = self._play.batch(self.model)
            return self._train_on(batch), size_of(batch)
        index = self._index(self.step)
        return self.advance(index) if self._graph is None else self._graph.advance(self, index)

    @property
    def seen(self) -> Mapping[str, float]:
        """What training data that come of acting say of themselves; else nothing."""
        return {} if self._play is None else self._play.seen

    @torch.no_grad()
    def remask(self, mask: Mask, values: Mapping[str, Tensor] | None = None) -> None:
        """Go on under another mask of the same parameters.

        ``values`` are whole tensors of parameters that take on others. What the mask prunes is 0 from now on, and what
        is 0 begins anew: its moments are 0 too.
        """
        parameters = mask.parameters(self.model)
        for name, value in (values or {}).items():
            parameters[name].copy_(value)
        self._cover(mask)
        for parameter in parameters.values():
            alive = (parameter != 0).to(parameter.dtype)
            for moment in self.optimizer.state.get(parameter, {}).values():
                if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                    moment.mul_(alive)
        self._graph = self._new_graph()  # a recorded step has the old mask in it

    def skip(self) -> None:
        """Go past a step without training."""
        self.step += 1

    def evaluate(self, data: Examples, state: Mapping[str, Tensor] | None = None) -> dict[str, float]:
        """The task's loss and metrics over all examples, with the current weights or with another state_dict."""
        return evaluate(self.task, self.model, data, state)

    def advance(self, index: Tensor) -> Result:
        """Train on the examples of an index at the optimiser's present rate; the loss, and the size of the batch."""
        batch = self.train.take(index)
        return self._train_on(batch), size_of(batch)

    def _train_on(self, batch: object) -> Tensor:
        loss = self._backward(batch)
        self.optimizer.step()
        return loss

    def _backward(self, batch: object) -> Tensor:
        """The loss of a batch; what is kept has its gradient, the penalty's included, and what is pruned has 0."""
        loss = self._loss(self.model, batch)
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [(w.grad, keep) for w, keep in zip(self._weights, self._keep, strict=True) if w.grad is not None]
        if gradients:
            torch._foreach_mul_([g for g, _ in gradients], [keep for _, keep in gradients])
        for scale in self._scales.values():
            if scale.grad is not None:
                scale.grad.add_(scale.detach().sign(), alpha=self.recipe.scale_l1)
        return loss.detach()

    def _index(self, step: int) -> Tensor:
        """The examples of one step: the epoch's permutation comes from the seed's ``order`` stream."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            order = epoch_order(self.seed, epoch, self.train, self.recipe.order).to(self.recipe.device)
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
        state |= {name: value.detach().cpu().clone() for name, value in self._moments().items()}
        if self._play is not None:
            state |= {f"play.{name}": value for name, value in self._play.state().items()}
        state["step"] = torch.tensor(self.step)
        return state

    def _moments(self) -> dict[str, Tensor]:
        """The optimiser's tensors."""
        return {
            f"optimizer.{name}.{key}": value
            for name, parameter in self._trained.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name."""
        named = (*self.model.named_parameters(), *self.model.named_buffers())
        return {f"model.{name}": value for name, value in named} | self._moments()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state()``."""
        self.model.load_state_dict({n[len("model.") :]: v for n, v in state.items() if n.startswith("model.")})
        # In place wherever there is a place: a recorded step goes on with the tensors it was recorded with.
        moments = self._moments()
        for name, moment in moments.items():
            moment.copy_(state[name]) if name in state else moment.zero_()
        for name, parameter in self._trained.items():
            prefix = f"optimizer.{name}."
            for key, value in state.items():
                if key.startswith(prefix) and key not in moments:
                    # Adam's step count may live elsewhere; everything of the weight's shape lives beside the weight.
                    where = parameter.device if value.dim() else step_device(self.optimizer, parameter)
                    self.optimizer.state[parameter][key[len(prefix) :]] = value.clone().to(where)
        if self._play is not None:
            self._play.load({n[len("play.") :]: v for n, v in state.items() if n.startswith("play.")})
        self.step = int(state["step"])


def seed_noise(seed: int, step: int, device: str) -> None:
    """Set torch's global random state to what a step of a seed's training draws from (stream ``noise``)."""
    own = (stream_seed(seed, "noise") + step) % 2**63
    torch.default_generator.manual_seed(own)
    if device.startswith("cuda"):
        torch.cuda.manual_seed(own)


def epoch_order(seed: int, epoch: int, train: Examples, draw: int = 0) -> Tensor:
    """In which order an epoch of a seed's training sees its examples (1-D int64), from the stream ``order``.

    Where the data vary from epoch to epoch, as augmented images do, the indices say how (stream ``augment``). Another
    ``draw`` gives another order of the same seed.
    """
    names = (epoch,) if not draw else (epoch, "draw", draw)
    order = torch.randperm(len(train), generator=stream(seed, "order", *names))
    vary: Callable[[Tensor, torch.Generator], Tensor] | None = getattr(train, "vary", None)
    return order if vary is None else vary(order, stream(seed, "augment", *names))


def loss_in_precision(task: Task, recipe: Recipe) -> Loss:
    """The task's loss as training computes it: under autocast where the recipe's precision is ``bfloat16``.

    Weights, their gradients and the optimiser's state stay what they are.
    """
    if recipe.precision == "float32":
        return task.loss
    cast = torch.autocast(torch.device(recipe.device).type, dtype=torch.bfloat16)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        with cast:
            return task.loss(model, batch)

    return loss


def batch_norm_scales(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained scales (weights) of batch normalisation, which ``scale_l1`` penalises, by name."""
    kind = nn.modules.batchnorm._BatchNorm
    scales = {id(module.weight) for module in model.modules() if isinstance(module, kind)}
    return {name: p for name, p in model.named_parameters() if id(p) in scales and p.requires_grad}


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate, in place where it is a tensor: a recorded step reads it there."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def step_device(optimizer: torch.optim.Optimizer, parameter: Tensor) -> torch.device:
    """Where Adam keeps the step count of a parameter."""
    there = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    return parameter.device if there else torch.device("cpu")


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over the parameters that want a gradient; fused where the device has it."""
    return optimizer_over(model.parameters(), recipe)


def optimizer_over(tensors: Iterable[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over those of the tensors that want a gradient.

    On CUDA whatever changes from step to step, learning rate and step count, is kept on the device, so that a step can
    be recorded. Torch takes such a rate for SGD only when fused.
    """
    parameters = [p for p in tensors if p.requires_grad]
    device = torch.device(recipe.device)
    floating = all(p.is_floating_point() for p in parameters)
    fused, on_cuda = device.type in ("cpu", "cuda") and floating, device.type == "cuda"
    lr = torch.tensor(recipe.lr, dtype=torch.float32, device=device) if on_cuda else recipe.lr
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
            fused=fused,
        )
    if recipe.optimizer == "rmsprop":  # torch has it not fused
        return torch.optim.RMSprop(
            parameters, lr=lr, alpha=recipe.beta, eps=recipe.eps, weight_decay=recipe.weight_decay, capturable=on_cuda
        )
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(
        parameters,
        lr=lr,
        betas=recipe.betas,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        fused=fused,
        capturable=on_cuda,
    )
