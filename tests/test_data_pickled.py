"""Reading dictionaries of arrays from pickled .npy files without unpickling."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.data.pickled import read_pickled_npy
from limbeck.errors import DataError

ARRAYS = {
    "clean_label": np.arange(50, dtype=np.int64) % 10,
    "worse_label": (np.arange(50, dtype=np.int64) * 7) % 10,
    "table": np.arange(6, dtype=np.float32).reshape(2, 3),
    "big": np.asfortranarray(np.arange(12, dtype=">i4").reshape(3, 4)),
    "flags": np.array([True, False]),
}


def saved(path: Path, value: Any, protocol: int | None = None) -> Path:
    """As `numpy.save` writes it, in any protocol."""
    whole = np.empty((), object)
    whole[()] = value
    if protocol is None:
        np.save(path, whole, allow_pickle=True)
        return path
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(whole))
        pickle.dump(whole, file, protocol=protocol)
    return path


@pytest.mark.parametrize("protocol", [None, 2, 3, 4, 5])
def test_arrays_are_read_as_numpy_wrote_them(tmp_path: Path, protocol: int | None) -> None:
    if protocol == 5:  # numpy's own protocol 5 hands its buffers over in another way
        with pytest.raises(DataError, match="which arrays do not need"):
            read_pickled_npy(saved(tmp_path / "labels.npy", ARRAYS, protocol))
        return
    found = read_pickled_npy(saved(tmp_path / "labels.npy", ARRAYS, protocol))
    assert found.keys() == ARRAYS.keys()
    for name, values in ARRAYS.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_nothing_in_the_file_is_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "labels.npy", {"clean_label": Malicious(tmp_path / "ran")})
    with pytest.raises(DataError, match=r"asks for 'posix mkdir'.*could run code"):
        read_pickled_npy(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "does not hold|is no array|expected a dictionary"),
        ({"a": [1, 2]}, "array 'a': is no array of numbers"),
        ({"a": np.array(["x", None], object)}, "holds object|expected plain numbers"),
    ],
)
def test_what_is_no_dictionary_of_arrays_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_pickled_npy(saved(tmp_path / "labels.npy", value))


def test_a_plain_array_a_cut_file_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "plain.npy", np.arange(3))
    with pytest.raises(DataError, match="expected one dictionary"):
        read_pickled_npy(tmp_path / "plain.npy")
    whole = saved(tmp_path / "whole.npy", ARRAYS).read_bytes()
    for length in (0, 5, 90, 200, len(whole) - 1):
        (tmp_path / "cut.npy").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.npy"):
            read_pickled_npy(tmp_path / "cut.npy")
    with pytest.raises(DataError, match="no such file"):
        read_pickled_npy(tmp_path / "absent.npy")
