"""Last layers: finding them, watching what enters them, moving them from teacher to student, fitting them anew.

* taps: what a layer of any module receives or returns, asking no attribute of the module and leaving no trace on it;
* `transplant`: the student's backbone, a projector, and the teacher's last layer, frozen;
* `refit_dfr`: deep feature reweighting, a last layer fitted on a balanced held-out set.

SimKD: Chen et al., "Knowledge distillation with the reused teacher classifier", CVPR 2022, arXiv 2203.14001. DeTT:
Lee and Lee, "Debiased distillation by transplanting the last layer", arXiv 2302.11187. DFR: Kirichenko, Izmailov and
Wilson, "Last layer re-training is sufficient for robustness to spurious correlations", ICLR 2023, arXiv 2204.02937.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from limbeck.errors import DataError, RecipeError, unknown_name
from limbeck.modes import evaluating

PROJECTORS = ("auto", "identity", "linear", "mlp", "depthwise", "full3x3")
PENALTIES = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)

# ------------------------------------------------------------------------------------------------------ finding layers


def find_head(module: nn.Module, name: str | None = None) -> tuple[str, nn.Linear]:
    """The last linear layer of a module and its name ("" where the module is one itself).

    "Last" is by the order in which the module registers its parts. Give `name` where that is not the layer that makes
    the logits.

    Raises:
        RecipeError: where there is none, or `name` is not one; lists what there is.
    """
    linear = {path: part for path, part in module.named_modules() if isinstance(part, nn.Linear)}
    if name is not None:
        if name not in linear:
            raise RecipeError(f"{type(module).__name__}: {unknown_name('linear layer', name, linear)}")
        return name, linear[name]
    if not linear:
        leaves = ", ".join(
            f"{path or 'itself'} ({type(part).__name__})"
            for path, part in module.named_modules()
            if not any(True for _ in part.children())
        )
        raise RecipeError(
            f"{type(module).__name__} has no linear layer, so no head to find or to replace. Its layers: {leaves}"
        )
    return list(linear.items())[-1]


def find_layer(module: nn.Module, name: str) -> nn.Module:
    """The part of a module with that dotted name.

    Raises:
        RecipeError: naming the nearest one that exists.
    """
    parts: dict[str, nn.Module] = dict(module.named_modules())
    if name not in parts:
        raise RecipeError(f"{type(module).__name__}: {unknown_name('layer', name, [part for part in parts if part])}")
    return parts[name]


def call(module: nn.Module, x: Any) -> Any:
    """The module's output for a batch: a mapping is passed by keyword, anything else as the one argument."""
    return module(**x) if isinstance(x, Mapping) else module(x)


# ------------------------------------------------------------------------------------------------------------ watching


