"""What a masked net costs: parameters, floating-point operations of a forward pass, bytes of weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tombola.errors import InputError
from tombola.mask import Mask, prunable

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class LayerCost:
    """What one weight tensor costs."""

    name: str
    """The name of the parameter."""
    shape: tuple[int, ...]
    kept: int
    """Weights that the mask keeps."""
    uses: int
    """How often a forward pass multiplies by each weight, per example: once for a linear layer on vectors, once a
    position for convolutions and on sequences, once a time step for recurrent layers. 0 for a layer that isn't counted:
    see ``Cost.uncounted``."""

    @property
    def weights(self) -> int:
        """Weights, kept or not."""
        return torch.Size(self.shape).numel()

    @property
    def flops(self) -> int:
        """Floating-point operations per example when every weight is used: two a multiply-add."""
        return 2 * self.uses * self.weights

    @property
    def kept_flops(self) -> int:
        """Floating-point operations per example of the kept weights alone."""
        return 2 * self.uses * self.kept

    @property
    def bytes_dense(self) -> int:
        """Every weight as float32."""
        return 4 * self.weights

    @property
    def bytes_sparse(self) -> int:
        """Kept weights as float32 in compressed rows: an index each, of 2 bytes where rows have up to 65,536 columns
        and else of 4, and 4 bytes a row and 4 more for where rows begin. Dimension 0 is the rows."""
        rows = self.shape[0] if self.shape else 1
        columns = self.weights // rows if rows else 0
        return self.kept * (4 + (2 if columns <= 2**16 else 4)) + 4 * (rows + 1)

    @property
    def bytes_bitmask(self) -> int:
        """Kept weights as float32, and one bit for every weight."""
        return 4 * self.kept + -(-self.weights // 8)


@dataclass(frozen=True)
class Cost:
    """What a masked net costs, by weight tensor and in total.

    Operations are those of linear layers, of recurrent layers and of convolutions, plain, grouped and transposed: two a
    multiply-add, per example, without biases, activations, gates and normalisation. Transposed convolutions count every
    product, those that padding cuts off included, as plain ones count those with padding's zeros. Bytes are those of
    parameters; the ones that no mask covers (biases, normalisation) count as float32 in every format.
    """

    layers: tuple[LayerCost, ...]
    """Prunable weights, in the model's order."""
    others: int
    """Parameters that can't be pruned."""
    uncounted: tuple[str, ...]
    """Prunable weights whose operations are not counted: attention and bilinear layers, and layers that the forward
    pass doesn't call as modules; and those that have none: embeddings, which are looked up."""

    @property
    def weights(self) -> int:
        """Prunable weights, kept or not."""
        return sum(layer.weights for layer in self.layers)

    @property
    def kept_weights(self) -> int:
        """Prunable weights that the mask keeps."""
        return sum(layer.kept for layer in self.layers)

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.weights + self.others

    @property
    def kept_parameters(self) -> int:
        """Kept weights and the parameters that can't be pruned."""
        return self.kept_weights + self.others

    @property
    def flops(self) -> int:
        """Floating-point operations of a forward pass per example, every weight used."""
        return sum(layer.flops for layer in self.layers)

    @property
    def kept_flops(self) -> int:
        """Floating-point operations of a forward pass per example, kept weights alone."""
        return sum(layer.kept_flops for layer in self.layers)

    @property
    def bytes_dense(self) -> int:
        """Every parameter as float32."""
        return sum(layer.bytes_dense for layer in self.layers) + 4 * self.others

    @property
    def bytes_sparse(self) -> int:
        """Weights in compressed rows, other parameters dense."""
        return sum(layer.bytes_sparse for layer in self.layers) + 4 * self.others

    @property
    def bytes_bitmask(self) -> int:
        """Weights as kept values and a bit mask, other parameters dense."""
        return sum(layer.bytes_bitmask for layer in self.layers) + 4 * self.others

    def under(self, mask: Mask) -> Cost:
        """What the same net costs under another mask, which must cover weights of the same shapes."""
        kept = {layer.name: layer.kept for layer in mask.layers()}
        layers = (replace(layer, kept=kept.get(layer.name, layer.weights)) for layer in self.layers)
        return replace(self, layers=tuple(layers))

    def training_flops(self, examples: int) -> int:
        """Operations of training on so many examples, kept weights alone: three passes an example, as the gradients
        of weights and of inputs each take what the forward pass takes (Evci et al. 2020, appendix H)."""
        return 3 * self.kept_flops * examples

    def rows(self) -> list[dict[str, Any]]:
        """One mapping a weight tensor, then one for the total, with the same keys in the same order."""
        keys = ("weights", "flops", "kept_flops", "bytes_dense", "bytes_sparse", "bytes_bitmask")
        rows = [
            {"name": layer.name, "kept": layer.kept, **{key: getattr(layer, key) for key in keys}}
            for layer in self.layers
        ]
        return [*rows, {"name": "total", "kept": self.kept_weights, **{key: getattr(self, key) for key in keys}}]

    def table(self) -> str:
        """The rows as aligned text, one line each under a line of headings."""
        heads = ("layer", "kept", "weights", "FLOPs", "FLOPs kept", "dense B", "sparse B", "bitmask B")
        keys = ("name", "kept", "weights", "flops", "kept_flops", "bytes_dense", "bytes_sparse", "bytes_bitmask")
        cells = [[row["name"], *(f"{row[key]:,}" for key in keys[1:])] for row in self.rows()]
        lines = [list(heads), *cells]
        widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
            for line in lines
        )


