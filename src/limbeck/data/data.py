"""`Data`: samples by id, with attributes, groups and splits."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from limbeck.data.columns import Column, Groups, IntArray, declare, integer_vector, renumbered, some, to_numpy
from limbeck.data.inputs import Inputs, check_finite, check_inputs
from limbeck.data.labels import encode_labels
from limbeck.data.splits import (
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    check_fractions,
    cut_validation,
    make_split,
    read_split,
)
from limbeck.errors import DataError, unknown_name

if TYPE_CHECKING:
    from limbeck.data.encoder import TableEncoder

Normalise = tuple[tuple[float, ...], tuple[float, ...]]


class Data:
    """Samples by id: features, labels, attributes, groups and a split into train, validation and test.

    A value: every method returns a new one. Arrays that already have the right type are kept, not copied,
    so they must not be changed afterwards.

    Args:
        x: features [N, D] (kept as float32), uint8 images [N, C, H, W], float arrays [N, ...], a dict of arrays
            (integers in it stay int64, for tokens), or a reader with `len()` and `reader[rows]`. Tensors are welcome.
        y: one label a sample [N]: text, whole numbers or booleans, mapped to 0..C-1.
        attributes: discrete values by name, each [N]; None, NaN and "" are missing.
        groups: an attribute, several for their product, "label" for the label among them; or group numbers [N]
            (-1 = unknown), or a `Groups`.
        ids: whole numbers [N], unique; 0..N-1 where not given.
        split: train, validation or test for each sample (names or 0, 1, 2), or one name for all; made where not given.
        fractions: shares of train, validation and test where the split is made. Where a split with training but
            without validation samples is declared, validation is cut from train in the proportion of the first
            two shares. None: take the declared split as it is.
        classes: all class names in order; the distinct labels where not given.
        seed: of the split.
        name: of the data set.
        normalise: (mean, std), one number a channel, for uint8 images scaled to [0, 1].
        feature_names: D names, for x [N, D].
        columns: any further value a sample, by name, each [N, ...]; carried along, never fed to a model.
        group_names: one a group, where `groups` are numbers.
        label_name: what the label is called in the names of groups.
        encoder: the fitted `TableEncoder` that made x, kept so that a student can be applied to new rows.
        injections: records of what was injected, for experiments.

    Attributes:
        y: int64 [N].
        ids: int64 [N].
        split: int8 [N], 0 train, 1 validation, 2 test.
        classes: C names.
        attributes: `Column` by name.
        groups: `Groups`, or None.
        parent_rows: int64 [N], the positions in the data that this is a part of; None for a whole.

    Raises:
        DataError: for anything that cannot be used, naming the ids and the way out.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        *,
        attributes: Mapping[str, Any] | None = None,
        groups: str | Sequence[str] | NDArray[Any] | Groups | None = None,
        ids: Any = None,
        split: Any = None,
        fractions: Sequence[float] | None = (0.6, 0.2, 0.2),
        classes: Sequence[object] | None = None,
        seed: int = 0,
        name: str = "data",
        normalise: tuple[Any, Any] | None = None,
        feature_names: Sequence[str] | None = None,
        columns: Mapping[str, Any] | None = None,
        group_names: Sequence[str] | None = None,
        label_name: str = "label",
        encoder: TableEncoder | None = None,
        injections: Sequence[dict[str, Any]] = (),
    ) -> None:
        self._inputs = check_inputs(x)
        count = len(self._inputs)
        self.ids = _check_ids(ids, count)
        self.y, self.classes = encode_labels(y, classes, self.ids, label_name)
        if len(self.y) != count:
            raise DataError(f"x has {count:,} samples and y has {len(self.y):,}: give one label a sample")
        if count == 0:
            raise DataError("there are no samples: x is empty")
        self.name = str(name)
        self.label_name = str(label_name)
        self.attributes = _check_attributes(attributes, count)
        self.columns = _check_columns(columns, count)
        self.groups = self._declare(groups, group_names, "occurring")
        self.normalise = _check_normalise(normalise, self._inputs)
        self.feature_names = _check_feature_names(feature_names, self._inputs)
        check_finite(self._inputs, self.ids, self.feature_names)
        self.split = self._split(split, fractions, seed)
        self.encoder = encoder
        self.injections = [dict(record) for record in injections]
        self.parent_rows: IntArray | None = None
        self._views: dict[int, Data] = {}
        self._fingerprint = ""
        self._warn()

    # -- reading other sources ---------------------------------------------------------------------------------

    @classmethod
    def from_table(cls, source: Any, *, label: str, **options: Any) -> Data:
        """Data from a Parquet or CSV file, a pandas data frame or an Arrow table: see `limbeck.data.tables`."""
        from limbeck.data.tables import from_table

        return from_table(source, label=label, **options)

    @classmethod
    def from_dataset(cls, dataset: Any, **options: Any) -> Data:
        """Data from a torch Dataset or DataLoader: see `limbeck.data.datasets`."""
        from limbeck.data.datasets import from_dataset

        return from_dataset(dataset, **options)

    @classmethod
    def from_images(cls, folder: str | Path, table: Any, *, file: str, label: str, **options: Any) -> Data:
        """Data from a folder of images and a table about them: see `limbeck.data.images`."""
        from limbeck.data.images import from_images

        return from_images(folder, table, file=file, label=label, **options)

    @classmethod
    def from_npz(cls, path: str | Path, **options: Any) -> Data:
        """Data from the arrays of an .npz file: see `limbeck.data.npz`."""
        from limbeck.data.npz import from_npz

        return from_npz(path, **options)

    # -- what is in it -----------------------------------------------------------------------------------------

    @property
    def x(self) -> Any:
        """The inputs [N, ...]: an array, a dict of arrays or a reader. Made when first asked for, then kept."""
        return self._inputs.value

    def inputs(self, rows: IntArray | slice) -> Any:
        """The inputs of some rows, without making `x` of the whole part first."""
        return self._inputs.take(rows)

    @property
    def sample_shape(self) -> Any:
        """The shape of one sample, such as (D,) or (C, H, W); a dict of shapes where x is a dict."""
        return self._inputs.sample_shape

    def __len__(self) -> int:
        return len(self.y)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def num_groups(self) -> int:
        """The number of groups, 0 where none are declared."""
        return 0 if self.groups is None else len(self.groups.names)

    @property
    def sizes(self) -> dict[str, int]:
        """How many samples train, validate and test."""
        return dict(zip(SPLITS, np.bincount(self.split, minlength=3).tolist()))

    @property
    def train(self) -> Data:
        """The training samples.

        Raises:
            DataError: where there are none (as for the next two).
        """
        return self._view(TRAIN)

    @property
    def validation(self) -> Data:
        return self._view(VALIDATION)

    @property
    def test(self) -> Data:
        return self._view(TEST)

    def fingerprint(self) -> str:
        """32 hexadecimal digits of x, normalise, y, classes, ids, attributes and split, in the order of rows (BLAKE2b).

        Computed once and kept. Groups are left out: they are made of what is in it already, or of the user's choice.
        """
        if not self._fingerprint:
            digest = hashlib.blake2b(digest_size=16)
            self._inputs.feed(digest.update)
            digest.update(repr((self.normalise, self.classes, len(self))).encode())
            digest.update(self.y.tobytes() + self.ids.tobytes() + self.split.tobytes())
            for key in sorted(self.attributes):
                digest.update(repr((key, self.attributes[key].values)).encode())
                digest.update(self.attributes[key].codes.tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def summary(self) -> list[dict[str, Any]]:
        """One row a group (a class where no groups are declared): its name, its samples in each split, its share.

        A last row "unknown" counts samples without a known group, if there are any.
        """
        if self.groups is None:
            what, names, index = self.label_name, self.classes, self.y
        else:
            what, names, index = "group", self.groups.names, self.groups.index
        wanted = [*range(len(names)), *([-1] if (index < 0).any() else [])]
        table = []
        for code in wanted:
            inside = index == code
            counts = np.bincount(self.split[inside], minlength=3).tolist()
            name = names[code] if code >= 0 else "unknown"
            table.append({what: name, **dict(zip(SPLITS, counts)), "share": float(inside.mean())})
        return table

    def __repr__(self) -> str:
        shape = self.sample_shape
        if isinstance(shape, dict):
            inputs = "inputs " + some(shape)
        else:
            inputs = f"{shape[0]} features" if len(shape) == 1 else "×".join(str(size) for size in shape)
        shares = np.bincount(self.y, minlength=self.num_classes) / len(self)
        lines = [f"Data {self.name!r}: {len(self):,} samples of {inputs}"]
        lines[0] += ", " + ", ".join(f"{name} {count:,}" for name, count in self.sizes.items())
        lines.append(
            f"  {self.label_name}: {self.num_classes} classes, "
            + some([f"{c} {s:.1%}" for c, s in zip(self.classes, shares)], limit=6)
        )
        for name, column in self.attributes.items():
            missing = f", {column.missing:,} missing" if column.missing else ""
            lines.append(f"  attribute {name}: {some(column.values, limit=6)}{missing}")
        if self.groups is not None:
            counts = self.groups.counts(self.split == TRAIN)
            least = int(counts.argmin())
            lines.append(
                f"  {self.num_groups} groups over {' × '.join(self.groups.columns)}, "
                f"smallest in training: {self.groups.names[least]} ({counts[least]:,})"
            )
        lines += [f"  injected: {record.get('kind')}" for record in self.injections]
        return "\n".join(lines)

    # -- new data from it --------------------------------------------------------------------------------------

    def subset(self, rows: Any) -> Data:
        """Some of the samples, in the order given.

        Groups, classes and attribute values keep their full lists of names. Nothing is copied until `x` is asked for.

        Args:
            rows: positions int [M], each at most once, or bool [N].

        Raises:
            DataError: a position out of range or repeated, or no row at all.
        """
        picked = to_numpy(rows)
        if picked.dtype == bool:
            if picked.shape != (len(self),):
                raise DataError(f"rows is a mask of shape {list(picked.shape)}: expected [{len(self)}]")
            picked = np.flatnonzero(picked)
        picked = integer_vector(picked, "rows") if picked.size else picked.astype(np.int64).ravel()
        if not len(picked):
            raise DataError("a subset without a sample was asked for: no row is selected")
        low, high = int(picked.min()), int(picked.max())
        if low < 0 or high >= len(self):
            raise DataError(f"row {low if low < 0 else high} does not exist: rows are 0..{len(self) - 1}")
        repeated = np.flatnonzero(np.bincount(picked) > 1)
        if len(repeated):
            raise DataError(
                f"row {some(repeated)} is asked for more than once: a sample is its id; use weights or sampling instead"
            )
        return self._restricted(picked)

    def with_groups(
        self,
        groups: str | Sequence[str] | NDArray[Any] | Groups | None,
        group_names: Sequence[str] | None = None,
        cells: Literal["occurring", "all"] = "occurring",
    ) -> Data:
        """The same samples and split with other groups (None for none), declared as in `Data`."""
        new = self._restricted(None)
        new.groups = new._declare(groups, group_names, cells)
        new._warn()
        return new

    def merge_values(self, attribute: str, values: Mapping[str, Sequence[object]]) -> Data:
        """The same samples with several values of an attribute as one, for groups that are large enough to judge.

        Args:
            attribute: the name of an attribute; where it is also a feature, the feature stays as it is.
            values: the old values by their new name, such as {"not White": ["Black", "Other"]}.

        Raises:
            DataError: an unknown attribute or value.
        """
        if attribute not in self.attributes:
            raise DataError(unknown_name("attribute", attribute, self.attributes))
        merged = self.attributes[attribute].merged(values, attribute)
        return self.replace(attributes={**self.attributes, attribute: merged})

    def replace(self, **changes: Any) -> Data:
        """A checked copy with some of the arguments of `Data` changed; the split stays unless it is given.

        Groups over columns are declared again where the label or an attribute changes; a group keeps its number.

        Raises:
            DataError: an unknown argument, or a value that does not fit.
        """
        fields: dict[str, Any] = {
            "x": self._inputs,
            "y": self.y,
            "attributes": self.attributes,
            "groups": self.groups,
            "ids": self.ids,
            "split": self.split,
            "classes": self.classes,
            "name": self.name,
            "normalise": self.normalise,
            "feature_names": self.feature_names,
            "columns": self.columns,
            "label_name": self.label_name,
            "encoder": self.encoder,
            "injections": self.injections,
        }
        for key in changes:
            if key not in fields and key != "group_names":
                raise DataError(unknown_name("argument of replace", key, [*fields, "group_names"]))
        if "x" in changes:
            fields.update(feature_names=None, encoder=None)
        again = self.groups is not None and "groups" not in changes and self._declared_over(changes)
        if again and self.groups is not None:
            fields["groups"] = list(self.groups.columns)
        new = Data(**{**fields, **changes}, fractions=None)
        if again and self.groups is not None and new.groups is not None and self._same_values(new):
            new.groups = renumbered(new.groups, self.groups)
        if len(new) == len(self):
            new.parent_rows = self.parent_rows
        return new

    def check(self, *, groups_required: bool = False, splits: Sequence[str] = ("train", "validation")) -> None:
        """What training needs, checked before it starts.

        Args:
            groups_required: whether the training groups will be used.
            splits: those that must have samples.

        Raises:
            DataError: an empty split, a class without a training sample, or, where groups are required: none
                declared, a group without a training sample, a training sample without a group.
        """
        for name in splits:
            if name not in SPLITS:
                raise DataError(unknown_name("split", name, SPLITS))
            if not self.sizes[name]:
                raise DataError(self._empty(name))
        training = self.split == TRAIN
        if training.any():
            absent = np.flatnonzero(np.bincount(self.y[training], minlength=self.num_classes) == 0)
            if len(absent):
                names = some([repr(self.classes[k]) for k in absent])
                raise DataError(
                    f"class {names} has no training sample in {self.name!r}: "
                    f"add samples, move some to train, or leave the class out of classes"
                )
        if not groups_required:
            return
        if self.groups is None:
            known = some(["label", *self.attributes])
            raise DataError(
                f"groups are needed and {self.name!r} declares none: use data.with_groups([…]) with some of: {known}"
            )
        absent = np.flatnonzero(self.groups.counts(training) == 0)
        if len(absent):
            raise DataError(self._absent(absent) + "; for training with groups this is an error: " + _ABSENT_WAY_OUT)
        unknown = training & (self.groups.index < 0)
        if unknown.any():
            raise DataError(
                f"{int(unknown.sum()):,} training samples of {self.name!r} have no known group "
                f"(ids {some(self.ids[unknown])}): fill the missing attributes, "
                f"or leave the samples out with data.subset(data.groups.index >= 0)"
            )

    # -- inside ------------------------------------------------------------------------------------------------

    def _declared_over(self, changes: Mapping[str, Any]) -> bool:
        """Whether the groups are made of columns that there will still be, and some of these change."""
        attributes = changes.get("attributes", self.attributes) or {}
        columns = () if self.groups is None else self.groups.columns
        return bool(changes.keys() & {"y", "classes", "attributes", "label_name"}) and all(
            column == "label" or column in attributes for column in columns
        )

    def _same_values(self, other: Data) -> bool:
        """Whether the columns of the groups have the same possible values in both."""
        columns = () if self.groups is None else self.groups.columns
        return all(
            self.classes == other.classes and self.label_name == other.label_name
            if column == "label"
            else column in self.attributes and self.attributes[column].values == other.attributes[column].values
            for column in columns
        )

    def _view(self, code: int) -> Data:
        if code not in self._views:
            rows = np.flatnonzero(self.split == code)
            if not len(rows):
                raise DataError(self._empty(SPLITS[code]))
            self._views[code] = self._restricted(rows)
        return self._views[code]

    def _restricted(self, rows: IntArray | None) -> Data:
        """Some rows of this checked value (None: all of them), without checking again."""
        new = object.__new__(Data)
        new.__dict__.update(self.__dict__)
        new._views = {}
        new._fingerprint = ""
        if rows is not None:
            new._inputs = self._inputs.restrict(rows)
            new.y, new.ids, new.split = self.y[rows], self.ids[rows], self.split[rows]
            new.attributes = {key: column.take(rows) for key, column in self.attributes.items()}
            new.columns = {key: values[rows] for key, values in self.columns.items()}
            new.groups = None if self.groups is None else self.groups.take(rows)
            new.parent_rows = rows
        return new

    def _with_inputs(self, x: Any, encoder: TableEncoder) -> Data:
        """The same samples with the features that an encoder made of them."""
        new = self._restricted(None)
        new._inputs = check_inputs(x)
        new.feature_names = _check_feature_names(encoder.feature_names, new._inputs)
        new.encoder = encoder
        check_finite(new._inputs, new.ids, new.feature_names)
        return new

    def _declare(
        self, groups: Any, group_names: Sequence[str] | None, cells: Literal["occurring", "all"]
    ) -> Groups | None:
        count = len(self.y)
        if isinstance(groups, Groups):
            checked = Groups.from_index(groups.index, groups.names)
            result = Groups(groups.columns, checked.names, checked.index, groups.cells or checked.cells)
        elif groups is None or (isinstance(groups, Sequence) and not len(groups)):
            return None
        elif isinstance(groups, str) or (
            isinstance(groups, Sequence) and all(isinstance(column, str) for column in groups)
        ):
            return declare(self.attributes, self.y, self.classes, groups, label_name=self.label_name, cells=cells)
        else:
            result = Groups.from_index(groups, group_names)
        if len(result.index) != count:
            raise DataError(f"groups has {len(result.index):,} values for {count:,} samples: give one a sample")
        return result

    def _split(self, split: Any, fractions: Sequence[float] | None, seed: int) -> NDArray[np.int8]:
        declared = None if split is None else read_split(split, self.ids)
        if fractions is None:
            if declared is None:
                raise DataError("neither a split nor fractions are given: declare the split or say how to make it")
            return declared
        shares = check_fractions(fractions)
        if self.groups is None:
            strata, within = self.y, np.zeros_like(self.y)
        else:
            strata, within = self.groups.index, self.y
        if declared is None:
            made = make_split(strata, within, self.ids, shares, seed)
            wanted = [code for code in (TRAIN, VALIDATION, TEST) if shares[code] > 0]
        elif shares[1] > 0 and (declared == TRAIN).any() and not (declared == VALIDATION).any():
            made = cut_validation(declared, strata, within, self.ids, shares, seed)
            wanted = [VALIDATION]
        else:
            return declared
        for code in wanted:
            if not (made == code).any():
                raise DataError(
                    f"the {SPLITS[code]} split of {self.name!r} would be empty: {len(made)} samples do not stretch to "
                    f"fractions {list(shares)}; give more samples, other fractions or a split of your own"
                )
        return made

    def _warn(self) -> None:
        if self.groups is None:
            return
        training = self.split == TRAIN
        absent = np.flatnonzero(self.groups.counts(training) == 0)
        if training.any() and len(absent):
            warnings.warn(self._absent(absent) + "; a model is judged on it without having seen it", stacklevel=3)

    def _absent(self, absent: IntArray) -> str:
        names = some([repr(self.groups.names[g]) for g in absent]) if self.groups is not None else ""
        return f"group {names} of {self.name!r} has no training sample"

    def _empty(self, name: str) -> str:
        held = ", ".join(f"{key} {count:,}" for key, count in self.sizes.items())
        return (
            f"the {name} split of {self.name!r} is empty ({held}): "
            f"declare {name} samples with split=…, or have them made with fractions=…"
        )


_ABSENT_WAY_OUT = "move samples of the group to train, merge it with another group, or leave its samples out"


def _check_ids(ids: Any, count: int) -> IntArray:
    if ids is None:
        return np.arange(count, dtype=np.int64)
    try:
        checked = integer_vector(ids, "ids")
    except DataError as error:
        raise DataError(f"{error}; number the samples and keep other names in columns={{'name': …}}") from None
    if len(checked) != count:
        raise DataError(f"ids has {len(checked):,} values for {count:,} samples: give one a sample")
    values, counts = np.unique(checked, return_counts=True)
    if len(values) < count:
        repeated = values[counts > 1]
        rows = np.flatnonzero(checked == repeated[0])
        raise DataError(
            f"id {some(repeated)} occurs more than once (id {repeated[0]} at rows {some(rows)}): "
            f"ids are unique; drop the copies or number the samples anew"
        )
    return checked


def _check_attributes(attributes: Mapping[str, Any] | None, count: int) -> dict[str, Column]:
    checked = {}
    for name, values in (attributes or {}).items():
        if name == "label":
            raise DataError("an attribute is called 'label', which stands for the class in groups: rename it")
        column = Column.of(values, str(name))
        if len(column) != count:
            raise DataError(f"attribute {name!r} has {len(column):,} values for {count:,} samples: give one a sample")
        checked[str(name)] = column
    return checked


def _check_columns(columns: Mapping[str, Any] | None, count: int) -> dict[str, NDArray[Any]]:
    checked = {}
    for name, values in (columns or {}).items():
        array = to_numpy(values)
        if array.ndim == 0 or len(array) != count:
            raise DataError(
                f"column {name!r} has shape {list(array.shape)} for {count:,} samples: give one value a sample"
            )
        checked[str(name)] = array.astype(str) if array.dtype == object else array
    return checked


def _check_normalise(normalise: tuple[Any, Any] | None, inputs: Inputs) -> Normalise | None:
    if normalise is None:
        return None
    if not inputs.is_images:
        raise DataError("normalise is for uint8 images [N, C, H, W]: standardise other features before")
    channels = int(inputs.sample_shape[0])
    if len(normalise) != 2:
        raise DataError(f"normalise is {normalise!r}: expected (mean, std)")
    mean, std = (tuple(float(v) for v in np.atleast_1d(to_numpy(part))) for part in normalise)
    if len(mean) != channels or len(std) != channels:
        raise DataError(f"normalise has {len(mean)} means and {len(std)} stds for {channels} channels: give one each")
    if not (np.isfinite([*mean, *std]).all() and min(std) > 0):
        raise DataError(
            f"normalise is mean {mean}, std {std}: expected finite numbers, std above 0, of pixels in [0, 1]"
        )
    return mean, std


def _check_feature_names(names: Sequence[str] | None, inputs: Inputs) -> tuple[str, ...] | None:
    if names is None:
        return None
    checked = tuple(str(name) for name in names)
    shape = inputs.sample_shape
    if isinstance(shape, dict) or len(shape) != 1 or shape[0] != len(checked):
        raise DataError(
            f"{len(checked)} feature_names are given for samples of shape {shape}: give one a feature [N, D]"
        )
    return checked
