"""An ONNX file as a teacher, run by onnxruntime on the CPU in float32."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import TeacherError, require, unknown_name
from limbeck.heads import pooled
from limbeck.teachers.base import Source
from limbeck.teachers.probabilities import check_kind, logits_and_probabilities, refuse_probabilities

_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class OnnxTeacher(Source):
    """An ONNX file. The session runs on the CPU, in as many threads as torch uses; the file is hashed when opened.

    Args:
        path: the file; weights that it keeps beside itself are found by onnxruntime.
        kind: what its output is: `logits`, `probabilities`, `log_odds` of the second of two classes, or `features`
            (maps and sequences are averaged over positions).
        output: the output's name; by default the only one that is a float tensor `[batch, classes]`.
        features: the output that is the input of the last layer, where the file has one beside the logits.
        maps: the output that is the map before pooling, where the file has one.
        classes: how many, where the file leaves it open.
        class_names: their names, in the order of its outputs.

    Raises:
        MissingExtraError: without onnxruntime.
        TeacherError: for a file that cannot be read, an output that does not exist or cannot be told apart.
    """

    advice: Mapping[str, str] = MappingProxyType(
        {
            "features": "export the input of the last layer as another output and name it: OnnxTeacher(path, "
            "features='...')",
            "maps": "export the map before pooling as another output and name it: OnnxTeacher(path, maps='...')",
            "head": "give the model itself: ModuleTeacher(module)",
            "teachers_logits": "give several teachers: Several([...])",
        }
    )

    def __init__(
        self,
        path: str | Path,
        *,
        kind: str = "logits",
        output: str | None = None,
        features: str | None = None,
        maps: str | None = None,
        classes: int | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        check_kind(kind)
        self.path = Path(path)
        self.kind = kind
        self.description = f"the ONNX file {self.path.name!r}"
        if not self.path.is_file():
            raise TeacherError(f"there is no ONNX file {self.path}")
        self._session = _session(self.path)
        self._inputs = self._session.get_inputs()
        self._output = self._choose_output(output)
        self._taps = {name: given for name, given in (("features", features), ("maps", maps)) if given is not None}
        for given in self._taps.values():
            self._find_output(given)
        self._names = None if class_names is None else tuple(map(str, class_names))
        self._classes = self._count_classes(classes)
        self._digest = _file_digest(self.path)

    @property
    def supplies(self) -> frozenset[str]:
        return frozenset(
            {"features", *self._taps} if self.kind == "features" else {"logits", "probabilities", *self._taps}
        )

    @property
    def classes(self) -> int:
        return self._classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self._names

    def fingerprint(self) -> str:
        settings = f"{self.kind}|{self._output.name}|{sorted(self._taps.items())}|{self._names}"
        return hashlib.blake2b(f"onnx|{self._digest}|{settings}".encode(), digest_size=16).hexdigest()

    def outputs(self, x: Any, ids: Any, want: Sequence[str]) -> dict[str, Tensor]:
        taps = [name for name in want if name in self._taps]
        asked = [self._output.name, *(self._taps[name] for name in taps)]
        feeds = self._feeds(x)
        runs = [self._session.run(asked, feed) for feed in _chunks(feeds, self._fixed_batch())]
        count = len(next(iter(feeds.values())))
        whole = [torch.from_numpy(np.concatenate(parts)[:count]) for parts in zip(*runs)]
        found = {name: value.float() for name, value in zip(taps, whole[1:])}
        if self.kind == "features":
            return {"features": pooled(whole[0].float())} | found
        if self.kind == "logits":
            refuse_probabilities(whole[0], self.description)
        return found | logits_and_probabilities(whole[0], self.kind, want)

    def _choose_output(self, name: str | None) -> Any:
        if name is not None:
            return self._find_output(name)
        outputs = self._session.get_outputs()
        floats = [out for out in outputs if out.type in ("tensor(float)", "tensor(double)", "tensor(float16)")]
        flat = [out for out in floats if len(out.shape) in (1, 2)] if len(floats) > 1 else floats
        if len(flat) == 1:
            return flat[0]
        listed = ", ".join(f"{out.name!r} {out.type} {out.shape}" for out in outputs)
        raise TeacherError(
            f"{self.description}: which of its outputs are the logits or probabilities? It has {listed}: "
            "OnnxTeacher(path, output='...') (a classifier exported with zipmap must be exported without)"
        )

    def _find_output(self, name: str) -> Any:
        outputs = {out.name: out for out in self._session.get_outputs()}
        if name not in outputs:
            raise TeacherError(f"{self.description}: " + unknown_name("output", name, outputs))
        return outputs[name]

    def _count_classes(self, classes: int | None) -> int:
        if classes is None and self._names is not None:
            classes = len(self._names)
        if classes is None and self.kind in ("log_odds", "features"):
            classes = 2 if self.kind == "log_odds" else 0
        if classes is None:
            last = self._output.shape[-1] if len(self._output.shape) == 2 else None
            classes = last if isinstance(last, int) else None
        if classes is None:
            raise TeacherError(
                f"{self.description}: output {self._output.name!r} has shape {self._output.shape}, which leaves the "
                "number of classes open: OnnxTeacher(path, classes=...)"
            )
        return classes

    def _fixed_batch(self) -> int | None:
        first = self._inputs[0].shape[0] if self._inputs[0].shape else None
        return first if isinstance(first, int) and first > 0 else None

    def _feeds(self, x: Any) -> dict[str, np.ndarray[Any, Any]]:
        names = [entry.name for entry in self._inputs]
        given = x if isinstance(x, Mapping) else {names[0]: x}
        if set(given) != set(names):
            raise TeacherError(
                f"{self.description} takes the inputs {', '.join(names)}; the data have "
                f"{', '.join(given) if isinstance(x, Mapping) else 'one array'}: give x as a mapping with these names"
            )
        feeds: dict[str, np.ndarray[Any, Any]] = {}
        for entry in self._inputs:
            if entry.type not in _NUMPY:
                raise TeacherError(
                    f"{self.description}: input {entry.name!r} is of type {entry.type}, which is not supported"
                )
            feeds[entry.name] = np.ascontiguousarray(given[entry.name].detach().cpu().numpy(), dtype=_NUMPY[entry.type])
        return feeds


def _session(path: Path) -> Any:
    runtime = require("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise TeacherError(f"{path} cannot be read as an ONNX model: {str(error).splitlines()[0]}") from error


def _chunks(feeds: Mapping[str, np.ndarray[Any, Any]], size: int | None) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """The feeds as they are, or in batches of the fixed size of the file, the last filled up with its last sample."""
    if size is None:
        yield dict(feeds)
        return
    count = len(next(iter(feeds.values())))
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        yield {name: values[rows] for name, values in feeds.items()}


def _file_digest(path: Path) -> str:
    """Of the file and of the weights it keeps beside itself."""
    onnx = require("onnx", "onnx")
    graph = onnx.load(str(path), load_external_data=False).graph
    beside = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    digest = hashlib.blake2b(digest_size=16)
    for file in [path, *(path.parent / name for name in sorted(beside))]:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()
