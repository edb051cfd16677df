"""What averaging labels does to these features, as plain data for the report; and what partial labels cannot tell."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import DataError
from limbeck.probe import (
    Features,
    choose_partial_labels,
    estimate_noise_matrix,
    partial_label_student,
    partial_label_warnings,
    picture_data,
    self_distillation,
)

if TYPE_CHECKING:
    from limbeck.data import Data
    from limbeck.recipe import Recipe

ROUNDS = 5
SAMPLES = 20_000
"""Training samples that the pictures are made of, at most; drawn once, in order."""
CLASSES = 20
"""Up to this many classes the matrix of class averages is kept."""
RANKS = 80
"""Points of the spectrum, evenly spaced on a logarithmic scale."""
DECAYS = tuple(10.0**-power for power in range(1, 9))
"""Weight decays tried on validation, times the mean squared length of the centred features."""


def label_averaging(data: Data, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Label averaging on these features, in closed form: spectrum and filter, class averages, margins, PLL beside it.

    The weight decay is the one whose best round agrees best with the validation labels. Samples are clean or noisy
    where the data know the labels from before noise was injected (`columns["true_label"]`); elsewhere all count as
    clean.

    Returns:
        Plain data: `samples`, `weight_decay`, `rounds`, `noise` (share of training labels that are wrong, or None where
        that is not known), `validation` (agreement `[rounds]`) and `pll_validation`, `spectrum` (rank, eigenvalue,
        energy and `filters` `[rounds]`), `class_average` `[rounds][C][C]` and `pll_class_average` (None above
        `CLASSES` classes), `margins` (edges and counts), accuracies, `choice` of partial labels and its `notes`.
    """
    train, validation = data.train, data.validation
    rows = _rows(len(train))
    x, given = np.asarray(train.x)[rows], train.y[rows]
    truth = np.asarray(train.columns["true_label"])[rows] if "true_label" in train.columns else None
    features = Features(x, bias=True)
    classes = data.num_classes
    length = float(np.mean([(block**2).sum(1).mean() for _, block in features.blocks()]))
    agreement = np.empty((len(DECAYS), rounds))
    for index, decay in enumerate(DECAYS):
        run = self_distillation(
            features,
            given,
            rounds,
            decay * max(length, 1e-12),
            classes=classes,
            predict=validation.x,
            keep_predictions=False,
        )
        assert run.predicted is not None
        agreement[index] = (run.predicted.argmax(-1) == validation.y).mean(1)
    best = int(agreement.max(1).argmax())
    decay = DECAYS[best] * max(length, 1e-12)
    with python_warnings.catch_warnings():
        # What partial labels cannot tell here is said once, by `partial_label_notes`.
        python_warnings.simplefilter("ignore", UserWarning)
        pictures = picture_data(features, given, rounds, decay, true_labels=truth, classes=classes)
        teacher = self_distillation(features, given, 1, decay, classes=classes)
        assert teacher.predictions is not None
        student = partial_label_student(teacher.predictions[0], features, decay, predict=validation.x)
        assert student.predicted is not None
        choice = choose_partial_labels(teacher.predictions[0], features, decay, validation=(validation.x, validation.y))
    small = classes <= CLASSES
    return {
        "samples": len(rows),
        "rounds": rounds,
        "weight_decay": decay,
        "noise": None if truth is None else float((truth != given).mean()),
        "validation": agreement[best].tolist(),
        "pll_validation": float((student.predicted.argmax(-1) == validation.y).mean()),
        "spectrum": _spectrum(pictures),
        "class_average": pictures["class_average"].tolist() if small else None,
        "pll_class_average": pictures["pll_class_average"].tolist() if small else None,
        "margins": {
            "edges": pictures["margin_edges"].tolist(),
            **{
                name: pictures[name].tolist()
                for name in ("clean_histogram", "noisy_histogram", "pll_clean_histogram", "pll_noisy_histogram")
            },
        },
        **{
            name: _plain(pictures[name])
            for name in (
                "accuracy",
                "clean_accuracy",
                "noisy_accuracy",
                "pll_accuracy",
                "pll_clean_accuracy",
                "pll_noisy_accuracy",
            )
        },
        "choice": {"k": choice.k, "weights": choice.weights.tolist(), "basis": choice.basis},
        "notes": list(choice.warnings),
    }


def partial_label_notes(data: Data, recipes: Sequence[Recipe]) -> list[str]:
    """What the partial labels of these recipes cannot tell by construction: two classes, ties, imbalance.

    The noise matrix is counted where the labels from before the noise are known, and estimated elsewhere.
    """
    terms = [(recipe, term) for recipe in recipes for term in recipe.terms if term.name == "partial_label"]
    if not terms:
        return []
    matrix = _noise_matrix(data)
    found: list[str] = []
    for recipe, term in terms:
        notes = partial_label_warnings(
            data.num_classes,
            k=int(term.options.get("k", 2)),
            weights=term.options.get("weights"),
            noise_matrix=matrix,
            class_counts=np.bincount(data.train.y, minlength=data.num_classes).clip(min=1),
            class_names=tuple(map(str, data.classes)),
        )
        found += [f"{recipe.name}: {note}" for note in notes]
    return list(dict.fromkeys(found))


def _noise_matrix(data: Data) -> NDArray[np.float64] | None:
    train, classes = data.train, data.num_classes
    if "true_label" in train.columns:
        counted = np.zeros((classes, classes))
        np.add.at(counted, (np.asarray(train.columns["true_label"]), train.y), 1)
        total = counted.sum(1, keepdims=True)
        return np.where(total > 0, counted / total.clip(min=1), np.eye(classes))
    rows = _rows(len(train))
    with suppress(DataError):
        return estimate_noise_matrix(np.asarray(train.x)[rows], train.y[rows], classes=classes)
    return None


def _rows(count: int) -> NDArray[np.int64]:
    """Which samples are looked at: all, or a fixed draw in their order."""
    if count <= SAMPLES:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:SAMPLES])


def _spectrum(pictures: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
    values, energy, filters = pictures["eigenvalues"], pictures["label_energy"], pictures["filters"]
    ranks = np.unique(np.geomspace(1, len(values), min(RANKS, len(values))).round().astype(int))
    return [
        {
            "rank": int(rank),
            "eigenvalue": float(values[rank - 1]),
            "energy": float(energy[rank - 1]),
            "filters": filters[:, rank - 1].tolist(),
        }
        for rank in ranks
    ]


def _plain(values: NDArray[Any]) -> Any:
    """Numbers as plain data, None for one that there is not."""
    if values.ndim == 0:
        return None if np.isnan(values) else float(values)
    return [_plain(value) for value in values]
