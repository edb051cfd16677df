"""From plain data to a network."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import nn

from limbeck.errors import ConfigError, require, unknown_name
from limbeck.models.networks import CNN, MLP, CifarResNet, LinearClassifier, image_shape
from limbeck.models.spec import RESNET_DEPTHS, ModelSpec, check_model
from limbeck.models.weights import load_weights
from limbeck.validation import nearest

Shape = tuple[int, ...]


def build(
    spec: str | Mapping[str, Any] | ModelSpec,
    *,
    inputs_shape: Sequence[int] | Mapping[str, Sequence[int]],
    classes: int,
    user: Mapping[str, object] | None = None,
) -> nn.Module:
    """Build a model from plain data. Its weights are torch's default initialisation under the caller's seed.

    Args:
        spec: a name or a mapping, such as `{"name": "mlp", "hidden": [256, 256], "dropout": 0.1}`,
            `{"name": "cnn", "channels": [16, 32, 64]}`, `{"name": "resnet20", "width": 16}`, `"linear"`,
            `{"name": "timm/resnet18", "pretrained": False}` or `{"name": "my_models.big", ...}`;
            `weights` names a safetensors file to start from.
        inputs_shape: the shape of one input, without the batch; shapes by name where inputs are named tensors, which
            only a model of the user's own takes.
        classes: how many logits the model gives.
        user: the user's own functions and classes, from `load_user_file`. They are called with the options of the
            specification, and with `inputs_shape` and `classes` where they take arguments of these names.

    Returns:
        A model from inputs `[B, *inputs_shape]` to logits `[B, classes]`.

    Raises:
        ConfigError: where the specification is wrong or does not fit the inputs.
        MissingExtraError: for a timm model where timm is not installed.
    """
    checked = check_model(spec)
    if isinstance(classes, bool) or classes < 2:
        raise ConfigError(f"a classifier needs at least 2 classes, found {classes}")
    if checked.name in _BUILDERS:
        model = _BUILDERS[checked.name](checked, _checked_shape(inputs_shape), classes)
    elif checked.name.startswith("timm/"):
        model = _timm(checked, _checked_shape(inputs_shape), classes)
    else:
        model = _own(checked, inputs_shape, classes, user or {})
    if checked.weights is not None:
        load_weights(model, checked.weights)
    return model


def parameters(model: nn.Module) -> int:
    """How many parameters a model has, shared ones counted once, buffers not at all."""
    return sum(parameter.numel() for parameter in model.parameters())


def _checked_shape(inputs_shape: Sequence[int] | Mapping[str, Sequence[int]]) -> Shape:
    if isinstance(inputs_shape, Mapping):
        raise ConfigError("the inputs are named tensors, which no built-in model takes: give a model of your own")
    try:
        shape = tuple(map(operator.index, inputs_shape))
    except TypeError:
        raise ConfigError(f"the shape of an input is whole numbers, found {inputs_shape!r}") from None
    if not shape or min(shape) < 1:
        raise ConfigError(f"a model needs inputs of at least one number, found the shape {shape}")
    return shape


def _linear(spec: ModelSpec, shape: Shape, classes: int) -> nn.Module:
    return LinearClassifier(shape, classes)


def _mlp(spec: ModelSpec, shape: Shape, classes: int) -> nn.Module:
    return MLP(shape, classes, **spec.options)


def _cnn(spec: ModelSpec, shape: Shape, classes: int) -> nn.Module:
    _check_image(spec, shape)
    return CNN(shape, classes, **spec.options)


def _resnet(spec: ModelSpec, shape: Shape, classes: int) -> nn.Module:
    _check_image(spec, shape)
    return CifarResNet(shape, classes, depth=RESNET_DEPTHS[spec.name], **spec.options)


_BUILDERS: Mapping[str, Callable[[ModelSpec, Shape, int], nn.Module]] = MappingProxyType(
    {"linear": _linear, "mlp": _mlp, "cnn": _cnn, **dict.fromkeys(RESNET_DEPTHS, _resnet)}
)


def _check_image(spec: ModelSpec, shape: Shape) -> None:
    try:
        image_shape(shape)
    except ConfigError as error:
        raise ConfigError(f"model {spec.name!r}: {error}; for such inputs take 'mlp' or 'linear'") from None


def _timm(spec: ModelSpec, shape: Shape, classes: int) -> nn.Module:
    timm = require("timm", "timm")
    name = spec.name.removeprefix("timm/")
    if not timm.is_model(name):
        raise ConfigError(f"model 'timm/{name}': {_unknown_of_many('timm model', name, timm.list_models())}")
    channels = image_shape(shape)[0]
    try:
        model: nn.Module = timm.create_model(name, num_classes=classes, in_chans=channels, **spec.options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"model 'timm/{name}' cannot be built: {error}") from error
    return model


def _unknown_of_many(kind: str, name: str, options: Sequence[str]) -> str:
    return f"unknown {kind} {name!r}: {nearest(name, options)}{len(options):,} are known"


def _own(
    spec: ModelSpec, shape: Sequence[int] | Mapping[str, Sequence[int]], classes: int, user: Mapping[str, object]
) -> nn.Module:
    if not user:
        raise ConfigError(
            f"model {spec.name!r} is of your own file, and no file was named: "
            f"on the command line --models {spec.name.split('.')[0]}.py, in Python user=load_user_file(...)"
        )
    if spec.name not in user:
        raise ConfigError(unknown_name("model", spec.name, user))
    make = user[spec.name]
    if not callable(make):
        raise ConfigError(f"model {spec.name!r}: expected a function or a class, found a {type(make).__name__}")
    try:
        model = make(**_arguments(spec, make, {"inputs_shape": _as_tuples(shape), "classes": classes}))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"model {spec.name!r} fails when built: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model {spec.name!r}: expected it to give an nn.Module, found a {type(model).__name__}")
    return model


def _as_tuples(shape: Sequence[int] | Mapping[str, Sequence[int]]) -> object:
    return {key: tuple(part) for key, part in shape.items()} if isinstance(shape, Mapping) else tuple(shape)


def _arguments(spec: ModelSpec, make: Callable[..., object], known: Mapping[str, object]) -> dict[str, object]:
    """The options of the specification, and what is known of the data where the signature asks for it by name."""
    accepted = inspect.signature(make).parameters
    named = [n for n, p in accepted.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    anything = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    for option in spec.options:
        if option not in named and not anything:
            raise ConfigError(f"model {spec.name!r}: {unknown_name('option', option, named)}")
    arguments = {**{n: value for n, value in known.items() if n in named}, **spec.options}
    lacking = [n for n in named if accepted[n].default is inspect.Parameter.empty and n not in arguments]
    if lacking:
        raise ConfigError(f"model {spec.name!r}: the option {lacking[0]!r} is missing")
    return arguments
