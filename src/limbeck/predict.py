"""From samples to what a model sees, and from what it returns to logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.modes import evaluating

if TYPE_CHECKING:
    from limbeck.data import Data

Inputs = Tensor | dict[str, Tensor]


def call_model(model: Callable[..., Any], inputs: Inputs) -> Any:
    """Call a model with one array, or with a mapping of arrays as keyword arguments."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def logits_of(output: Any) -> Tensor:
    """The logits `[B, C]` in whatever a model returns: a tensor, a tuple, a mapping, or an object with `.logits`.

    Raises:
        LimbeckError: where there are none.
    """
    if isinstance(output, Tensor):
        found = output
    elif isinstance(output, Mapping) and "logits" in output:
        found = output["logits"]
    elif hasattr(output, "logits"):
        found = output.logits
    elif isinstance(output, Sequence) and len(output) and isinstance(output[0], Tensor):
        found = output[0]
    else:
        raise LimbeckError(
            f"a model returned {type(output).__name__}: expected logits [B, C], a tuple that starts with them, "
            "a mapping with the key 'logits', or an object with the attribute 'logits'"
        )
    if found.ndim != 2:
        raise LimbeckError(f"a model returned logits of shape {tuple(found.shape)}: expected [batch, classes]")
    return found


class InputReader:
    """Reads model inputs by row: whole batches by one index call where the data are in memory.

    uint8 images are scaled to [0, 1] and normalised with `data.normalise` per batch, so that a data set stays as
    small in memory as it is on disk.
    """

    def __init__(self, data: Data, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        source = data.x
        self._parts: dict[str, Any] | None = None
        if isinstance(source, Mapping):
            self._parts = {name: self._tensor(values) for name, values in source.items()}
            self._source: Any = None
        else:
            self._source = self._tensor(source)
        self._mean: Tensor | None = None
        self._deviation: Tensor | None = None
        if data.normalise is not None:
            mean, deviation = data.normalise
            self._mean = torch.as_tensor(mean, dtype=torch.float32, device=self.device).view(-1, 1, 1)
            self._deviation = torch.as_tensor(deviation, dtype=torch.float32, device=self.device).view(-1, 1, 1)

    def _tensor(self, values: Any) -> Any:
        if isinstance(values, np.ndarray):
            if not values.flags.writeable:
                # torch warns on read-only memory; nothing here ever writes to inputs, a view says so to numpy only.
                values = values.copy() if values.nbytes < 1 << 28 else np.require(values, requirements=["W"])
            return torch.from_numpy(values).to(self.device)
        return values.to(self.device) if isinstance(values, Tensor) else values

    def _finish(self, batch: Any) -> Tensor:
        tensor = batch if isinstance(batch, Tensor) else torch.as_tensor(np.asarray(batch), device=self.device)
        if tensor.dtype is torch.uint8:
            tensor = tensor.float().div_(255.0)
            if self._mean is not None and self._deviation is not None:
                tensor = tensor.sub_(self._mean).div_(self._deviation)
        elif tensor.dtype is torch.float64 or tensor.dtype is torch.float16:
            tensor = tensor.float()
        return tensor

    def _rows(self, source: Any, rows: Tensor) -> Tensor:
        if isinstance(source, Tensor):
            return self._finish(source.index_select(0, rows))
        return self._finish(source[rows.cpu().numpy()])

    def __call__(self, rows: Tensor) -> Inputs:
        """The inputs of these rows `[B]` (int64 positions in the data)."""
        if self._parts is not None:
            return {name: self._rows(values, rows) for name, values in self._parts.items()}
        return self._rows(self._source, rows)


def model_inputs(data: Data, rows: Any) -> Inputs:
    """The inputs of these rows (positions in `data`) as a model sees them."""
    return InputReader(data)(torch.as_tensor(np.asarray(rows), dtype=torch.int64))


def batched_logits(model: nn.Module, reader: InputReader, count: int, batch_size: int = 1024) -> Tensor:
    """Logits `[count, C]` in float32 of rows 0..count-1, in order; the model's modes are left as they were."""
    parts = []
    with evaluating(model):
        for start in range(0, count, batch_size):
            rows = torch.arange(start, min(start + batch_size, count), device=reader.device)
            parts.append(logits_of(call_model(model, reader(rows))).float())
    return torch.cat(parts) if parts else torch.empty(0, 0)


def predict_logits(model: Any, data: Data, batch_size: int = 1024) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits `[N, C]` (float32) of a model, or of what `fit` returned, for every sample of `data`, in its order.

    Raises:
        LimbeckError: where the model has another number of classes than the data, or returns NaN.
    """
    module = model if isinstance(model, nn.Module) else getattr(model, "model", model)
    if not isinstance(module, nn.Module):
        raise LimbeckError(f"cannot predict with a {type(model).__name__}: expected a torch module or a fitted student")
    parameter = next(module.parameters(), None)
    reader = InputReader(data, parameter.device if parameter is not None else "cpu")
    logits = batched_logits(module, reader, len(data), batch_size).cpu().numpy()
    if len(data) and logits.shape[1] != data.num_classes:
        raise LimbeckError(
            f"the model returns {logits.shape[1]} classes, the data {data.name!r} have {data.num_classes} "
            f"({', '.join(map(str, data.classes[:5]))}{', …' if data.num_classes > 5 else ''})"
        )
    if np.isnan(logits).any():
        row = int(np.flatnonzero(np.isnan(logits).any(1))[0])
        raise LimbeckError(f"the model returns NaN, first for id {int(data.ids[row])}: check its inputs and weights")
    return logits
