"""Arbitration: judges and the posterior in turns, until they agree on who is wrong, the teacher or the label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from limbeck.arbitration import model
from limbeck.arbitration.judge import CrossFit, Judge, as_judge, evidence_data
from limbeck.arbitration.model import Fit, Floats, Integers
from limbeck.arbitration.result import Arbitration, Judged
from limbeck.arbitration.strata import protected_rows, strata_of
from limbeck.errors import ConfigError, unknown_name
from limbeck.teachers import as_teacher
from limbeck.training import derive_seed

if TYPE_CHECKING:
    from limbeck.data import Data

NOISES = ("shared", "per_group")
GAMMA_START, GAMMA_STEP = 0.5, 0.15
"""The judge's balance by round: flattening all cells at once, under noise, fills the rare ones with wrong labels."""
START_DIAGONAL = 0.7
RATES = tuple(np.round(np.concatenate([np.arange(0, 0.3, 0.02), np.arange(0.3, 0.71, 0.05)]), 3).tolist())
PROFILED = 4_000
"""Samples that the profile of the noise rate is taken on, at most."""
NATS = 1.92
"""Half the .95 quantile of χ² with one degree of freedom: how far a log likelihood may fall inside an interval."""
WIDE = 0.15
ANCHOR = 0.9


def arbitrate(
    data: Data,
    teacher: Any = None,
    *,
    attribute: Any = None,
    judge: str | Judge | Callable[[], nn.Module] = "auto",
    features: Any = None,
    folds: int = 2,
    rounds: int = 5,
    gamma: float = 0.7,
    noise: str = "shared",
    repeats: int = 2,
    bootstrap: int = 20,
    protect: Mapping[str, float] | Sequence[str] | None = None,
    tolerance: float = 0.01,
    seed: int = 0,
) -> Arbitration:
    """What the true class of every training sample is, and how sure that is.

    First judges learn the given labels, as if all were right. Then targets start from the label shares of each value
    of the attribute, unmixed by a rough noise, and in every round judges, in folds, learn the present targets with the
    cells (attribute, class) made more even; what they say of the samples that they have not seen, without the prior
    that they were trained under, is the evidence; its scale and the noise matrix have the largest marginal likelihood.
    The round is kept under which the given labels of unseen samples are likeliest; unless it explains them better than
    that all labels are right, by two standard errors, nothing is corrected. Validation samples are judged too; test
    samples are never looked at.

    Args:
        data: with training samples.
        teacher: whose features the judge stands on, with judge="teacher"; not needed otherwise.
        attribute: what the label may be tied to: a name, several for their product, numbers `[N]` that do not depend
            on the label, or None for what the declared groups are made of besides the label.
        judge: a basis (`auto`, `raw`, `features`, `teacher`), a `Judge`, or a function that builds its network.
        features: `[N, D]`, for the basis `features`.
        folds: of the cross-fitting.
        rounds: at most; fewer where the posterior stops moving.
        gamma: how far the weights even out the cells (attribute, class), 0 to 1; .7 was good throughout.
        noise: `shared`, or `per_group` for a matrix of each value of the attribute, shrunk to the shared one.
        repeats: divisions into folds in the last round; their evidence is averaged.
        bootstrap: replicates behind the spread of posterior, noise and scale.
        protect: classes or groups by name, with the share of them that may be corrected; a list stands for 0.
        tolerance: mean total variation between rounds below which it has converged.
        seed: of folds, judges and bootstrap.

    Returns:
        The posterior, the weights, the noise matrix, and what is known about how sure they are.

    Raises:
        LimbeckError: for what does not fit, before any training.
    """
    _check(rounds, gamma, noise, repeats, bootstrap)
    kept = np.flatnonzero(data.split < 2)
    strata = strata_of(data, attribute).take(kept)
    if features is not None:
        features = _at(features, len(data), kept)
    part = data.subset(kept)
    part.check(splits=("train",))
    seen, basis = evidence_data(part, as_judge(judge), None if teacher is None else as_teacher(teacher), features)
    court = CrossFit(seen, as_judge(judge), folds, seed, linear=basis == "teacher")
    run = _Run(part, strata.index, len(strata.names), noise == "per_group", court)
    guarded = protected_rows(part.train, protect)
    history, converged = run.rounds(rounds, tolerance, repeats)
    target, held = run.fit.posterior, np.zeros(len(run.given), bool)
    for rows, cap in guarded.values():
        target, pinned = model.hold_back(target, run.given, rows, cap)
        held |= pinned
    counts = model.soft_counts(target, run.stratum, run.strata)
    spread, rates, scales = run.bootstrap(bootstrap, derive_seed(seed, "bootstrap"))
    profile = run.profile()
    train = part.train
    identifiable, reason = _identified(run, profile)
    return Arbitration(
        ids=train.ids,
        classes=tuple(map(str, data.classes)),
        given=run.given,
        attribute=strata.columns,
        strata=strata.names,
        stratum=run.stratum,
        log_evidence=run.best.evidence,
        posterior=run.fit.posterior,
        targets=target,
        spread=spread,
        prior=run.prior,
        counts=counts,
        noise=run.fit.noise,
        noise_by_stratum=run.fit.by_stratum,
        noise_rate=run.rate(run.fit),
        noise_rate_interval=_interval(rates) if run.noisy else (0.0, float(rates.max())),
        noise_rate_profile=profile,
        evidence_scale=run.fit.scale,
        evidence_scale_interval=_interval(scales),
        gamma=gamma,
        history=history,
        converged=converged,
        noise_gain=run.gain,
        identifiable=identifiable,
        reason=reason,
        basis=basis,
        protected={name: cap for name, (_, cap) in guarded.items()},
        held_back=held,
        validation=run.judged_validation(),
    )


