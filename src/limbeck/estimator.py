"""`Distiller`: any recipe as a scikit-learn classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn

from limbeck.data import Data
from limbeck.errors import DataError, TeacherError
from limbeck.fitting import fit
from limbeck.ledgers import Ledger, overhear
from limbeck.loop import Fitted
from limbeck.models import build
from limbeck.predict import logits_of
from limbeck.recipe import Recipe
from limbeck.teachers import PredictorTeacher, TableTeacher, Teacher, as_teacher
from limbeck.training import Training

_DEFAULT = {"name": "mlp", "hidden": [64]}
_ROWS = 4096
_VALUES = (Recipe, Training)  # never changed, so that a clone can share them

Student = str | Mapping[str, Any] | nn.Module | Callable[[int, int], nn.Module] | None


class Distiller(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Distil a classifier of tables: `fit(X, y, groups=…, teacher=…)`, then `predict` and `predict_proba`.

    Args:
        recipe: a preset's name, plain data or a `Recipe`.
        student: None for a small perceptron; a network by name or plain data (`"linear"`, `{"name": "mlp", "hidden":
            [32, 32]}`); a module, of which a copy is trained; or a function from the numbers of features and classes to
            a module. The first two standardise their inputs by the training samples; modules get X as it is, in
            float32.
        epochs, batch_size, learning_rate: of the training.
        selection: which epoch is kept, on the validation part: see `limbeck.fit`.
        validation_fraction: the share of each class (and group) that is set aside for that. Where there are too few
            samples, all are trained on and the last epoch is kept.
        training: further settings of `limbeck.Training`, as a mapping.
        random_state: a number, a `RandomState`, or None: what decides the split, the weights and the order.

    Attributes:
        classes_: the labels in order `[C]`.
        n_features_in_, feature_names_in_: as in scikit-learn.
        model_: the trained module, from X `[B, D]` to logits `[B, C]`; in double precision where it was built here.
        history_: one record an epoch.
        selected_epoch_: the epoch (from 1) that was kept.
        ledger_: what each training sample was told, by its row in X.
        warnings_: what works, but not as the recipe's paper had in mind.
    """

    def __init__(
        self,
        recipe: str | Mapping[str, Any] | Recipe = "erm",
        student: Student = None,
        *,
        epochs: int = 50,
        batch_size: int = 32,
        learning_rate: float = 1e-2,
        selection: str | None = None,
        validation_fraction: float = 0.1,
        training: Mapping[str, Any] | None = None,
        random_state: Any = None,
    ) -> None:
        self.recipe = recipe
        self.student = student
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.selection = selection
        self.validation_fraction = validation_fraction
        self.training = training
        self.random_state = random_state

    def __sklearn_clone__(self) -> Distiller:
        given = self.get_params(deep=False)
        copied: dict[str, Any] = {
            name: value if isinstance(value, _VALUES) else clone(value, safe=False) for name, value in given.items()
        }
        twin = type(self)(**copied)
        for name in ("_metadata_requests", "_sklearn_output_config"):
            if hasattr(self, name):
                setattr(twin, name, clone(getattr(self, name), safe=False))
        return twin

    def fit(self, X: Any, y: Any, groups: Any = None, teacher: Any = None) -> Distiller:
        """Train the student.

        Args:
            X: dense numbers `[N, D]`, an array or a data frame; the teacher sees its rows as they are given here.
            y: labels of any type `[N]`.
            groups: the group of each sample `[N]`, any values; None or NaN where unknown.
            teacher: a fitted classifier with `predict_proba` whose classes are among those of y; probabilities
                `[N, C]`, columns in the order of the sorted labels; a module from X (float32) to logits in that order;
                or whatever else `limbeck.teachers.as_teacher` takes.

        Raises:
            LimbeckError: where recipe, teacher, groups and data do not fit each other, before any training.
        """
        original = X
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        labels = column_or_1d(y, warn=True)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(
                f"y has one class only ({self.classes_.tolist()[0]!r}): a classifier needs two or more to tell apart"
            )
        draw = check_random_state(self.random_state)
        seed = self.random_state if isinstance(self.random_state, int) else int(draw.randint(2**31 - 1))
        data, enough = self._data(X, codes, groups, seed)
        source = overhear(self._teacher(teacher, original, len(codes)))
        fitted = fit(
            self._student(data.train),
            data,
            teacher=source,
            recipe=self.recipe,
            training=Training(**(dict(self.training or {}))),
            seed=seed,
            selection=self.selection if enough else "last",
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
        )
        self._keep(fitted, data, source)
        return self

    def _keep(self, fitted: Fitted, data: Data, source: Teacher | None) -> None:
        self.ledger_ = Ledger.of(fitted, data, source)
        # A sample's prediction must not depend on the batch that it comes in; in single precision its last digits do.
        own = self.student is None or isinstance(self.student, str | Mapping)
        self.model_ = fitted.model.double() if own else fitted.model
        self.history_ = fitted.history
        self.selected_epoch_ = fitted.selected_epoch
        self.warnings_ = fitted.warnings

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """The probability of each class `[N, C]`, columns in the order of `classes_`."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        with torch.inference_mode():
            parts = [self._logits(X[start : start + _ROWS]).double() for start in range(0, len(X), _ROWS)]
            return np.asarray(torch.softmax(torch.cat(parts), 1).numpy())

    def predict(self, X: Any) -> NDArray[Any]:
        """The likeliest class of each sample `[N]`."""
        places = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[places])

    def _logits(self, X: NDArray[np.float64]) -> Tensor:
        parameter = next(self.model_.parameters(), None)
        return logits_of(self.model_(torch.from_numpy(X).to(torch.float32 if parameter is None else parameter.dtype)))

    # Before training --------------------------------------------------------------------------------------------------

    def _data(self, X: NDArray[np.float64], codes: NDArray[np.int64], groups: Any, seed: int) -> tuple[Data, bool]:
        """The samples with a validation part, and whether there were enough of them for one."""
        count, attributes = len(codes), {}
        strata = codes
        if groups is not None:
            values = column_or_1d(groups)
            if len(values) != count:
                raise DataError(f"groups has {len(values):,} values for {count:,} samples: give one a sample")
            attributes = {"group": values}
            names = np.array([str(value) for value in values])
            strata = np.unique(names, return_inverse=True)[1] * len(self.classes_) + codes
        held = self._held_out(strata, codes, seed)
        split = np.zeros(count, np.int8)
        split[held] = 1
        ids = np.arange(count)
        enough = bool(len(held))
        if not enough:
            # The loop looks at a validation part in any case: one sample again, by which nothing is decided.
            again = np.r_[0:count, 0]
            X, codes, split, ids = X[again], codes[again], np.r_[split, 1], np.arange(count + 1)
            attributes = {name: np.append(values, values[:1]) for name, values in attributes.items()}
        data = Data(
            np.asarray(X, np.float32),
            codes,
            attributes=attributes,
            groups=list(attributes) or None,
            ids=ids,
            split=split,
            fractions=None,
            classes=range(len(self.classes_)),
            name="X",
        )
        return data, enough

    def _held_out(self, strata: NDArray[np.int64], codes: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """Rows to validate on: the same share of each stratum, rounded down, and never a class's last sample."""
        if not 0.0 <= self.validation_fraction < 1.0:
            raise DataError(
                f"validation_fraction: found {self.validation_fraction!r}, expected a share from 0 to below 1"
            )
        draw = np.random.default_rng(seed)
        found: list[NDArray[np.int64]] = []
        for stratum in np.unique(strata):
            rows = np.flatnonzero(strata == stratum)
            found.append(draw.permutation(rows)[: int(self.validation_fraction * len(rows))])
        return np.sort(np.concatenate(found))

    def _student(self, train: Data) -> nn.Module | Callable[[], nn.Module]:
        features, classes, given = int(train.sample_shape[0]), len(self.classes_), self.student
        if isinstance(given, nn.Module):
            return given
        if given is None or isinstance(given, str | Mapping):
            spec = _DEFAULT if given is None else given
            return lambda: _Standardised(build(spec, inputs_shape=(features,), classes=classes), train.x)
        return lambda: given(features, classes)

    def _teacher(self, teacher: Any, X: Any, count: int) -> Teacher | None:
        if teacher is None:
            return None
        if hasattr(teacher, "predict_proba"):
            return self._predictor(teacher, X, count)
        if isinstance(teacher, np.ndarray | list) or (
            hasattr(teacher, "__array__") and not isinstance(teacher, Tensor)
        ):
            return self._probabilities(np.asarray(teacher, np.float64), count)
        if isinstance(teacher, Tensor):
            return self._probabilities(teacher.detach().double().numpy(), count)
        return as_teacher(teacher)

    def _predictor(self, teacher: Any, X: Any, count: int) -> Teacher:
        known = np.asarray(getattr(teacher, "classes_", self.classes_))
        strange = known[~np.isin(known, self.classes_)]
        if len(strange):
            raise TeacherError(
                f"the teacher {type(teacher).__name__} knows the class {strange.tolist()[0]!r}, which y does not have; "
                f"y has {', '.join(map(repr, self.classes_[:5].tolist()))}{', …' if len(self.classes_) > 5 else ''}"
            )

        def rows(_: Any, ids: Any) -> Any:
            # The rows as the teacher knows them: a data frame with its names, numbers in their own precision.
            return _safe_indexing(X, np.asarray(ids) % count)

        coded = _Coded(teacher, np.searchsorted(self.classes_, known))
        return PredictorTeacher(coded, len(self.classes_), prepare=rows)

    def _probabilities(self, values: NDArray[np.float64], count: int) -> Teacher:
        if values.shape != (count, len(self.classes_)):
            raise TeacherError(
                f"the teacher's probabilities have shape {list(values.shape)}: expected "
                f"{[count, len(self.classes_)]}, one row a sample and one column a class in the order of classes_"
            )
        rows = np.r_[0:count, 0]
        table = {"id": np.arange(count + 1), "probabilities": values[rows]}
        return TableTeacher(table, classes=[str(k) for k in range(len(self.classes_))])


class _Coded:
    """A classifier whose classes are the numbers of ours."""

    def __init__(self, model: Any, codes: NDArray[np.int64]) -> None:
        self.model, self.classes_ = model, codes

    def predict_proba(self, X: Any) -> Any:
        return self.model.predict_proba(X)


class _Standardised(nn.Module):
    """A network behind the standardisation of its inputs."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, x: NDArray[np.float32]) -> None:
        super().__init__()
        self.network = network
        values = torch.from_numpy(np.asarray(x, np.float64))
        deviation = values.std(0, correction=0)
        self.register_buffer("mean", values.mean(0).float())
        self.register_buffer("deviation", torch.where(deviation > 0, deviation, 1.0).float())

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.network((x - self.mean) / self.deviation)
        return found
