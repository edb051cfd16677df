"""Whether a teacher's outputs on its training samples can be believed: it may have learned their labels by heart."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from limbeck.audits.noise import Floats, Integers
from limbeck.audits.said import Said

LEAST_GAP = 0.01
"""A gap below this is left alone even where it is certain."""

LEVEL = 0.99


@dataclass(frozen=True)
class Honesty:
    """A teacher on training and on held-out samples, cell by cell of the same mix.

    Attributes:
        train, held_out: agreement with the labels; held_out as it is, train reweighted to the held-out mix of cells.
        gap: train − held_out; low and high its 99 % interval.
        train_confidence, held_out_confidence: mean probability of the label, the same way.
        confidence_gap, confidence_low: the gap of these, and its lower limit.
        memorised: whether either gap is above `LEAST_GAP` and certain.
        known: False where one of the parts has no samples, so that nothing can be said.
    """

    train: float
    held_out: float
    gap: float
    low: float
    high: float
    train_confidence: float
    held_out_confidence: float
    confidence_gap: float
    confidence_low: float
    memorised: bool
    known: bool = True

    def sentence(self) -> str:
        """What it means for the audit."""
        if not self.known:
            return Said("honesty.unknown")
        names = ("train", "held_out", "low", "high", "train_confidence", "held_out_confidence")
        facts = Said("honesty.facts", {name: getattr(self, name) for name in names})
        return Said("honesty.memorised" if self.memorised else "honesty.honest", {"facts": facts})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; None for nan."""
        values = asdict(self).items()
        plain = {key: None if isinstance(value, float) and np.isnan(value) else value for key, value in values}
        return {**plain, "sentence": self.sentence()}


def check_honesty(
    probabilities: Floats, labels: Integers, held_out: NDArray[np.bool_], cells: Integers | None = None
) -> Honesty:
    """Hold a teacher's training part against a part it was not trained on.

    Both are compared within cells (such as group × class) and averaged with the held-out shares, because a validation
    set is often mixed differently on purpose; cells that one part lacks are left out.

    Args:
        probabilities: `[N, C]`.
        labels: given classes `[N]`.
        held_out: bool `[N]`.
        cells: `[N]`; by default the labels.
    """
    cell = labels if cells is None else cells
    right = (probabilities.argmax(1) == labels).astype(np.float64)
    own = probabilities[np.arange(len(labels)), labels]
    count = int(cell.max(initial=-1)) + 1
    train, held = np.bincount(cell[~held_out], minlength=count), np.bincount(cell[held_out], minlength=count)
    both = (train > 0) & (held > 0)
    if not both.any():
        nan = float("nan")
        return Honesty(nan, nan, nan, nan, nan, nan, nan, nan, nan, memorised=False, known=False)
    share = np.where(both, held, 0) / held[both].sum()
    accuracy = _compared(right, cell, held_out, share)
    confidence = _compared(own, cell, held_out, share)
    z = float(special.ndtri((1 + LEVEL) / 2))
    low, high = accuracy[2] - z * accuracy[3], accuracy[2] + z * accuracy[3]
    confidence_low = confidence[2] - z * confidence[3]
    memorised = (accuracy[2] >= LEAST_GAP and low > 0) or (confidence[2] >= LEAST_GAP and confidence_low > 0)
    return Honesty(
        accuracy[0], accuracy[1], accuracy[2], low, high, confidence[0], confidence[1], confidence[2], confidence_low,
        memorised=bool(memorised),
    )  # fmt: skip


def _compared(
    values: Floats, cell: Integers, held_out: NDArray[np.bool_], share: Floats
) -> tuple[float, float, float, float]:
    """Mean of either part under the same shares of cells, their difference and its standard error."""
    means, variances = [], []
    for part in (~held_out, held_out):
        n = np.bincount(cell[part], minlength=len(share))
        mean = np.bincount(cell[part], values[part], len(share)) / np.maximum(n, 1)
        square = np.bincount(cell[part], values[part] ** 2, len(share)) / np.maximum(n, 1)
        means.append(float(share @ mean))
        # One pseudo-sample at 1/2: a cell of three right answers is not certain.
        spread = (np.maximum(square - mean**2, 0) * n + 0.25) / (n + 1)
        variances.append(float(share**2 @ (spread / np.maximum(n, 1))))
    return means[0], means[1], means[0] - means[1], float(np.sqrt(sum(variances)))
