"""A torch module as a teacher: evaluation mode and no gradients by construction, the module itself left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import RecipeError, TeacherError
from limbeck.heads import FeatureTap, LayerTap, find_head, find_layer, find_map_layer, pooled
from limbeck.modes import evaluating
from limbeck.predict import call_model, logits_of
from limbeck.teachers.base import Source
from limbeck.teachers.fingerprints import module_fingerprint
from limbeck.teachers.folding import folded
from limbeck.teachers.probabilities import check_kind, logits_and_probabilities, refuse_probabilities


class ModuleTeacher(Source):
    """Any `nn.Module` that returns logits: a tensor, a tuple that starts with them, a mapping or an object with
    `.logits`.

    The module is neither copied nor wrapped. For the time of a call its parts are put in evaluation mode and hooks
    listen at the tapped layers; afterwards every part's own mode is back. No gradient ever reaches a parameter.

    Args:
        module: the teacher.
        layer: where `features` are tapped, by name: the input of an `nn.Linear`, which is then the `head`, or the
            output of any other layer (averaged over positions or tokens). By default the last `nn.Linear`.
        maps: the layer, or several, whose output is `maps`; by default the last map `[B, channels, H, W]` before the
            head.
        kind: what it returns: `logits`, `probabilities`, `log_odds` of the second of two classes, or `features` (a
            backbone: maps and sequences are averaged over positions).
        classes: how many, where the last layer does not say.
        class_names: their names, in the order of its outputs.

    Raises:
        TeacherError: for a layer that does not exist, or where the number of classes cannot be told.
    """

    advice: Mapping[str, str] = MappingProxyType(
        {
            "features": "name the layer to tap: ModuleTeacher(module, layer='...')",
            "head": "name the nn.Linear that makes the logits: ModuleTeacher(module, layer='...')",
            "maps": "name a layer that returns maps: ModuleTeacher(module, maps='...')",
            "teachers_logits": "give several teachers: Several([...])",
        }
    )

    def __init__(
        self,
        module: nn.Module,
        layer: str | None = None,
        *,
        maps: str | Sequence[str] | None = None,
        kind: str = "logits",
        classes: int | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        check_kind(kind)
        self.module = module
        self.kind = kind
        self.description = f"the module {type(module).__name__}"
        self._layer, self._maps = layer, maps
        self._map_layers = () if maps is None else (maps,) if isinstance(maps, str) else tuple(maps)
        self._names = None if class_names is None else tuple(map(str, class_names))
        with _as_teacher_error():
            for name in (layer, *self._map_layers):
                if name is not None:
                    find_layer(module, name)
        self._head = None if kind == "features" else _head_name(module, layer)
        self._classes = self._count_classes(classes)
        self._computing = self._folded = module
        self._call: Callable[..., Any] | None = None
        self._autocast = False

    @property
    def supplies(self) -> frozenset[str]:
        found = {"features"} if self.kind == "features" else {"logits", "probabilities"}
        if self._head is not None or self._layer is not None:
            found.add("features")
        if self._head is not None and self.kind == "logits":
            found.add("head")
        convolutional = any(isinstance(part, nn.Conv2d) for part in self.module.modules())
        if self._map_layers or (convolutional and self._head is not None):
            found.add("maps")
        return frozenset(found)

    @property
    def classes(self) -> int:
        return self._classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self._names

    def fingerprint(self) -> str:
        """Of weights, buffers and architecture; computed anew each time, since the module is the user's to change."""
        return module_fingerprint(self.module, "eval", self.kind, self._layer, self._maps, self._names)

    def computed(self, how: Mapping[str, Any], example: Any) -> ModuleTeacher:
        twin = copy.copy(self)
        module = self.module
        if how.get("channels_last"):
            module = copy.deepcopy(module).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        twin._computing = module
        twin._folded = (folded(module, self._on_device(example)) or module) if how.get("fold") else module
        twin._call = torch.compile(twin._folded, dynamic=False) if how.get("compile") else None
        twin._autocast = bool(how.get("autocast"))
        return twin

    def outputs(self, x: Any, ids: Any, want: Sequence[str]) -> dict[str, Tensor]:
        inputs = self._on_device(x)
        found: dict[str, Tensor] = {}
        taps_features = "features" in want and self.kind != "features"
        tapped = taps_features or "maps" in want
        # Folding takes layers away, and what is compiled calls no hooks: only what is not looked into is either.
        module = self._computing if tapped else self._folded
        with ExitStack() as taps, _as_teacher_error():
            taps.enter_context(evaluating(module))
            features = self._feature_tap(module) if taps_features else None
            if features is not None:
                taps.callback(features.close)
            maps = self._map_tap(module, inputs) if "maps" in want else None
            if maps is not None:
                taps.callback(maps.close)
            if self._autocast:
                taps.enter_context(torch.autocast("cpu", torch.bfloat16))
            returned = call_model(module if tapped or self._call is None else self._call, inputs)
            if features is not None:
                found["features"] = self._vector(features.take())
            if maps is not None:
                found |= self._named_maps(maps.take())
        if "features" in want and features is None:
            found["features"] = self._vector(returned)
        if "logits" in want or "probabilities" in want:
            raw = logits_of(returned).detach()
            if self.kind == "logits":
                refuse_probabilities(raw, self.description)
            found |= logits_and_probabilities(raw, self.kind, want)
        return found

    def head(self) -> tuple[Tensor, Tensor]:
        if "head" not in self.supplies or self._head is None:
            return super().head()
        _, layer = find_head(self.module, self._head)
        weight = layer.weight.detach().float().clone()
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().float().clone()
        return weight, bias

    def _count_classes(self, classes: int | None) -> int:
        if classes is None and self._names is not None:
            classes = len(self._names)
        if classes is None and self.kind in ("log_odds", "features"):
            classes = 2 if self.kind == "log_odds" else 0
        if classes is None and self._head is not None:
            classes = find_head(self.module, self._head)[1].out_features
        if classes is None:
            raise TeacherError(
                f"{self.description}: its last layer does not say how many classes it has: ModuleTeacher(module, "
                "classes=...)"
            )
        return classes

    def _on_device(self, x: Any) -> Any:
        weight = next((part for part in self.module.parameters() if part.is_floating_point()), None)
        if weight is None:
            return x

        def moved(value: Tensor) -> Tensor:
            return value.to(weight.device, weight.dtype if value.is_floating_point() else value.dtype)

        return {name: moved(value) for name, value in x.items()} if isinstance(x, Mapping) else moved(x)

    def _feature_tap(self, module: nn.Module) -> FeatureTap | LayerTap:
        if self._head is None and self._layer is not None:
            return LayerTap(module, [self._layer])
        return FeatureTap(module, self._head)

    def _map_tap(self, module: nn.Module, inputs: Any) -> LayerTap:
        if not self._map_layers:
            self._map_layers = (find_map_layer(module, inputs, self._head),)
        return LayerTap(module, self._map_layers)

    def _vector(self, tapped: Any) -> Tensor:
        value = tapped[0] if isinstance(tapped, list | tuple) else tapped
        # The input of a linear layer must be a vector as it is: averaged, the head would not fit it any more.
        value = pooled(value) if isinstance(value, Tensor) and self._head is None else value
        if not isinstance(value, Tensor) or value.ndim != 2:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TeacherError(
                f"{self.description}: what is tapped for features is {found}, expected [batch, width]: "
                "name the layer to tap, ModuleTeacher(module, layer='...')"
            )
        return value.detach().float()

    def _named_maps(self, tapped: list[Tensor]) -> dict[str, Tensor]:
        maps = [value.detach().float() for value in tapped]
        if self._maps is None or isinstance(self._maps, str):
            return {"maps": maps[0]}
        return {f"maps.{index}": value for index, value in enumerate(maps)}


def _head_name(module: nn.Module, layer: str | None) -> str | None:
    """The linear layer that is the head: the one named, or the last; None where there is no such layer."""
    if layer is not None:
        return layer if isinstance(find_layer(module, layer), nn.Linear) else None
    try:
        return find_head(module)[0]
    except RecipeError:
        return None


@contextmanager
def _as_teacher_error() -> Iterator[None]:
    try:
        yield
    except RecipeError as error:
        raise TeacherError(str(error)) from error
