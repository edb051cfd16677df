"""What may be changed without a person looking at it: caps by group and class, protected classes and groups.

NumPy only. A correction is proposed elsewhere (a label audit, a posterior); here it is decided whether it may be made.
A cleaning step that looks at its samples one by one removes most from the cells that a model knows least, which are the
small ones: so a cell gives up at most a share of its samples, the surest proposals first, and the rest are listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limbeck.errors import ConfigError, DataError, unknown_name

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RATIO = 2.0
"""By default a cell gives up at most this many times the share that all samples together do."""

MOST = 0.5
"""By default no cell gives up more than this share, whatever the rest does."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One (group, class) cell and what was decided in it.

    Attributes:
        limit: the largest share that may be changed. protected: whether the user set it.
        samples, proposed, allowed, held_back: counts.
    """

    name: str
    samples: int
    proposed: int
    allowed: int
    held_back: int
    limit: float
    protected: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return dict(vars(self))


@dataclass(frozen=True, eq=False)
class Guarded:
    """Which proposals may be carried out.

    Attributes:
        allowed: bool `[N]`, may be changed.
        held_back: bool `[N]`, proposed, but for a person to decide.
        cells: one a (group, class) cell with samples.
    """

    allowed: NDArray[np.bool_]
    held_back: NDArray[np.bool_]
    cells: tuple[Cell, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, without the samples."""
        return {
            "allowed": int(self.allowed.sum()),
            "held_back": int(self.held_back.sum()),
            "cells": [cell.to_dict() for cell in self.cells],
        }


def guard(
    proposed: ArrayLike,
    score: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    suggested: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    group_names: Sequence[str] | None = None,
    limit: float | None = None,
    protected: Mapping[str, float] | Sequence[str] = (),
) -> Guarded:
    """Hold back proposals so that no (group, class) cell loses more than its limit.

    In each cell of given label and group the proposals with the highest score are allowed, up to the limit; the rest
    are held back. A cell's limit is the smallest of: `limit` (by default twice the share proposed over all samples, and
    never more than half); the limits of its class and its group where these are protected. A change *into* a protected
    class is held to that class's limit too, as a share of the samples given that class now.

    Args:
        proposed: bool `[N]`, whether a change is proposed.
        score: `[N]`, higher is surer.
        labels: given classes `[N]`.
        groups: `[N]`, -1 where unknown (a cell of its own).
        suggested: the class proposed instead `[N]`, for changes into a protected class.
        class_names, group_names: for messages and for `protected`; "class k", "group g" where not given.
        limit: the largest share of a cell that may change.
        protected: names of classes or groups that need review, or shares (0..1) by name; a name alone means 0: nothing
            is changed without review. `class:NAME` and `group:NAME` tell a class and a group of one name apart.

    Raises:
        DataError: lengths that differ, or scores that are not finite where a change is proposed.
        ConfigError: an unknown name, or a share out of range.
    """
    wanted, sure, given, group = _checked(proposed, score, labels, groups)
    classes = tuple(class_names or (f"class {k}" for k in range(int(given.max(initial=-1)) + 1)))
    names = tuple(group_names or (f"group {g}" for g in range(int(group.max(initial=-1)) + 1)))
    by_class, by_group = protected_shares(protected, classes, names)
    share = default_limit(float(wanted.mean()) if len(wanted) else 0.0) if limit is None else _share(limit, "limit")
    code = given * (len(names) + 1) + np.where(group < 0, len(names), group)
    rank = _rank_within(code, wanted, sure)
    allowed = wanted.copy()
    shown = (*names, "unknown group")
    # Groups made of the label name the class already.
    one_class = len(np.unique(code)) == len(np.unique(group))
    found = []
    for cell in np.unique(code).tolist():
        k, g = divmod(cell, len(names) + 1)
        inside = code == cell
        limits = [by_class.get(k, 1.0), by_group.get(g, 1.0)]
        most = min(share, *limits)
        # Rounded down: a cell of three samples with a limit of .2 changes by hand.
        allowed &= ~inside | (rank < _whole(most, int(inside.sum())))
        name = classes[k] if not names else shown[g] if one_class else f"{classes[k]} in {shown[g]}"
        found.append((inside, name, most, k in by_class or g in by_group))
    if suggested is not None and by_class:
        allowed &= _into_protected(allowed, np.asarray(suggested), given, sure, by_class)
    cells = tuple(_cell(inside, name, most, mark, wanted, allowed) for inside, name, most, mark in found)
    return Guarded(allowed, wanted & ~allowed, cells)