def _check(rounds: int, gamma: float, noise: str, repeats: int, bootstrap: int) -> None:
    if noise not in NOISES:
        raise ConfigError(unknown_name("noise", noise, NOISES))
    if rounds < 1 or repeats < 1 or bootstrap < 2:
        raise ConfigError(
            f"arbitration needs a round, a division into folds and two replicates at least: found {rounds}, {repeats} "
            f"and {bootstrap}"
        )
    if not 0 <= gamma <= 1:
        raise ConfigError(f"gamma: found {gamma}, expected 0 (cells as they are) to 1 (all cells alike)")


def _at(features: Any, count: int, rows: Integers) -> Any:
    values = np.asarray(features)
    if values.ndim != 2 or len(values) != count:
        raise ConfigError(f"features have shape {list(values.shape)} for {count:,} samples: expected [N, D]")
    return values[rows]


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class _Round:
    """What was learned and found in one round.

    Attributes:
        target: what the judges learned, a `[n, C]` of the round before.
        gamma: how far its cells were made even.
        prior: p(k|s) of it `[S, C]`.
        evidence: of the judges `[n, C]`, the mean over `evidences`.
        evidences: one a division into folds.
        validation: evidence of the validation samples `[m, C]`.
        found: scale, noise and posterior.
    """

    target: Floats
    gamma: float
    prior: Floats
    evidence: Floats
    evidences: list[Floats]
    validation: Floats | None
    found: Fit | None = None

    def fitted(self, found: Fit) -> _Round:
        """The round with its fit."""
        return replace(self, found=found)

    @property
    def fit(self) -> Fit:
        """The fit, once there is one."""
        assert self.found is not None
        return self.found


