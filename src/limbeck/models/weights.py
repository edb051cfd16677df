"""Weights from safetensors files. Loading never runs code."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from limbeck.checkpoint import load_tensors
from limbeck.errors import ConfigError

_SHOWN = 4


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill a model with the weights of a safetensors file, key for key.

    Batch-norm counters (`num_batches_tracked`) may be missing: they are no weights, and start again at zero.

    Raises:
        CheckpointError: where the file is missing, truncated or no safetensors file.
        ConfigError: where a key is missing or too many, a shape differs, or a weight is not a finite number; the model
            is then unchanged.
    """
    file = Path(path)
    tensors, _ = load_tensors(file)
    expected = model.state_dict()
    missing = [n for n in expected if n not in tensors and not n.endswith("num_batches_tracked")]
    surplus = [n for n in tensors if n not in expected]
    shapes = [
        f"{n} {list(t.shape)} instead of {list(expected[n].shape)}"
        for n, t in tensors.items()
        if n in expected and t.shape != expected[n].shape
    ]
    faults = [
        f"{what} {_listed(names)}"
        for what, names in (("it lacks", missing), ("it has, beyond the model,", surplus), ("it has", shapes))
        if names
    ]
    if faults:
        raise ConfigError(f"{file} does not fit the model {type(model).__name__}: {'; '.join(faults)}")
    broken = [n for n, t in tensors.items() if not bool(torch.isfinite(t).all())]
    if broken:
        raise ConfigError(f"{file} holds weights that are not finite numbers: {_listed(broken)}")
    counters = {n: torch.zeros_like(tensor) for n, tensor in expected.items() if n not in tensors}
    model.load_state_dict({**counters, **tensors})


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
