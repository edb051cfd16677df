"""Frozen features: a model looks at every sample once; what it saw is data on which probes and heads train in seconds.

frozen = extract(backbone, data)                  # Data whose x is [N, D]; ids, labels, groups and split stay
save(frozen, "features.safetensors")
student = lb.fit(nn.Linear(D, C), load("features.safetensors"), recipe="group_dro")
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from limbeck.checkpoint import load_tensors, save_tensors, write_atomically
from limbeck.data import Data
from limbeck.data.columns import Column, Groups
from limbeck.data.npz import read_npz
from limbeck.data.splits import SPLITS
from limbeck.errors import CheckpointError, ConfigError, DataError, RecipeError
from limbeck.heads import LayerTap, find_head
from limbeck.modes import evaluating
from limbeck.predict import InputReader, call_model, logits_of
from limbeck.teachers import ModuleTeacher, Source
from limbeck.teachers.base import batch_outputs

if TYPE_CHECKING:
    from limbeck.loop import Fitted

OUTPUT = "output"
FORMAT, VERSION = "limbeck-features", 1
ENDINGS = (".safetensors", ".npz")


def extract(
    model: nn.Module | Fitted | Source,
    data: Data,
    layer: str | None = None,
    *,
    batch_size: int = 256,
    progress: bool | None = None,
) -> Data:
    """The features of every sample, as data.

    Args:
        model: any module, what `fit` returned, or a teacher that supplies features. It is left as it was.
        data: whose inputs it takes.
        layer: where the features are: by default the input of the last `nn.Linear`, which must be what makes the
            model's output; `output` for what the model itself returns, as a backbone without a last layer does; or the
            name of a layer, whose output is taken (the input, where it is an `nn.Linear`). Maps and sequences are
            averaged over positions.
        batch_size: samples a call.
        progress: whether to show a bar; by default where a person looks on.

    Returns:
        Data with x float32 `[N, D]` and ids, labels, attributes, groups, columns and split of `data`.

    Raises:
        ConfigError: where the last linear layer is not what makes the output, or there is none.
        TeacherError: for a layer that does not exist, features of a wrong shape or that are not finite.
    """
    teacher = _source(model, data, layer)
    reader, console = InputReader(data), Console(stderr=True)
    visible = console.is_terminal if progress is None else progress
    starts = range(0, len(data), batch_size)
    whole: Tensor | None = None
    for start in track(starts, "extracting features", console=console, disable=not visible, transient=True):
        rows = np.arange(start, min(start + batch_size, len(data)))
        found = batch_outputs(teacher, reader, data, rows, ("features",))["features"].cpu()
        whole = torch.empty(len(data), found.shape[1]) if whole is None else whole
        whole[start : start + len(rows)] = found
    assert whole is not None
    return data.replace(x=whole.numpy(), normalise=None)


def _source(model: Any, data: Data, layer: str | None) -> Source:
    if isinstance(model, Source):
        if layer is not None:
            raise ConfigError(f"{model!r} says itself where its features are: leave layer out")
        return model
    # A module may well have a part called model: only what is none is unwrapped.
    module = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"cannot extract features with a {type(model).__name__}: expected a torch module")
    if layer == OUTPUT:
        return ModuleTeacher(module, kind="features")
    if layer is None:
        _check_last(module, data)
    return ModuleTeacher(module, layer, classes=2 if layer is not None else None)


def _check_last(module: nn.Module, data: Data) -> None:
    """Refuse a module whose last linear layer is a part of its inside: its input would be no features of the sample."""
    way_out = "say where its features are: layer='output' for what it returns, or the name of a layer"
    try:
        name, _ = find_head(module)
    except RecipeError as error:
        raise ConfigError(f"{type(module).__name__} has no linear layer: {way_out}") from error
    inputs = InputReader(data)(torch.arange(min(2, len(data))))
    with evaluating(module), LayerTap(module, [name]) as tap:
        try:
            returned = logits_of(call_model(module, inputs))
            made = tap.take()[0]
            ends = [made, made.log_softmax(-1), made.softmax(-1)]
            last = any(
                end.shape == returned.shape and torch.allclose(end, returned, atol=1e-5, equal_nan=True) for end in ends
            )
        except (RecipeError, ValueError):
            last = False
    if not last:
        raise ConfigError(
            f"the last linear layer of {type(module).__name__}, {name!r}, does not make its output: {way_out}"
        )


# Files ----------------------------------------------------------------------------------------------------------------


def save(features: Data, path: str | Path, **card: Any) -> None:
    """Write features to one file, whole or not at all.

    Args:
        features: data with x `[N, D]`, such as `extract` returns.
        path: `.safetensors`, read back by `load`; or `.npz`, which a configuration names as its data as well.
        card: plain data kept beside it, such as the model's fingerprint (`.safetensors` only).

    Raises:
        DataError: where x is no table of features, or the ending is another one.
    """
    path = Path(path)
    if isinstance(features.sample_shape, dict) or len(features.sample_shape) != 1:
        raise DataError(f"features are [N, D], a sample here has the shape {features.sample_shape}: use extract")
    if path.suffix not in ENDINGS:
        raise DataError(f"{path}: features are written as {' or '.join(ENDINGS)}, found {path.suffix or 'no ending'}")
    if path.suffix == ".npz":
        _save_npz(features, path)
        return
    tensors = {
        name: torch.from_numpy(np.require(value, requirements=["C", "W"])) for name, value in _arrays(features).items()
    }
    groups = features.groups
    described = {
        "format": FORMAT,
        "version": VERSION,
        "name": features.name,
        "classes": features.classes,
        "label_name": features.label_name,
        "attributes": {name: column.values for name, column in features.attributes.items()},
        "groups": None
        if groups is None
        else {
            "columns": groups.columns,
            "names": groups.names,
            "cells": groups.cells,
        },
        "texts": [name for name, values in features.columns.items() if values.dtype.kind == "U"],
        "injections": features.injections,
    }
    save_tensors(path, tensors, {**described, "card": card})


def load(path: str | Path) -> Data:
    """Features that `save` wrote.

    Raises:
        CheckpointError: where the file is missing, truncated or something else.
        DataError: for an `.npz` that is.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return _load_npz(path)
    tensors, told = load_tensors(path)
    if told.get("format") != FORMAT or told.get("version") != VERSION:
        raise CheckpointError(f"{path} holds no features of version {VERSION}: write it with limbeck.features.save")
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    attributes = {
        name: Column(tuple(values), arrays[f"attribute.{name}"]) for name, values in told["attributes"].items()
    }
    groups = None
    if (grouped := told["groups"]) is not None:
        cells = tuple(map(tuple, grouped["cells"]))
        groups = Groups(tuple(grouped["columns"]), tuple(grouped["names"]), arrays["groups"], cells)
    columns = {
        name: _as_texts(value) if name in told["texts"] else value for name, value in _named(arrays, "column").items()
    }
    return Data(
        arrays["x"],
        arrays["y"],
        ids=arrays["ids"],
        split=arrays["split"],
        fractions=None,
        attributes=attributes,
        groups=groups,
        columns=columns,
        classes=told["classes"],
        name=told["name"],
        label_name=told["label_name"],
        injections=told["injections"],
    )


