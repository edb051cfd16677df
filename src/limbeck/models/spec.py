"""What may be said about a model in plain data. Needs no torch, so a configuration is checked at once."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, PlainValidator, ValidationError, ValidationInfo, model_validator

from limbeck.errors import ConfigError, unknown_name
from limbeck.validation import Counts, InputFile, Problem, Section, described, problem, problems

RESNET_DEPTHS: Mapping[str, int] = MappingProxyType({f"resnet{n}": n for n in (8, 14, 20, 32, 44, 56, 110)})
"""The CIFAR ResNets by name; 20 to 110 are those of He et al. (2015), table 6."""


class ModelSpec(Section):
    """A model in plain data: its name, its options, and a file of weights to start from."""

    name: str
    weights: InputFile | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What is said beyond the name and the weights, defaults included."""
        return {key: value for key, value in self if key not in ("name", "weights")}


class LinearSpec(ModelSpec):
    """Softmax regression on the flattened input."""


class MLPSpec(ModelSpec):
    """A multi-layer perceptron on the flattened input."""

    hidden: Counts
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class CNNSpec(ModelSpec):
    """3×3 convolutions with batch norm, the map halved between stages."""

    channels: Counts = (16, 32, 64)


class ResNetSpec(ModelSpec):
    """A CIFAR ResNet; its depth is in its name."""

    width: Annotated[int, Field(ge=2, multiple_of=2)] = 16


class TimmSpec(ModelSpec):
    """A model of the timm library; further keys go to `timm.create_model`."""

    model_config = ConfigDict(extra="allow")
    pretrained: bool = False

    @model_validator(mode="after")
    def _no_other_files(self) -> Self:
        # These make timm read files that may be pickles, from wherever the configuration says.
        for key in ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"):
            if key in (self.model_extra or {}):
                raise problem(f"{key} is refused: name a safetensors file under 'weights' instead")
        return self


class UserSpec(ModelSpec):
    """A function or class of the user's own file; further keys are its arguments."""

    model_config = ConfigDict(extra="allow")


SPECS: Mapping[str, type[ModelSpec]] = MappingProxyType(
    {"linear": LinearSpec, "mlp": MLPSpec, "cnn": CNNSpec, **dict.fromkeys(RESNET_DEPTHS, ResNetSpec)}
)

MODEL_NAMES: tuple[str, ...] = tuple(SPECS)
"""The built-in models. Beside them: `timm/<name>`, and `<file>.<name>` of a file the user names."""


def check_model(spec: str | Mapping[str, Any] | ModelSpec) -> ModelSpec:
    """Check a model given as plain data.

    Args:
        spec: a name, or a mapping with `name`, the options of that model, and perhaps `weights`.

    Raises:
        ConfigError: for an unknown name, an unknown option, or a value that does not fit; all problems at once.
    """
    try:
        return _Holder.model_validate({"model": spec}).model
    except ValidationError as error:
        # The holder is ours, not the caller's: its key is not part of the path.
        found = [Problem(("model", *path[1:]), message) for path, message in problems(error)]
        raise ConfigError("; ".join(map(str, found))) from None


def _parse(value: object, info: ValidationInfo) -> ModelSpec:
    if isinstance(value, ModelSpec):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        raise problem(f"found {described(value)}, expected the name of a model, or a mapping with its name and options")
    if "name" not in value:
        raise problem(f"a model needs a name. Known: {_known()}")
    name = value["name"]
    if not isinstance(name, str) or not name:
        raise problem(f"found {described(name)}, expected the name of a model. Known: {_known()}")
    return _spec_class(name).model_validate(dict(value), context=info.context)


def _spec_class(name: str) -> type[ModelSpec]:
    if name in SPECS:
        return SPECS[name]
    if name.startswith("timm/"):
        return TimmSpec
    # A dot is what tells a name of the user's file from a mistyped one of ours.
    if "." in name:
        return UserSpec
    raise problem(unknown_name("model", name, MODEL_NAMES) + ", timm/<name>, and <file>.<name> of your own file")


def _known() -> str:
    return ", ".join(MODEL_NAMES) + ", timm/<name>, <file>.<name>"


ModelField = Annotated[
    ModelSpec,
    PlainValidator(_parse),
]
"""A model inside a section of the settings."""


class _Holder(Section):
    model: ModelField
