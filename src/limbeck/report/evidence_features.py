"""Where test samples lie in the feature space of teacher and students: two directions of each, for a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import LimbeckError

if TYPE_CHECKING:
    from limbeck.data import Data

SAMPLES = 480
"""Test samples in a picture: more could not be told apart."""


def feature_space(
    module_of: Callable[[str], Any], folder: Path, record: Mapping[str, Any], data: Data, notes: list[str]
) -> dict[str, Any] | None:
    """The last features of some test samples under each model that the decision is about, in two dimensions.

    The features are what enters a model's last linear layer. Of each model the two directions of largest variance are
    kept (principal components, over the samples shown), so that distances are true as far as these two hold them.

    Args:
        module_of: from a row's key to its module, or None.
        folder: the run folder, with the predictions of its cells.
        record: of the pilot.
        data: of the pilot.
        notes: told of models whose features cannot be had.
    """
    from limbeck.features import extract
    from limbeck.report.evidence import predictions
    from limbeck.report.summary import Summary

    test = data.test
    rows = shown_samples(test.y if test.groups is None else test.groups.index)
    part = test.subset(rows)
    models: dict[str, Any] = {}
    for model in Summary.from_result(record).key_models:
        if (module := module_of(model.key)) is None:
            continue
        try:
            found = extract(module, part, progress=False).x
        except LimbeckError as error:
            notes.append(f"{model.key}: {error}")
            continue
        seed = int(model.runs[0].seed or 0)
        place, share = flattened(np.asarray(found, np.float64))
        models[model.key] = {
            "seed": seed,
            "features": int(found.shape[1]),
            "share": round(share, 4),
            "x": place[:, 0].round(3).tolist(),
            "y": place[:, 1].round(3).tolist(),
            "predicted": predictions(folder, model.key, seed)[rows].tolist(),
        }
    if not models:
        return None
    return {
        "total": len(test),
        "id": part.ids.tolist(),
        "label": part.y.tolist(),
        "group": [] if part.groups is None else part.groups.index.tolist(),
        "models": models,
    }


def shown_samples(kinds: NDArray[np.int64], limit: int = SAMPLES) -> NDArray[np.int64]:
    """At most about `limit` rows, as even a share of every kind (group or class) as there are samples for."""
    order = np.random.default_rng(0).permutation(len(kinds))
    members = [order[kinds[order] == kind] for kind in np.unique(kinds)]
    taken: list[NDArray[np.int64]] = []
    left = limit
    # The smallest first: what they do not need goes to the others.
    for place, rows in enumerate(sorted(members, key=len)):
        quota = max(left // (len(members) - place), 1)
        taken.append(rows[:quota])
        left = max(left - len(taken[-1]), 0)
    return np.sort(np.concatenate(taken))


def flattened(features: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Two principal components `[N, 2]`, of unit variance along the first, and the share of all variance they hold."""
    centred = features - features.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    total = float((sizes**2).sum())
    if total <= 0:
        return np.zeros((len(features), 2)), 1.0
    # The sign of a direction is nobody's: the largest loading is made positive, so that a picture is reproducible.
    largest = np.abs(directions[:2]).argmax(1)
    signs = np.sign(directions[:2][np.arange(len(largest)), largest])
    found = np.zeros((len(features), 2))
    found[:, : len(signs)] = centred @ (directions[:2] * signs[:, None]).T
    return found / max(float(found[:, 0].std()), 1e-12), float((sizes[:2] ** 2).sum()) / total
