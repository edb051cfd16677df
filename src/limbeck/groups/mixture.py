"""A mixture over embeddings, labels and predictions: Domino (Eyuboglu et al., ICLR 2022, arXiv 2203.14960)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from limbeck.data.columns import IntArray
from limbeck.errors import ConfigError
from limbeck.groups.clusters import Projection
from limbeck.groups.seen import Floats, Seen, classes_of


@dataclass(frozen=True, eq=False)
class MixtureParameters:
    """P(S), the mean and variance of the embedding, P(label) and P(prediction) given each component.

    Attributes:
        weights: [K]. means, variances: [K, D]. label, prediction: [K, C].
    """

    weights: Floats
    means: Floats
    variances: Floats
    label: Floats
    prediction: Floats

    def log_joint(
        self, points: Floats, labels: Floats | None, predictions: Floats | None, label_weight: float, weight: float
    ) -> Floats:
        """log P(S = k, what is seen) of each sample [N, K]; a label or prediction that is None is summed over.

        Equation 4 of the paper: log P(S) + log N(z) + γ log P(y) + γ̂ log Σ_j ŷ(j) P(ŷ = j).
        """
        precision = 1 / self.variances
        distance = (
            (points**2) @ precision.T - 2 * points @ (self.means * precision).T + (self.means**2 * precision).sum(1)
        )
        log_normal = -0.5 * (distance + np.log(2 * np.pi * self.variances).sum(1))
        found = np.log(self.weights) + log_normal
        if labels is not None:
            found = found + label_weight * np.log((labels @ self.label.T).clip(1e-12))
        if predictions is not None:
            found = found + weight * np.log((predictions @ self.prediction.T).clip(1e-12))
        return np.asarray(found)


@dataclass(frozen=True, eq=False)
class MixtureRule:
    """The components in which the model errs most, and the rest of each class.

    A sample belongs to its likeliest component; where no prediction is seen, by its embedding and label alone.

    Attributes:
        slices: the components that are groups, those of the largest discrepancy first.
    """

    projection: Projection
    parameters: MixtureParameters
    slices: tuple[int, ...]
    classes: tuple[str, ...]
    label_weight: float
    prediction_weight: float
    reads: ClassVar[tuple[str, ...]] = ("embeddings", "labels", "probabilities")
    sees_errors: ClassVar[bool] = True

    @property
    def names(self) -> tuple[str, ...]:
        found = [f"slice {k}: {self._about(component)}" for k, component in enumerate(self.slices, start=1)]
        return (*found, *(f"{label}: rest" for label in self.classes))

    @property
    def texts(self) -> tuple[str, ...]:
        return self.names

    @property
    def families(self) -> tuple[int, ...]:
        own = self.parameters.label.argmax(1)
        return (*(int(own[component]) for component in self.slices), *range(len(self.classes)))

    def _about(self, component: int) -> str:
        label = self.parameters.label[component].argmax()
        predicted = (self.parameters.prediction - self.parameters.label)[component].argmax()
        return f"{self.classes[label]}, too often predicted {self.classes[predicted].rpartition('=')[2]}"

    def assign(self, seen: Seen) -> IntArray:
        points, labels = self.projection(seen.required("embeddings")), seen.required("labels")
        joint = self.parameters.log_joint(
            points, _one_hot(labels, len(self.classes)), seen.probabilities, self.label_weight, self.prediction_weight
        )
        place = np.full(joint.shape[1], -1)
        place[list(self.slices)] = np.arange(len(self.slices))
        found = place[joint.argmax(1)]
        return np.asarray(np.where(found >= 0, found, len(self.slices) + labels), np.int64)


@dataclass(frozen=True)
class Mixture:
    """Domino's mixture: components that are alike in embedding, label and prediction, so in their kind of error.

    Args:
        components: of the mixture, K.
        slices: how many become groups: those of the largest discrepancy max_c (P(ŷ = c) - P(y = c)). The rest of the
            samples stay together by class.
        dimensions: principal components of the embedding.
        label_weight, prediction_weight: γ and γ̂ of equation 4; 1 in the paper's code, 10 in its experiments.
        iterations: of expectation and maximisation, at most.
    """

    components: int = 25
    slices: int = 10
    dimensions: int = 20
    label_weight: float = 10.0
    prediction_weight: float = 10.0
    iterations: int = 100
    name: ClassVar[str] = "mixture"
    needs: ClassVar[tuple[str, ...]] = ("embeddings", "probabilities", "labels")
    from_errors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.components, self.slices, self.dimensions, self.iterations) < 1:
            raise ConfigError(
                f"mixture: components {self.components}, slices {self.slices}, dimensions {self.dimensions} and "
                f"iterations {self.iterations} must be at least 1"
            )
        if min(self.label_weight, self.prediction_weight) < 0:
            raise ConfigError(
                f"mixture: label_weight {self.label_weight} and prediction_weight {self.prediction_weight} must not be "
                "negative"
            )

    def find(self, seen: Seen, classes: Sequence[str], seed: int) -> MixtureRule:
        """Fit the mixture by EM, from components that start in the fullest cells of the confusion matrix."""
        labels = seen.required("labels")
        named = classes_of(labels, classes)
        projection, points = Projection.of(seen, self.dimensions)
        predictions = seen.required("probabilities")
        one_hot = _one_hot(labels, len(named))
        parameters = self.fit(points, one_hot, predictions, seed)
        discrepancy = (parameters.prediction - parameters.label).max(1)
        order = np.argsort(-discrepancy, kind="stable")[: self.slices]
        # A component in which the model errs no more than overall is no slice, however few there are.
        slices = tuple(int(k) for k in order if discrepancy[k] > seen.wrong.mean())
        return MixtureRule(
            projection, parameters, slices, named, float(self.label_weight), float(self.prediction_weight)
        )

    def fit(self, points: Floats, labels: Floats, predictions: Floats, seed: int) -> MixtureParameters:
        """Expectation and maximisation, from responsibilities by cell of the confusion matrix.

        Args:
            points: [N, D]. labels: one-hot [N, C]. predictions: probabilities [N, C].
            seed: of the noise that tells components of the same cell apart.
        """
        responsibilities = self._start(labels.argmax(1), predictions.argmax(1), labels.shape[1], seed)
        floor = 1e-3 * points.var(0) + 1e-9
        before = -np.inf
        for _ in range(self.iterations):
            parameters = _maximise(points, labels, predictions, responsibilities, floor)
            joint = parameters.log_joint(points, labels, predictions, self.label_weight, self.prediction_weight)
            evidence = logsumexp(joint, axis=1)
            responsibilities = np.exp(joint - evidence[:, None])
            likelihood = float(evidence.mean())
            if likelihood - before < 1e-4:
                break
            before = likelihood
        return parameters

    def _start(self, labels: IntArray, predicted: IntArray, classes: int, seed: int) -> Floats:
        cells = labels * classes + predicted
        counts = np.bincount(cells, minlength=classes**2)
        wrong = np.arange(classes**2) // classes != np.arange(classes**2) % classes
        # Every class has a component of its own, then the errors by their number: with C² cells and K components the
        # round-robin of Domino's code would leave most kinds of error out.
        fullest = np.argsort(-counts, kind="stable")
        order = [k for kind in (~wrong, wrong) for k in fullest if kind[k] and counts[k]]
        own = np.array([order[k % len(order)] for k in range(self.components)])
        noise = np.random.default_rng(seed).uniform(0, 1e-3, (len(labels), self.components))
        start = (cells[:, None] == own) + noise
        return np.asarray(start / start.sum(1, keepdims=True))


def _maximise(
    points: Floats, labels: Floats, predictions: Floats, responsibilities: Floats, floor: NDArray[np.float64]
) -> MixtureParameters:
    mass = responsibilities.sum(0) + 1e-10
    means = responsibilities.T @ points / mass[:, None]
    variances = (responsibilities.T @ points**2 / mass[:, None] - means**2).clip(min=0) + floor
    return MixtureParameters(
        mass / mass.sum(),
        means,
        variances,
        responsibilities.T @ labels / mass[:, None],
        responsibilities.T @ predictions / mass[:, None],
    )


def _one_hot(labels: IntArray, classes: int) -> Floats:
    return np.asarray(labels[:, None] == np.arange(classes), np.float64)
