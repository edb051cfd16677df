"""Many small networks of one architecture as one: their weights stacked, their layers one product each.

Streams × columns: the networks of a stream see the same batches, so that the first layer reads a batch once for all of
them; the networks of a column have the same recipe.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
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
    """A stacked linear layer `[S, in, out]` with its columns at `axis`.

    Behind the first layer a column has a product of its own, `[S, R, in, out]`; one product of the first layer serves
    all of a stream, `[S, in, R, out]`, or `[S, in, out, R]` where it makes the logits, whose classes come first.
    """

    weight: Tensor
    bias: Tensor | None
    axis: int
    trained: bool

    @property
    def first(self) -> bool:
        """Whether it reads the batch."""
        return self.axis > 1

    def of(self, tensor: Tensor, stream: int, column: int) -> Tensor:
        """One network's part `[in, out]` (of a bias `[1, out]`) of the stacked tensor."""
        return tensor[stream].select(self.axis - 1, column)


class StackedNetwork:
    """Networks of one architecture, streams × columns, with stacked weights.

    Args:
        networks: their layers, `[S][R]`; the weights are copied.
    """

    def __init__(self, networks: Sequence[Sequence[Sequence[nn.Module]]]) -> None:
        self.streams, self.columns = len(networks), len(networks[0])
        self._networks = networks
        self._layers: list[_Weights | nn.Module] = []
        examples = networks[0][0]
        axis = 3 if len(examples) == 1 else 2
        for index, example in enumerate(examples):
            if isinstance(example, nn.Linear):
                self._layers.append(self._stacked(index, example, axis))
                axis = 1
            else:
                self._layers.append(example)
        self._linear = [layer for layer in self._layers if isinstance(layer, _Weights)]
        self._alone = self._linear[0] if len(examples) == 1 else None
        """The only layer, where there is one: its gradient needs no graph."""
        self.classes = self._linear[-1].weight.shape[3 if self._alone is None else 2]
        self._outputs: dict[str, Tensor] = {}
        self._batch = torch.empty(0)

    def _stacked(self, index: int, example: nn.Linear, axis: int) -> _Weights:
        def stacked(name: str) -> Tensor:
            rows = []
            for stream in self._networks:
                parts = [getattr(layers[index], name).detach() for layers in stream]
                rows.append(torch.stack([part.T if part.dim() == 2 else part[None] for part in parts], axis - 1))
            return torch.stack(rows).contiguous().requires_grad_(trained)

        trained = example.weight.requires_grad
        bias = None if example.bias is None else stacked("bias")
        return _Weights(stacked("weight"), bias, axis, trained)

    def parameters(self) -> list[tuple[Tensor, int]]:
        """The trained tensors, each with the axis along which its columns lie."""
        found = []
        for layer in self._linear:
            if layer.trained:
                found += [(part, layer.axis) for part in (layer.weight, layer.bias) if part is not None]
        return found

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """The logits `[C, R, S, B]` of all networks for `[B, D]`."""
        return self._forward(x.expand(self.streams, *x.shape))[0].contiguous()

    def widths(self, names: Container[str]) -> dict[str, int]:
        """Of those of its fields, logits and features, that its weights have a part in."""
        found = {"student_logits": self.classes}
        if self._alone is None:
            found["student_features"] = self._linear[-1].weight.shape[2]
        return {name: width for name, width in found.items() if name in names}

    def step(self, x: Tensor, student: Mapping[str, Tensor]) -> None:
        """Write the fields of a batch, `[C, R, S, B]` and `[H, R, S, B]`; gradients come back through `back`.

        Args:
            x: `[S, B, D]`, a batch for each stream.
            student: where to write them, by name.
        """
        with torch.set_grad_enabled(self._alone is None):
            logits, features = self._forward(x, "student_logits" in student)
        self._batch = x
        made = {"student_logits": logits, "student_features": features}
        self._outputs = {name: made[name] for name in student}
        with torch.no_grad():
            for name, value in student.items():
                value.copy_(made[name])

    def back(self, slopes: Mapping[str, Tensor]) -> None:
        """Leave the gradients in the weights, given those by the fields of the last step, in their shapes."""
        for part, _ in self.parameters():
            part.grad = None
        if self._alone is None:
            torch.autograd.backward([self._outputs[name] for name in slopes], list(slopes.values()))
            return
        # One layer: a product and a sum, without a graph.
        layer, slope = self._alone, slopes["student_logits"].flatten(0, 1)
        layer.weight.grad = torch.bmm(self._batch.transpose(1, 2), slope.permute(1, 2, 0)).view_as(layer.weight)
        if layer.bias is not None:
            layer.bias.grad = slope.sum(2).T.contiguous().view_as(layer.bias)

    def _forward(self, x: Tensor, logits: bool = True) -> tuple[Tensor, Tensor]:
        """Logits `[C, R, S, B]` and features `[H, R, S, B]`, as they lie in memory."""
        values = x
        for layer in self._layers[:-1]:
            values = self._apply(layer, values) if isinstance(layer, _Weights) else layer(values)
        features = values.view(self.streams, -1, *values.shape[-2:]).permute(3, 1, 0, 2)
        last = self._linear[-1]
        if not logits:
            return features, features
        made = self._apply(last, values)
        if last.axis == 3:
            return made.permute(2, 0, 1).view(-1, self.columns, *made.shape[:2]), features
        return made.view(self.streams, self.columns, *made.shape[-2:]).permute(3, 1, 0, 2), features

    def _apply(self, layer: _Weights, values: Tensor) -> Tensor:
        """From `[S, B, D]` (first) or `[S·R, B, H]` to `[S·R, B, H']`; to `[S, B, C·R]` where it is the only one."""
        streams, columns = self.streams, self.columns
        shape = (streams, values.shape[-1], -1) if layer.first else (streams * columns, values.shape[-1], -1)
        weight = layer.weight.view(shape)
        if layer.bias is None:
            made = torch.bmm(values, weight)
        else:
            made = torch.baddbmm(layer.bias.view(len(weight), 1, -1), values, weight)
        if layer.axis != 2:
            return made
        return made.view(*made.shape[:2], columns, -1).transpose(1, 2).flatten(0, 1)

    def state(self, stream: int, column: int) -> list[Tensor]:
        """A copy of the trained weights of one network."""
        return [
            layer.of(part, stream, column).detach().clone()
            for layer in self._linear
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
