"""Many small networks of one architecture as one: their weights stacked, their layers one product each.

Streams × columns: the networks of a stream see the same batches, so that the first layer reads a batch once for all of
them; the networks of a column have the same recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from limbeck.heads import HeadlessExit, TransplantedStudent
from limbeck.models.networks import MLP, LinearClassifier

ELEMENTWISE = (
    nn.ReLU,
    nn.GELU,
    nn.Tanh,
    nn.Sigmoid,
    nn.SiLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.Softplus,
    nn.Hardswish,
)
"""Activations that act on every number alone, without a parameter: one call serves any number of networks."""


def layers_of(model: nn.Module) -> list[nn.Module] | None:
    """The layers of a network of linear layers and activations in the order of its forward pass.

    None where it is anything else: it has to be trained alone.
    """
    if any(part._forward_hooks or part._forward_pre_hooks for part in model.modules()):
        return None
    if isinstance(model, TransplantedStudent):
        backbone = _flat(model.backbone)
        projector = _flat(model.projector)
        if (
            model.match != "vector"
            or backbone is None
            or projector is None
            or not isinstance(backbone[-1], HeadlessExit)
        ):
            return None
        found: list[nn.Module] | None = [*backbone[:-1], *projector, model.head]
    else:
        found = _flat(model)
    if found is None or not isinstance(found[-1], nn.Linear):
        return None
    linear = [layer for layer in found if isinstance(layer, nn.Linear)]
    parameters = [part for layer in linear for part in layer.parameters()]
    alike = all(len({part.requires_grad for part in layer.parameters()}) == 1 for layer in linear)
    whole = len({id(part) for part in parameters}) == len(parameters) == len(list(model.parameters()))
    plain = all(part.dtype is torch.float32 and part.device.type == "cpu" for part in parameters)
    trained = any(part.requires_grad for part in parameters)
    return found if alike and whole and plain and trained and not list(model.buffers()) else None


def _flat(module: nn.Module) -> list[nn.Module] | None:
    if type(module) is nn.Sequential:
        parts = [_flat(part) for part in module]
        return None if None in parts else [layer for part in parts if part is not None for layer in part]
    if type(module) is LinearClassifier:
        return [module.linear]
    if type(module) is MLP:
        hidden = _flat(module.hidden)
        return None if hidden is None else [*hidden, module.linear]
    if type(module) is nn.Identity or (type(module) is nn.Flatten and repr(module) == repr(nn.Flatten())):
        return []  # features are vectors, and flat already
    return [module] if type(module) in (nn.Linear, HeadlessExit, *ELEMENTWISE) else None


def architecture(layers: Sequence[nn.Module]) -> tuple[str, ...]:
    """What two networks must share to be stacked."""
    return tuple(
        f"{layer!r} {any(part.requires_grad for part in layer.parameters())}"
        if isinstance(layer, nn.Linear)
        else repr(layer)
        for layer in layers
    )


class _Weights(NamedTuple):
    """A stacked linear layer; `first` has the columns innermost, so that one product serves all of a stream."""

    weight: Tensor
    bias: Tensor | None
    first: bool
    trained: bool

    @property
    def axis(self) -> int:
        """Where the columns lie."""
        return 2 if self.first else 1

    def of(self, tensor: Tensor, stream: int, column: int) -> Tensor:
        """One network's part `[in, out]` (of a bias `[1, out]`) of the stacked tensor."""
        return tensor[stream, :, column] if self.first else tensor[stream, column]