class _Tap:
    """Hooks that hold what one forward pass of a module brings past them, until the next, `take` or `close`."""

    def __init__(self, module: nn.Module) -> None:
        self._held: dict[str, Any] = {}
        self._handles: list[RemovableHandle] = [module.register_forward_pre_hook(self._begin)]

    def _begin(self, _: nn.Module, __: tuple[Any, ...]) -> None:
        self._held.clear()  # so that a pass which does not reach a layer never shows the previous one's features

    def _hold(self, name: str) -> Any:
        if name not in self._held:
            state = "is closed" if not self._handles else "saw no forward pass through it since the last take"
            raise RecipeError(f"nothing was tapped at the layer {name or 'itself'!r}: the tap {state}")
        return self._held[name]

    def close(self) -> None:
        """Remove the hooks and let go of what was held. May be called twice."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._held.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class FeatureTap(_Tap):
    """What enters the last linear layer of a module, `[B, D]`.

        with FeatureTap(model) as tap:
            logits = model(x)
            features = tap.take()

    Works on any module, whatever its forward pass returns. The features keep their graph.

    Args:
        module: the module to watch; it is not changed beyond a hook, which `close` removes.
        layer: name of the linear layer, where it is not the last one.

    Raises:
        RecipeError: where there is no such layer.
    """

    def __init__(self, module: nn.Module, layer: str | None = None) -> None:
        self.layer, head = find_head(module, layer)
        self.width = head.in_features
        super().__init__(module)

        def hold(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._held[self.layer] = args[0] if args else kwargs["input"]

        self._handles.append(head.register_forward_pre_hook(hold, with_kwargs=True))

    def take(self) -> Tensor:
        """The features of the last forward pass, which are then let go.

        Raises:
            RecipeError: where no forward pass has reached the layer since the last take.
        """
        features: Tensor = self._hold(self.layer)
        self._held.clear()
        return features


class LayerTap(_Tap):
    """What named layers return: stage maps for attention transfer and FitNet, an early layer for a readout.

    Args:
        module: the module to watch.
        layers: dotted names of its parts.

    Raises:
        RecipeError: for a name that does not exist.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str]) -> None:
        self.layers = tuple(layers)
        found = [find_layer(module, name) for name in self.layers]  # all of them before the first hook is set
        super().__init__(module)
        for name, layer in zip(self.layers, found, strict=True):
            self._handles.append(layer.register_forward_hook(self._holder(name)))

    def _holder(self, name: str) -> Any:
        def hold(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            self._held[name] = output

        return hold

    def take(self) -> list[Tensor]:
        """The outputs of the last forward pass, in the order of `layers`; they are then let go.

        Raises:
            RecipeError: where a layer was not reached, or returned something else than a tensor.
        """
        outputs = [self._hold(name) for name in self.layers]
        for name, output in zip(self.layers, outputs, strict=True):
            if not isinstance(output, Tensor):
                raise RecipeError(f"the layer {name!r} returns {type(output).__name__}, not a tensor: tap a part of it")
        self._held.clear()
        return outputs


class MapTap(_Tap):
    """The last feature map `[B, C, H, W]` before the head, before it is pooled.

    That is the last four-dimensional tensor with more than one position that a part of the module returns before the
    last linear layer is reached. Every part is hooked to find it; `layer` names it and hooks that one alone, which is
    cheaper.

    Args:
        module: the module to watch.
        layer: dotted name of the part that returns the map; found anew in each pass where None.
        head: name of the linear layer before which to look, where it is not the last one.

    Raises:
        RecipeError: where a name does not exist, or there is no linear layer.
    """

    def __init__(self, module: nn.Module, layer: str | None = None, head: str | None = None) -> None:
        watched = dict(module.named_modules()) if layer is None else {layer: find_layer(module, layer)}
        last = None if layer is not None else find_head(module, head)[1]
        super().__init__(module)

        def reached(_: nn.Module, __: tuple[Any, ...]) -> None:
            self._held["reached"] = True

        if last is not None:
            self._handles.append(last.register_forward_pre_hook(reached))
        for name, part in watched.items():
            self._handles.append(part.register_forward_hook(self._holder(name)))

    def _holder(self, name: str) -> Any:
        def hold(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            is_map = isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] * output.shape[3] > 1
            if is_map and "reached" not in self._held:
                self._held["map"] = (name, output)

        return hold

    def _found(self) -> tuple[str, Tensor]:
        if "map" not in self._held:
            raise RecipeError(
                "no feature map was tapped: before the head no part returned a tensor [B, C, H, W] of several positions"
            )
        found: tuple[str, Tensor] = self._held["map"]
        self._held.clear()
        return found

    def take(self) -> Tensor:
        """The map of the last forward pass, which is then let go.

        Raises:
            RecipeError: where there was none.
        """
        return self._found()[1]


def find_map_layer(module: nn.Module, example: Any, head: str | None = None) -> str:
    """Name of the part that returns the last feature map before the head; one forward pass in evaluation mode.

    Raises:
        RecipeError: where there is none.
    """
    with evaluating(module), MapTap(module, head=head) as tap:
        call(module, example)
        return tap._found()[0]


def layer_at_depth(module: nn.Module, example: Any, depth: float = 0.5) -> str:
    """Name of the layer that stands at a fraction of the way to the head, in the order of a forward pass.

    Counted are the layers that hold parameters themselves, the head excepted; 0 is the first of them, 1 the last. An
    early readout listens there: `pooled(LayerTap(module, [name]).take()[0])`.

    Raises:
        RecipeError: for a depth out of range, or a module with no such layer.
    """
    if not 0 <= depth <= 1:
        raise RecipeError(f"depth={depth} is not a fraction between 0 and 1")
    _, head = find_head(module)
    order: list[str] = []
    handles = []
    try:
        for name, part in module.named_modules():
            if part is not head and any(True for _ in part.parameters(recurse=False)):
                handles.append(part.register_forward_hook(lambda *_, name=name: order.append(name)))
        with evaluating(module):
            call(module, example)
    finally:
        for handle in handles:
            handle.remove()
    reached = list(dict.fromkeys(order))
    if not reached:
        raise RecipeError(
            f"{type(module).__name__} has no layer with parameters before its head: there is no early layer"
        )
    return reached[round(depth * (len(reached) - 1))]


def pooled(values: Tensor) -> Tensor:
    """One vector per sample, `[B, D]`, from maps `[B, C, H, W]` (mean over positions) or sequences `[B, L, D]`."""
    if values.dim() == 4:
        return values.mean(dim=(2, 3))
    return values.mean(dim=1) if values.dim() == 3 else values


# ------------------------------------------------------------------------------------------------------- transplanting

# What a forward pass of a transplanted student brings past the layers it listens to. A context variable, so that passes
# in several threads do not mix; and the layers hold no tensor, so that a student can be copied at any time.
_captured: ContextVar[dict[str, Tensor] | None] = ContextVar("captured", default=None)


def _capture(kind: str, features: Tensor) -> None:
    held = _captured.get()
    if held is not None:
        held[kind] = features


def _capture_map(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
    _capture("map", output)


class HeadlessExit(nn.Module):
    """Stands where a student's own last layer stood: hands over what enters it, and gives zeros in the logits' shape.

    The zeros keep whatever the student does with its logits afterwards alive; nobody looks at them.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, input: Tensor) -> Tensor:
        _capture("vector", input)
        return input.new_zeros(*input.shape[:-1], self.classes)


class TransplantedStudent(nn.Module):
    """A student's backbone, a projector and a frozen last layer. Made by `transplant`.

    Attributes:
        backbone: the student's copy; its own last layer is gone.
        projector: trainable, part of the student at inference.
        head: the transplanted linear layer; its parameters ask for no gradient.
        match: `"vector"`: features `[B, D]` are projected; `"map"`: maps `[B, C, H, W]`, then averaged over positions.
        teacher_layer: where to tap the teacher for what `forward_with_features` returns: the name of its linear layer
            (`FeatureTap`) under `"vector"`, of the part that returns the map (`LayerTap`) under `"map"`; None where
            the head came as a table.
    """

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        head: nn.Linear,
        match: str = "vector",
        teacher_layer: str | None = None,
        map_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.projector, self.head = backbone, projector, head.requires_grad_(False)
        self.match, self.teacher_layer, self.map_size = match, teacher_layer, map_size

    def features(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the backbone gives, before the projector: `[B, D_S]`, or a map `[B, C_S, H, W]`."""
        token = _captured.set({})
        try:
            self.backbone(*args, **kwargs)
            held = _captured.get() or {}
        finally:
            _captured.reset(token)
        if self.match not in held:
            raise RecipeError("the student's forward pass did not reach the layer at which its features are read")
        return held[self.match]

    def forward_with_features(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The logits `[B, C]` and the features in the teacher's space: `[B, D_T]`, or a map `[B, C_T, H, W]`."""
        features = self.features(*args, **kwargs)
        if self.match == "vector":
            projected = self.projector(features)
            return self.head(projected), projected
        projected = self.projector(_shrink(features, self.map_size))
        return self.head(pooled(projected)), projected

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The logits `[B, C]`."""
        logits, _ = self.forward_with_features(*args, **kwargs)
        return logits

    def target(self, teacher_features: Tensor, projected: Tensor) -> Tensor:
        """The teacher's features in the size of the projected ones: a larger map is average-pooled to the smaller."""
        return _shrink(teacher_features, projected.shape[2:]) if self.match == "map" else teacher_features


def _shrink(values: Tensor, size: Sequence[int] | None) -> Tensor:
    """A map average-pooled to `size` where it is larger; never enlarged."""
    if size is None or (values.shape[2] <= size[0] and values.shape[3] <= size[1]):
        return values
    return F.adaptive_avg_pool2d(values, (min(values.shape[2], size[0]), min(values.shape[3], size[1])))


def build_projector(kind: str, student_width: int, teacher_width: int) -> nn.Module:
    """The projector from the student's to the teacher's features.

    `"identity"`; `"linear"`; `"mlp"`: linear, ReLU, linear, hidden width that of the teacher [choice]. For maps, as
    SimKD with the half width: 1x1 convolution, 3x3 convolution, 1x1 convolution, each without bias and followed by
    batch norm and ReLU; the middle one is `"depthwise"` (DeTT's, as small as a layer of a ResNet-18) or `"full3x3"`
    (SimKD's).

    Raises:
        RecipeError: for an unknown kind, or identity between unequal widths.
    """
    match kind:
        case "identity":
            if student_width != teacher_width:
                raise RecipeError(
                    f"projector 'identity' cannot turn {student_width} features into {teacher_width}: use 'auto'"
                )
            return nn.Identity()
        case "linear":
            return nn.Linear(student_width, teacher_width)
        case "mlp":
            return nn.Sequential(
                nn.Linear(student_width, teacher_width), nn.ReLU(), nn.Linear(teacher_width, teacher_width)
            )
        case "depthwise" | "full3x3":
            middle = max(teacher_width // 2, 1)
            groups = middle if kind == "depthwise" else 1
            return nn.Sequential(
                *_convolution(student_width, middle, 1),
                *_convolution(middle, middle, 3, groups),
                *_convolution(middle, teacher_width, 1),
            )
    raise RecipeError(unknown_name("projector", kind, PROJECTORS))


def _convolution(width: int, out: int, size: int, groups: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(width, out, size, padding=size // 2, groups=groups, bias=False)
    return convolution, nn.BatchNorm2d(out), nn.ReLU()


def transplant(
    student: nn.Module,
    teacher: nn.Module,
    projector: str = "auto",
    student_layer: str | None = None,
    teacher_layer: str | None = None,
    match: str = "auto",
    *,
    example: Any = None,
    student_map: str | None = None,
    teacher_map: str | None = None,
) -> TransplantedStudent:
    """A student that keeps its backbone and takes the teacher's last layer, with a projector between (DeTT, SimKD).

    Neither module is changed: the student is copied without its last layer, the teacher's last layer is copied and
    frozen. The projector is trainable and stays at inference.

    Args:
        student, teacher: any modules whose logits come out of a linear layer.
        projector: one of `PROJECTORS`. `"auto"`: identity where the widths are equal, otherwise linear for vectors
            and depthwise for maps.
        student_layer, teacher_layer: names of the linear layers that make the logits, where they are not the last ones.
        match: `"vector"`: the input of the last layer. `"map"`: the feature map before pooling; then both modules
            must average that map straight into the last layer. `"auto"`: map where an `example` shows that both do,
            otherwise vector.
        example: inputs for both modules, a batch of one or more (a mapping is passed by keyword); `"map"` needs it.
        student_map, teacher_map: names of the parts that return the maps, where they are not the last ones.

    Raises:
        RecipeError: where a module has no linear layer, the numbers of classes differ, or maps cannot be matched.
    """
    if match not in ("auto", "vector", "map"):
        raise RecipeError(unknown_name("match", match, ("auto", "vector", "map")))
    teacher_name, teacher_head = find_head(teacher, teacher_layer)
    _check_classes(student, student_layer, teacher_head.out_features, f"the teacher's {teacher_name or 'itself'!r}")
    weight, bias = teacher_head.weight, teacher_head.bias
    if match == "auto" and projector in ("linear", "mlp"):
        match = "vector"
    if match == "auto" and (projector in ("depthwise", "full3x3") or student_map or teacher_map):
        match = "map"
    if match == "vector" or (match == "auto" and example is None):
        return _assemble(student, student_layer, weight, bias, projector, teacher_layer=teacher_name)
    if example is None:
        raise RecipeError("match='map' needs an example batch, to find the feature maps and their sizes")
    try:
        teacher_map, (_, *size) = _map_into_head(teacher, example, teacher_layer, teacher_map)
        student_map, (channels, *_) = _map_into_head(student, example, student_layer, student_map)
    except RecipeError as error:
        if match == "map":
            raise RecipeError(f"match='map' is not possible: {error}. Use match='vector'") from error
        return _assemble(student, student_layer, weight, bias, projector, teacher_layer=teacher_name)
    return _assemble(
        student,
        student_layer,
        weight,
        bias,
        projector,
        teacher_layer=teacher_map,
        map_layer=student_map,
        map_width=channels,
        map_size=(size[0], size[1]),
    )


def transplant_weights(
    student: nn.Module,
    weight: Tensor,
    bias: Tensor | None = None,
    projector: str = "auto",
    student_layer: str | None = None,
) -> TransplantedStudent:
    """As `transplant`, with the last layer as a table: `weight` `[C, D_T]` and `bias` `[C]`, such as `refit_dfr` gives.

    The teacher itself is not needed; features are matched as vectors.

    Raises:
        RecipeError: where the student has no linear layer, or the shapes do not fit.
    """
    _check_head(weight, bias)
    _check_classes(student, student_layer, len(weight), "the table")
    return _assemble(student, student_layer, weight, bias, projector)


def _check_head(weight: Tensor, bias: Tensor | None) -> None:
    if weight.dim() != 2 or (bias is not None and tuple(bias.shape) != (len(weight),)):
        shapes = f"weight {list(weight.shape)}" + ("" if bias is None else f", bias {list(bias.shape)}")
        raise RecipeError(f"a head is a weight [C, D] and a bias [C], and these are {shapes}")


def _check_classes(student: nn.Module, layer: str | None, classes: int, source: str) -> None:
    name, head = find_head(student, layer)
    if head.out_features != classes:
        raise RecipeError(
            f"the student's linear layer {name or 'itself'!r} has {head.out_features} outputs, {source} has {classes}: "
            "name the layers that make the logits (student_layer, teacher_layer), or give both the same classes"
        )


def _map_into_head(
    module: nn.Module, example: Any, head: str | None, layer: str | None
) -> tuple[str, tuple[int, int, int]]:
    """Name and shape (C, H, W) of the map whose average over positions is what enters the head.

    Raises:
        RecipeError: where no map is averaged straight into the head.
    """
    name = find_map_layer(module, example, head) if layer is None else layer
    with evaluating(module), LayerTap(module, [name]) as maps, FeatureTap(module, head) as features:
        call(module, example)
        (found,), entering = maps.take(), features.take()
    average = pooled(found) if found.dim() == 4 else None
    if average is None or average.shape != entering.shape or not torch.allclose(average, entering, 1e-3, 1e-4):
        raise RecipeError(
            f"what enters the head of {type(module).__name__} is not the average of the map that {name!r} returns"
        )
    return name, (found.shape[1], found.shape[2], found.shape[3])


def _assemble(
    student: nn.Module,
    student_layer: str | None,
    weight: Tensor,
    bias: Tensor | None,
    projector: str,
    *,
    teacher_layer: str | None = None,
    map_layer: str | None = None,
    map_width: int = 0,
    map_size: tuple[int, int] | None = None,
) -> TransplantedStudent:
    backbone = copy.deepcopy(student)
    name, old = find_head(backbone, student_layer)
    backbone = _replaced(backbone, name, HeadlessExit(old.out_features).train(old.training))
    if map_layer is not None:
        find_layer(backbone, map_layer).register_forward_hook(_capture_map)
    student_width = map_width if map_layer is not None else old.in_features
    kind = projector
    if kind == "auto":
        kind = "identity" if student_width == weight.shape[1] else "linear" if map_layer is None else "depthwise"
    if map_layer is None and kind in ("depthwise", "full3x3"):
        raise RecipeError(
            f"projector {kind!r} works on feature maps, and vectors are matched here: use 'linear' or 'mlp'"
        )
    if map_layer is not None and kind in ("linear", "mlp"):
        raise RecipeError(
            f"projector {kind!r} works on vectors, and maps are matched here: use 'depthwise', or match='vector'"
        )
    transplanted = TransplantedStudent(
        backbone,
        build_projector(kind, student_width, weight.shape[1])
        .train(student.training)
        .to(old.weight.device, old.weight.dtype),
        _linear(weight, bias).train(student.training).to(old.weight.device, old.weight.dtype),
        "vector" if map_layer is None else "map",
        teacher_layer,
        map_size,
    )
    transplanted.training = student.training  # and not train(): parts of the backbone may stand in another mode
    return transplanted


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def _replaced(module: nn.Module, name: str, part: nn.Module) -> nn.Module:
    """The module with one part replaced, in place; the part itself where the name is the module's own, ""."""
    if not name:
        return part
    path, _, last = name.rpartition(".")
    setattr(module.get_submodule(path), last, part)
    return module


def replace_head(model: nn.Module, weight: Tensor, bias: Tensor | None = None, name: str | None = None) -> nn.Module:
    """A copy of the model whose last linear layer is `weight` `[C, D]`, `bias` `[C]`.

    Args:
        model: any module with a linear layer; not changed.
        weight, bias: the new layer; the number of classes may differ from the old one's.
        name: of the layer, where it is not the last linear one.

    Raises:
        RecipeError: where there is no such layer, or the width differs.
    """
    _check_head(weight, bias)
    model = copy.deepcopy(model)
    name, old = find_head(model, name)
    if old.in_features != weight.shape[1]:
        raise RecipeError(
            f"the layer {name or 'itself'!r} takes {old.in_features} features and the new head {weight.shape[1]}"
        )
    new = _linear(weight, bias).to(old.weight.device, old.weight.dtype).train(old.training)
    return _replaced(model, name, new)


# -------------------------------------------------------------------------------------------- deep feature reweighting


def fold_standardised(weight: ArrayLike, bias: ArrayLike, mean: ArrayLike, scale: ArrayLike) -> tuple[Tensor, Tensor]:
    """The linear layer on raw features that equals one fitted on standardised features (x - mean) / scale.

    w' = w / scale, b' = b - sum(w mean / scale). A binary classifier, one row, becomes two: -w'/2 and w'/2, biases
    alike, with the same probabilities under softmax as it had under the sigmoid.

    Args:
        weight: `[C, D]`, or `[1, D]` for two classes; bias: `[C]` or `[1]`; mean, scale: `[D]`. A scale of 0 counts
            as 1, as in scikit-learn: such a feature is constant.

    Returns:
        Weight `[C, D]` and bias `[C]`, float64.

    Raises:
        RecipeError: where the shapes do not fit.
    """
    w = torch.as_tensor(np.array(weight, dtype=np.float64, ndmin=2))
    b = torch.as_tensor(np.array(bias, dtype=np.float64, ndmin=1))
    m, s = (torch.as_tensor(np.array(value, dtype=np.float64)) for value in (mean, scale))
    if w.dim() != 2 or b.shape != w.shape[:1] or m.shape != w.shape[1:] or s.shape != w.shape[1:]:
        raise RecipeError(
            f"weight {list(w.shape)}, bias {list(b.shape)}, mean {list(m.shape)}, scale {list(s.shape)}: expected "
            "[C, D], [C], [D] and [D]"
        )
    w = w / torch.where(s == 0, 1.0, s)
    b = b - w @ m
    return (torch.cat((-w, w)) / 2, torch.cat((-b, b)) / 2) if len(w) == 1 else (w, b)


def refit_dfr(
    features: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    classes: int,
    penalties: Sequence[float] = PENALTIES,
    refits: int = 20,
    seed: int = 0,
    validation: float = 0.5,
    standardise_on: ArrayLike | None = None,
) -> tuple[Tensor, Tensor]:
    """Deep feature reweighting: a last layer from a group-balanced held-out set [code].

    L1-penalised logistic regression on standardised features. The penalty is chosen by worst-group accuracy on one
    part of the set after a fit on a balanced subset of the rest (`tune_dfr`); then `refits` fits on different
    balanced subsets of the whole set, each as large as the smallest group allows, are averaged. Two classes are
    fitted as in the released code (liblinear); more as one multinomial regression (saga) [choice].

    Args:
        features: what enters the last layer, `[n, D]`, of samples that the network was not trained on.
        labels: int `[n]`. groups: int `[n]`; samples of unknown group (-1) are left out.
        classes: number of classes C.
        penalties: the values of scikit-learn's C to choose from; smaller is stronger.
        refits: number of balanced subsets to average over.
        seed: of the subsets and the split.
        validation: share of the set on which penalties are compared.
        standardise_on: features `[k, D]` that give mean and scale: the training set's, in the released code. Those of
            the held-out set where None.

    Returns:
        Weight `[C, D]` and bias `[C]` on the raw features, float64, for `replace_head` or `transplant_weights`.

    Raises:
        DataError: where shapes do not fit or a class has no sample of known group.
    """
    x, y, g = _held_out(features, labels, groups, classes)
    if refits < 1:
        raise RecipeError(f"refits={refits}: expected at least one")
    penalty = tune_dfr(x, y, g, classes=classes, penalties=penalties, seed=seed, validation=validation)
    mean, scale = _standard(x if standardise_on is None else np.asarray(standardise_on, dtype=np.float64))
    standard = (x - mean) / scale
    fits = []
    for refit in range(refits):
        rows = _balanced_rows(g, np.random.default_rng([seed, 1, refit]))
        fits.append(_logistic(standard[rows], y[rows], penalty, classes, seed))
    weight, bias = (np.mean(parts, axis=0) for parts in zip(*fits, strict=True))
    return fold_standardised(weight, bias, mean, scale)


def tune_dfr(
    features: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    classes: int,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
    validation: float = 0.5,
) -> float:
    """The penalty of `refit_dfr`: best worst-group accuracy on a held-back part of the set; the first of equals.

    The split is drawn within each group, so that a rare group is on both sides [choice]; a group of one sample is
    fitted on only.

    Raises:
        RecipeError: for no penalties or a share out of range.
        DataError: as `refit_dfr`.
    """
    if not penalties or not 0 < validation < 1:
        raise RecipeError(
            f"penalties={list(penalties)}, validation={validation}: expected penalties, and a share in (0, 1)"
        )
    if len(penalties) == 1:
        return float(penalties[0])
    x, y, g = _held_out(features, labels, groups, classes)
    rng = np.random.default_rng([seed, 0])
    judged = np.zeros(len(g), dtype=bool)
    for group in np.unique(g):
        members = rng.permutation(np.flatnonzero(g == group))
        judged[members[: min(max(1, round(validation * len(members))), len(members) - 1)]] = True
    if not judged.any():
        raise DataError("every group of the held-out set has one sample, too few to choose a penalty: give one penalty")
    fitted = np.flatnonzero(~judged)
    rows = fitted[_balanced_rows(g[fitted], rng)]
    mean, scale = _standard(x[rows])
    judge = torch.as_tensor(x[judged])

    def worst_group(penalty: float) -> float:
        fit = _logistic((x[rows] - mean) / scale, y[rows], penalty, classes, seed)
        weight, bias = fold_standardised(*fit, mean, scale)
        right = (judge @ weight.T + bias).argmax(dim=1).numpy() == y[judged]
        return min(float(right[g[judged] == group].mean()) for group in np.unique(g[judged]))

    return float(max(penalties, key=worst_group))


def _held_out(
    features: ArrayLike, labels: ArrayLike, groups: ArrayLike, classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    x, y, g = np.asarray(features, np.float64), np.asarray(labels, np.int64), np.asarray(groups, np.int64)
    if x.ndim != 2 or y.shape != (len(x),) or g.shape != (len(x),):
        raise DataError(f"features {x.shape}, labels {y.shape} and groups {g.shape}: expected [n, D], [n] and [n]")
    if classes < 2 or (len(y) and (y.min() < 0 or y.max() >= classes)):
        raise DataError(f"labels from {y.min(initial=0)} to {y.max(initial=0)} do not fit {classes} classes")
    known = g >= 0
    missing = sorted(set(range(classes)) - set(y[known].tolist()))
    if missing:
        raise DataError(
            f"the held-out set has no sample of known group for the classes {missing}: its last layer cannot be fitted"
        )
    return x[known], y[known], g[known]


def _standard(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    scale = x.std(axis=0)
    return x.mean(axis=0), np.where(scale == 0, 1.0, scale)


def _balanced_rows(groups: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """As many rows of each group as the smallest one has, drawn without replacement."""
    names, counts = np.unique(groups, return_counts=True)
    size = counts.min()
    return np.concatenate([rng.permutation(np.flatnonzero(groups == name))[:size] for name in names])


def _logistic(
    x: NDArray[np.float64], y: NDArray[np.int64], penalty: float, classes: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight `[1, D]` (two classes) or `[C, D]` and bias of one L1 logistic regression."""
    import sklearn  # here, because it is slow to import and only this needs it
    from sklearn.linear_model import LogisticRegression

    missing = sorted(set(range(classes)) - set(y.tolist()))
    if missing:
        raise DataError(
            f"a group-balanced subset of the held-out set has no sample of the classes {missing}: use larger groups"
        )
    release = tuple(
        int(part) for part in sklearn.__version__.split(".")[:2]
    )  # the name of the L1 penalty changed in 1.8
    lasso: dict[str, Any] = {"l1_ratio": 1.0} if release >= (1, 8) else {"penalty": "l1"}
    multinomial: dict[str, Any] = {"solver": "saga", "max_iter": 1000, "tol": 1e-3}
    solver = {"solver": "liblinear"} if classes == 2 else multinomial
    model = LogisticRegression(C=penalty, random_state=seed, **lasso, **solver).fit(x, y)
    return model.coef_, model.intercept_
