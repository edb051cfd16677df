"""Whatever a user has, as a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import nn

from limbeck.errors import TeacherError
from limbeck.teachers.base import Teacher
from limbeck.teachers.module import ModuleTeacher
from limbeck.teachers.onnx_file import OnnxTeacher
from limbeck.teachers.predictor import PredictorTeacher
from limbeck.teachers.several import Several
from limbeck.teachers.store import Store, StoredTeacher
from limbeck.teachers.table import TableTeacher

_WEIGHTS = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")
_PICKLES = (".pkl", ".pickle", ".joblib")


def as_teacher(source: Any, **options: Any) -> Teacher:
    """Make a teacher of what is at hand.

    Args:
        source: a `Teacher` (returned as it is), an `nn.Module`, what `fit` returned, a scikit-learn style
            classifier, a path (.onnx; .parquet, .csv, .npz: a table; a folder: a store), a table in memory, or a
            list of these (`Several`).
        options: passed on to `ModuleTeacher`, `OnnxTeacher`, `PredictorTeacher`, `TableTeacher` or `StoredTeacher`;
            for a list, to each of its members.

    Raises:
        TeacherError: for anything else, and for options of what is a teacher already.
    """
    if isinstance(source, list | tuple):
        return Several([as_teacher(member, **options) for member in source])
    if isinstance(source, nn.Module):
        return ModuleTeacher(source, **options)
    if isinstance(source, str | Path):
        return _from_path(Path(source), options)
    if isinstance(source, Store):
        return StoredTeacher(source, **options)
    if isinstance(source, Teacher):
        if options:
            raise TeacherError(f"{source!r} is a teacher already and takes no options: {', '.join(options)}")
        return source
    if isinstance(getattr(source, "model", None), nn.Module):
        return ModuleTeacher(source.model, **options)
    if hasattr(source, "predict_proba"):
        return PredictorTeacher(source, **options)
    if isinstance(source, Mapping | pa.Table) or hasattr(source, "__arrow_c_stream__"):
        return TableTeacher(source, **options)
    raise TeacherError(
        f"a {type(source).__name__} cannot teach: give an nn.Module, what fit returned, a classifier with "
        "predict_proba, the path of an ONNX file, a table or a store, or an object with the members of "
        "limbeck.teachers.Teacher"
    )


def _from_path(path: Path, options: dict[str, Any]) -> Teacher:
    if path.is_dir():
        return StoredTeacher(Store.open(path), **options)
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return OnnxTeacher(path, **options)
    if suffix in _WEIGHTS:
        raise TeacherError(f"{path} holds weights without their network: build the nn.Module, load them, and give that")
    if suffix in _PICKLES:
        raise TeacherError(
            f"{path} is a pickle, which runs code when it is loaded: load it yourself and give the model"
        )
    return TableTeacher(path, **options)