class StackedNetwork:
    """Networks of one architecture, streams × columns, with stacked weights.

    Args:
        networks: their layers, `[S][R]`; the weights are copied.
    """

    def __init__(self, networks: Sequence[Sequence[Sequence[nn.Module]]]) -> None:
        self.streams, self.columns = len(networks), len(networks[0])
        self._networks = networks
        self._layers: list[_Weights | nn.Module] = []
        first = True
        for index, example in enumerate(networks[0][0]):
            if not isinstance(example, nn.Linear):
                self._layers.append(example)
                continue
            self._layers.append(self._stacked(index, example, first))
            first = False
        self.weights = [layer for layer in self._layers if isinstance(layer, _Weights)]
        self.classes = self.weights[-1].weight.shape[-1]
        self.alone = self.weights[0] if len(self._layers) == 1 else None
        """The only layer, where there is one: its gradient needs no graph."""

    def _stacked(self, index: int, example: nn.Linear, first: bool) -> _Weights:
        axis = 1 if first else 0

        def stacked(name: str) -> Tensor:
            rows = []
            for stream in self._networks:
                parts = [getattr(layers[index], name).detach() for layers in stream]
                rows.append(torch.stack([part.T if part.dim() == 2 else part[None] for part in parts], axis))
            return torch.stack(rows).contiguous().requires_grad_(trained)

        trained = example.weight.requires_grad
        bias = None if example.bias is None else stacked("bias")
        return _Weights(stacked("weight"), bias, first, trained)

    def parameters(self) -> list[tuple[Tensor, int]]:
        """The trained tensors, each with the axis along which its columns lie."""
        found = []
        for layer in self.weights:
            if layer.trained:
                found += [(part, layer.axis) for part in (layer.weight, layer.bias) if part is not None]
        return found

    def __call__(self, x: Tensor, logits: bool = True) -> tuple[Tensor | None, Tensor]:
        """The outputs of all networks.

        Args:
            x: `[S, B, D]`, a batch for each stream, or `[B, D]` for all.
            logits: whether to compute them.

        Returns:
            Logits `[S, R, B, C]`, and what enters the last linear layer, `[S, R, B, H]` (`[S, 1, B, D]` where that is
            x).
        """
        streams, columns = self.streams, self.columns
        values = x.expand(streams, *x.shape[-2:])
        for layer in self._layers[:-1]:
            values = self._linear(layer, values) if isinstance(layer, _Weights) else layer(values)
        last = self.weights[-1]
        features = values.view(streams, 1 if last.first else columns, *values.shape[-2:])
        if not logits:
            return None, features
        made = self._linear(last, values)
        return made.view(streams, columns, *made.shape[-2:]) if made.dim() == 3 else made, features

    def back(self, x: Tensor, outputs: Sequence[Tensor], slopes: Sequence[Tensor]) -> None:
        """Leave the gradients in the weights.

        Args:
            x: the batch `[S, B, D]`.
            outputs: those of the call that were differentiated.
            slopes: the gradients by them, in their shapes.
        """
        for part, _ in self.parameters():
            part.grad = None
        if self.alone is None:
            torch.autograd.backward(outputs, slopes)
            return
        # One layer: two products, without a graph.
        (slope,) = (slope.permute(0, 2, 1, 3).flatten(2) for slope in slopes)
        layer = self.alone
        layer.weight.grad = torch.bmm(x.transpose(1, 2), slope).view_as(layer.weight)
        if layer.bias is not None:
            layer.bias.grad = slope.sum(1).view_as(layer.bias)

    def _linear(self, layer: _Weights, values: Tensor) -> Tensor:
        """From `[S, B, D]` (first) or `[S·R, B, H]` to `[S·R, B, H']`; to `[S, R, B, C]` where it is the only one."""
        streams, columns, width = self.streams, self.columns, layer.weight.shape[-1]
        shape = (streams, -1, columns * width) if layer.first else (streams * columns, -1, width)
        weight = layer.weight.view(shape)
        made = (
            torch.bmm(values, weight) if layer.bias is None else torch.baddbmm(layer.bias.view(shape), values, weight)
        )
        if not layer.first:
            return made
        apart = made.view(streams, -1, columns, width).transpose(1, 2)
        return apart if layer is self.weights[-1] else apart.reshape(streams * columns, -1, width)

    def state(self, stream: int, column: int) -> list[Tensor]:
        """A copy of the trained weights of one network."""
        return [
            layer.of(part, stream, column).detach().clone()
            for layer in self.weights
            if layer.trained
            for part in (layer.weight, layer.bias)
            if part is not None
        ]

    @torch.no_grad()
    def write(self, stream: int, column: int, state: Sequence[Tensor] | None = None) -> None:
        """Put a network's weights (of a kept state) back into the module they came from."""
        values = iter(self.state(stream, column) if state is None else state)
        for layer in self._networks[stream][column]:
            if not isinstance(layer, nn.Linear) or not layer.weight.requires_grad:
                continue
            layer.weight.copy_(next(values).T)
            if layer.bias is not None:
                layer.bias.copy_(next(values)[0])
