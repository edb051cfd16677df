"""How much each training sample counted, epoch by epoch.

A sample's weight is its expected part of an epoch's loss, in units of what it would be in plain training: 1 everywhere
for the plain mean over shuffled samples, 3 for a sample that counts three times as much, 0 for one that is not heard.
How often it is drawn and how the loss weighs it are multiplied. It holds for the terms under the weighting; a term that
a recipe takes out of it (`weighted: false`) counts every sample alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.recipe import Identify, Recipe
from limbeck.terms.catalogue import options
from limbeck.weighting import sampling_weights

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Weights:
    """The weight of each sample `[N]` in the first and the last epoch, and its mean over all epochs."""

    first: Values
    last: Values
    mean: Values


def sample_weights(
    recipe: Recipe,
    labels: NDArray[np.int64],
    groups: NDArray[np.int64] | None,
    history: Sequence[Mapping[str, Any]],
    error_set: NDArray[np.bool_] | None = None,
    drawn: NDArray[np.float64] | None = None,
) -> tuple[Weights | None, str]:
    """What each training sample weighed.

    Args:
        recipe: its sampling and its weighting.
        labels: `[N]`.
        groups: `[N]`, -1 where unknown, or None.
        history: the records of the epochs, which hold the group weights q.
        error_set: the rows that count more, `[N]`, for the weighting `upweight`.
        drawn: how often each sample is drawn, up to a factor, `[N]`, where the recipe's sampling does not say.

    Returns:
        The weights, and a note; None and the reason where they depend on what is not kept, such as the student's own
        state (LfF, DEDIER) or a weighting of the user's own.
    """
    if drawn is None and recipe.sampling not in ("shuffle", "group_balanced", "class_balanced"):
        return None, f"sampling {recipe.sampling!r}: how often each sample is drawn is not known"
    drawn = _drawn(recipe, labels, groups) if drawn is None else drawn
    name = recipe.weighting.name
    if name == "uniform":
        return _constant(drawn / drawn.mean()), ""
    if name == "upweight":
        if error_set is None:
            return None, "upweight: the error set is not known, so the weights are not"
        return _constant(drawn / drawn.mean() * _upweighted(recipe, error_set)), ""
    if name == "class_balanced":
        return _by_member(drawn, labels, _even(labels)), ""
    if groups is not None and name == "group_balanced":
        return _by_member(drawn, groups, _even(groups)), ""
    if groups is not None and name == "group_dro":
        q = [record.get("group_weights") for record in history]
        if q and all(row is not None for row in q):
            return _by_member(drawn, groups, np.asarray(q, np.float64)), ""
    if name == "agre":
        return _constant(drawn / drawn.mean()), "agre: weighs teachers by sample and step; samples count alike"
    return None, f"{name}: weighs by what the student does at each step, which is not kept"


def weight_rule(recipe: Mapping[str, Any], groups: Sequence[str], row: Mapping[str, Any]) -> str | None:
    """Why a sample is in the error set, in words; None where it is not, or where that cannot be told.

    Args:
        recipe: as plain data.
        groups: the names of all groups.
        row: of the ledger: its group and its weight.
    """
    identify = recipe.get("identify")
    if not identify:
        return None
    found = Identify(**identify)
    if not found.trains:
        named = {groups[number] for number in found.members(groups)}
        return "error set: its group is one that the recipe names" if row["group"] in named else None
    # Which samples the plain student got wrong is not kept: where all are drawn alike, their weight tells.
    told = "sampling" not in recipe and row["weight_mean"] is not None and row["weight_mean"] > 1
    epochs = f"{found.epochs} epoch{'s' if found.epochs != 1 else ''}"
    return f"error set: a plain student got it wrong after {epochs}" if told else None


def _drawn(recipe: Recipe, labels: NDArray[np.int64], groups: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """How often each sample is drawn, up to a factor."""
    if recipe.sampling == "shuffle":
        return np.ones(len(labels))
    index = groups if recipe.sampling == "group_balanced" and groups is not None else labels
    return np.asarray(sampling_weights(recipe.sampling, torch.from_numpy(np.ascontiguousarray(index))))


def _constant(weights: NDArray[Any]) -> Weights:
    values = weights.astype(np.float32)
    return Weights(values, values, values)


def _upweighted(recipe: Recipe, error_set: NDArray[np.bool_]) -> NDArray[np.float64]:
    given = options(recipe.weighting.factory) | dict(recipe.weighting.options)
    factor = float(given["upweight"])
    if given["reduction"] == "mean":
        return np.where(error_set, factor, 1.0)
    weights = np.where(error_set, 1.0 + factor, 1.0)
    return np.asarray(weights / weights.mean())


def _even(index: NDArray[np.int64]) -> NDArray[np.float64]:
    """The same weight for every group that has a sample, `[1, G]`."""
    inhabited = np.bincount(index[index >= 0]) > 0
    return (inhabited / max(int(inhabited.sum()), 1))[None]


def _by_member(drawn: NDArray[np.float64], index: NDArray[np.int64], q: NDArray[np.float64]) -> Weights:
    """From the weights of groups, `[E, G]`, to those of their samples: q_g·N·s_i/Σ_{j in g} s_j, s how often drawn.

    A weighting by group normalises within the group, so drawing one of its groups more often changes nothing. A sample
    of unknown group has weight 0.
    """
    known = index >= 0
    sums = np.bincount(index[known], weights=drawn[known], minlength=q.shape[1])
    share = np.where(known, drawn * len(drawn) / np.maximum(sums, 1e-300)[np.maximum(index, 0)], 0.0)
    table = np.stack([q[0], q[-1], q.mean(0)])
    first, last, mean = (share * row[np.maximum(index, 0)] for row in table)
    return Weights(first.astype(np.float32), last.astype(np.float32), mean.astype(np.float32))
