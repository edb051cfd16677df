"""The model of arbitration: the shortcut is a prior, the input is the evidence, a matrix ties the label to the truth.

An attribute s, the true class y ~ p(y|s), the input x given y, and the given label ỹ ~ N(·|y), independent of x and s
given y. What is known of the truth of one sample is then

    a_i(k) ∝ e_i(k)^scale · t_i(k)^trust · p(k|s_i) · N[k, ỹ_i]

with e_i(k) the evidence of a judge that has not learned the shortcut and t_i(k) that of a teacher, where there is one
to be heard: what it says beyond what it says of everybody with the same attribute. Everything here is a pure function
of float64 arrays; nothing trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import DataError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SCALES = (0.125, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
"""Where the scale of the evidence is looked for."""
TRUSTS = (0.0, 0.15, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4)
"""Where the trust in a teacher is looked for; 0 does not hear it."""
BLUNT = 0.01
"""Mixed with even odds into what a teacher says: no teacher is surer than this."""
FEW = 10.0
"""Samples of the whole that a stratum's mean testimony is shrunk by."""
PSEUDO = 0.5
"""Added to each entry of the expected table (true, given) before it is normalised to N."""
TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Fit:
    """The scale of the evidence, the trust in the teacher and the noise matrix of the largest marginal likelihood.

    Attributes:
        scale: of the log evidence.
        trust: of the teacher's, 0 without one.
        noise: `[C, C]`, row the true class, column the given one.
        by_stratum: `[S, C, C]`, or None where one matrix serves all.
        class_probability: q `[n, C]`, before the label is looked at.
        posterior: a `[n, C]`.
        log_likelihood: log Σ_k q_i(k) N[k, ỹ_i] of each sample `[n]`, nats.
        likelihood: its (weighted) mean.
    """

    scale: float
    trust: float
    noise: Floats
    by_stratum: Floats | None
    class_probability: Floats
    posterior: Floats
    log_likelihood: Floats
    likelihood: float

    @property
    def matrix(self) -> Floats:
        """What the labels are judged by: `by_stratum` where there is one, else `noise`."""
        return self.noise if self.by_stratum is None else self.by_stratum

    def combined(self, log_evidence: Floats, witness: Floats | None) -> Floats:
        """All that is known before attribute and label: scale·log e + trust·log t `[n, C]`."""
        judged = self.scale * log_evidence
        return judged if witness is None else np.asarray(judged + self.trust * witness)


def softmax(values: Floats) -> Floats:
    """Softmax over the last axis."""
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def normalised(values: Floats) -> Floats:
    """Rows (of the last axis) that sum to 1."""
    return np.asarray(values / values.sum(axis=-1, keepdims=True))


def symmetric(classes: int, diagonal: float) -> Floats:
    """A matrix that keeps a class with probability `diagonal` and takes every other one alike."""
    return np.full((classes, classes), (1 - diagonal) / (classes - 1)) + np.eye(classes) * (
        diagonal - (1 - diagonal) / (classes - 1)
    )


def posterior(log_evidence: Floats, prior: Floats, noise: Floats, given: Integers, scale: float = 1.0) -> Floats:
    """a_i(k) ∝ e_i(k)^scale · p_i(k) · N_i[k, ỹ_i].

    Args:
        log_evidence: log e `[n, C]`, up to a constant a row.
        prior: p(k|s_i) of each sample `[n, C]`.
        noise: `[C, C]`, or one a sample `[n, C, C]`.
        given: ỹ `[n]`.
        scale: of the log evidence.

    Returns:
        `[n, C]`, rows sum to 1.
    """
    with np.errstate(divide="ignore"):  # what is impossible stays so, whatever the evidence
        return softmax(scale * log_evidence + np.log(prior) + np.log(columns(noise, given)))


def columns(noise: Floats, given: Integers, stratum: Integers | None = None) -> Floats:
    """N[k, ỹ_i] for every sample and class, `[n, C]`; of `[S, C, C]` that of each sample's stratum."""
    if noise.ndim == 3:
        return np.asarray(noise[np.arange(len(given)) if stratum is None else stratum, :, given])
    return np.asarray(noise[:, given].T)


def soft_counts(weights: Floats, stratum: Integers, strata: int, pseudo: float = 1.0) -> Floats:
    """n(s, k) = Σ_i weights_i(k) + pseudo over the samples of stratum s, `[S, C]`."""
    counts = np.full((strata, weights.shape[1]), pseudo)
    np.add.at(counts, stratum, weights)
    return counts


