"""Batch normalisation folded into the layer before it: a frozen network then computes the same with fewer passes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from limbeck.errors import LimbeckError
from limbeck.modes import evaluating
from limbeck.predict import call_model, logits_of

_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.Linear: nn.BatchNorm1d,
}
"""Which normalisation takes the output of a layer channel by channel. Subclasses may do more, and are left alone."""

CLOSE = 1e-4
"""How far folding may move an output, as a share of the largest: it only rounds otherwise."""


def folded(module: nn.Module, example: Any) -> nn.Module | None:
    """A copy for evaluation, each batch normalisation that follows a convolution or linear layer made a part of it.

    The module itself is left as it is. The layers that remain keep their names; parts that only contain others are no
    longer called.

    Args:
        module: any, in any mode.
        example: a batch it takes, on which the copy is compared with it.

    Returns:
        None where there is nothing to fold, where what the network does cannot be read off it (`torch.fx`), or where
        the copy says something else.
    """
    twin = copy.deepcopy(module).eval()
    try:
        graph = fx.Tracer().trace(twin)
        if not _fold(twin, graph):
            return None
        found = fx.GraphModule(twin, graph, type(module).__name__).eval()
        with evaluating(module, found):
            own, other = logits_or_output(call_model(module, example)), logits_or_output(call_model(found, example))
    except Exception:
        # Whatever a user's network does that cannot be traced: it is used as it is.
        return None
    same = own.shape == other.shape and float((own - other).abs().max()) <= CLOSE * float(own.abs().max()) + 1e-6
    return found if same else None


def logits_or_output(returned: Any) -> Tensor:
    """What to compare two networks by: the logits, or the tensor of a backbone."""
    try:
        return logits_of(returned)
    except LimbeckError:
        if isinstance(returned, Tensor):
            return returned
        raise


def _fold(root: nn.Module, graph: fx.Graph) -> int:
    """Fold what can be, in place; how many were."""
    modules = dict(root.named_modules())
    calls: dict[int, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            part = id(modules[str(node.target)])
            calls[part] = calls.get(part, 0) + 1
    count = 0
    for node in list(graph.nodes):
        before = node.args[0] if node.op == "call_module" and len(node.args) == 1 and not node.kwargs else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        layer, norm = modules[str(before.target)], modules[str(node.target)]
        if _NORMS.get(type(layer)) is not type(norm) or calls[id(layer)] > 1 or calls[id(norm)] > 1:
            continue
        if not _frozen_statistics(norm) or _hooked(layer) or _hooked(norm):
            continue
        _replace(root, str(before.target), _fused(layer, norm))
        node.replace_all_uses_with(before)
        graph.erase_node(node)
        count += 1
    if count:
        graph.lint()
    return count


def _fused(layer: Any, norm: Any) -> nn.Module:
    return fuse_linear_bn_eval(layer, norm) if isinstance(layer, nn.Linear) else fuse_conv_bn_eval(layer, norm)


def _frozen_statistics(norm: nn.Module) -> bool:
    """Whether it normalises by stored statistics, and not by those of the batch."""
    return isinstance(norm.running_mean, torch.Tensor) and isinstance(norm.running_var, torch.Tensor)


def _hooked(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks)


def _replace(root: nn.Module, name: str, part: nn.Module) -> None:
    above, _, last = name.rpartition(".")
    setattr(root.get_submodule(above), last, part)
