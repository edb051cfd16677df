"""A folder of image files with a table about them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from limbeck.data.columns import Column, IntArray, first_line, some
from limbeck.data.data import Data
from limbeck.data.tables import read_table
from limbeck.errors import DataError, unknown_name

Mode = Literal["RGB", "L"]


class ImageReader:
    """Image files as a lazy source of uint8 [len(rows), C, H, W].

    Args:
        paths: one file a sample.
        size: (height, width) in pixels, to which every image is resized (bilinear); not given, all files must have
            the size of the first.
        mode: "RGB" for three channels, "L" for one.

    Raises:
        DataError: a missing or unreadable file, an unusable size, or images of different sizes.
    """

    def __init__(self, paths: Sequence[Path], *, size: int | tuple[int, int] | None = None, mode: Mode = "RGB") -> None:
        if mode not in ("RGB", "L"):
            raise DataError(unknown_name("image mode", mode, ["RGB", "L"]))
        self.paths = list(paths)
        self.mode = mode
        self.resized = size is not None
        self.size = _same_size(self.paths) if size is None else _pair(size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: IntArray) -> NDArray[np.uint8]:
        out = np.empty((len(rows), 3 if self.mode == "RGB" else 1, *self.size), np.uint8)
        for place, row in enumerate(rows):
            out[place] = self._read(self.paths[int(row)])
        return out

    def _read(self, path: Path) -> NDArray[np.uint8]:
        with _opened(path) as image:
            try:
                pixels = image.convert(self.mode)
                if self.resized:
                    pixels = pixels.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
            except (OSError, ValueError, SyntaxError, EOFError) as error:
                raise DataError(
                    f"{path}: the image is cut short or damaged ({first_line(error)}): fetch it again or leave it out"
                ) from error
        array = np.asarray(pixels)
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def from_images(
    folder: str | Path,
    table: Any,
    *,
    file: str,
    label: str,
    attributes: Sequence[str] | Mapping[str, Sequence[object] | None] = (),
    groups: str | Sequence[str] | None = None,
    id: str | None = None,
    split: Any = None,
    columns: Sequence[str] = (),
    size: int | tuple[int, int] | None = None,
    mode: Mode = "RGB",
    lazy: bool = False,
    name: str | None = None,
    **options: Any,
) -> Data:
    """Data from image files, with a table of one row an image.

    Args:
        folder: what the file names are relative to; a name that leads out of it is refused.
        table: a .parquet or .csv path, a data frame, an Arrow table or a dict of columns.
        file: column of the file names.
        label: column of the class.
        attributes, groups, id, split, columns: columns of the table, as in `from_table`.
        size: pixels, one number for a square or (height, width); not given, all images must have one size.
        mode: "RGB" gives x [N, 3, H, W], "L" [N, 1, H, W].
        lazy: read files when their rows are asked for, instead of all now.
        name: of the data set; the folder's name where not given.
        options: fractions, classes, seed, normalise, group_names of `Data`.

    Raises:
        DataError: an absent column or file, a damaged image, different sizes, and all that `Data` raises.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of images")
    read = read_table(table)
    wanted = dict(attributes) if isinstance(attributes, Mapping) else dict.fromkeys(_names(attributes))
    for column in [groups] if isinstance(groups, str) else groups or []:
        if column not in ("label", label) and column in read.column_names:
            wanted.setdefault(column, None)
    split_column = isinstance(split, str) and split in read.column_names
    for role, column in [
        ("file", file),
        ("label", label),
        *([("id", id)] if id else []),
        *[("attributes", key) for key in wanted],
        *[("columns", key) for key in columns],
    ]:
        if column not in read.column_names:
            raise DataError(f"{role}: {unknown_name('column', column, read.column_names)}")
    if isinstance(split, str) and not split_column:
        raise DataError(f"split: {unknown_name('column', split, read.column_names)}")
    reader = ImageReader(_paths(folder, read.column(file).to_pylist()), size=size, mode=mode)
    return Data(
        reader if lazy else reader[np.arange(len(reader))],
        read.column(label),
        attributes={key: Column.of(read.column(key), key, allowed) for key, allowed in wanted.items()},
        groups=groups,
        ids=None if id is None else read.column(id).to_numpy(),
        split=read.column(split) if split_column else split,
        columns={
            "file": np.array(read.column(file).to_pylist(), dtype=str),
            **{key: read.column(key).to_numpy() for key in _names(columns)},
        },
        label_name=label,
        name=name or folder.name,
        **options,
    )


def _paths(folder: Path, names: Sequence[Any]) -> list[Path]:
    root = folder.resolve()
    paths = []
    for row, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise DataError(f"row {row} of the table names no image file: found {name!r}")
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise DataError(f"row {row} of the table names {name!r}, which leads out of {folder}: give names inside it")
        paths.append(path)
    absent = [row for row, path in enumerate(paths) if not path.is_file()]
    if absent:
        raise DataError(
            f"{len(absent):,} of {len(paths):,} image files are not in {folder}: {some(names[row] for row in absent)} "
            f"(rows {some(absent)}); fetch them or drop the rows"
        )
    return paths


def _opened(path: Path) -> Image.Image:
    """An image whose header could be read and whose size is sane."""
    try:
        with warnings.catch_warnings():
            # A header can promise more pixels than memory: refuse what PIL only warns of.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: the image promises too many pixels ({first_line(error)}): shrink it first") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError) as error:
        raise DataError(
            f"{path}: is not an image that can be read ({first_line(error)}): fetch it again or leave it out"
        ) from error


def _same_size(paths: Sequence[Path]) -> tuple[int, int]:
    first: tuple[int, int] | None = None
    for path in paths:
        with _opened(path) as image:
            found = (image.height, image.width)
        first = first or found
        if found != first:
            raise DataError(
                f"images have different sizes: {paths[0].name} is {first[0]}×{first[1]} (height × width), "
                f"{path.name} is {found[0]}×{found[1]}: give size=… to resize them all"
            )
    if first is None:
        raise DataError("the table names no image: it has no rows")
    return first


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(v, int) and 0 < v <= 16_384 for v in pair):
        raise DataError(f"size is {size!r}: expected pixels, one number or (height, width)")
    return pair[0], pair[1]


def _names(names: Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else [str(name) for name in names]
