"""One safetensors file, laid out before its contents are known, written by rows and read memory-mapped."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import StoreError

_DTYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "U64": "<u8", "I32": "<i4", "U16": "<u2"}
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def offset(self, *place: int) -> int:
        """The byte in the file at which the part `[i, j, ...]` of the tensor begins."""
        step, offset = self.nbytes, self.start
        for index, length in zip(place, self.shape):
            step //= length
            offset += index * step
        return offset


@dataclass(frozen=True)
class Layout:
    """The tensors of a file. The format is that of safetensors: 8 bytes length, JSON header, tensors without gaps."""

    entries: Mapping[str, Entry]
    header: bytes

    @classmethod
    def plan(cls, tensors: Mapping[str, tuple[Any, tuple[int, ...]]]) -> Layout:
        """Lay out tensors of the given (dtype, shape)."""
        # The widest types first keep every tensor aligned, which a mapped array has to be.
        kinds = {name: (np.dtype(dtype), tuple(shape)) for name, (dtype, shape) in tensors.items()}
        ordered = sorted(kinds, key=lambda name: -kinds[name][0].itemsize)
        described, position = {}, 0
        for name in ordered:
            dtype, shape = kinds[name]
            end = position + dtype.itemsize * math.prod(shape)
            described[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
            position = end
        text = json.dumps(described, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(8, "little") + text
        return cls(_entries(described, len(header)), header)

    @classmethod
    def read(cls, path: Path) -> Layout:
        """The layout of an existing file.

        Raises:
            StoreError: where the file is not safetensors, or shorter or longer than its header says.
        """
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if not 2 <= length <= 100 << 20:
                    raise ValueError("its header has an impossible length")
                text = file.read(length)
                described = json.loads(text)
                described.pop("__metadata__", None)
                layout = cls(_entries(described, 8 + length), length.to_bytes(8, "little") + text)
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError as error:
            raise StoreError(f"{path} is missing: copy the store again, or write it anew") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{path} is not a safetensors file ({error}): copy the store again, or write it anew"
            ) from error
        if size != layout.size:
            raise StoreError(
                f"{path} has {size} bytes, its header says {layout.size}: "
                f"{'truncated' if size < layout.size else 'something was added'}; copy the store again, or write it "
                "anew"
            )
        return layout

    @property
    def size(self) -> int:
        """The size of the whole file in bytes."""
        return len(self.header) + sum(entry.nbytes for entry in self.entries.values())

    def create(self, path: Path) -> None:
        """A file of full size, all zeros but the header; no space is taken before it is written to."""
        with path.open("xb") as file:
            file.write(self.header)
            file.truncate(self.size)

    def map(self, path: Path) -> dict[str, NDArray[Any]]:
        """Read-only arrays that are pages of the file; they cost memory only while they are used."""
        with path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return {
            name: np.frombuffer(pages, entry.dtype, math.prod(entry.shape), entry.start).reshape(entry.shape)
            for name, entry in self.entries.items()
        }


def write_at(file: RawIOBase, values: NDArray[Any], offset: int) -> None:
    """Write an array's bytes at a place of an open, unbuffered file, however many calls that takes."""
    left = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    file.seek(offset)
    while left:
        left = left[file.write(left) or 0 :]


def sync_folder(path: Path) -> None:
    """Make renames and new names in a folder last through a loss of power."""
    if os.name == "nt":  # there a folder cannot be opened, and renames are journalled
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _entries(described: Mapping[str, Any], data: int) -> dict[str, Entry]:
    return {
        name: Entry(np.dtype(_DTYPES[part["dtype"]]), tuple(part["shape"]), data + part["data_offsets"][0])
        for name, part in described.items()
    }
