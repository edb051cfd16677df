"""Class labels of any discrete type, mapped to 0..C-1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from limbeck.data.columns import IntArray, encode, some, text, to_numpy
from limbeck.errors import DataError, unknown_name


def encode_labels(
    y: object, classes: Sequence[object] | None, ids: IntArray | None, name: str = "label"
) -> tuple[IntArray, tuple[str, ...]]:
    """Codes int64 [N] in 0..C-1 and the C class names.

    Without `classes` the classes are the distinct values found, numbers in numeric order, text in text order.
    With `classes` as text, whole-number labels are positions among them and text labels are looked up;
    with `classes` as numbers, labels are looked up.

    Args:
        y: one label a sample [N]: text, whole numbers or booleans.
        classes: all classes, in order.
        ids: sample ids [N], for error messages; row numbers where not given.
        name: what an error calls the label.

    Raises:
        DataError: a missing, fractional, unknown or out-of-range label, or fewer than two classes.
    """
    shape = tuple(getattr(y, "shape", ()))
    if len(shape) == 2:
        out = "y.argmax(1)" if shape[1] > 1 else "y.ravel()"
        raise DataError(f"{name} has shape {list(shape)}: expected [N], one class a sample; use {out}")
    found, codes = encode(to_numpy(y) if hasattr(y, "detach") else y, name)
    ids = np.arange(len(codes)) if ids is None or len(ids) != len(codes) else ids
    if (codes < 0).any():
        raise DataError(
            f"{name} is missing for ids {some(ids[codes < 0])} ({int((codes < 0).sum()):,} of {len(codes):,} samples): "
            f"label these samples or leave them out"
        )
    if classes is None:
        if len(found) < 2:
            kind = f"only {found[0]!r}" if found else "no value"
            raise DataError(f"{name} holds {kind}: two or more classes are needed; pass classes=[…] to name them all")
        return codes, tuple(text(value) for value in found)

    names = [text(value) for value in classes]
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"classes are {names}: expected two or more different names")
    numeric = all(isinstance(value, int) for value in found)
    if numeric and all(isinstance(value, str) for value in classes):
        if found and not 0 <= found[0] <= found[-1] < len(names):
            wrong = next(value for value in found if not 0 <= value < len(names))
            raise DataError(
                f"{name} {wrong} is out of range for ids {some(ids[codes == found.index(wrong)])}: "
                f"expected 0..{len(names) - 1}, a position in classes {names}"
            )
        place = np.array(found, np.int64)
    else:
        known = {value: k for k, value in enumerate(names)}
        for code, value in enumerate(found):
            if text(value) not in known:
                where = some(ids[codes == code])
                raise DataError(f"{name}, ids {where}: {unknown_name('class', text(value), names)}")
        place = np.array([known[text(value)] for value in found], np.int64)
    return place[codes] if len(codes) else codes, tuple(names)
