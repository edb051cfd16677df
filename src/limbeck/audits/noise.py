"""How the given labels come about: the noise matrix p(given | true), overall and by group, from probabilities alone.

NumPy only. The probabilities must not have seen the labels they are held against (cross-fitted, or held out).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limbeck.audits.said import Said
from limbeck.errors import ConfigError, DataError, unknown_name

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Method = Literal["anchors", "confident_joint"]
METHODS = ("anchors", "confident_joint")

ANCHOR_SHARE = 0.2
"""Of the samples predicted as a class, the most confident share that is taken to be of it."""

FEWEST_ANCHORS = 20
"""Anchors of a class at least, where there are as many samples."""

SHRINKAGE = 50.0
"""Anchors' worth of the overall matrix that is added to each row of a group's own."""


@dataclass(frozen=True, eq=False)
class GroupNoise:
    """The noise of one group.

    Attributes:
        matrix: `[C, C]`, its own counts shrunk to the overall matrix.
        low, high: `[C, C]` bootstrap interval.
        rate: share of wrong labels in the group; rate_low and rate_high its interval.
        number: of the group.
        samples: of the group.
        anchors: `[C]` samples that each row rests on; a row without any is the overall one.
    """

    name: str
    number: int
    matrix: Floats
    low: Floats
    high: Floats
    rate: float
    rate_low: float
    rate_high: float
    samples: int
    anchors: Integers

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "group": self.name,
            "samples": self.samples,
            "rate": self.rate,
            "rate_low": self.rate_low,
            "rate_high": self.rate_high,
            "matrix": self.matrix.tolist(),
            "anchors": self.anchors.tolist(),
        }


@dataclass(frozen=True, eq=False)
class NoiseEstimate:
    """What the labels of these samples are made of.

    Attributes:
        matrix: `[C, C]`, N[k, j] = p(given j | true k); rows sum to 1.
        low, high: `[C, C]` bootstrap interval of each entry.
        shares: `[C]`, estimated shares of the true classes.
        rate: share of wrong labels, Σ_k shares_k (1 − N[k, k]); rate_low and rate_high its bootstrap interval.
        confident_rate: the rate by the confident joint, which counts what the judge mistakes as noise: where noise
            comes with difficulty the truth lies nearer to it than to `rate`.
        agreement: share of the labels that a judge who has not seen them agrees with; `rate` is at most 1 − agreement.
        method: "anchors" or "confident_joint".
        anchors: `[C]` samples that each row rests on.
        per_group: one `GroupNoise` a group that has samples; empty where no groups were given.
        notes: what makes the estimate weak, one sentence each.
    """

    matrix: Floats
    low: Floats
    high: Floats
    shares: Floats
    rate: float
    rate_low: float
    rate_high: float
    confident_rate: float
    agreement: float
    method: str
    anchors: Integers
    per_group: tuple[GroupNoise, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def identified(self) -> bool:
        """Whether wrong labels can be told from a weak judge: False where no judge agrees with most of them."""
        return self.agreement >= 0.5

    def group_matrices(self, groups: int) -> Floats:
        """`[G, C, C]`: the matrix of each of the groups 0..G-1, the overall one where a group has none of its own."""
        found = np.repeat(self.matrix[None], groups, axis=0)
        for entry in self.per_group:
            found[entry.number] = entry.matrix
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "method": self.method,
            "matrix": self.matrix.tolist(),
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "shares": self.shares.tolist(),
            "rate": self.rate,
            "rate_low": self.rate_low,
            "rate_high": self.rate_high,
            "confident_rate": self.confident_rate,
            "agreement": self.agreement,
            "identified": self.identified,
            "anchors": self.anchors.tolist(),
            "per_group": [entry.to_dict() for entry in self.per_group],
            "notes": list(self.notes),
        }


def estimate_noise(
    probabilities: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    method: Method = "anchors",
    group_names: Sequence[str] | None = None,
    agreement: float = 0.0,
    anchor_share: float = ANCHOR_SHARE,
    shrinkage: float = SHRINKAGE,
    replicates: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> NoiseEstimate:
    """The noise matrix p(given label | true class), overall and by group.

    * "anchors": the samples that a judge who has not seen their labels is surest of are taken to be of the class it
      says, and their given labels are counted (the anchor points of Liu and Tao 2016, arXiv 1411.7718, by counting in
      place of the largest probability, so that the judge need not be calibrated). Right where noise does not depend on
      the sample; where hard samples are mislabelled more, it finds too little.
    * "confident_joint": Northcutt et al. 2021 (arXiv 1911.00068), section 3: a sample counts as of class k where its
      probability of k is at least the mean probability of k of the samples given k. Counts the judge's mistakes as
      noise, so it finds too much where classes overlap.

    Both take a judge that is sure of a wrong class for a wrong label, and no look at its probabilities tells the two
    apart. But a judge that has not seen the labels cannot agree with wrong ones more than by chance: the rate is held
    to 1 − the best agreement known, by pulling the matrix towards the identity.

    Args:
        probabilities: `[N, C]`, out of sample.
        labels: given classes `[N]`.
        groups: group of each sample `[N]`, -1 where unknown; they should not be made of the given label.
        method: how the samples of a class are found; the other's rate is given beside it (`confident_rate`).
        group_names: names of the groups.
        agreement: share of these labels that another judge agrees with who has not seen them, such as a teacher on
            held-out samples; the best of it and of these probabilities' own counts.
        anchor_share: of the samples predicted as a class, the share that are anchors.
        shrinkage: anchors' worth of the overall matrix in each row of a group's.
        replicates: of the bootstrap (over the samples counted).
        level: of the intervals.
        seed: of the bootstrap.

    Raises:
        DataError: shapes, labels or groups that do not fit, or rows that are no probabilities.
        ConfigError: an unknown method, a share, level or shrinkage out of range.
    """
    if method not in METHODS:
        raise ConfigError(unknown_name("noise estimate", method, METHODS))
    if not 0 < anchor_share <= 1 or not 0 < level < 1 or shrinkage <= 0 or replicates < 1:
        raise ConfigError(
            f"anchor_share {anchor_share}, level {level}, shrinkage {shrinkage}, replicates {replicates}: expected "
            "shares between 0 and 1, the other two above 0"
        )
    p, given = checked(probabilities, labels)
    index, names = _groups(groups, group_names, len(given))
    classes = p.shape[1]
    every = np.arange(len(given))
    counts = _counts(p, given, every, method, anchor_share)
    observed = np.bincount(given, minlength=classes) / len(given)
    prior = np.eye(classes)[None]  # a class without an anchor: taken to be labelled right
    rng = np.random.default_rng(seed)
    best = max(float(agreement), float((p.argmax(1) == given).mean()))
    whole = _Estimated(counts, prior[0], 1e-3, observed, len(given), replicates, level, rng)
    strength = whole.held_to(1 - best, observed)
    joint = whole.matrix if method == "confident_joint" else _row_shares(confident_counts(p, given), prior[0], 1e-3)
    per_group = []
    for code in range(len(names)):
        rows = every[index == code]
        if not len(rows):
            continue
        own = _counts(p, given, rows, method, anchor_share)
        seen = np.bincount(given[rows], minlength=classes) / len(rows)
        found = _Estimated(own, whole.unheld, shrinkage, seen, len(rows), replicates, level, rng)
        found.weaken(strength, seen)
        per_group.append(
            GroupNoise(names[code], code, found.matrix, found.low, found.high, *found.rate, len(rows), _total(own))
        )
    return NoiseEstimate(
        whole.matrix,
        whole.low,
        whole.high,
        whole.shares,
        *whole.rate,
        confident_rate=min(noise_rate(joint, observed), 1 - best),
        agreement=best,
        method=method,
        anchors=_total(counts),
        per_group=tuple(per_group),
        notes=tuple(_notes(whole, counts, observed, best, strength)),
    )


def anchor_counts(probabilities: Floats, labels: Integers, share: float = ANCHOR_SHARE) -> Floats:
    """Given labels of the surest samples of each class, `[C, C]` (class × given label)."""
    classes = probabilities.shape[1]
    predicted = np.bincount(probabilities.argmax(1), minlength=classes)
    counts = np.zeros((classes, classes))
    for k in range(classes):
        wanted = min(len(labels), max(round(share * predicted[k]), min(FEWEST_ANCHORS, predicted[k])))
        if wanted:
            surest = np.argpartition(-probabilities[:, k], wanted - 1)[:wanted]
            counts[k] = np.bincount(labels[surest], minlength=classes)
    return counts


def thresholds(probabilities: Floats, labels: Integers) -> Floats:
    """Mean probability of each class over the samples given it, `[C]`; infinite for a class never given."""
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    own = probabilities[np.arange(len(labels)), labels]
    total = np.bincount(labels, weights=own, minlength=classes)
    return np.asarray(np.divide(total, counts, out=np.full(classes, np.inf), where=counts > 0))


def confident_class(probabilities: Floats, limits: Floats) -> Integers:
    """The likeliest class among those at or above their threshold `[N]`; -1 where there is none."""
    above = probabilities >= limits
    best = np.where(above, probabilities, -np.inf).argmax(1)
    return np.where(above.any(1), best, -1).astype(np.int64)


def confident_counts(probabilities: Floats, labels: Integers) -> Floats:
    """The confident joint as counts `[C, C]` (confident class × given label), each given label at its own count."""
    classes = probabilities.shape[1]
    likely = confident_class(probabilities, thresholds(probabilities, labels))
    counts = np.zeros((classes, classes))
    np.add.at(counts, (likely[likely >= 0], labels[likely >= 0]), 1)
    seen = counts.sum(0)
    return np.asarray(counts * np.bincount(labels, minlength=classes) / np.maximum(seen, 1))


def true_shares(matrix: Floats, observed: Floats, steps: int = 500) -> Floats:
    """The class shares π ≥ 0 whose labels would come out as `observed` under the noise: πᵀN = observed.

    By expectation maximisation from equal shares, so that the answer is a distribution whatever the matrix (an inverse
    may give negative shares). `[C]`; or `[R, C]` for matrices `[R, C, C]` and observed `[R, C]`.
    """
    shares = np.full(observed.shape, 1 / observed.shape[-1])
    for _ in range(steps):
        made = np.einsum("...k,...kj->...j", shares, matrix)
        ratio = np.divide(observed, made, out=np.zeros_like(made), where=made > 0)
        moved = shares * np.einsum("...kj,...j->...k", matrix, ratio)
        moved /= moved.sum(-1, keepdims=True)
        if np.abs(moved - shares).max() < 1e-7:
            return np.asarray(moved)
        shares = moved
    return np.asarray(shares)


def noise_rate(matrix: Floats, observed: Floats) -> float:
    """Share of wrong labels where labels come out as `observed` `[C]`."""
    return float(1 - true_shares(matrix, observed) @ np.diag(matrix))


class _Estimated:
    """A matrix, its shares and rate, and their intervals from multinomial draws of the counts."""

    def __init__(
        self,
        counts: Floats,
        prior: Floats,
        weight: float,
        observed: Floats,
        samples: int,
        replicates: int,
        level: float,
        rng: np.random.Generator,
    ) -> None:
        self.matrix = _row_shares(counts, prior, weight)
        self.shares = true_shares(self.matrix, observed)
        total = np.round(counts.sum(1)).astype(np.int64)
        # With one prior sample in each row, so that a row of few counts without an error is not taken for certain.
        smooth = _row_shares(counts, prior * 0.5 + 0.5 / len(prior), 1.0)
        drawn = np.stack([rng.multinomial(n, row, size=replicates) for n, row in zip(total, smooth)], axis=1)
        matrices = (drawn + weight * prior) / (total + weight)[None, :, None]
        seen = rng.multinomial(samples, observed, size=replicates) / samples
        rates = 1 - np.einsum("rk,rkk->r", true_shares(matrices, seen), matrices)
        tail = (1 - level) / 2
        self.low, self.high = np.quantile(matrices, [tail, 1 - tail], axis=0)
        low, high = np.quantile(rates, [tail, 1 - tail])
        self.rate = float(1 - self.shares @ np.diag(self.matrix)), float(low), float(high)
        self.unheld = self.matrix

    def held_to(self, most: float, observed: Floats) -> float:
        """Weaken the noise until its rate is at most `most`; how much of it is left, 1 where it was low enough."""
        strength = 1.0 if self.rate[0] <= most else most / self.rate[0]
        self.weaken(strength, observed)
        return strength

    def weaken(self, strength: float, observed: Floats) -> None:
        """Pull matrix, interval and rate towards no noise at all."""
        if strength == 1.0:
            return
        even = (1 - strength) * np.eye(len(self.matrix))
        self.matrix, self.low, self.high = (even + strength * each for each in (self.matrix, self.low, self.high))
        self.shares = true_shares(self.matrix, observed)
        _, low, high = self.rate
        self.rate = float(1 - self.shares @ np.diag(self.matrix)), strength * low, strength * high


def _row_shares(counts: Floats, prior: Floats, weight: float) -> Floats:
    """Rows of counts as shares, with `weight` samples' worth of the prior's row in each."""
    return np.asarray((counts + weight * prior) / (counts.sum(1, keepdims=True) + weight))


def _counts(p: Floats, given: Integers, rows: Integers, method: str, share: float) -> Floats:
    if method == "anchors":
        return anchor_counts(p[rows], given[rows], share)
    if len(rows) == len(given):
        return confident_counts(p, given)
    # A group is held against the thresholds of all samples: its own would adapt to its noise.
    likely = confident_class(p[rows], thresholds(p, given))
    counts = np.zeros((p.shape[1], p.shape[1]))
    np.add.at(counts, (likely[likely >= 0], given[rows][likely >= 0]), 1)
    return counts


def _total(counts: Floats) -> Integers:
    return np.asarray(np.round(counts.sum(1)), np.int64)


def _notes(found: _Estimated, counts: Floats, observed: Floats, agreement: float, strength: float) -> list[str]:
    notes: list[str] = []
    if agreement < 0.5:
        notes.append(Said("note.blind", {"agreement": agreement}))
    elif strength < 1:
        notes.append(Said("note.weakened", {"agreement": agreement, "strength": strength}))
    few = np.flatnonzero(counts.sum(1) < FEWEST_ANCHORS)
    if len(few):
        notes.append(Said("note.few_anchors", {"classes": few.tolist()}))
    if (observed == 0).any():
        notes.append(Said("note.not_given", {"classes": np.flatnonzero(observed == 0).tolist()}))
    weak = np.flatnonzero(np.diag(found.matrix) <= np.where(np.eye(len(counts)), 0, found.matrix).max(1))
    if len(weak):
        notes.append(Said("note.exchanged", {"classes": weak.tolist()}))
    return notes


def checked(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Floats, Integers]:
    """Probabilities `[N, C]` in float64 and labels `[N]`, held against each other.

    Raises:
        DataError: shapes that do not fit, a row that is no distribution, a label out of range.
    """
    p, given = np.asarray(probabilities, np.float64), np.asarray(labels)
    if p.ndim != 2 or p.shape[1] < 2 or not len(p):
        raise DataError(f"probabilities: expected shape [N, C] with two classes or more, found {list(p.shape)}")
    if given.shape != (len(p),) or given.dtype.kind not in "iu":
        raise DataError(f"labels: expected {len(p)} whole numbers, found {given.dtype} of shape {list(given.shape)}")
    wrong = ~(np.isfinite(p).all(1) & (p >= 0).all(1) & (np.abs(p.sum(1) - 1) < 1e-3))
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"probabilities: row {row} is {p[row][:5]}…: expected numbers from 0 to 1 that sum to 1")
    if given.min() < 0 or given.max() >= p.shape[1]:
        raise DataError(f"labels: {int(given.min())}..{int(given.max())} found for {p.shape[1]} classes")
    return p / p.sum(1, keepdims=True), given.astype(np.int64)


def _groups(groups: ArrayLike | None, names: Sequence[str] | None, count: int) -> tuple[Integers, tuple[str, ...]]:
    if groups is None:
        return np.full(count, -1, np.int64), ()
    index = np.asarray(groups)
    if index.shape != (count,) or index.dtype.kind not in "iu":
        raise DataError(f"groups: expected {count} whole numbers, found {index.dtype} of shape {list(index.shape)}")
    highest = int(index.max(initial=-1))
    found = tuple(f"group {g}" for g in range(highest + 1)) if names is None else tuple(map(str, names))
    if highest >= len(found):
        raise DataError(f"groups: group {highest} has no name among the {len(found)} given")
    return index.astype(np.int64), found
