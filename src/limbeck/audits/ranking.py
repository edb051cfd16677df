"""Which labels look wrong: a posterior of the true class, and the scores of confident learning beside it.

NumPy only. The probabilities must not have seen the labels they judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limbeck.audits.noise import Floats, Integers, checked, confident_class, thresholds, true_shares
from limbeck.errors import ConfigError, DataError, unknown_name

Score = Literal["posterior", "normalised_margin", "self_confidence", "adjusted_margin"]
SCORES = ("posterior", "normalised_margin", "self_confidence", "adjusted_margin")

FLAG = 0.5
"""A label is flagged where one other class has at least this posterior."""

SURE = 0.8
"""A label whose own posterior is lower is uncertain, where it is not flagged."""

CANDIDATE = 0.1
"""A class with at least this posterior is a candidate of an uncertain or held-back sample."""

FLOOR = 0.02
"""Mixed into the noise matrix from the uniform one: no label is taken to be impossible."""


@dataclass(frozen=True, eq=False)
class Suspicion:
    """What is thought of each label.

    Attributes:
        posterior: `[N, C]`, p(true class | sample, given label).
        score: `[N]` from 0 to 1, higher is more suspicious.
        suggested: `[N]` the likeliest class other than the given one.
        flagged: bool `[N]`, another class has a posterior of `FLAG` or more.
        uncertain: bool `[N]`, not flagged, but the given class has less than `SURE`.
        candidates: bool `[N, C]`: the given class, and for flagged and uncertain samples every class with a posterior
            of `CANDIDATE` or more: partial labels for whoever would rather not decide.
    """

    posterior: Floats
    score: Floats
    suggested: Integers
    flagged: NDArray[np.bool_]
    uncertain: NDArray[np.bool_]
    candidates: NDArray[np.bool_]


def suspicious(
    probabilities: ArrayLike, labels: ArrayLike, matrix: ArrayLike, *, groups: ArrayLike | None = None
) -> Suspicion:
    """Score, flag and suggest, from p(given label | x) and the noise matrix.

    Args:
        probabilities: `[N, C]` of the *given* label, out of sample.
        labels: given classes `[N]`.
        matrix: `[C, C]`, p(given | true), such as `estimate_noise` finds; or `[G, C, C]` with `groups`.
        groups: `[N]`, the matrix of each sample.

    Raises:
        DataError: where the shapes do not fit.
    """
    p, given = checked(probabilities, labels)
    posterior = label_posterior(p, given, matrix, groups=groups)
    rows = np.arange(len(given))
    others = posterior.copy()
    others[rows, given] = -1
    suggested = others.argmax(1)
    flagged = others[rows, suggested] >= FLAG
    uncertain = ~flagged & (posterior[rows, given] < SURE)
    candidates = (posterior >= CANDIDATE) & (flagged | uncertain)[:, None]
    candidates[rows, given] = True
    return Suspicion(posterior, 1 - posterior[rows, given], suggested, flagged, uncertain, candidates)


def label_posterior(
    probabilities: Floats, labels: Integers, matrix: ArrayLike, *, groups: ArrayLike | None = None
) -> Floats:
    """p(true class | x, given label) `[N, C]`, from p(given label | x).

    The true class's distribution e(x) is the one whose labels would come out as seen, eᵀN = p (expectation
    maximisation, so that it is a distribution), and Bayes' rule adds the label: a(k) ∝ e(k) · N[k, given].
    """
    found = np.asarray(matrix, np.float64)
    classes = probabilities.shape[1]
    if found.shape[-2:] != (classes, classes) or found.ndim != (2 if groups is None else 3):
        raise DataError(
            f"noise matrix: expected shape {'[C, C]' if groups is None else '[G, C, C]'} with {classes} classes, found "
            f"{list(found.shape)}"
        )
    noise = (1 - FLOOR) * found + FLOOR / classes
    if groups is None:
        return _posterior(probabilities, labels, noise)
    index = np.asarray(groups, np.int64)
    posterior = np.empty_like(probabilities)
    for group in np.unique(index):
        inside = index == group
        posterior[inside] = _posterior(probabilities[inside], labels[inside], noise[group])
    return posterior


def _posterior(p: Floats, given: Integers, noise: Floats) -> Floats:
    joint = true_shares(noise, p, steps=UNMIXING) * noise[:, given].T
    return np.asarray(joint / joint.sum(1, keepdims=True))


UNMIXING = 20
"""Steps of expectation maximisation for one sample: more would sharpen the judge's own errors."""


def confident_flags(probabilities: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.bool_], Integers]:
    """Which labels confident learning takes to be wrong `[N]`, and the class it suggests `[N]`.

    Northcutt et al. 2021 (arXiv 1911.00068), section 3.2: the off-diagonal of the confident joint. Here for comparison:
    it flags more than `suspicious` does, and wrongly so more often.
    """
    p, given = checked(probabilities, labels)
    likely = confident_class(p, thresholds(p, given))
    flagged = (likely >= 0) & (likely != given)
    return flagged, np.where(flagged, likely, given)


def label_score(probabilities: ArrayLike, labels: ArrayLike, score: Score, matrix: ArrayLike | None = None) -> Floats:
    """How suspicious each label is, `[N]` from 0 to 1, by name.

    Args:
        probabilities: `[N, C]`, out of sample.
        labels: given classes `[N]`.
        score: "posterior" (1 − posterior of the given class; needs `matrix`), "normalised_margin" (p of the likeliest
            other class minus p of the given one, brought to 0..1), "self_confidence" (1 − p of the given class) or
            "adjusted_margin" (the margin of p minus the class's threshold).
        matrix: `[C, C]`, p(given | true).

    Raises:
        ConfigError: an unknown score, or no matrix for the posterior.
    """
    if score not in SCORES:
        raise ConfigError(unknown_name("score", score, SCORES))
    p, given = checked(probabilities, labels)
    rows = np.arange(len(given))
    if score == "posterior":
        if matrix is None:
            raise ConfigError("the score 'posterior' needs a noise matrix: pass estimate_noise(...).matrix")
        return np.asarray(1 - label_posterior(p, given, matrix)[rows, given])
    if score == "self_confidence":
        return np.asarray(1 - p[rows, given])
    limits = thresholds(p, given)
    # A class that is never given has no threshold: it cannot be the one that a label should have been.
    values = p if score == "normalised_margin" else p - np.where(np.isfinite(limits), limits, 1.0)
    own = values[rows, given]
    others = values.copy()
    others[rows, given] = -np.inf
    margin = others.max(1) - own
    return np.asarray((margin + 1) / 2 if score == "normalised_margin" else (margin + 2) / 4)