def balanced_weights(target: Floats, counts: Floats, stratum: Integers, gamma: float) -> Floats:
    """W_i(k) = a_i(k)·(mean n / n(s_i, k))^γ, scaled to one a sample on average.

    Flattens the soft table of (stratum, class) by the power γ: 0 leaves it as it is, 1 gives every cell the same mass.

    Args:
        target: a `[n, C]`.
        counts: n `[S, C]`.
        stratum: s `[n]`.
        gamma: γ, 0 to 1.
    """
    weights = target * ((counts.mean() / counts) ** gamma)[stratum]
    return np.asarray(weights * (len(target) / weights.sum()))


def unmix(shares: Floats, noise: Floats, steps: int = 200) -> Floats:
    """Class shares π with Nᵀπ nearest to the observed shares in KL divergence, by EM.

    Args:
        shares: of given labels `[..., C]`, rows sum to 1.
        noise: `[C, C]`.
        steps: of EM.
    """
    found = np.full_like(shares, 1 / shares.shape[-1])
    for _ in range(steps):
        found = normalised(found * ((shares / np.maximum(found @ noise, TINY)) @ noise.T) + TINY)
    return found


def expected_noise(
    class_probability: Floats,
    given: Integers,
    start: Floats,
    *,
    stratum: Integers | None = None,
    strata: int = 1,
    tied: bool = False,
    shrinkage: float = 100.0,
    weights: Floats | None = None,
    steps: int = 30,
    pseudo: float = PSEUDO,
) -> tuple[Floats, Floats | None]:
    """The noise matrix by EM, with what each sample is before its label is looked at held fixed.

    A stratum's matrix is the mode under a Dirichlet prior centred on the pooled one and worth `shrinkage` samples of
    each class: where a stratum has few samples of a class, it says what all say. Tied, strata differ only in how many
    of their labels are wrong: each has the pooled matrix with its rates times one number.

    Args:
        class_probability: q `[n, C]`.
        given: ỹ `[n]`.
        start: `[C, C]`.
        stratum: `[n]`, where every stratum has its own matrix.
        strata: how many.
        tied: one number a stratum, not a matrix.
        shrinkage: samples of a class that the pooled matrix is worth.
        weights: of samples `[n]`, for a bootstrap.
        steps: of EM.
        pseudo: added to each entry.

    Returns:
        N `[C, C]`, and `[S, C, C]` or None.
    """
    classes = class_probability.shape[1]
    mass = np.ones(len(given)) if weights is None else weights
    labels = np.eye(classes)[given] * mass[:, None]
    noise, own = start, None if stratum is None else np.repeat(start[None], strata, axis=0)
    times = np.ones(strata)
    for _ in range(steps):
        likely = columns(noise if own is None else own, given, stratum)
        joint = class_probability * likely
        joint = joint / np.maximum(joint.sum(axis=1, keepdims=True), TINY)
        noise = normalised(joint.T @ labels + pseudo)
        if stratum is not None and tied:
            members, wrong = np.zeros((2, strata, classes))
            np.add.at(members, stratum, joint * mass[:, None])
            np.add.at(wrong, stratum, joint * (mass[:, None] - labels))
            # By turns: rates of the classes given the strata's factors, and these given the rates.
            rates = (wrong.sum(axis=0) + pseudo) / (times @ members + 2 * pseudo)
            times = (wrong.sum(axis=1) + pseudo) / (members @ rates + pseudo)
            own = mixed(noise, times[:, None] * rates)
        elif stratum is not None:
            tables = np.stack([joint[stratum == s].T @ labels[stratum == s] for s in range(strata)])
            own = normalised(tables + shrinkage * noise)
    return noise, own


def testimony(probabilities: Floats, training: NDArray[np.bool_], stratum: Integers, strata: int) -> Floats:
    """log t `[N, C]`: what a teacher says of a sample beyond what it says of its stratum as a whole.

    A teacher that only repeats the attribute then says nothing, and one that knows too few of a group says no more
    against it than against others.

    Args:
        probabilities: of the teacher `[N, C]`.
        training: which samples the strata are measured on `[N]`.
        stratum, strata: s `[N]` and how many.
    """
    classes = probabilities.shape[1]
    said = (1 - BLUNT) * probabilities + BLUNT / classes
    everybody = said[training].mean(axis=0)
    # As if every stratum had a few samples more, of the whole.
    sums = np.repeat(FEW * everybody[None], strata, axis=0)
    np.add.at(sums, stratum[training], said[training])
    return np.asarray(np.log(said) - np.log(normalised(sums))[stratum])


