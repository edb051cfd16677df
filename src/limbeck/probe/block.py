"""The block model of features and label noise: what self-distillation does to it, round by round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.cluster.hierarchy
import scipy.spatial.distance
from numpy.typing import ArrayLike

from limbeck.errors import ConfigError
from limbeck.probe.features import Floats, Integers
from limbeck.probe.labels import margins
from limbeck.probe.partial import as_noise_matrix, partial_labels

TIE = 1e-9
"""Outputs closer than this count as tied, and a tie as wrong."""


class MinimumRounds(NamedTuple):
    """When multi-round self-distillation gets all training samples of the block model right.

    Attributes:
        margin: Δ, the smallest M_yy − M_yk over the wrong labels that occur; infinite where none does.
        threshold: t* = log(1 + 1/Δ) / log(q/p); infinite where Δ ≤ 0 or q ≤ p.
        rounds: the first whole number of rounds beyond t*, None where there is none.
    """

    margin: float
    threshold: float
    rounds: int | None


def minimum_rounds(noise_matrix: ArrayLike, p: float, q: float) -> MinimumRounds:
    """The number of rounds after which every training sample is right (arXiv 2402.10482, section 4).

    A sample of class y given label k comes out right after t rounds iff M_yy − M_yk > 1 / ((q/p)ᵗ − 1).

    Args:
        noise_matrix: `[C, C]`, P(given | true), rows sum to 1.
        p: what a round keeps of a sample's own label, 0..1.
        q: what a round keeps of its class average, p..1.

    Raises:
        ConfigError: where the noise matrix is none or p, q are out of range.
    """
    matrix = as_noise_matrix(noise_matrix)
    if not (0 <= p <= 1 and 0 <= q <= 1):
        raise ConfigError(f"p, q: expected numbers in 0..1, found p={p}, q={q}")
    wrong = (matrix > 0) & ~np.eye(len(matrix), dtype=bool)
    if not wrong.any():
        return MinimumRounds(math.inf, 0.0, 1)
    margin = float((np.diag(matrix)[:, None] - matrix)[wrong].min())
    # A margin of rounding error is none: 1 − .5 and .5 must count as equal.
    if margin <= TIE or q <= p:
        return MinimumRounds(margin, math.inf, None)
    threshold = 0.0 if p == 0 else math.log1p(1 / margin) / math.log(q / p)
    return MinimumRounds(margin, threshold, math.floor(threshold) + 1)


def correlation_clusters(class_correlation: ArrayLike) -> Integers:
    """Clusters of similar classes: complete linkage on 1 − mean cosine, cut at 0.8 of the largest merge.

    Args:
        class_correlation: `[C, C]`, mean cosine of the features of two classes (the diagonal is not used).

    Returns:
        `[C]`, superclass numbers 0.. in order of their first class.
    """
    distance = 1 - np.asarray(class_correlation, dtype=np.float64)
    distance = np.maximum((distance + distance.T) / 2, 0)
    np.fill_diagonal(distance, 0)
    merges = scipy.cluster.hierarchy.linkage(scipy.spatial.distance.squareform(distance, checks=False), "complete")
    clusters = scipy.cluster.hierarchy.fcluster(merges, 0.8 * merges[-1, 2], "distance")
    _, first, index = np.unique(clusters, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[index].astype(np.int64)


@dataclass(frozen=True, eq=False)
class BlockModel:
    """Unit features with one correlation inside a class and one between classes (arXiv 2402.10482, section 4).

    Attributes:
        counts: `[C]` samples of each true class.
        same: `[C]` correlation inside each class, c.
        other: `[C, C]` correlation between classes, d; the diagonal is not used.
        noise_matrix: `[C, C]`, M[y, k] = P(given k | true y).
        n_lambda: N·λ.
        p: (1 − c)/(1 − c + C·Nλ), what a round keeps of a sample's own label; with several c or d, of their means.
        q: the same with 1 − c + n(c − d), what a round keeps of the class average.
        spectrum: eigenvalues of the Gram matrix of real features, or None. Where given, the share of its own label a
            sample keeps follows from them, not from c: features of D dimensions cannot hold the labels of N > D samples
            apart, whatever their correlation.
    """

    counts: Floats
    same: Floats
    other: Floats
    noise_matrix: Floats
    n_lambda: float
    p: float
    q: float
    spectrum: Floats | None = None

    @property
    def classes(self) -> int:
        """C."""
        return len(self.counts)

    @property
    def minimum(self) -> MinimumRounds:
        """Rounds until every training sample is right, from p and q."""
        return minimum_rounds(self.noise_matrix, self.p, self.q)

    @cached_property
    def _modes(self) -> tuple[Floats, Floats]:
        """Eigenvalues and vectors of the class averages' operator, symmetric once scaled by √n."""
        root = np.sqrt(self.counts)
        between = self.other.copy()
        np.fill_diagonal(between, self.same)
        values, vectors = np.linalg.eigh(np.diag(1 - self.same) + root[:, None] * between * root)
        if values[0] < -1e-9 * values[-1] or (self.same > 1 + 1e-9).any():
            raise ConfigError(
                f"no features have these correlations (same {self.same}, other {self.other}): "
                f"the Gram matrix would have the eigenvalue {values[0]:.3g}"
            )
        return values.clip(min=0), vectors

    def _own_label_kept(self, t: int) -> Floats:
        """What t rounds keep of a sample's own label beyond its class average, `[C]`."""
        penalty = self.classes * self.n_lambda
        if self.spectrum is None:
            return np.asarray(((1 - self.same) / (1 - self.same + penalty)) ** t)
        # The trace of the t-th filter is the sum of all self-influences; C of its modes are the class averages.
        modes, _ = self._modes
        trace = ((self.spectrum / (self.spectrum + penalty)) ** t).sum() - ((modes / (modes + penalty)) ** t).sum()
        return np.full(self.classes, np.clip(trace / max(self.counts.sum() - self.classes, 1), 0, 1))

    def distil(self, targets: Floats, rounds: int) -> Floats:
        """Outputs of the linearised probe, `[rounds, C, C, C]`: round, true class, given label, output.

        Args:
            targets: `[C, C, C]`, what a sample of true class y and given label k is told (rows sum to 1).
            rounds: 1 or more.
        """
        penalty, uniform = self.classes * self.n_lambda, 1 / self.classes
        averages: Floats = np.einsum("yk,ykc->yc", self.noise_matrix, targets)
        own = targets - averages[:, None]
        values, vectors = self._modes
        root = np.sqrt(self.counts)[:, None]
        modes = vectors.T @ (root * (averages - uniform))
        out = np.empty((rounds, *targets.shape))
        for t in range(1, rounds + 1):
            kept = self._own_label_kept(t)
            average = vectors @ ((values / (values + penalty))[:, None] ** t * modes) / root
            out[t - 1] = uniform + kept[:, None, None] * own + average[:, None]
        return out

    def predictions(self, rounds: int) -> Floats:
        """Multi-round self-distillation, `[rounds, C, C, C]`: round, true class, given label, output.

        y⁽ᵗ⁾ = 1/C + pᵗ (e_given − M_y) + qᵗ (M_y − 1/C) where the columns of the noise matrix sum to 1 and the classes
        have equal counts; in general the class averages are filtered by the correlations of all classes.
        """
        given = np.broadcast_to(np.eye(self.classes), (self.classes,) * 3)
        return self.distil(given, rounds)

    def partial_label_predictions(self, k: int = 2, weights: ArrayLike | None = None) -> Floats:
        """Outputs of the one-round student of partial labels, `[C, C, C]`: true class, given label, output."""
        teacher = self.predictions(1)[0]
        # The tie of equally likely wrong labels must not hang on rounding: the lower class number takes it.
        _, targets = partial_labels(teacher.round(12).reshape(-1, self.classes), k, weights)
        return np.asarray(self.distil(targets.reshape(teacher.shape), 1)[0])

    def accuracy(self, rounds: int) -> Floats:
        """Share of training samples whose true class comes out strictly largest, `[rounds]`."""
        return self._share(self.predictions(rounds), np.arange(self.classes)[:, None])

    def agreement(self, rounds: int) -> Floats:
        """Share of training samples that come out as their given label, `[rounds]`."""
        return self._share(self.predictions(rounds), np.arange(self.classes)[None])

    def partial_label_accuracy(self, k: int = 2, weights: ArrayLike | None = None) -> float:
        """Share of training samples the partial-label student gets right."""
        outputs = self.partial_label_predictions(k, weights)
        return float(self._share(outputs[None], np.arange(self.classes)[:, None])[0])

    def _share(self, outputs: Floats, wanted: Integers) -> Floats:
        right = margins(outputs, np.broadcast_to(wanted, outputs.shape[:-1])) > TIE
        cells = self.noise_matrix * (self.counts / self.counts.sum())[:, None]
        return np.asarray(np.einsum("tyk,yk->t", right, cells))


