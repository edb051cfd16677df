"""Torch datasets and data loaders, read once into arrays. Torch itself is never imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.data.columns import first_line, some, to_numpy
from limbeck.data.data import Data
from limbeck.data.splits import SPLITS
from limbeck.errors import DataError, unknown_name

Key = str | int


def from_dataset(
    dataset: Any,
    *,
    x: Key | Sequence[str] | None = None,
    label: Key | None = None,
    attributes: Sequence[str] | Mapping[str, Key] = (),
    columns: Sequence[str] | Mapping[str, Key] = (),
    id: Key | None = None,
    split: Any = None,
    **options: Any,
) -> Data:
    """Data from a torch Dataset or DataLoader.

    Every item is read once, in the order of the dataset. Of a DataLoader only its dataset is used, so that a
    shuffled loader cannot change which sample has which id; one over a `SubsetRandomSampler` is restricted to the
    sampler's indices, and these are the ids. A random transform is applied once and kept as it fell.

    Args:
        dataset: one with `len()`, or a mapping from split name (train, validation, test) to such datasets, whose
            samples are then numbered through.
        x: where an item keeps the inputs: a position of a tuple (0 where not given) or a key of a dict; several keys
            make x a dict. Not given, all keys without another role.
        label: where an item keeps the class: a position (1 where not given) or a key ("label" where not given).
        attributes: names of attributes. A mapping says where each is; a list names, for tuples, the entries after
            the label, and for dicts the keys.
        columns: values to carry along, named in the same way; for tuples as a mapping only.
        id: where an item keeps its id; the position in the dataset where not given.
        split: as in `Data`.
        options: groups, fractions, classes, seed, name, normalise, feature_names, group_names, label_name of `Data`.

    Raises:
        DataError: no length, no items, items of different kinds or shapes, an absent key, and all that `Data` raises.
    """
    if isinstance(dataset, Mapping):
        if split is not None:
            raise DataError("datasets are given by split and split= as well: give one of the two")
        unknown = [name for name in dataset if name not in SPLITS]
        if unknown or not dataset:
            raise DataError(f"datasets by split: {unknown_name('split', unknown[0] if unknown else '', SPLITS)}")
        parts = [_items(part) for part in dataset.values()]
        items = [item for part, _ in parts for item in part]
        split = [name for name, (part, _) in zip(dataset, parts) for _ in part]
        ids: Any = np.arange(len(items))
    else:
        items, ids = _items(dataset)
    roles = _roles(items[0], x, label, attributes, columns, id)
    values = {role: _column([_entry(item, key, row) for row, item in enumerate(items)], key) for role, key in roles}
    inputs = {str(role[1]): value for role, value in values.items() if role[0] == "x"}
    return Data(
        next(iter(inputs.values())) if isinstance(x, str | int) or len(inputs) == 1 else inputs,
        values["label", ""],
        attributes={role[1]: value for role, value in values.items() if role[0] == "attribute"},
        columns={role[1]: value for role, value in values.items() if role[0] == "column"},
        ids=values.get(("id", ""), ids),
        split=split,
        **options,
    )


def _items(source: Any) -> tuple[list[Any], NDArray[np.int64]]:
    """The items of a dataset in its own order, and their positions in it."""
    rows = None
    if hasattr(source, "dataset") and hasattr(source, "batch_size"):
        sampler: Any = getattr(source, "sampler", None)
        if type(sampler).__name__ == "SubsetRandomSampler":
            rows = np.sort(np.asarray(list(sampler.indices), dtype=np.int64))
        source = source.dataset
    kind = type(source).__name__
    if not hasattr(source, "__getitem__"):
        raise DataError(
            f"{kind} cannot be read by position: give a map-style dataset with len() and dataset[i], or arrays"
        )
    try:
        count = len(source)
    except TypeError as error:
        raise DataError(
            f"{kind} has no length: give a map-style dataset with len() and dataset[i], or arrays"
        ) from error
    rows = np.arange(count, dtype=np.int64) if rows is None else rows
    if not len(rows):
        raise DataError(f"{kind} has no samples")
    items = []
    for row in rows.tolist():
        try:
            items.append(source[row])
        except Exception as error:
            raise DataError(
                f"{kind}: item {row} cannot be read ({type(error).__name__}: {first_line(error)})"
            ) from error
    return items, rows


def _roles(
    item: Any, x: Any, label: Key | None, attributes: Any, columns: Any, id: Key | None
) -> list[tuple[tuple[str, str], Key]]:
    """((role, name), where it is in an item) for everything that is read."""
    named = _named(attributes, "attributes", item, first=2)
    carried = _named(columns, "columns", item, first=2 + len(named))
    others = {*named.values(), *carried.values(), *([] if id is None else [id])}
    if isinstance(item, Mapping):
        label = "label" if label is None else label
        wanted: list[Key] = [key for key in item if key != label and key not in others] if x is None else _listed(x)
    else:
        label = 1 if label is None else label
        wanted = [0] if x is None else _listed(x)
    if not wanted:
        raise DataError(f"no key of an item is left for x: {some(map(repr, item))} all have another role")
    roles: list[tuple[tuple[str, str], Key]] = [(("x", str(key)), key) for key in wanted]
    roles.append((("label", ""), label))
    roles += [(("attribute", name), key) for name, key in named.items()]
    roles += [(("column", name), key) for name, key in carried.items()]
    return roles if id is None else [*roles, (("id", ""), id)]


def _named(names: Any, role: str, item: Any, first: int) -> dict[str, Key]:
    if isinstance(names, Mapping):
        return {str(name): key for name, key in names.items()}
    listed = [names] if isinstance(names, str) else [str(name) for name in names]
    if isinstance(item, Mapping):
        return {name: name for name in listed}
    if listed and isinstance(item, Sequence) and first + len(listed) > len(item):
        raise DataError(
            f"{role} names {listed} as entries {first}.. of an item, but an item has {len(item)} entries: "
            f"give a mapping from name to position"
        )
    return {name: first + place for place, name in enumerate(listed)}


def _listed(keys: Any) -> list[Key]:
    return [keys] if isinstance(keys, str | int) else list(keys)


def _entry(item: Any, key: Key, row: int) -> Any:
    if isinstance(item, Mapping):
        if key not in item:
            raise DataError(f"item {row} of the dataset: {unknown_name('key', key, map(str, item))}")
        return item[key]
    if isinstance(key, str):
        if not hasattr(item, key):
            raise DataError(
                f"item {row} of the dataset is a {type(item).__name__} without a field {key!r}: name a position"
            )
        return getattr(item, key)
    if not isinstance(item, Sequence):
        raise DataError(
            f"item {row} of the dataset is a {type(item).__name__}: expected a tuple such as (input, label) or a dict"
        )
    if not -len(item) <= key < len(item):
        raise DataError(
            f"item {row} of the dataset has {len(item)} entries, entry {key} was asked for: expected (input, label, …)"
        )
    return item[key]


def _column(values: list[Any], key: Key) -> Any:
    """One array of one entry of all items; text stays a list."""
    if isinstance(values[0], str) or values[0] is None:
        return values
    if isinstance(values[0], Mapping):
        raise DataError(f"entry {key!r} of the items is a dict: name the keys of one flat dict")
    arrays = [_array(value) for value in values]
    for row, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            raise DataError(
                f"entry {key!r} has shape {list(array.shape)} in item {row} and {list(arrays[0].shape)} in item 0: "
                f"resize or pad all samples to one shape"
            )
    stacked = np.stack(arrays)
    return stacked if stacked.dtype != object else values


def _array(value: Any) -> NDArray[Any]:
    """An entry as an array; a PIL image as [C, H, W]."""
    array = to_numpy(value)
    if hasattr(value, "getbands"):
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return array