def fit(
    log_evidence: Floats,
    prior: Floats,
    given: Integers,
    start: Floats | None,
    *,
    witness: Floats | None = None,
    stratum: Integers | None = None,
    strata: int = 1,
    tied: bool = False,
    weights: Floats | None = None,
    scales: Sequence[float] = SCALES,
    trusts: Sequence[float] = TRUSTS,
    steps: int = 30,
) -> Fit:
    """Scale, trust and noise by marginal likelihood: EM for N inside, grids for scale and trust in turns.

    Σ_i log Σ_k softmax(scale·log e_i + trust·log t_i + log p_i)_k N[k, ỹ_i] is made largest. Without a start all labels
    are right: N is the identity, and the posterior is the label. Other arguments as for `posterior` and
    `expected_noise`.

    Args:
        witness: log t `[n, C]` (`testimony`), or None.
        scales, trusts: where they are looked for.
    """
    if not scales:
        raise DataError("the scale of the evidence is looked for among no values: give at least one")
    mass = np.ones(len(given)) if weights is None else weights
    log_prior = np.log(np.maximum(prior, TINY))
    tried: dict[tuple[float, float], Fit] = {}

    def at(scale: float, trust: float) -> Fit:
        if (scale, trust) not in tried:
            said = scale * log_evidence + log_prior
            q = softmax(said if witness is None or trust == 0 else said + trust * witness)
            if start is None:
                noise, own, joint = np.eye(q.shape[1]), None, q * np.eye(q.shape[1])[given]
            else:
                noise, own = expected_noise(
                    q, given, start, stratum=stratum, strata=strata, tied=tied, weights=weights, steps=steps
                )
                joint = q * columns(noise if own is None else own, given, stratum)
            total = np.maximum(joint.sum(axis=1), TINY)
            logs = np.log(total)
            found = np.eye(q.shape[1])[given] if start is None else joint / total[:, None]
            tried[scale, trust] = Fit(scale, trust, noise, own, q, found, logs, float(mass @ logs / mass.sum()))
        return tried[scale, trust]

    best = max((at(scale, 0.0 if witness is None else trusts[0]) for scale in scales), key=_likelihood)
    while witness is not None:
        before = best
        best = max((best, *(at(best.scale, trust) for trust in trusts)), key=_likelihood)
        best = max((best, *(at(scale, best.trust) for scale in scales)), key=_likelihood)
        if best is before:
            break
    return best


def _likelihood(found: Fit) -> float:
    return found.likelihood


def without_noise(
    log_evidence: Floats,
    prior: Floats,
    given: Integers,
    scales: Sequence[float] = SCALES,
    *,
    witness: Floats | None = None,
) -> Fit:
    """The fit where every label is right: N is the identity, the posterior is the label, scale and trust are free."""
    return fit(log_evidence, prior, given, None, witness=witness, scales=scales)


def log_likelihood(class_probability: Floats, likely: Floats) -> Floats:
    """log Σ_k q_i(k) N[k, ỹ_i] of each sample, nats `[n]`, of q `[n, C]` and what `columns` says."""
    return np.asarray(np.log(np.maximum((class_probability * likely).sum(axis=1), TINY)))


def noise_rate(noise: Floats, shares: Floats | None = None) -> float:
    """The share of wrong labels where classes count alike; of `[S, C, C]` the mean, strata by their shares `[S]`."""
    rates = 1 - np.diagonal(noise, axis1=-2, axis2=-1).mean(axis=-1)
    return float(rates.mean() if shares is None or noise.ndim == 2 else rates @ shares)


