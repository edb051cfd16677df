"""A scikit-learn style classifier as a teacher, through `predict_proba`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import TeacherError
from limbeck.teachers.base import Source, shown
from limbeck.teachers.fingerprints import fingerprint_of
from limbeck.teachers.probabilities import ZERO_MASS, logits_from_probabilities

if TYPE_CHECKING:
    from limbeck.data import Data


class PredictorTeacher(Source):
    """A classifier with `predict_proba` and `classes_`: scikit-learn, LightGBM's and XGBoost's classifiers, pipelines.

    The columns of `predict_proba` follow the model's `classes_`, which need not be the data's order nor complete:
    * whole numbers in `classes_` are codes of the data's classes: column j belongs to class `classes_[j]`, and a class
      that the model never saw has probability 0;
    * names in `classes_` are class names; with `classes` they are put in that order, else they keep the model's.

    Args:
        model: the fitted classifier.
        classes: the class names in the order wanted (`data.classes`), or their number.
        prepare: from a batch's inputs and ids to what the model takes; by default the inputs, one row a sample.
        zero_mass: see `logits_from_probabilities`.

    Raises:
        TeacherError: for a model without `predict_proba` or `classes_`, or whose classes are not among those given.
    """

    advice: Mapping[str, str] = MappingProxyType(
        dict.fromkeys(
            ("features", "head", "maps"),
            "give a torch module as the teacher, or choose a recipe that needs logits only",
        )
        | {"teachers_logits": "give several teachers: Several([...])"}
    )

    def __init__(
        self,
        model: Any,
        classes: Sequence[str] | int | None = None,
        *,
        prepare: Callable[[Any, Any], Any] | None = None,
        zero_mass: float = ZERO_MASS,
    ) -> None:
        self.model = model
        self.description = f"the predictor {type(model).__name__}"
        if not callable(getattr(model, "predict_proba", None)):
            raise TeacherError(
                f"{self.description} has no predict_proba: use its classifier with probabilities switched on"
            )
        found = getattr(model, "classes_", None)
        if found is None:
            raise TeacherError(f"{self.description} has no classes_: fit it first, or give its outputs as a table")
        self._columns, self._classes, self._names = _label_space(np.asarray(found), classes, self.description)
        self._prepare = prepare
        self._zero_mass = zero_mass

    @property
    def supplies(self) -> frozenset[str]:
        return frozenset({"logits", "probabilities"})

    @property
    def classes(self) -> int:
        return self._classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self._names

    def fingerprint(self) -> str:
        return fingerprint_of("predictor", self.model, self._columns, self._names, self._zero_mass, self._prepare)

    def outputs(self, x: Any, ids: Any, want: Sequence[str]) -> dict[str, Tensor]:
        given = _rows(x, self.description) if self._prepare is None else self._prepare(x, ids)
        with warnings.catch_warnings():
            # `check` has compared the names; a batch comes as an array, which has none.
            warnings.filterwarnings("ignore", message="X does not have valid feature names")
            answer = np.asarray(self.model.predict_proba(given), dtype=np.float64)
        if answer.ndim != 2 or answer.shape[1] != len(self._columns):
            raise TeacherError(
                f"{self.description} returned probabilities of shape {answer.shape} for {len(self._columns)} classes"
            )
        probabilities = np.zeros((len(answer), self._classes))
        probabilities[:, self._columns] = answer
        values = torch.from_numpy(probabilities)
        found = {}
        if "logits" in want:
            found["logits"] = logits_from_probabilities(values, self._zero_mass)
        if "probabilities" in want:
            found["probabilities"] = values.float()
        return found

    def accepts(self, data: Data) -> None:
        """Raise `TeacherError` unless the columns of the inputs are those the model was fitted on."""
        fitted = getattr(self.model, "feature_names_in_", None)
        names = getattr(data, "feature_names", None)
        if self._prepare is None and fitted is not None and names is not None and list(fitted) != list(names):
            other = [name for name in fitted if name not in names]
            what = f"it knows {shown(other)}, which the data lack" if other else "the order differs"
            raise TeacherError(
                f"{self.description} was fitted on other columns than the data {data.name!r} have: {what}; "
                "bring them into its order with PredictorTeacher(model, prepare=...)"
            )


def _rows(x: Any, description: str) -> np.ndarray[Any, Any]:
    if isinstance(x, Mapping):
        raise TeacherError(
            f"{description} takes one table and the data have {', '.join(x)}: PredictorTeacher(model, prepare=...) "
            "makes one of them"
        )
    return np.asarray(x.detach().cpu().flatten(1).numpy())


def _label_space(
    found: np.ndarray[Any, Any], classes: Sequence[str] | int | None, description: str
) -> tuple[list[int], int, tuple[str, ...] | None]:
    """The class of each column, the number of classes, and their names where known."""
    names = None if classes is None or isinstance(classes, int) else tuple(map(str, classes))
    if found.ndim != 1:
        raise TeacherError(f"{description} predicts several targets at once: give one classifier a target")
    if found.dtype.kind in "iub" or (found.dtype.kind == "f" and bool((found == found.astype(np.int64)).all())):
        codes = [int(code) for code in found]
        count = len(names) if names is not None else classes if isinstance(classes, int) else max(codes) + 1
        outside = [code for code in codes if not 0 <= code < count]
        if outside:
            raise TeacherError(
                f"{description} knows the class codes {shown(codes)}; {shown(outside)} are not in 0..{count - 1}"
            )
        return codes, count, names
    own = tuple(map(str, found))
    if names is None:
        if isinstance(classes, int) and classes != len(own):
            raise TeacherError(f"{description} knows {len(own)} classes ({shown(own)}), {classes} were declared")
        return list(range(len(own))), len(own), own
    unknown = [name for name in own if name not in names]
    if unknown:
        raise TeacherError(
            f"{description} knows the classes {shown(own)}; {shown(unknown)} are not among {shown(names)}"
        )
    return [names.index(name) for name in own], len(names), names
