"""Clusters of embeddings within each class: GEORGE (Sohoni et al., NeurIPS 2020, arXiv 2011.12945)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from limbeck.data.columns import IntArray
from limbeck.errors import ConfigError, DataError
from limbeck.groups.rules import one_of
from limbeck.groups.seen import Floats, Seen, classes_of

KINDS = ("gmm", "kmeans")
SILHOUETTE_SAMPLES = 1_000
"""A silhouette takes all pairs of samples: of larger classes, that many are drawn for it."""


@dataclass(frozen=True, eq=False)
class Projection:
    """Principal components of embeddings, in the units of the embedding: a stand-in for GEORGE's UMAP.

    Attributes:
        mean: [D].
        axes: [D, K], orthonormal.
    """

    mean: Floats
    axes: Floats

    @classmethod
    def of(cls, seen: Seen, dimensions: int) -> tuple[Projection, Floats]:
        """The projection of what is seen of some samples, and their points `[N, K]`."""
        embeddings = seen.required("embeddings")
        projection = cls.fit(embeddings, dimensions)
        return projection, projection(embeddings)

    @classmethod
    def fit(cls, embeddings: Floats, dimensions: int) -> Projection:
        """The first components of these embeddings, as many as there are, signs fixed so that they repeat."""
        mean = embeddings.mean(0)
        values, vectors = np.linalg.eigh(np.cov(embeddings - mean, rowvar=False).reshape(len(mean), len(mean)))
        axes = vectors[:, np.argsort(-values)[:dimensions]]
        signs = np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
        return cls(mean, axes * signs)

    def __call__(self, embeddings: Floats) -> Floats:
        if embeddings.shape[1] != len(self.mean):
            raise DataError(
                f"these embeddings have {embeddings.shape[1]} numbers a sample, those the groups were found in "
                f"{len(self.mean)}: take them from the same layer of the same model"
            )
        return np.asarray((embeddings - self.mean) @ self.axes)


@dataclass(frozen=True, eq=False)
class ClassClusters:
    """The clusters of one class: those of the first clustering, each cut further where that paid.

    Attributes:
        first: the first clustering, None where the class is one cluster.
        further: by cluster of the first, its clustering.
        place: by (cluster of the first, cluster of the further), the number of the group within the class.
        silhouettes: by number of clusters tried, the silhouette that chose.
    """

    first: Any
    further: tuple[Any, ...]
    place: dict[tuple[int, int], int]
    silhouettes: dict[int, float]

    @property
    def count(self) -> int:
        return max(self.place.values()) + 1

    def assign(self, points: Floats) -> IntArray:
        """The cluster of each point, 0.. within the class."""
        outer = np.zeros(len(points), np.int64) if self.first is None else self.first.predict(points)
        found = np.zeros(len(points), np.int64)
        for k in np.unique(outer):
            rows = np.flatnonzero(outer == k)
            model = self.further[k]
            inner = np.zeros(len(rows), np.int64) if model is None else model.predict(points[rows])
            found[rows] = [self.place[int(k), int(cluster)] for cluster in inner]
        return found


@dataclass(frozen=True, eq=False)
class ClusterRule:
    """Class × cluster. Reads the label, to know within which class to look, and the embedding."""

    projection: Projection
    clusters: tuple[ClassClusters, ...]
    classes: tuple[str, ...]
    reads: ClassVar[tuple[str, ...]] = ("embeddings", "labels")
    sees_errors: ClassVar[bool] = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(
            f"{label}: cluster {cluster}"
            for label, part in zip(self.classes, self.clusters, strict=True)
            for cluster in range(part.count)
        )

    @property
    def texts(self) -> tuple[str, ...]:
        return self.names

    @property
    def families(self) -> tuple[int, ...]:
        return tuple(k for k, part in enumerate(self.clusters) for _ in range(part.count))

    def assign(self, seen: Seen) -> IntArray:
        labels, points = seen.required("labels"), self.projection(seen.required("embeddings"))
        first = np.cumsum([0, *(part.count for part in self.clusters)])
        found = np.zeros(len(labels), np.int64)
        for k, part in enumerate(self.clusters):
            rows = np.flatnonzero(labels == k)
            if len(rows):
                found[rows] = first[k] + part.assign(points[rows])
        return found


@dataclass(frozen=True)
class Clusters:
    """Clusters within each class, their number chosen by silhouette, then over-clustered.

    GEORGE: the number of clusters with the best silhouette (mean over clusters of the mean over samples); then every
    cluster is cut into `overcluster`, and a piece becomes a group of its own where its samples have a higher
    silhouette in it than before, their mean loss is not lower than the cluster's, and they are many enough. Embeddings
    are reduced by principal components in place of UMAP.

    Args:
        kind: `gmm` (full covariance), or `kmeans`.
        most: clusters a class, at most; 2 to this many are tried.
        overcluster: into how many every cluster is cut; 1 leaves it out.
        dimensions: principal components.
        piece: samples a cluster or a piece of one needs.
        restarts: of each clustering, the likeliest is kept.
    """

    kind: str = "gmm"
    most: int = 5
    overcluster: int = 5
    dimensions: int = 10
    piece: int = 10
    restarts: int = 2
    name: ClassVar[str] = "clusters"
    needs: ClassVar[tuple[str, ...]] = ("embeddings", "probabilities", "labels")
    from_errors: ClassVar[bool] = False

    def __post_init__(self) -> None:
        one_of("kind of clustering", self.kind, KINDS)
        if self.most < 2 or min(self.overcluster, self.dimensions, self.piece, self.restarts) < 1:
            raise ConfigError(
                f"clusters: most must be at least 2, found {self.most}; overcluster {self.overcluster}, dimensions "
                f"{self.dimensions}, piece {self.piece} and restarts {self.restarts} at least 1"
            )

    def find(self, seen: Seen, classes: Sequence[str], seed: int) -> ClusterRule:
        """Cluster each class; losses are read where they are known, and left out of account elsewhere."""
        labels = seen.required("labels")
        named = classes_of(labels, classes)
        projection, points = Projection.of(seen, self.dimensions)
        losses = None if seen.probabilities is None else seen.losses
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        parts = []
        # Matrices of a few rows: several threads only wait for each other.
        with threadpool_limits(1):
            for k in range(len(named)):
                rows = np.flatnonzero(labels == k)
                parts.append(self._within(points[rows], None if losses is None else losses[rows], seed))
        return ClusterRule(projection, tuple(parts), named)

    def _within(self, points: Floats, losses: Floats | None, seed: int) -> ClassClusters:
        first, outer, silhouettes = self._choose(points, seed)
        further: list[Any] = []
        place: dict[tuple[int, int], int] = {}
        number = 0
        before = None
        for k in range(1 if first is None else len(np.unique(outer))):
            rows = np.flatnonzero(outer == k)
            model = self._cut(points[rows], seed)
            further.append(model)
            if model is None:
                place[k, 0] = number
                number += 1
                continue
            if before is None and first is not None:
                before = _silhouettes(points, outer, seed)
            kept = self._kept(points, outer, k, model, before, losses, seed)
            pieces = range(self.overcluster)
            # The pieces that do not stand alone stay together, as the cluster they came from.
            rest = None if len(kept) == self.overcluster else number
            number += rest is not None
            for piece in pieces:
                if piece in kept:
                    place[k, piece] = number
                    number += 1
                else:
                    assert rest is not None
                    place[k, piece] = rest
        return ClassClusters(first, tuple(further), place, silhouettes)

    def _choose(self, points: Floats, seed: int) -> tuple[Any, IntArray, dict[int, float]]:
        """The clustering of the best silhouette; None where there are too few points to cut."""
        best: Any = None
        outer = np.zeros(len(points), np.int64)
        tried: dict[int, float] = {}
        for count in range(2, self.most + 1):
            if len(points) < count * self.piece:
                break
            model, found = self._fit(points, count, seed)
            if len(np.unique(found)) < count:
                continue
            values = _silhouettes(points, found, seed)
            score = float(np.mean([np.nanmean(values[found == k]) for k in range(count)]))
            if not tried or score > max(tried.values()):
                best, outer = model, found
            tried[count] = score
        return best, outer, tried

    def _cut(self, points: Floats, seed: int) -> Any:
        if self.overcluster < 2 or len(points) < 2 * self.piece or len(np.unique(points, axis=0)) < self.overcluster:
            return None
        return self._fit(points, self.overcluster, seed)[0]

    def _kept(
        self,
        points: Floats,
        outer: IntArray,
        cluster: int,
        model: Any,
        before: Floats | None,
        losses: Floats | None,
        seed: int,
    ) -> list[int]:
        """The pieces of a cluster that stand alone."""
        rows = np.flatnonzero(outer == cluster)
        inner = model.predict(points[rows])
        cut = outer.copy()
        cut[rows] = outer.max() + 1 + inner
        after = _silhouettes(points, cut, seed)
        kept = []
        for piece in range(self.overcluster):
            own = rows[inner == piece]
            # Where there was one cluster, a silhouette before does not exist: 0 is the threshold of GEORGE's code.
            was = 0.0 if before is None else float(np.nanmean(before[own])) if _any(before[own]) else 0.0
            if (
                len(own) >= self.piece
                and _any(after[own])
                and float(np.nanmean(after[own])) > max(was, 0.0)
                and (losses is None or losses[own].mean() >= losses[rows].mean())
            ):
                kept.append(piece)
        return kept

    def _fit(self, points: Floats, count: int, seed: int) -> tuple[Any, IntArray]:
        from sklearn.cluster import KMeans
        from sklearn.mixture import GaussianMixture

        if self.kind == "kmeans":
            model = KMeans(count, n_init=self.restarts, random_state=seed)
        else:
            # A floor on variances relative to the spread of the points: a class may lie in fewer dimensions.
            floor = 1e-6 * float(points.var(0).mean()) + 1e-12
            model = GaussianMixture(count, n_init=self.restarts, random_state=seed, reg_covar=max(floor, 1e-9))
        found = model.fit_predict(points)
        return model, np.asarray(found, np.int64)


def _any(values: Floats) -> bool:
    return bool((~np.isnan(values)).any())


def _silhouettes(points: Floats, clusters: IntArray, seed: int) -> NDArray[np.float64]:
    """The silhouette of each point [N]; nan for those that were not drawn, where there are many."""
    from sklearn.metrics import silhouette_samples

    found = np.full(len(points), np.nan)
    rows = np.arange(len(points))
    if len(rows) > SILHOUETTE_SAMPLES:
        rows = _drawn(clusters, seed)
    if 1 < len(np.unique(clusters[rows])) < len(rows):
        found[rows] = silhouette_samples(points[rows], clusters[rows])
    return found


def _drawn(clusters: IntArray, seed: int) -> IntArray:
    """Points for a silhouette: at least a share of each cluster, so that a small one is not missed."""
    rng = np.random.default_rng(seed)
    names, counts = np.unique(clusters, return_counts=True)
    each = np.maximum(counts * SILHOUETTE_SAMPLES // len(clusters), np.minimum(counts, 20))
    picked = [rng.permutation(np.flatnonzero(clusters == k))[:n] for k, n in zip(names, each, strict=True)]
    return np.sort(np.concatenate(picked))
