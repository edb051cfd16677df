"""The file formats in which known data sets are published."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import re
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limbeck.data.columns import first_line
from limbeck.errors import DataError

_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, struct.error, tarfile.TarError, ValueError)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Bytes in the IDX format of MNIST, gzipped.

    Raises:
        DataError: not IDX, not of bytes, or cut short.
    """
    try:
        with gzip.open(path) as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:3] != b"\x00\x00\x08" or not 1 <= magic[3] <= 4:
                raise DataError(f"{path}: is not an IDX file of bytes (it starts with {magic.hex() or 'nothing'})")
            shape = struct.unpack(f">{magic[3]}I", file.read(4 * magic[3]))
            # Read only what is there: a header may promise anything.
            content = file.read()
    except DataError:
        raise
    except _DAMAGE as error:
        raise damaged(path, error) from error
    if len(content) != math.prod(shape):
        raise DataError(f"{path}: its header promises {list(shape)} bytes, it holds {len(content):,}: fetch it again")
    return np.frombuffer(bytearray(content), np.uint8).reshape(shape)


def read_cifar10_tar(path: Path) -> dict[str, NDArray[np.uint8]]:
    """`x_train` [50000, 3, 32, 32], `y_train`, `x_test`, `y_test` from the binary archive of CIFAR-10.

    Nothing is extracted to the disk.

    Raises:
        DataError: a batch is absent, cut short, or has a label above 9.
    """
    wanted = {f"data_batch_{k}.bin": "train" for k in range(1, 6)} | {"test_batch.bin": "test"}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = Path(member.name).name
                if member.isfile() and name in wanted and member.size <= 10_000 * 3073:
                    stream = archive.extractfile(member)
                    found[name] = b"" if stream is None else stream.read()
    except _DAMAGE as error:
        raise damaged(path, error) from error
    arrays: dict[str, NDArray[np.uint8]] = {}
    for part in ("train", "test"):
        names = [name for name, where in wanted.items() if where == part]
        for name in names:
            size = len(found.get(name, b""))
            if size == 0 or size % 3073:
                raise DataError(f"{path}: {name} has {size:,} bytes, expected records of 3,073: fetch the file again")
        records = np.concatenate([np.frombuffer(found[name], np.uint8).reshape(-1, 3073) for name in names])
        if records[:, 0].max() > 9:
            raise DataError(f"{path}: holds label {records[:, 0].max()}, expected 0..9: fetch the file again")
        arrays[f"x_{part}"] = records[:, 1:].reshape(-1, 3, 32, 32)
        arrays[f"y_{part}"] = records[:, 0]
    return arrays


def read_libsvm(lines: Iterable[bytes], features: int, what: str) -> tuple[list[str], NDArray[np.float32]]:
    """Labels as text and dense features [N, D] from lines `label 1:value 2:value …` (positions count from 1).

    Raises:
        DataError: names the line that cannot be read.
    """
    labels: list[str] = []
    rows: list[NDArray[np.float32]] = []
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts:
            continue
        row = np.zeros(features, np.float32)
        try:
            labels.append(parts[0].decode("ascii"))
            for part in parts[1:]:
                place, value = part.split(b":")
                if not 1 <= int(place) <= features:
                    raise ValueError(f"feature {int(place)} of {features}")
                row[int(place) - 1] = float(value)
        except (ValueError, UnicodeDecodeError) as error:
            raise DataError(
                f"{what}, line {number}: cannot be read ({first_line(error)}): fetch the file again"
            ) from error
        rows.append(row)
    if not rows:
        raise DataError(f"{what}: holds no samples: fetch the file again")
    return labels, np.stack(rows)


def read_libsvm_bz2(path: Path, features: int) -> tuple[list[str], NDArray[np.float32]]:
    """`read_libsvm` of a bzip2 file.

    Raises:
        DataError: not bzip2, cut short, or a line that cannot be read.
    """
    try:
        content = bz2.decompress(path.read_bytes())
    except _DAMAGE as error:
        raise damaged(path, error) from error
    return read_libsvm(io.BytesIO(content), features, str(path))


def decode_jpegs(
    header: NDArray[np.uint8], lengths: NDArray[Any], content: NDArray[np.uint8], rows: NDArray[np.int64], what: str
) -> NDArray[np.uint8]:
    """Some of many small JPEG images [len(rows), C, H, W], stored one after the other without their common header.

    Args:
        header: the bytes that start every image.
        lengths: bytes of each image after the header [N].
        content: all of these bytes.
        rows: which images.
        what: what an error calls the file.

    Raises:
        DataError: lengths that do not fit, or an image that cannot be read, by its number.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    if len(ends) and ends[-1] != len(content):
        raise DataError(f"{what}: the images end at byte {ends[-1]:,} of {len(content):,}: fetch the file again")
    start, everything = header.tobytes(), content.tobytes()
    images: list[NDArray[np.uint8]] = []
    for row in rows.tolist():
        data = everything[ends[row] - int(lengths[row]) : ends[row]]
        try:
            image = np.asarray(Image.open(io.BytesIO(start + data)))
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{what}: image {row} is damaged ({first_line(error)}): fetch the file again") from error
        if images and image.shape != images[0].shape:
            raise DataError(f"{what}: image {row} has shape {list(image.shape)}, the first {list(images[0].shape)}")
        images.append(image)
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def read_zip(path: Path, wanted: re.Pattern[str]) -> dict[str, bytes]:
    """The members of a zip archive whose full name matches a pattern, by name, in the archive's order.

    Raises:
        DataError: not a zip, cut short, or no such member.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = {e.filename: archive.read(e) for e in archive.infolist() if wanted.fullmatch(e.filename)}
    except (*_DAMAGE, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise damaged(path, error) from error
    if not found:
        raise DataError(f"{path}: holds no file named like {wanted.pattern!r}: fetch it again")
    return found


def read_image(content: bytes, size: int, what: str) -> NDArray[np.uint8]:
    """One image file as [3, size, size], resized (bilinear).

    Raises:
        DataError: not an image, damaged, or one that promises too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content)).convert("RGB")
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    except (*_DAMAGE, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{what}: is not an image that can be read ({first_line(error)}): fetch it again") from error


def damaged(path: Path, error: BaseException) -> DataError:
    """The error for a file that is cut short or something else."""
    return DataError(f"{path}: is damaged, cut short or something else ({first_line(error)}): fetch it again")
