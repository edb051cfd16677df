"""Arrays in a file that numpy wrote with pickle, read as data: no name in it is imported and nothing is called.

A pickle is a program for a small stack machine. This runs the few instructions that a dictionary of arrays needs, keeps
every object that the file asks for as a note of its name and arguments, and turns the notes of arrays into arrays. A
file that asks for anything else is refused.
"""

from __future__ import annotations

import io
import math
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.data.columns import first_line
from limbeck.errors import DataError

_ARRAY, _DTYPE, _ENCODE = "_reconstruct", "dtype", "encode"
_KNOWN = {
    "numpy.core.multiarray _reconstruct": _ARRAY,
    "numpy._core.multiarray _reconstruct": _ARRAY,
    "numpy ndarray": "ndarray",
    "numpy dtype": _DTYPE,
    "_codecs encode": _ENCODE,
}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1")
_TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
_MARK = object()


@dataclass(frozen=True)
class _Name:
    """Something the file would have imported."""

    name: str


@dataclass
class _Note:
    """Something the file would have made: of what, from which arguments, and the state it would have been given."""

    kind: str
    arguments: tuple[Any, ...]
    state: Any = None


def read_pickled_npy(path: str | Path) -> dict[str, NDArray[Any]]:
    """The arrays of a dictionary that `numpy.save` wrote to an .npy file.

    Raises:
        DataError: no such file, not such a file, cut short, or one that asks for anything but arrays of numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(file)
            if shape != () or not dtype.hasobject:
                raise DataError(f"{path}: holds an array {list(shape)} of {dtype}, expected one dictionary of arrays")
            found = _unwrapped(_run(file.read(), path), path)
        if not isinstance(found, dict):
            raise DataError(f"{path}: holds a {type(found).__name__}, expected a dictionary of arrays")
        return {str(key): _array(value, f"{path}, array {key!r}") for key, value in found.items()}
    except DataError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, EOFError, AttributeError, OSError) as error:
        raise DataError(
            f"{path}: cannot be read as a dictionary of arrays, it may be cut short or be something else "
            f"({first_line(error)}): fetch it again"
        ) from error


def _unwrapped(value: Any, path: Path) -> Any:
    """What the object array without dimensions holds that `numpy.save` makes of a dictionary."""
    if isinstance(value, _Note) and value.kind == _ARRAY and value.state is not None:
        content = value.state[4]
        if isinstance(content, list) and len(content) == 1:
            return content[0]
    raise DataError(f"{path}: does not hold the one dictionary that was expected: fetch it again")


def _array(value: Any, what: str) -> NDArray[Any]:
    if not (isinstance(value, _Note) and value.kind == _ARRAY and value.state is not None):
        raise DataError(f"{what}: is no array of numbers: fetch the file again")
    _, shape, kind, fortran, content = value.state
    if not (isinstance(kind, _Note) and kind.kind == _DTYPE):
        raise DataError(f"{what}: has no type of number: fetch the file again")
    order = kind.state[1] if kind.state is not None and kind.state[1] in ("<", ">") else ""
    dtype = np.dtype(order + str(kind.arguments[0]))
    if dtype.kind not in "biuf" or not isinstance(content, bytes):
        raise DataError(f"{what}: holds {dtype}, expected plain numbers: fetch the file again")
    expected = math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise DataError(f"{what}: has {len(content):,} bytes where {list(shape)} of {dtype} need {expected:,}")
    return np.frombuffer(bytearray(content), dtype).reshape(shape, order="F" if fortran else "C")


def _run(content: bytes, path: Path) -> Any:
    """The one value that the program leaves, made of plain data, names and notes."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for operation, argument, _ in pickletools.genops(io.BytesIO(content)):
        name = operation.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name in _NUMBERS or name in _TEXTS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_name(argument, path))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_name(f"{module} {attribute}", path))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(_to_mark(stack)))
        elif name == "APPEND":
            value = stack.pop()
            stack[-1].append(value)
        elif name == "APPENDS":
            values = _to_mark(stack)
            stack[-1].extend(values)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif name == "SETITEMS":
            pairs = _to_mark(stack)
            stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_made(function, arguments, path))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].state = state
        else:
            raise DataError(f"{path}: holds the instruction {name}, which arrays do not need: fetch the file again")
    raise DataError(f"{path}: ends too early: fetch the file again")


def _to_mark(stack: list[Any]) -> list[Any]:
    values = []
    while (value := stack.pop()) is not _MARK:
        values.append(value)
    return values[::-1]


def _name(name: Any, path: Path) -> _Name:
    if name not in _KNOWN:
        raise DataError(
            f"{path}: asks for {name!r}, which arrays do not need; it is not opened, as that could run code"
        )
    return _Name(_KNOWN[name])


def _made(function: Any, arguments: Any, path: Path) -> Any:
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise DataError(f"{path}: is not a dictionary of arrays: fetch the file again")
    if function.name == _ENCODE:
        # Protocol 2 writes bytes as a text in Latin-1.
        text, encoding = arguments
        if encoding != "latin1":
            raise DataError(f"{path}: encodes bytes as {encoding!r}, expected 'latin1': fetch the file again")
        return str(text).encode("latin1")
    return _Note(function.name, arguments)
