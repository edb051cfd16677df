"""What arbitration found, and how sure it is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.arbitration import model
from limbeck.arbitration.model import Floats, Integers
from limbeck.errors import DataError

FLAT = 0.6
"""A posterior whose largest entry is below this names no class."""
HEAVIEST = 50.0
"""Times the mean weight that one sample has at most."""


@dataclass(frozen=True, eq=False)
class Judged:
    """The posterior of samples that no judge was trained on.

    Attributes:
        ids: `[m]`.
        given: `[m]`.
        stratum: `[m]`.
        noise_stratum: `[m]`, of the `noise_strata`.
        posterior: `[m, C]`.
        before: what the judges and the attribute say before the label is looked at `[m, C]`.
        noise: N as it holds for these labels `[C, C]`, or of each of the `noise_strata` `[S, C, C]`.
        noise_share: their noise rate over that of the training labels: 1 where nothing speaks against it, 0 for clean.
    """

    ids: Integers
    given: Integers
    stratum: Integers
    noise_stratum: Integers
    posterior: Floats
    before: Floats
    noise: Floats
    noise_share: float


@dataclass(frozen=True, eq=False)
class Arbitration:
    """Who is wrong, the teacher or the label: a posterior over the true class of every training sample.

    Attributes:
        ids: of the training samples `[n]`.
        classes: C names.
        given: ỹ `[n]`.
        attribute: the columns whose product the strata are; none where none is known.
        attribute_found: whether the strata were found, the class that a network learns first: then `stratum`, `prior`
            and `counts` are about them, noise and posterior are not.
        strata: names of the S values of the attribute.
        stratum: s `[n]`.
        log_evidence: log e `[n, C]`, before it is scaled.
        posterior: a `[n, C]`.
        targets: the posterior after protection `[n, C]`: what a student is told.
        spread: standard deviation of the posterior over bootstrap replicates and divisions into folds `[n, C]`.
        prior: p(k|s) `[S, C]`.
        counts: expected samples n(s, k) `[S, C]`, plus 1.
        noise: N `[C, C]`, row the true class.
        noise_by_stratum: one of each of the `noise_strata` `[S, C, C]`, or None where one matrix serves all.
        noise_strata: the strata, or where no attribute is known the two sides of a threshold in one feature.
        noise_stratum: which of them `[n]`.
        noise_rate: expected share of wrong labels.
        noise_rate_interval: 95 % over the bootstrap.
        noise_rate_profile: (rate, nats below the best) where scale and prior may make up for the rate.
        evidence_scale: the scale of the evidence.
        evidence_scale_interval: 95 % over the bootstrap.
        trust: in what the teacher says beyond its stratum; 0 where it is not heard.
        teacher: whether a teacher was heard, and why not.
        gamma: γ of `weights`.
        history: one record a hypothesis, the first that all labels are right: mean log likelihood, noise rate, scale,
            trust, how far the posterior moved.
        converged: whether it stopped moving.
        noise_gain: by how many nats noise explains the labels better than that all are right, and its standard error.
        identifiable: whether the labels tell how many of them are wrong.
        reason: why, or why not.
        basis: what the judge stood on.
        protected: the share that may be corrected of each protected class or group.
        held_back: `[n]` bool, samples that keep their label only because they are protected.
        validation: the validation samples, where there are any.
    """

    ids: Integers
    classes: tuple[str, ...]
    given: Integers
    attribute: tuple[str, ...]
    attribute_found: bool
    strata: tuple[str, ...]
    stratum: Integers
    log_evidence: Floats
    posterior: Floats
    targets: Floats
    spread: Floats
    prior: Floats
    counts: Floats
    noise: Floats
    noise_by_stratum: Floats | None
    noise_strata: tuple[str, ...]
    noise_stratum: Integers
    noise_rate: float
    noise_rate_interval: tuple[float, float]
    noise_rate_profile: list[tuple[float, float]]
    evidence_scale: float
    evidence_scale_interval: tuple[float, float]
    trust: float
    teacher: str
    gamma: float
    history: list[dict[str, Any]]
    converged: bool
    noise_gain: tuple[float, float]
    identifiable: bool
    reason: str
    basis: str
    protected: dict[str, float] = field(default_factory=dict)
    held_back: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    validation: Judged | None = None

    @property
    def weights(self) -> Floats:
        """W `[n, C]`: the targets with the cells (attribute, class) made more even by γ; one a sample on average."""
        return self.balanced(self.gamma)

    def balanced(self, gamma: float) -> Floats:
        """W `[n, C]` for another γ."""
        return model.balanced_weights(self.targets, self.counts, self.stratum, gamma)

    def student_targets(self, gamma: float | None = None, heaviest: float = HEAVIEST) -> tuple[Floats, Floats]:
        """What a student learns and how often it should see it.

        Args:
            gamma: another γ than that of arbitration.
            heaviest: times the mean that a sample's weight is at most.

        Returns:
            Targets `[n, C]` whose rows sum to 1, and sampling weights ΣW `[n]`.
        """
        weights = self.balanced(self.gamma if gamma is None else gamma)
        mass = weights.sum(axis=1)
        return np.asarray(weights / mass[:, None]), np.minimum(mass, heaviest)

    @property
    def noise_rates(self) -> dict[str, float]:
        """The expected share of wrong labels in each of the `noise_strata`; empty where one matrix serves all."""
        if self.noise_by_stratum is None:
            return {}
        wrong = 1 - self.posterior[np.arange(len(self.given)), self.given]
        size, index = len(self.noise_strata), self.noise_stratum
        means = np.bincount(index, wrong, size) / np.maximum(np.bincount(index, minlength=size), 1)
        return dict(zip(self.noise_strata, means.tolist(), strict=True))

    @property
    def corrected(self) -> NDArray[np.bool_]:
        """Samples whose target is another class than the given one, `[n]`."""
        return np.asarray(self.targets.argmax(axis=1) != self.given)

    @property
    def uncertain(self) -> NDArray[np.bool_]:
        """Samples whose posterior names no class, `[n]`: for a partial label (`candidates`), or for review."""
        return np.asarray(self.posterior.max(axis=1) < FLAT)

    def candidates(self, mass: float = 0.9) -> NDArray[np.bool_]:
        """The classes that hold `mass` of the posterior, fewest first, bool `[n, C]`."""
        return model.candidates(self.posterior, mass)

    def select(self, ids: Any) -> Integers:
        """The rows of these ids.

        Raises:
            DataError: for an id that was not among the training samples.
        """
        wanted, order = np.asarray(ids, np.int64), np.argsort(self.ids)
        place = order[np.minimum(np.searchsorted(self.ids, wanted, sorter=order), len(order) - 1)]
        if (missing := wanted[self.ids[place] != wanted]).size:
            raise DataError(
                f"{len(missing):,} of {len(wanted):,} training samples were not arbitrated (first id {missing[0]}): "
                "run arbitrate on these data"
            )
        return place

    def fingerprint(self) -> str:
        """32 hexadecimal digits of what a student is told (BLAKE2b)."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.ids, self.targets, self.counts, self.stratum):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without what there is one of a sample but for ids to look at."""
        return {
            "samples": len(self.ids),
            "classes": list(self.classes),
            "attribute": list(self.attribute),
            "attribute_found": self.attribute_found,
            "strata": list(self.strata),
            "basis": self.basis,
            "noise": self.noise.tolist(),
            "noise_by_stratum": None
            if self.noise_by_stratum is None
            else dict(zip(self.noise_strata, self.noise_by_stratum.tolist(), strict=True)),
            "noise_rate": self.noise_rate,
            "noise_rates": self.noise_rates,
            "noise_rate_interval": list(self.noise_rate_interval),
            "noise_rate_profile": [list(entry) for entry in self.noise_rate_profile],
            "evidence_scale": self.evidence_scale,
            "evidence_scale_interval": list(self.evidence_scale_interval),
            "trust": self.trust,
            "teacher": self.teacher,
            "prior": self.prior.tolist(),
            "counts": self.counts.tolist(),
            "gamma": self.gamma,
            "history": [dict(record) for record in self.history],
            "converged": self.converged,
            "noise_gain": list(self.noise_gain),
            "identifiable": self.identifiable,
            "reason": self.reason,
            "corrected": int(self.corrected.sum()),
            "uncertain": int(self.uncertain.sum()),
            "uncertain_ids": self.ids[self.uncertain].tolist(),
            "protected": dict(self.protected),
            "held_back_ids": self.ids[self.held_back].tolist(),
            "validation_noise_share": None if self.validation is None else self.validation.noise_share,
        }

    def __repr__(self) -> str:
        low, high = self.noise_rate_interval
        attribute = "what is learned first" if self.attribute_found else " × ".join(self.attribute) or "unknown"
        apart = ", ".join(f"{name} {rate:.1%}" for name, rate in self.noise_rates.items())
        return "\n".join(
            [
                f"Arbitration of {len(self.ids):,} samples, {len(self.classes)} classes, attribute {attribute} "
                f"({len(np.unique(self.stratum))} values), judge on {self.basis}",
                f"  wrong labels: {self.noise_rate:.1%} ({low:.1%} to {high:.1%}), {int(self.corrected.sum()):,} "
                f"corrected, {int(self.uncertain.sum()):,} left open, {int(self.held_back.sum()):,} held back",
                *([f"  wrong by group: {apart}"] if apart else []),
                f"  {'converged' if self.converged else 'not converged'} in {len(self.history) - 1} rounds",
                f"  {self.reason}",
            ]
        )
