"""The data section of a configuration: where the samples are, what is known of them, and what is put into them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationInfo,
    model_validator,
)

from limbeck.models.spec import ModelField
from limbeck.validation import (
    Count,
    FromList,
    InputFile,
    InputFolder,
    Natural,
    Section,
    Text,
    Texts,
    described,
    problem,
)

T = TypeVar("T")


class Injection(Section):
    """A known fault put into the data, to see what it does: its kind, and the options of that kind."""

    model_config = ConfigDict(extra="allow")
    kind: Literal["label_noise", "coloured", "background_patch", "shortcut", "subsample_group"]

    @property
    def options(self) -> dict[str, Any]:
        """What is said beyond the kind."""
        return dict(self.model_extra or {})


def _fractions(value: object) -> object:
    value = tuple(value) if isinstance(value, list) else value
    if not isinstance(value, tuple) or len(value) != 3:
        raise problem(f"found {described(value)}, expected three numbers: the shares of train, validation and test")
    if all(isinstance(share, (int, float)) for share in value) and abs(sum(value) - 1) > 1e-6:
        raise problem(f"the shares of train, validation and test add up to {sum(value):g}, expected 1")
    return value


Share = Annotated[float, Field(gt=0, lt=1)]
Fractions = Annotated[tuple[Share, Share, Share], BeforeValidator(_fractions)]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _values(value: object) -> tuple[str | int, ...]:
    if not isinstance(value, (list, tuple)) or not value or not all(_is_text(v) or type(v) is int for v in value):
        raise problem(f"found {described(value)}, expected a list of texts or whole numbers")
    return tuple(value)


def _texts(value: object) -> tuple[str, ...]:
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, (list, tuple)) or not all(map(_is_text, value)):
        raise problem(f"found {described(value)}, expected a text or a list of texts")
    return tuple(value)


def _attributes(value: object) -> tuple[str, ...] | dict[str, tuple[str | int, ...] | None]:
    if isinstance(value, Mapping):
        return {str(name): None if allowed is None else _values(allowed) for name, allowed in value.items()}
    return _texts(value)


def _arrays(value: object) -> tuple[str, ...] | dict[str, str]:
    if isinstance(value, Mapping):
        if not all(map(_is_text, value.values())):
            raise problem("found a mapping with other things than texts, expected the name of an array by attribute")
        return {str(name): array for name, array in value.items()}
    return _texts(value)


def _name_or(check: Callable[[object], T]) -> PlainValidator:
    """One text as it is, anything else through `check`."""
    return PlainValidator(lambda value: value if _is_text(value) else check(value))


Values = Annotated[tuple[str | int, ...], PlainValidator(_values)]
"""The values a column may have."""

Attributes = Annotated[tuple[str, ...] | dict[str, tuple[str | int, ...] | None], PlainValidator(_attributes)]
"""Columns, or the allowed values (null: any) by column."""

NameOrNames = Annotated[str | tuple[str, ...], _name_or(_texts)]
"""An array, or several."""

NameOrValues = Annotated[str | tuple[str | int, ...], _name_or(_values)]
"""An array, or its values."""

Arrays = Annotated[tuple[str, ...] | dict[str, str], PlainValidator(_arrays)]
"""Arrays, or the array by attribute."""


def _size(value: object) -> int | tuple[int, int]:
    if type(value) is int and value > 0:
        return value
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(type(v) is int and v > 0 for v in value):
        return (value[0], value[1])
    raise problem(f"found {described(value)}, expected pixels: one number, or [height, width]")


def _normalise(value: object) -> tuple[tuple[float, ...], ...]:
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_are_numbers, value)):
        return tuple(tuple(float(number) for number in part) for part in value)
    raise problem(
        f"found {described(value)}, expected two lists of numbers: the means and the deviations of the channels"
    )


def _are_numbers(value: object) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(type(v) in (int, float) for v in value)


Size = Annotated[int | tuple[int, int], PlainValidator(_size)]
"""Pixels of a square, or height and width."""

Normalise = Annotated[tuple[tuple[float, ...], tuple[float, ...]], PlainValidator(_normalise)]
"""Means and deviations of the channels."""


def _merged(value: object) -> dict[str, dict[str, tuple[str | int, ...]]]:
    if not isinstance(value, Mapping) or not all(isinstance(new, Mapping) and new for new in value.values()):
        raise problem(
            f"found {described(value)}, expected the old values by their new name for each attribute: "
            "{race: {not White: [Black, Other]}}"
        )
    return {str(name): {str(new): _values(old) for new, old in values.items()} for name, values in value.items()}


Merged = Annotated[dict[str, dict[str, tuple[str | int, ...]]], PlainValidator(_merged)]
"""Old values by new value by attribute."""


class Discovered(Section):
    """Groups that are to be found, in place of declared ones; further keys are options of the method.

    Attributes:
        discover: how, one of `limbeck.groups.METHODS`.
        model: the network that is trained for it; a small one where nothing is said.
        epochs: how long.
        seed: of everything that is drawn for it.
        folds: of cross-fitting.
        repeats: with how many seeds groups are looked for, to see whether they are the same.
        minimum: training samples a group needs.
    """

    model_config = ConfigDict(extra="allow")
    discover: Literal["errors", "tree", "clusters", "mixture", "disagreement"]
    model: ModelField | None = None
    epochs: Count | None = None
    seed: Natural = 0
    folds: Annotated[int, Field(ge=2)] = 2
    repeats: Count = 3
    minimum: Count = 5

    @property
    def options(self) -> dict[str, Any]:
        """Of the method."""
        return dict(self.model_extra or {})


_TEXTS: TypeAdapter[tuple[str, ...]] = TypeAdapter(Texts, config=ConfigDict(strict=True))


def _groups(value: object, info: ValidationInfo) -> tuple[str, ...] | Discovered | None:
    if value is None or isinstance(value, Discovered):
        return value
    if isinstance(value, Mapping):
        return Discovered.model_validate(dict(value), context=info.context)
    return _TEXTS.validate_python(value)


GroupsField = Annotated[tuple[str, ...] | Discovered | None, PlainValidator(_groups)]
"""Attributes to declare groups over, or how groups are to be found."""


class DataSection(Section):
    """What every kind of data may say.

    Attributes:
        merge: values of attributes to treat as one, where each alone has too few samples to be judged.
        groups: the attributes whose product makes the groups; `label` stands for the class. Or `{discover: …}`: groups
            that are to be found, in all splits.
        seed: of the split.
        inject: known faults to put into the training part, in this order.
    """

    groups: GroupsField = None
    seed: Natural = 0
    merge: Merged = Field(default_factory=dict)
    inject: Annotated[tuple[Injection, ...], FromList] = ()

    @property
    def said(self) -> dict[str, Any]:
        """The keys that were written, but for what is done to the data afterwards."""
        written = self.model_fields_set - {"inject", "merge"}
        return {key: getattr(self, key) for key in type(self).model_fields if key in written}


class NamedData(DataSection):
    """One of the data sets that the library knows by name, and what it may be told."""

    name: Text
    options: dict[str, Any] = Field(default_factory=dict)


class FileData(DataSection):
    """What data from a file may say.

    Attributes:
        id: where the sample ids are; the row number where nothing is said.
        split: where it says which samples train, validate and test; made where nothing is said.
        fractions: the shares of train, validation and test where the split is made; null keeps a declared one as it is.
    """

    id: Text | None = None
    split: Text | None = None
    fractions: Fractions | None = (0.6, 0.2, 0.2)


class TableData(FileData):
    """A CSV or Parquet file: one row a sample. The keys are those of `limbeck.data.tables.from_table`."""

    table: InputFile
    label: Text
    attributes: Attributes = ()
    numeric: Texts = ()
    categorical: Texts = ()
    drop: Texts = ()
    columns: Texts = ()
    missing: Annotated[tuple[str, ...], FromList] = ()
    classes: Values | None = None
    attributes_in_features: bool = True


class ArrayData(FileData):
    """A NumPy `.npz` file. The keys are those of `limbeck.data.npz.from_npz`, `label` being its `y`."""

    npz: InputFile
    x: NameOrNames = "x"
    label: Text = "y"
    attributes: Arrays = ()
    columns: Texts = ()
    classes: NameOrValues | None = None
    group_names: Texts | None = None
    feature_names: Texts | None = None
    normalise: Normalise | None = None


class ImageData(FileData):
    """A folder of images, and perhaps a table about them. The keys are those of `limbeck.data.images.from_images`.

    Without a table the folders say it all: `<class>/<image>`, or `train/<class>/<image>` and the like.
    """

    images: InputFolder
    table: InputFile | None = None
    file: Text | None = None
    label: Text | None = None
    attributes: Attributes = ()
    columns: Texts = ()
    size: Size | None = None
    mode: Literal["RGB", "L"] = "RGB"
    lazy: bool = False
    classes: Values | None = None
    normalise: Normalise | None = None

    @model_validator(mode="after")
    def _table_or_folders(self) -> Self:
        if self.table is not None:
            for key in ("file", "label"):
                if getattr(self, key) is None:
                    raise problem(f"with a table, {key!r} is needed: the column of the {_COLUMNS_OF_IMAGES[key]}")
        else:
            for key in ("file", "label", "attributes", "id", "split", "columns"):
                if getattr(self, key):
                    raise problem(f"{key!r} names a column of a table, and there is no 'table'")
        return self


_COLUMNS_OF_IMAGES = {"file": "file names", "label": "classes"}
_DATA_KINDS: Mapping[str, type[DataSection]] = {
    "images": ImageData,
    "npz": ArrayData,
    "table": TableData,
    "name": NamedData,
}


def parse_data(value: object, info: ValidationInfo) -> DataSection:
    if isinstance(value, DataSection):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        raise problem(f"found {described(value)}, expected a mapping with one of the keys {', '.join(_DATA_KINDS)}")
    found = [kind for kind in _DATA_KINDS if kind in value]
    if not found:
        raise problem(
            "does not say where the data are: expected one of the keys name (a known data set), "
            "table (a CSV or Parquet file), npz (NumPy arrays) or images (a folder)"
            + (f"; found {', '.join(map(str, value))}" if value else "")
        )
    if len(found) > 1 and found != ["images", "table"]:
        raise problem(f"the data come from one place: found {' and '.join(found)}, expected one of them")
    return _DATA_KINDS[found[0]].model_validate(dict(value), context=info.context)


DataField = Annotated[DataSection, PlainValidator(parse_data)]
"""The data inside a section of the settings."""


class _Holder(Section):
    data: DataField


def data_section(value: Mapping[str, Any]) -> DataSection:
    """The data section of a configuration from plain data that were checked before."""
    return _Holder.model_validate({"data": value}).data