def default_limit(overall: float) -> float:
    """The largest share of a cell that may change where `overall` of all samples are proposed."""
    return min(MOST, RATIO * overall)


def protected_shares(
    protected: Mapping[str, float] | Sequence[str], classes: Sequence[str], groups: Sequence[str]
) -> tuple[dict[int, float], dict[int, float]]:
    """The limits of protected classes and of protected groups, by number.

    Raises:
        ConfigError: a name that is neither, one that is both, or a share out of range.
    """
    entries = {protected: 0.0} if isinstance(protected, str) else protected
    shares = dict(entries) if isinstance(entries, Mapping) else dict.fromkeys(entries, 0.0)
    by_class: dict[int, float] = {}
    by_group: dict[int, float] = {}
    for key, value in shares.items():
        kind, _, name = str(key).partition(":")
        only = kind if kind in ("class", "group") and name else None
        name = name if only else str(key)
        is_class, is_group = name in classes and only != "group", name in groups and only != "class"
        if is_class and is_group and set(classes) != set(groups):
            raise ConfigError(f"protected: {name!r} is a class and a group: write 'class:{name}' or 'group:{name}'")
        if not is_class and not is_group:
            raise ConfigError(f"protected: {unknown_name('class or group', name, {*classes, *groups})}")
        if is_class:
            by_class[list(classes).index(name)] = _share(value, f"protected[{key!r}]")
        else:
            by_group[list(groups).index(name)] = _share(value, f"protected[{key!r}]")
    return by_class, by_group


def _cell(
    inside: NDArray[np.bool_],
    name: str,
    limit: float,
    protected: bool,
    wanted: NDArray[np.bool_],
    allowed: NDArray[np.bool_],
) -> Cell:
    asked, given = int((inside & wanted).sum()), int((inside & allowed).sum())
    return Cell(name, int(inside.sum()), asked, given, asked - given, limit, protected)


def _into_protected(
    allowed: NDArray[np.bool_], suggested: NDArray[Any], given: Integers, score: Floats, by_class: Mapping[int, float]
) -> NDArray[np.bool_]:
    """Which allowed changes stay so when changes into protected classes are counted as well."""
    keep = np.ones(len(given), bool)
    for k, share in by_class.items():
        into = allowed & (suggested == k) & (given != k)
        rank = _rank_within(np.zeros(len(given), np.int64), into, score)
        keep &= ~into | (rank < _whole(share, int((given == k).sum())))
    return keep


def _rank_within(code: Integers, wanted: NDArray[np.bool_], score: Floats) -> Integers:
    """The place of each wanted sample among those of its cell, the highest score first; `[N]`, large elsewhere."""
    rank = np.full(len(code), np.iinfo(np.int64).max)
    rows = np.flatnonzero(wanted)
    order = rows[np.lexsort((-score[rows], code[rows]))]
    cell = code[order]
    starts = np.flatnonzero(np.r_[True, cell[1:] != cell[:-1]]) if len(cell) else np.zeros(0, np.int64)
    sizes = np.diff(np.r_[starts, len(cell)])
    rank[order] = np.arange(len(cell)) - np.repeat(starts, sizes)
    return rank


def _whole(share: float, count: int) -> int:
    return int(np.floor(share * count + 1e-9))


def _share(value: float, what: str) -> float:
    number = float(value)
    if not 0 <= number <= 1:
        raise ConfigError(f"{what}: {value} is not a share between 0 and 1")
    return number


def _checked(
    proposed: ArrayLike, score: ArrayLike, labels: ArrayLike, groups: ArrayLike | None
) -> tuple[NDArray[np.bool_], Floats, Integers, Integers]:
    wanted, sure, given = np.asarray(proposed), np.asarray(score, np.float64), np.asarray(labels)
    group = np.full(given.shape, -1) if groups is None else np.asarray(groups)
    lengths = {"proposed": wanted.shape, "score": sure.shape, "labels": given.shape, "groups": group.shape}
    if given.ndim != 1 or len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {list(shape)}" for name, shape in lengths.items())
        raise DataError(f"a guard needs one value a sample of each: found {told}")
    if wanted.dtype != bool or given.dtype.kind not in "iu" or group.dtype.kind not in "iu":
        raise DataError("a guard needs booleans for what is proposed, and whole numbers for labels and groups")
    if not np.isfinite(sure[wanted]).all():
        raise DataError(f"score: sample {int(np.flatnonzero(wanted & ~np.isfinite(sure))[0])} has none that is finite")
    return wanted, sure, given.astype(np.int64), group.astype(np.int64)