def with_rate(noise: Floats, rate: float, shares: Floats | None = None) -> Floats:
    """The matrix whose wrong labels go where those of `noise` go, but whose mean rate is another one, `[C, C]`.

    Rows keep their rates' proportions; so do several matrices `[S, C, C]`, whose strata have these `shares`. No row is
    wrong more often than always: where that cuts one, the mean stays below the rate.
    """
    if noise.ndim == 2:
        rows = 1 - np.diagonal(noise)
        share = rows / rows.mean() if rows.mean() > 1e-6 else np.ones(len(noise))
        return np.asarray(mixed(noise, rate * share[None])[0])
    mean = noise_rate(noise, shares)
    rates = [rate * noise_rate(one) / mean if mean > TINY else rate for one in noise]
    return np.stack([with_rate(one, own) for one, own in zip(noise, rates, strict=True)])


def mixed(noise: Floats, rates: Floats) -> Floats:
    """Matrices `[S, C, C]` whose classes are wrong at these rates `[S, C]`, and then go where those of `noise` go."""
    classes = len(noise)
    off = noise * (1 - np.eye(classes))
    rows = off.sum(axis=1)
    pattern = np.where(rows[:, None] > TINY, off / np.maximum(rows[:, None], TINY), symmetric(classes, 0.0))
    wanted = np.clip(rates, 0.0, 0.999)
    return np.asarray((1 - wanted)[:, :, None] * np.eye(classes) + wanted[:, :, None] * pattern)


def rate_profile(
    log_evidence: Floats,
    stratum: Integers,
    strata: int,
    given: Integers,
    found: Fit,
    rates: Sequence[float],
    *,
    prior: Floats,
    scales: Sequence[float] = SCALES,
    steps: int = 20,
) -> Floats:
    """Mean log likelihood for each noise rate, with scale and prior p(k|s) free to make up for it, `[R]`.

    What can be made up for is not identified: a flat profile says that the labels do not tell this rate from that one.

    Args:
        log_evidence: `[n, C]`.
        stratum, strata: s `[n]` and how many.
        given: `[n]`.
        found: the best fit, whose pattern of wrong labels is kept.
        rates: mean rates of wrong labels.
        prior: p(k|s) to begin with, `[S, C]`.
        scales: of the evidence.
        steps: of EM for the prior.
    """
    profile, shares = [], np.bincount(stratum, minlength=strata) / len(stratum)
    for rate in rates:
        likely = columns(with_rate(found.matrix, rate, shares), given, stratum)
        best = -np.inf
        for scale in scales:
            boost, here = np.exp(scale * (log_evidence - log_evidence.max(axis=1, keepdims=True))), prior
            for _ in range(steps):
                weighted = boost * here[stratum]
                q = weighted / weighted.sum(axis=1, keepdims=True)
                joint = q * likely
                total = joint.sum(axis=1, keepdims=True)
                here = normalised(soft_counts(joint / np.maximum(total, TINY), stratum, strata, pseudo=1.0))
            best = max(best, float(np.log(np.maximum(total, TINY)).mean()))
        profile.append(best)
    return np.array(profile)


def candidates(target: Floats, mass: float = 0.9) -> NDArray[np.bool_]:
    """The smallest set of classes of each sample that holds `mass` of its posterior, bool `[n, C]`: a partial label."""
    order = np.argsort(-target, axis=1, kind="stable")
    ordered = np.take_along_axis(target, order, axis=1)
    before = np.cumsum(ordered, axis=1) - ordered
    chosen = np.zeros(target.shape, bool)
    np.put_along_axis(chosen, order, before < mass - TINY, axis=1)
    return chosen


def hold_back(
    target: Floats, given: Integers, protected: NDArray[np.bool_], cap: float
) -> tuple[Floats, NDArray[np.bool_]]:
    """Keep what is moved away from given labels, in a protected set, within a share of it.

    The surest corrections come first, until the mass that they move is `cap` times the size of the set; the other
    samples of the set keep their given label.

    Args:
        target: a `[n, C]`.
        given: ỹ `[n]`.
        protected: bool `[n]`.
        cap: share, 0 to 1.

    Returns:
        New targets `[n, C]`, and which samples were held back though something else was likelier, bool `[n]`.
    """
    rows = np.flatnonzero(protected)
    moved = 1 - target[rows, given[rows]]
    order = np.argsort(-moved, kind="stable")
    allowed = np.cumsum(moved[order]) <= cap * len(rows) + TINY
    pinned = rows[order[~allowed]]
    changed = target.copy()
    changed[pinned] = np.eye(target.shape[1])[given[pinned]]
    held = np.zeros(len(target), bool)
    held[pinned] = target[pinned].argmax(axis=1) != given[pinned]
    return changed, held
