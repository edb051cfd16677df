"""Models as safetensors files that say how to rebuild them. Loading never runs code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.checkpoint import load_tensors, save_tensors
from limbeck.errors import ConfigError
from limbeck.heads import transplant, transplant_weights
from limbeck.models.builders import build
from limbeck.models.spec import ModelSpec, check_model
from limbeck.models.weights import load_weights


@dataclass(frozen=True)
class SavedModel:
    """A model read from its file.

    Attributes:
        model: in eval mode.
        spec: what it was built from.
        classes: the names of its logits, in order.
        card: all that was kept beside the weights.
    """

    model: nn.Module
    spec: ModelSpec
    classes: tuple[str, ...]
    card: dict[str, Any]


def save_model(
    model: nn.Module,
    path: str | Path,
    *,
    spec: str | Mapping[str, Any] | ModelSpec,
    inputs_shape: Sequence[int],
    classes: Sequence[str],
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write a model and what `load_model` needs to rebuild it to one safetensors file, whole or not at all.

    Args:
        model: a model that `build` made from `spec`, trained since.
        path: the file to write; an existing one is replaced.
        spec: what it was built from.
        inputs_shape: the shape of one input, without the batch.
        classes: the names of its logits, in order.
        card: further plain data to keep beside the weights.
    """
    # The weights it once started from are not needed to rebuild it, and their file may be gone by then.
    plain = {key: value for key, value in check_model(spec).plain().items() if key != "weights"}
    own = {"model": plain, "inputs_shape": list(inputs_shape), "classes": list(classes)}
    save_tensors(Path(path), model.state_dict(), {**(card or {}), **own})


def load_model(
    path: str | Path,
    *,
    inputs_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    user: Mapping[str, object] | None = None,
) -> SavedModel:
    """Rebuild a model from a file that `save_model` or a pilot wrote.

    Args:
        path: the safetensors file.
        inputs_shape: the shape of one input, where the file does not say it.
        user: the user's own functions and classes, from `load_user_file`, for a model that one of them built.

    Raises:
        CheckpointError: where the file is missing, truncated or no safetensors file.
        ConfigError: where it does not say how to rebuild the model, or says what cannot be.
        RecipeError: where its transplanted layer cannot be put in place.
    """
    file = Path(path)
    tensors, card = load_tensors(file)
    shape = card.get("inputs_shape", inputs_shape)
    plain, classes = card.get("model"), card.get("classes")
    if not (isinstance(plain, dict) and shape is not None and isinstance(classes, list)):
        raise ConfigError(
            f"{file} holds weights but does not say of which model: build the model yourself and use load_weights"
        )
    # The file's own weights replace whatever the model once started from.
    plain = {key: value for key, value in plain.items() if key != "weights"}
    if str(plain.get("name")).startswith("timm/"):
        plain["pretrained"] = False
    spec = check_model(plain)
    try:
        model = build(spec, inputs_shape=shape, classes=len(classes), user=user)
    except (RuntimeError, MemoryError) as error:
        # Sizes come from the file, and may be anything.
        raise ConfigError(f"{file}: the model it describes cannot be built: {error}") from error
    if "head.weight" in tensors and "head.weight" not in model.state_dict():
        model = _with_head(model, tensors, card, shape, user)
    load_weights(model, file)
    return SavedModel(model.eval(), spec, tuple(map(str, classes)), card)


_HEAD_OPTIONS = ("projector", "student_layer", "teacher_layer", "match", "student_map", "teacher_map")


def _with_head(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    card: Mapping[str, Any],
    shape: Any,
    user: Mapping[str, object] | None,
) -> nn.Module:
    """The student in front of a transplanted last layer, put together as its recipe says; the weights come later."""
    recipe = card.get("recipe")
    head = recipe.get("head") if isinstance(recipe, dict) else None
    options = {key: head[key] for key in _HEAD_OPTIONS if isinstance(head, dict) and head.get(key) is not None}
    weight, bias = tensors["head.weight"], tensors.get("head.bias")
    if "teacher_model" not in card:
        # Without the teacher's architecture only features can have been matched, not maps.
        return transplant_weights(model, weight, bias, options.get("projector", "auto"), options.get("student_layer"))
    teacher = build(card["teacher_model"], inputs_shape=shape, classes=len(weight), user=user)
    # Any input shows how the maps run through both networks; not zeros, in which everything looks alike.
    example = torch.rand((2, *shape), generator=torch.Generator().manual_seed(0))
    return transplant(model, teacher, **options, example=example)