def block_model(
    classes: int,
    per_class: int | ArrayLike,
    same: float | ArrayLike,
    other: float | ArrayLike,
    noise_matrix: ArrayLike,
    n_lambda: float,
) -> BlockModel:
    """The block model: unit features, correlation `same` inside a class, `other` between classes.

    Args:
        classes: C.
        per_class: n, training samples of a class; or `[C]`.
        same: c in 0..1; or `[C]`.
        other: d below c; or `[C, C]`, e.g. larger inside a superclass.
        noise_matrix: `[C, C]`, P(given | true), rows sum to 1.
        n_lambda: N·λ, the weight decay times the number of all samples.

    Raises:
        ConfigError: where a number is out of range, or no features have such correlations.
    """
    matrix = as_noise_matrix(noise_matrix)
    counts, inside = np.asarray(per_class, dtype=np.float64), np.asarray(same, dtype=np.float64)
    between = np.asarray(other, dtype=np.float64)
    if len(matrix) != classes:
        raise ConfigError(f"noise_matrix: expected {classes} rows, found {len(matrix)}")
    _expect_shape("per_class", counts, (classes,))
    _expect_shape("same", inside, (classes,))
    _expect_shape("other", between, (classes, classes))
    if (counts < 1).any() or not (n_lambda > 0 and np.isfinite(n_lambda)):
        raise ConfigError(f"expected per_class of 1 or more and n_lambda above 0, found {per_class!r} and {n_lambda}")
    distinct = between[~np.eye(classes, dtype=bool)] if between.ndim else between
    c, d, n, penalty = inside.mean(), distinct.mean(), counts.mean(), classes * n_lambda
    within, average = 1 - c, max(1 - c + n * (c - d), 0.0)
    model = BlockModel(
        counts=np.broadcast_to(counts, (classes,)).copy(),
        same=np.broadcast_to(inside, (classes,)).copy(),
        other=np.broadcast_to(between, (classes, classes)).copy(),
        noise_matrix=matrix,
        n_lambda=n_lambda,
        p=float(within / (within + penalty)),
        q=float(average / (average + penalty)),
    )
    model._modes  # noqa: B018  (computed now, so that impossible correlations are refused here)
    return model


def _expect_shape(name: str, array: Floats, shape: tuple[int, ...]) -> None:
    if array.shape not in ((), shape):
        raise ConfigError(f"{name}: expected one number or shape {list(shape)}, found {list(array.shape)}")