class _Run:
    """The state of the alternation."""

    def __init__(self, part: Data, stratum: Integers, strata: int, per_stratum: bool, court: CrossFit) -> None:
        training = part.split == 0
        self.part, self.court, self.strata, self.classes = part, court, strata, part.num_classes
        self.given, self.stratum = part.y[training], stratum[training]
        self.validation_given, self.validation_stratum = part.y[~training], stratum[~training]
        self.own: dict[str, Any] = {"stratum": self.stratum, "strata": strata} if per_stratum else {}
        self.noise = model.symmetric(self.classes, START_DIAGONAL)
        self.prior = model.first_prior(self.given, self.stratum, strata, self.classes, START_DIAGONAL)
        self.target = model.posterior(
            np.zeros((len(self.given), self.classes)), self.prior[self.stratum], self.noise, self.given
        )
        self.labels_right: _Round
        self.best: _Round
        self.gain: tuple[float, float]
        self.noisy: bool
        self.fit: Fit

    def rounds(self, rounds: int, tolerance: float, repeats: int) -> tuple[list[dict[str, Any]], bool]:
        """Alternate, and keep the round under which the labels are likeliest: also the one that takes them as right.

        Returns:
            The record of each round, and whether the posterior stopped moving.
        """
        self.noise = np.eye(self.classes)
        self.labels_right = self._with_labels_right()
        self.noise = model.symmetric(self.classes, START_DIAGONAL)
        history = [self._record(0, GAMMA_START, self.labels_right, None)]
        best: _Round | None = None
        for number in range(rounds):
            before, gamma = self.target, min(1.0, GAMMA_START + GAMMA_STEP * number)
            here = self._step(number, gamma)
            self.noise, self.target = here.fit.noise, here.fit.posterior
            history.append(self._record(number + 1, gamma, here, before))
            if best is None or here.fit.likelihood > best.fit.likelihood:
                best = here
            # Small steps say nothing before cells are even: a rare class hardly shows in the mean.
            if (gamma == 1.0 and history[-1]["moved"] < tolerance) or (number >= 2 and self._gain(best)[0] < 0):
                break
        assert best is not None
        self.gain = self._gain(best)
        # No correction is the simpler outcome: it takes more than chance to leave it.
        self.noisy = self.gain[0] > 2 * self.gain[1]
        self.best = self._repeated(best, repeats) if self.noisy else self.labels_right
        self.fit, self.prior, self.noise = self.best.fit, self.best.prior, self.best.fit.noise
        return history, not self.noisy or history[-1]["moved"] < 2 * tolerance

    def _with_labels_right(self) -> _Round:
        """Judges of the given labels themselves."""
        given = np.eye(self.classes)[self.given]
        here = self._judged(given, GAMMA_START, "labels", 0)
        return here.fitted(model.without_noise(here.evidence, here.prior[self.stratum], self.given))

    def _step(self, number: int, gamma: float) -> _Round:
        here = self._judged(self.target, gamma, f"round {number}", 0)
        return here.fitted(model.fit(here.evidence, here.prior[self.stratum], self.given, self.noise, **self.own))

    def _judged(self, target: Floats, gamma: float, name: str, partition: int) -> _Round:
        counts = model.soft_counts(target, self.stratum, self.strata)
        weights = model.balanced_weights(target, counts, self.stratum, gamma)
        learned = np.log(model.trained_under(counts, gamma))
        logs, validation = self.court.log_probabilities(weights, name, partition)
        beside = None if validation is None else validation - learned[self.validation_stratum]
        evidence = logs - learned[self.stratum]
        return _Round(target, gamma, self._prior(), evidence, [evidence], beside)

    def _prior(self) -> Floats:
        """p(k|s) as the given labels have it once the noise is taken out of them, plus one sample a cell.

        Not the shares of the posterior: those lose a rare class a little in every round, until it is gone.
        """
        given = model.soft_counts(np.eye(self.classes)[self.given], self.stratum, self.strata, pseudo=model.TINY)
        samples = given.sum(axis=1, keepdims=True)
        return model.normalised(model.unmix(given / samples, self.noise) * samples + 1)

    def _repeated(self, best: _Round, repeats: int) -> _Round:
        """The round again with other divisions into folds; their evidence is averaged."""
        every = [best]
        for repeat in range(1, repeats):
            every.append(self._judged(best.target, best.gamma, f"repeat {repeat}", repeat))
        evidence = np.mean([one.evidence for one in every], axis=0)
        validation = [one.validation for one in every if one.validation is not None]
        merged = _Round(
            best.target,
            best.gamma,
            best.prior,
            evidence,
            [one.evidence for one in every],
            np.mean(validation, axis=0) if validation else None,
        )
        start = best.fit.noise
        return merged.fitted(model.fit(evidence, best.prior[self.stratum], self.given, start, **self.own))

    def _gain(self, best: _Round) -> tuple[float, float]:
        """By how many nats noise explains the labels better than that all are right, and its standard error."""
        gains = best.fit.log_likelihood - self.labels_right.fit.log_likelihood
        return float(gains.sum()), float(np.sqrt(len(gains)) * gains.std())

    def _record(self, number: int, gamma: float, here: _Round, before: Floats | None) -> dict[str, Any]:
        now = here.fit.posterior
        return {
            "round": number,
            "hypothesis": "labels are right" if before is None else "labels are noisy",
            "gamma": gamma,
            "likelihood": here.fit.likelihood,
            "noise_rate": self.rate(here.fit),
            "evidence_scale": here.fit.scale,
            "moved": None if before is None else float(np.abs(now - before).sum(axis=1).mean() / 2),
            "corrected": float((now.argmax(axis=1) != self.given).mean()),
        }

    def rate(self, fit: Fit) -> float:
        """The expected share of wrong labels among the training samples."""
        return float(1 - fit.posterior[np.arange(len(self.given)), self.given].mean())

    def bootstrap(self, replicates: int, seed: int) -> tuple[Floats, Floats, Floats]:
        """Spread of the posterior `[n, C]`, and noise rate and scale of each replicate (Bayesian bootstrap).

        Samples are weighed anew and one of the judges' divisions is drawn; judges are not trained again.
        """
        rng = np.random.default_rng(seed)
        near = model.SCALES.index(self.fit.scale)
        scales = model.SCALES[max(near - 1, 0) : near + 2]
        total, squares = np.zeros_like(self.target), np.zeros_like(self.target)
        rates, found = [], []
        for _ in range(replicates):
            evidence = self.best.evidences[int(rng.integers(len(self.best.evidences)))]
            weights = rng.exponential(size=len(self.given))
            fit = model.fit(
                evidence,
                self.prior[self.stratum],
                self.given,
                self.noise if self.noisy else model.symmetric(self.classes, 0.9),
                weights=weights,
                scales=scales,
                steps=10,
                **self.own,
            )
            total += fit.posterior
            squares += fit.posterior**2
            kept = fit.posterior[np.arange(len(self.given)), self.given]
            rates.append(1 - weights @ kept / weights.sum())
            found.append(fit.scale)
        mean = total / replicates
        spread = np.sqrt(np.maximum(squares / replicates - mean**2, 0) * replicates / (replicates - 1))
        return spread, np.array(rates), np.array(found)

    def profile(self) -> list[tuple[float, float]]:
        """(noise rate, log likelihood below the best one in nats) with scale and prior free."""
        rows = np.arange(len(self.given))
        if len(rows) > PROFILED:
            rows = np.random.default_rng(0).choice(rows, PROFILED, replace=False)
        values = model.rate_profile(
            self.best.evidence[rows],
            self.stratum[rows],
            self.strata,
            self.given[rows],
            self.fit,
            RATES,
            prior=self.prior,
            steps=6,
        )
        below = (values.max() - values) * len(self.given)
        return [(rate, float(value)) for rate, value in zip(RATES, below, strict=True)]

    def judged_validation(self) -> Judged | None:
        """The validation samples under the same model; their labels may be as noisy, less, or clean."""
        if self.best.validation is None:
            return None
        evidence, given, stratum = self.best.validation, self.validation_given, self.validation_stratum
        ids, q = self.part.validation.ids, model.softmax(self.fit.scale * evidence + np.log(self.prior[stratum]))
        if not self.noisy:
            return Judged(ids, given, stratum, np.eye(self.classes)[given], q, np.eye(self.classes), 1.0)
        rate = model.noise_rate(self.fit.noise)
        shares, likelihoods = (0.0, 0.25, 0.5, 0.75, 1.0), []
        for share in shares:
            matrix = model.with_rate(self.fit.noise, share * rate)
            likelihoods.append(float(np.log(np.maximum((q * model.columns(matrix, given)).sum(axis=1), 1e-12)).sum()))
        best = int(np.argmax(likelihoods))
        # As noisy as training, unless the labels say otherwise.
        share = shares[best] if likelihoods[best] > likelihoods[-1] + NATS else 1.0
        matrix = self.fit.noise if share == 1.0 else model.with_rate(self.fit.noise, share * rate)
        found = model.posterior(evidence, self.prior[stratum], matrix, given, self.fit.scale)
        return Judged(ids, given, stratum, found, q, matrix, share)