def cost(model: nn.Module, mask: Mask | None = None, *, example: Tensor | Sequence[Tensor]) -> Cost:
    """What a model costs, dense and under a mask.

    Parameters
    ----------
    model
        Any net. It runs once in evaluation mode on the example, and comes back as it was.
    mask
        Which weights are kept; by default all.
    example
        One batch of inputs, a tensor or a tuple of tensors, on any device; costs are per example of it.

    Raises ``InputError`` where the mask or the example doesn't fit the model.
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    device = next((parameter.device for parameter in model.parameters()), None)
    if not inputs or any(not isinstance(value, Tensor) or not value.dim() or not len(value) for value in inputs):
        raise InputError("an example is a batch of one or more inputs: a tensor, or a tuple of tensors")
    covered = {} if mask is None else mask.parameters(model)
    weights = {**prunable(model), **covered}
    uses = {id(weight): 0 for weight in weights.values()}
    with _counting(model, uses, len(inputs[0])), torch.no_grad():
        try:
            model(*(value.to(device) for value in inputs))
        except Exception as error:  # whatever a model makes of inputs that it wasn't made for
            shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"the model can't run on an example of shape {shapes}: {reason}") from error
    layers = tuple(
        LayerCost(
            name,
            tuple(weight.shape),
            weight.numel() if mask is None or name not in mask else int(mask[name].sum()),
            uses[id(weight)],
        )
        for name, weight in model.named_parameters()
        if name in weights
    )
    others = sum(p.numel() for name, p in model.named_parameters() if name not in weights)
    return Cost(layers, others, tuple(layer.name for layer in layers if not layer.uses))


@contextmanager
def _counting(model: nn.Module, uses: dict[int, int], batch: int) -> Iterator[None]:
    """Add up how often each weight is used per example, while the model is in evaluation mode."""

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Any = module.weight
        # The outputs of a linear layer or a convolution, and the inputs of a transposed one, are the channels of
        # dimension 0 of the weight: each of its weights is used once a position.
        values, channels = inputs[0] if isinstance(module, _TRANSPOSED) else output, len(weight)
        if id(weight) in uses and channels:
            uses[id(weight)] += values.numel() // (channels * batch)

    def count_steps(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        # Every layer and direction takes each time step once. Packed sequences have those that are no padding.
        first = output[0] if isinstance(output, tuple) else output
        steps = first.data.numel() // first.data.shape[-1]
        for name, weight in module.named_parameters(recurse=False):
            if name.startswith("weight_") and id(weight) in uses:
                uses[id(weight)] += steps // batch

    modes = [(module, module.training) for module in model.modules()]
    counted = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)
    handles = [module.register_forward_hook(count) for module, _ in modes if isinstance(module, counted)]
    handles += [module.register_forward_hook(count_steps) for module, _ in modes if isinstance(module, _RECURRENT)]
    model.eval()
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