def card(path: str | Path) -> dict[str, Any]:
    """What `save` was told beside the features."""
    return dict(load_tensors(Path(path))[1].get("card", {}))


def _arrays(features: Data) -> dict[str, NDArray[Any]]:
    arrays = {"x": features.x, "y": features.y, "ids": features.ids, "split": features.split}
    if features.groups is not None:
        arrays["groups"] = features.groups.index
    arrays |= {f"attribute.{name}": column.codes for name, column in features.attributes.items()}
    arrays |= {f"column.{name}": _as_bytes(values) for name, values in features.columns.items()}
    return arrays


def _as_bytes(values: NDArray[Any]) -> NDArray[Any]:
    """Texts as UTF-8 of one width, zeros at the end: safetensors has numbers only."""
    if values.dtype.kind != "U":
        return values
    coded = np.char.encode(values, "utf-8")
    return np.frombuffer(coded.tobytes(), np.uint8).reshape(*values.shape, coded.dtype.itemsize)


def _as_texts(values: NDArray[Any]) -> NDArray[Any]:
    coded = np.ascontiguousarray(values).view(f"S{values.shape[-1]}")[..., 0]
    return np.asarray(np.char.decode(coded, "utf-8"))


def _save_npz(features: Data, path: Path) -> None:
    arrays: dict[str, NDArray[Any]] = {"x": features.x, "y": np.array(features.classes)[features.y]}
    arrays |= {"id": features.ids, "split": np.array(SPLITS)[features.split], "classes": np.array(features.classes)}
    for name, column in features.attributes.items():
        arrays[f"attribute.{name}"] = column.strings()
    arrays |= {f"column.{name}": values for name, values in features.columns.items()}
    groups = None if features.groups is None else list(features.groups.columns)
    if groups is not None and not {"label", *features.attributes}.issuperset(groups):
        raise DataError(f"{path}: groups over {', '.join(groups)} are no attributes: write a .safetensors file")
    told = {"name": features.name, "label_name": features.label_name, "groups": groups}
    arrays["limbeck"] = np.array(json.dumps(told))
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())


def _load_npz(path: Path) -> Data:
    arrays = read_npz(path)
    if "limbeck" not in arrays or not {"x", "y", "id", "split", "classes"} <= arrays.keys():
        raise DataError(f"{path} holds no features that limbeck.features.save wrote: read it with Data.from_npz")
    told = json.loads(str(arrays["limbeck"]))
    parts = {kind: _named(arrays, kind) for kind in ("attribute", "column")}
    return Data(
        arrays["x"],
        arrays["y"],
        ids=arrays["id"],
        split=arrays["split"],
        fractions=None,
        attributes=parts["attribute"],
        groups=told["groups"],
        columns=parts["column"],
        classes=arrays["classes"].tolist(),
        name=told["name"],
        label_name=told["label_name"],
    )


def _named(arrays: dict[str, NDArray[Any]], kind: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(f"{kind}."): value for name, value in arrays.items() if name.startswith(f"{kind}.")}
