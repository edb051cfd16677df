"""Arrays in an .npz file, read without ever unpickling."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.data.columns import first_line
from limbeck.data.data import Data
from limbeck.errors import DataError, unknown_name


def read_npz(path: str | Path, keys: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz file by name.

    The header of an array is compared with the size of its bytes before memory is asked for.

    Args:
        path: the file.
        keys: those wanted; all where not given.

    Raises:
        DataError: no such file, not an .npz, cut short, an array absent, or one that holds Python objects.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            arrays = {}
            for key in members if keys is None else keys:
                if key not in members:
                    raise DataError(f"{path}: {unknown_name('array', key, members)}")
                arrays[key] = _read(archive, members[key], f"{path}, array {key!r}")
            return arrays
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"{path}: cannot be read as .npz, it may be cut short or be something else ({first_line(error)}): "
            f"write or fetch the file again"
        ) from error


def from_npz(
    path: str | Path,
    *,
    x: str | Sequence[str] = "x",
    y: str = "y",
    attributes: Sequence[str] | Mapping[str, str] = (),
    groups: str | Sequence[str] | None = None,
    split: str | None = None,
    id: str | None = None,
    columns: Sequence[str] = (),
    classes: Sequence[object] | str | None = None,
    name: str | None = None,
    **options: Any,
) -> Data:
    """Data from the arrays of an .npz file.

    Args:
        path: the file; nothing in it is ever unpickled.
        x: the array of features, or several (then x is a dict of them).
        y: the array of labels.
        attributes: arrays to keep as attributes, or array names by attribute name.
        groups: as in `Data`; or the name of an array of group numbers.
        split: the array that says train, validation or test for each sample; made where not given.
        id: the array of ids; 0..N-1 where not given.
        columns: arrays to carry along.
        classes: the class names, or the name of an array of them.
        name: of the data set; the file's name where not given.
        options: fractions, seed, normalise, feature_names, group_names, label_name of `Data`.

    Raises:
        DataError: an array that is absent, a damaged file, and all that `Data` raises.
    """
    named = dict(attributes) if isinstance(attributes, Mapping) else {key: key for key in _names(attributes)}
    features = _names(x)
    wanted = [*features, y, *named.values(), *_names(columns)]
    wanted += [key for key in (split, id, classes) if isinstance(key, str)]
    numbered = isinstance(groups, str) and groups not in named and groups != "label"
    arrays = read_npz(path, list(dict.fromkeys([*wanted, *([str(groups)] if numbered else [])])))
    return Data(
        arrays[features[0]] if isinstance(x, str) else {key: arrays[key] for key in features},
        arrays[y],
        attributes={key: arrays[array] for key, array in named.items()},
        groups=arrays[str(groups)] if numbered else groups,
        split=None if split is None else arrays[split],
        ids=None if id is None else arrays[id],
        columns={key: arrays[key] for key in _names(columns)},
        classes=[str(value) for value in arrays[classes]] if isinstance(classes, str) else classes,
        name=name or Path(path).stem,
        **options,
    )


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, what: str) -> NDArray[Any]:
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise DataError(f"{what}: unknown .npy version {version}: write the file again with numpy.savez")
        # Version 3 only differs from 2 in the encoding of field names, which plain arrays do not have.
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        if dtype.hasobject or dtype.fields is not None:
            raise DataError(
                f"{what}: holds Python objects or records, which are not opened because that could run code: "
                f"save plain arrays of numbers or text"
            )
        expected = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or expected != entry.file_size - file.tell():
            raise DataError(
                f"{what}: its header promises {expected:,} bytes {list(shape)} of {dtype}, the file holds "
                f"{entry.file_size - file.tell():,}: the file is damaged or not what it says; fetch it again"
            )
        content = file.read()
    if len(content) != expected:
        raise DataError(f"{what}: cut short, {len(content):,} of {expected:,} bytes: fetch the file again")
    flat = np.frombuffer(bytearray(content), dtype)
    return flat.reshape(shape[::-1]).transpose() if fortran else flat.reshape(shape)


def _names(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else [str(name) for name in names]
