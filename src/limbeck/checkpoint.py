"""Weights and training state on disk: safetensors with plain JSON beside the tensors, written atomically."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from limbeck.errors import CheckpointError


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside, flush to the disk, rename: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write plain data as JSON, atomically; NaN is written as null, as JSON has none."""
    write_atomically(path, (json.dumps(_plain(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not (value == value and abs(value) != float("inf")):
        return None
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Tied weights share memory, which safetensors refuses: each name gets its own copy.
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.data_ptr() in seen and tensor.numel():
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        found[name] = tensor
    return found


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and plain metadata into one safetensors file, atomically."""
    # In the order it was given: a history that is read back is written again as it would have been.
    header = {"limbeck": json.dumps(_plain(metadata), allow_nan=False)}
    write_atomically(Path(path), save(_storable(tensors), metadata=header))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata of a file that `save_tensors` (or any safetensors writer) wrote.

    Raises:
        CheckpointError: where it is missing, truncated or not a safetensors file. Nothing in it is ever run.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = (file.metadata() or {}).get("limbeck", "{}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return tensors, json.loads(header)
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); it was truncated or is of another kind: remove it "
            "and run again"
        ) from error


def pack_optimiser(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as named tensors and plain data."""
    state = optimiser.state_dict()
    tensors, plain = {}, {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                plain[f"{index}.{name}"] = value
    return tensors, {"state": plain, "param_groups": state["param_groups"]}


def unpack_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """The inverse of `pack_optimiser`, into an optimiser of the same kind over the same parameters."""
    state: dict[int, dict[str, Any]] = {}
    for source in (tensors, plain["state"]):
        for key, value in source.items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
    groups = [
        {name: tuple(value) if name == "betas" else value for name, value in group.items()}
        for group in plain["param_groups"]
    ]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