def _identified(run: _Run, profile: Sequence[tuple[float, float]]) -> tuple[bool, str]:
    """Whether the labels tell how many of them are wrong, and a sentence why."""
    gain, error = run.gain
    ahead = f"noise is ahead by {gain:.0f} ± {error:.0f} nats"
    if not run.noisy:
        if gain < -2 * error:
            return True, f"that all labels are right explains them better than noise does ({ahead})"
        why = "; two classes leave noise weakly identified" if run.classes == 2 else ""
        return False, f"the labels do not tell whether some are wrong ({ahead}), so none is corrected{why}"
    inside = [rate for rate, below in profile if below <= NATS]
    low, high = (min(inside), max(inside)) if inside else (run.rate(run.fit),) * 2
    range_text = f"noise rates of {low:.2f} to {high:.2f} explain the labels about as well"
    strongest = np.sort(run.fit.class_probability, axis=0)[-min(10, len(run.given)) :].min(axis=0)
    weak = [str(run.part.classes[k]) for k in np.flatnonzero(strongest < ANCHOR)]
    if run.classes == 2:
        return False, (
            "two classes leave the noise matrix weakly identified: a judge less sure of itself explains the labels as "
            f"well as a noisier label does ({range_text}, given these judges)"
        )
    if weak:
        return False, (
            f"no sample is surely of class {', '.join(weak[:5])} (less than {ANCHOR} for all but nine): without such "
            "anchors unsure inputs and noisy labels look alike, so the noise is an upper bound"
        )
    if high - low > WIDE:
        return False, f"the noise rate is loosely determined: {range_text}"
    return True, f"every class has samples that are surely of it; {range_text}"
