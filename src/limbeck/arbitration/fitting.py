"""Arbitration: under which noise are the given labels likeliest, and who is then wrong, the teacher or the label?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import chi2
from torch import nn

from limbeck.arbitration import model
from limbeck.arbitration.judge import CrossFit, Judge, as_judge, evidence_data
from limbeck.arbitration.model import Fit, Floats, Integers
from limbeck.arbitration.result import Arbitration, Judged
from limbeck.arbitration.strata import Strata, is_found, protected_rows, sides_by_loss, strata_of
from limbeck.errors import ConfigError, TeacherError, unknown_name
from limbeck.recipe import NOISES, SHORTCUTS, WITNESSES
from limbeck.teachers import Teacher, as_teacher, collect, require
from limbeck.training import derive_seed

if TYPE_CHECKING:
    from limbeck.data import Data

BY_HEART = "not heard: it has learned the training labels by heart; through its eyes those of validation are wronger"
STARTS = (0.9, 0.75, 0.6, 0.4)
"""Shares of right labels that the search for the noise begins from."""
HEART_SCALES, HEART_TRUSTS = (0.25, 0.5, 1.0), (0.0, 0.25, 0.5, 1.0)
HEART_RATES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
"""Where it is looked for whether validation labels are noisier through a teacher's eyes than training labels."""
NOISIER = 0.02
"""By how much at least."""
SURE = 0.01
"""About how often a teacher that has not learned them is taken for one that has (χ², a degree a rate)."""
LEARNED = 0.5
"""Of the labels that a judge names in the end, the share that what is learned first should name."""
LEAST_GAIN = 0.5
"""Nats by which another round must explain the labels better for yet another one."""
RATES = tuple(np.round(np.concatenate([np.arange(0, 0.3, 0.02), np.arange(0.3, 0.71, 0.05)]), 3).tolist())
PROFILED = 4_000
"""Samples that the profile of the noise rate is taken on, at most."""
NATS = 1.92
"""Half the .95 quantile of χ² with one degree of freedom: how far a log likelihood may fall inside an interval."""
CHANCE = 3.0
"""Standard errors by which little noise must be ahead of none, and rates of their own of one for all."""
LITTLE = 0.05
"""A share of wrong labels that is only believed where it is surely there."""
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
    noise: str = "auto",
    repeats: int = 2,
    bootstrap: int = 20,
    protect: Mapping[str, float] | Sequence[str] | None = None,
    tolerance: float = 0.01,
    witness: str = "auto",
    shortcut: str = "auto",
    seed: int = 0,
) -> Arbitration:
    """What the true class of every training sample is, and how sure that is.

    Hypotheses about the noise are tried one by one, the first that all labels are right. Under each, judges learn the
    given labels of some folds by the likelihood of the model (`limbeck.arbitration.judge`), and what they say of the
    samples that they have not seen is the evidence; its scale, the trust in a teacher and the noise matrix have the
    largest marginal likelihood. Then what was found best is tried again, as long as it gets better. The hypothesis is
    kept under which the given labels of unseen samples are likeliest; where that is that all are right, nothing is
    corrected. Validation samples are judged too; test samples are never looked at.

    Args:
        data: with training samples.
        teacher: a witness (see `witness`), and whose features the judge stands on, with judge="teacher".
        attribute: what the label may be tied to: a name, several for their product, numbers `[N]` that do not depend
            on the label, or None for what the declared groups are made of besides the label.
        judge: a basis (`auto`, `raw`, `features`, `teacher`), a `Judge`, or a function that builds its network.
        features: `[N, D]`, for the basis `features`.
        folds: of the cross-fitting.
        rounds: how often what was found is tried again, at most; fewer where labels get no likelier by it.
        gamma: how far the weights even out the cells (attribute, class), 0 to 1; .7 was good throughout.
        noise: `shared` for one matrix; `per_group` for one of each value of the attribute, shrunk to the shared one;
            `auto` for the shared one with a rate for each value, where labels are likelier by it than by chance, and
            else `shared`; where no attribute is known, with a rate for either side of a threshold in one feature, of
            which the three likeliest are tried.
        repeats: divisions into folds in the last round; their evidence is averaged.
        bootstrap: replicates behind the spread of posterior, noise and scale.
        protect: classes or groups by name, with the share of them that may be corrected; a list stands for 0.
        tolerance: mean total variation between rounds below which it has converged.
        witness: `auto` hears a teacher unless it has learned the training labels by heart, `always` hears it in any
            case, `never` does not.
        shortcut: what the cells that the weights even out are made of beside the class: `declared` has nothing where no
            attribute is named or declared, `found` takes the class that a network learns first, whatever is declared,
            `auto` takes that where none is named or declared. Noise and posterior never know of what was found.
        seed: of folds, judges and bootstrap.

    Returns:
        The posterior, the weights, the noise matrix, and what is known about how sure they are.

    Raises:
        LimbeckError: for what does not fit, before any training.
    """
    _check(rounds, gamma, noise, witness, shortcut, attribute, repeats, bootstrap)
    kept = np.flatnonzero(data.split < 2)
    strata = strata_of(data, attribute).take(kept)
    if features is not None:
        features = _at(features, len(data), kept)
    part = data.subset(kept)
    part.check(splits=("train",))
    source = None if teacher is None else as_teacher(teacher)
    if source is None and witness == "always":
        raise TeacherError("the teacher is to be heard (witness: always), and none is given: pass teacher=…")
    seen, basis = evidence_data(part, as_judge(judge), source, features)
    court = CrossFit(seen, as_judge(judge), folds, seed, linear=basis == "teacher")
    looked_for = is_found(shortcut, strata)
    guarded = protected_rows(part.train, protect)

    listening = source is not None and witness != "never"
    spoken = _spoken(source, part) if listening and source is not None else None

    def searched(over: Strata, listening: bool) -> _Run:
        said = None
        if listening and spoken is not None:
            said = model.testimony(spoken, part.split == 0, over.index, len(over.names))
        run = _Run(part, over, noise, court, said)
        run.search(rounds, tolerance, repeats)
        return run

    run = searched(strata, listening)
    heard = "no teacher" if source is None else "heard" if listening else "not asked"
    if listening and witness == "auto" and run.known_by_heart():
        heard, listening = BY_HEART, False
        run = searched(strata, listening)
    if noise == "auto" and len(strata.names) == 1:
        losses = -run.labels_right.fit.log_likelihood
        sides = sides_by_loss(seen.x, part.split == 0, losses, seen.feature_names)
        tried = (searched(each, listening) for each in sides)
        ahead = [one for one in tried if one.own and one.noisy and one.surely_ahead(one.single, run.single)]
        run = max(ahead, key=lambda one: _likelihood(one.single), default=run)
    target, held = run.fit.posterior, np.zeros(len(run.given), bool)
    for rows, cap in guarded.values():
        target, pinned = model.hold_back(target, run.given, rows, cap)
        held |= pinned
    stratum, prior, validation = run.stratum, run.prior, run.judged_validation()
    counts = model.soft_counts(target, stratum, len(run.strata.names))
    if looked_for:
        # It says which cells to even out, not who is wrong: what a network learns late looks like noise beside it.
        stratum, beside = court.first_learned(LEARNED * run.named_rightly)
        counts = model.soft_counts(target, stratum, part.num_classes)
        prior = model.normalised(counts)
        validation = None if validation is None or beside is None else replace(validation, stratum=beside)
    spread, rates, scales = run.bootstrap(bootstrap, derive_seed(seed, "bootstrap"))
    profile = run.profile()
    train = part.train
    identifiable, reason = _identified(run, profile)
    return Arbitration(
        ids=train.ids,
        classes=tuple(map(str, data.classes)),
        given=run.given,
        attribute=strata.columns,
        attribute_found=looked_for,
        strata=tuple(map(str, data.classes)) if looked_for else strata.names,
        stratum=stratum,
        log_evidence=run.best.evidence,
        posterior=run.fit.posterior,
        targets=target,
        spread=spread,
        prior=prior,
        counts=counts,
        noise=run.fit.noise,
        noise_by_stratum=run.fit.by_stratum,
        noise_strata=run.strata.names,
        noise_stratum=run.stratum,
        noise_rate=run.rate(run.fit),
        noise_rate_interval=_interval(rates) if run.noisy else (0.0, float(rates.max())),
        noise_rate_profile=profile,
        evidence_scale=run.fit.scale,
        evidence_scale_interval=_interval(scales),
        gamma=gamma,
        history=run.history,
        converged=run.converged,
        noise_gain=run.gain,
        identifiable=identifiable,
        reason=reason,
        basis=basis,
        trust=run.fit.trust,
        teacher=heard,
        protected={name: cap for name, (_, cap) in guarded.items()},
        held_back=held,
        validation=validation,
    )


def _check(
    rounds: int, gamma: float, noise: str, witness: str, shortcut: str, attribute: Any, repeats: int, bootstrap: int
) -> None:
    if noise not in NOISES:
        raise ConfigError(unknown_name("noise", noise, NOISES))
    if witness not in WITNESSES:
        raise ConfigError(unknown_name("witness", witness, WITNESSES))
    if shortcut not in SHORTCUTS:
        raise ConfigError(unknown_name("shortcut", shortcut, SHORTCUTS))
    if shortcut == "found" and attribute is not None:
        raise ConfigError("the attribute is named, and to be found (shortcut: found): leave out one of the two")
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


def starts(classes: int) -> tuple[float, ...]:
    """The shares of right labels that are tried first: those of which more are right than of any one other class."""
    return tuple(share for share in STARTS if share > (1 - share) / (classes - 1))


def _likelihood(here: _Round) -> float:
    return here.fit.likelihood


def _near(values: Sequence[float], value: float) -> Sequence[float]:
    place = values.index(value)
    return values[max(place - 1, 0) : place + 2]


def _spoken(teacher: Teacher, part: Data) -> Floats:
    """A teacher's probabilities of every training and validation sample `[N, C]`."""
    require(teacher, ["logits"], by="arbitration")
    return model.softmax(collect(teacher, part, ("logits",))["logits"].double().numpy())


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class _Round:
    """What judges under one hypothesis about the noise say, and what follows from it.

    Attributes:
        noise: what they took the matrix to be, `[C, C]` or, where strata have their own, `[S, C, C]`.
        prior: p(k|s) under it `[S, C]`.
        trust: in the teacher.
        evidences: of the judges `[n, C]`, one a division into folds.
        validation: evidence of the validation samples `[m, C]`.
        fit: scale, trust, noise and posterior.
    """

    noise: Floats
    prior: Floats
    trust: float
    evidences: list[Floats]
    validation: Floats | None
    fit: Fit

    @property
    def evidence(self) -> Floats:
        """The mean over the divisions into folds `[n, C]`."""
        return np.asarray(np.mean(self.evidences, axis=0))


class _Run:
    """The search for the hypothesis under which the given labels of unseen samples are likeliest."""

    def __init__(self, part: Data, strata: Strata, noise: str, court: CrossFit, said: Floats | None) -> None:
        training, stratum = part.split == 0, strata.index
        self.part, self.court, self.strata, self.classes = part, court, strata, part.num_classes
        self.given, self.stratum = part.y[training], stratum[training]
        self.validation_given, self.validation_stratum = part.y[~training], stratum[~training]
        self.said = None if said is None else said[training]
        self.said_beside = None if said is None else said[~training]
        self.count = len(strata.names)
        self.shares = np.bincount(self.stratum, minlength=self.count) / len(self.stratum)
        several = self.count > 1
        self.try_rates = several and noise == "auto"
        apart = several and noise == "per_group"
        self.own: dict[str, Any] = {"stratum": self.stratum, "strata": self.count} if apart else {}
        """What the fit is told where strata have matrices of their own."""
        self.history: list[dict[str, Any]] = []
        """The record of each hypothesis."""
        self.converged: bool
        """Whether the posterior stopped moving."""
        self.named_rightly: float
        """The share of given labels that judges name which took all of them to be right."""
        self.labels_right: _Round
        self.single: _Round
        """The best one, of one division into folds."""
        self.best: _Round
        self.gain: tuple[float, float]
        self.noisy: bool
        self.fit: Fit

    def search(self, rounds: int, tolerance: float, repeats: int) -> None:
        """Try that all labels are right, then several rates of noise, then again and again the noise just found."""
        identity = np.eye(self.classes)
        tried = [self._hypothesis(identity, 0.0, "labels")]
        if tried[0].fit.trust:
            tried.append(self._hypothesis(identity, tried[0].fit.trust, "labels and teacher"))
        # By the input alone, as what is learned first.
        known = tried[0].evidence + np.log(self.shares @ tried[0].prior)
        self.named_rightly = float((known.argmax(axis=1) == self.given).mean())
        self.labels_right = max(tried, key=_likelihood)
        trust = self.labels_right.fit.trust
        self.history = [self._record(self.labels_right, "labels are right", None)]
        noisy = []
        for diagonal in starts(self.classes):
            noisy.append(self._hypothesis(model.symmetric(self.classes, diagonal), trust, f"start {diagonal}"))
            self.history.append(self._record(noisy[-1], f"{diagonal:.0%} of labels are right", None))
        best, moved = self._refined(max(noisy, key=_likelihood), "as found before", rounds, tolerance)
        if self.try_rates:
            self.own = {"stratum": self.stratum, "strata": self.count, "tied": True}
            apart = [replace(one, fit=self._fitted(one.evidence, one.prior, one.noise)) for one in noisy]
            name = "a rate for each value of the attribute"
            other, still = self._refined(max(apart, key=_likelihood), name, rounds, tolerance)
            if self.surely_ahead(other, max(best, self.labels_right, key=_likelihood)):
                best, moved = other, still
            else:
                self.own = {}
        self.gain = self._gain(best)
        # A few hard samples of a rare kind look like little noise, and would be corrected away.
        little = self.rate(best.fit) < LITTLE
        self.noisy = self.gain[0] > (CHANCE * self.gain[1] if little else 0)
        self.single = best if self.noisy else self.labels_right
        self.best = self._repeated(best, repeats) if self.noisy else self.labels_right
        self.fit, self.prior = self.best.fit, self.best.prior
        self.converged = not self.noisy or moved < 5 * tolerance

    def _refined(self, best: _Round, name: str, rounds: int, tolerance: float) -> tuple[_Round, float]:
        """What was found is tried as a hypothesis, again and again while labels get likelier; how far it moved last."""
        moved = 1.0
        for number in range(rounds):
            if self._gain(best)[0] < 0:
                break
            here = self._hypothesis(best.fit.matrix, best.fit.trust, f"round {number}")
            self.history.append(self._record(here, name, best))
            moved = self.history[-1]["moved"]
            ahead = here.fit.likelihood - best.fit.likelihood
            best = max(best, here, key=_likelihood)
            if moved < tolerance or ahead * len(self.given) < LEAST_GAIN:
                break
        return best, moved

    def surely_ahead(self, apart: _Round, best: _Round) -> bool:
        """Whether rates of their own explain the labels better than that costs (BIC), and than chance (Vuong's test).

        The samples of a small group are harder to judge, which alone looks a little like noise there.
        """
        gains = apart.fit.log_likelihood - best.fit.log_likelihood
        price = np.log(len(gains)) * ((self.shares > 0).sum() - 1) / 2
        return bool(gains.sum() > max(price, CHANCE * np.sqrt(len(gains)) * gains.std()))

    def _hypothesis(self, noise: Floats, trust: float, name: str) -> _Round:
        """Judges under a noise matrix, one or one a stratum, and the fit to what they say."""
        prior = self._prior(noise)
        evidence, validation = self._judged(noise, prior, trust, name, 0)
        return _Round(noise, prior, trust, [evidence], validation, self._fitted(evidence, prior, noise))

    def _judged(
        self, noise: Floats, prior: Floats, trust: float, name: str, partition: int
    ) -> tuple[Floats, Floats | None]:
        offsets = np.log(prior)[self.stratum]
        if self.said is not None:
            offsets = offsets + trust * self.said
        return self.court.evidence(offsets, model.columns(noise, self.given, self.stratum), name, partition)

    def _fitted(self, evidence: Floats, prior: Floats, noise: Floats) -> Fit:
        """Where the judges took labels as right, so does the fit."""
        here = prior[self.stratum]
        if np.array_equal(noise, np.eye(self.classes)):
            return model.without_noise(evidence, here, self.given, witness=self.said)
        start = noise if noise.ndim == 2 else np.tensordot(self.shares, noise, 1)
        return model.fit(evidence, here, self.given, start, witness=self.said, **self.own)

    def _prior(self, noise: Floats) -> Floats:
        """p(k|s) as the given labels have it once the noise is taken out of them, plus one sample a cell.

        Not the shares of the posterior: those lose a rare class a little in every round, until it is gone.
        """
        given = model.soft_counts(np.eye(self.classes)[self.given], self.stratum, self.count, pseudo=model.TINY)
        samples = given.sum(axis=1, keepdims=True)
        matrices = np.broadcast_to(noise, (self.count, self.classes, self.classes))
        unmixed = [model.unmix(share[None], one)[0] for share, one in zip(given / samples, matrices, strict=True)]
        return model.normalised(np.stack(unmixed) * samples + 1)

    def _repeated(self, best: _Round, repeats: int) -> _Round:
        """The same judges with other divisions into folds; their evidence is averaged."""
        every, beside = list(best.evidences), [best.validation]
        for repeat in range(1, repeats):
            evidence, validation = self._judged(best.noise, best.prior, best.trust, f"repeat {repeat}", repeat)
            every.append(evidence)
            beside.append(validation)
        mean = np.asarray(np.mean(every, axis=0))
        validation = None if best.validation is None else np.asarray(np.mean(beside, axis=0))  # type: ignore[arg-type]
        fitted = model.fit(mean, best.prior[self.stratum], self.given, best.fit.noise, witness=self.said, **self.own)
        return replace(best, evidences=every, validation=validation, fit=fitted)

    def known_by_heart(self) -> bool:
        """Whether the teacher agrees with training labels in a way that it does not agree with those of validation.

        Then it tells nothing of who is wrong: it repeats the labels. Seen in the validation labels, which it has not
        learned: with their scale and trust free, they are likelier with more noise, in all strata or in some, than the
        training labels are said to have, and training labels are not. Where these are likelier with it, too, they are
        as wrong, only too few for that to be found surely, whoever the teacher is.
        """
        evidence, matrix = self.best.validation, self.fit.matrix
        if evidence is None or self.said is None or self.said_beside is None or not self.fit.trust:
            return False
        beside = evidence, self.said_beside, self.validation_given, self.validation_stratum
        training = self.best.evidence, self.said, self.given, self.stratum

        def gain(noise: Floats, labels: tuple[Floats, Floats, Integers, Integers]) -> float:
            as_found, other = self._by_stratum([matrix, noise], *labels).sum(axis=2).max(axis=0)
            return float(other - as_found)

        def wronger(noise: Floats, rates: int) -> bool:
            chance = chi2.isf(SURE, rates) / 2
            return bool(gain(noise, beside) > chance and gain(noise, training) < -chance)

        # Strata that look clean stay so at any rate: noise that is the same in all of them is tried as well.
        same = [model.with_rate(self.fit.noise, other) for other in HEART_RATES]
        rate = model.noise_rate(matrix, self.shares)
        for other, noise in zip(HEART_RATES, same, strict=True):
            together = [noise] if matrix.ndim == 2 else [noise, model.with_rate(matrix, other, self.shares)]
            if other > rate + NOISIER and any(wronger(one, 1) for one in together):
                return True
        own = np.broadcast_to(matrix, (self.count, *self.fit.noise.shape))
        higher = np.array(HEART_RATES)[:, None] > [model.noise_rate(one) + NOISIER for one in own]
        logs = self._by_stratum([matrix, *same], *beside)
        logs[:, 1:][:, ~higher] = -np.inf
        best = logs[logs.max(axis=1).sum(axis=1).argmax()].argmax(axis=0)
        several = np.stack([[one, *same][place] for one, place in zip(own, best, strict=True)])
        return wronger(several, int((self.shares > 0).sum()))

    def _by_stratum(
        self, noises: Sequence[Floats], evidence: Floats, said: Floats, given: Integers, stratum: Integers
    ) -> Floats:
        """Log likelihood of the labels in each stratum, for each scale and trust and under each noise, `[Q, M, S]`."""
        log_prior = np.log(self.prior)[stratum]
        found = []
        for scale, trust in product(sorted({*HEART_SCALES, self.fit.scale}), sorted({*HEART_TRUSTS, self.fit.trust})):
            known = model.softmax(scale * evidence + trust * said + log_prior)
            logs = [model.log_likelihood(known, model.columns(noise, given, stratum)) for noise in noises]
            found.append([np.bincount(stratum, each, self.count) for each in logs])
        return np.array(found)

    def _gain(self, best: _Round) -> tuple[float, float]:
        """By how many nats noise explains the labels better than that all are right, and its standard error."""
        gains = best.fit.log_likelihood - self.labels_right.fit.log_likelihood
        return float(gains.sum()), float(np.sqrt(len(gains)) * gains.std())

    def _record(self, here: _Round, hypothesis: str, before: _Round | None) -> dict[str, Any]:
        now = here.fit.posterior
        return {
            "hypothesis": hypothesis,
            "likelihood": here.fit.likelihood,
            "noise_rate": self.rate(here.fit),
            "evidence_scale": here.fit.scale,
            "trust": here.fit.trust,
            "moved": None if before is None else float(np.abs(now - before.fit.posterior).sum(axis=1).mean() / 2),
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
        scales, trusts = _near(model.SCALES, self.fit.scale), _near(model.TRUSTS, self.fit.trust)
        total, squares = np.zeros_like(self.fit.posterior), np.zeros_like(self.fit.posterior)
        rates, found = [], []
        for _ in range(replicates):
            evidence = self.best.evidences[int(rng.integers(len(self.best.evidences)))]
            weights = rng.exponential(size=len(self.given))
            fit = model.fit(
                evidence,
                self.prior[self.stratum],
                self.given,
                self.fit.noise if self.noisy else model.symmetric(self.classes, 0.9),
                weights=weights,
                witness=self.said,
                scales=scales,
                trusts=trusts,
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
            self.fit.combined(self.best.evidence, self.said)[rows] / self.fit.scale,
            self.stratum[rows],
            self.count,
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
        known = self.fit.combined(evidence, self.said_beside)
        ids, q = self.part.validation.ids, model.softmax(known + np.log(self.prior[stratum]))
        if not self.noisy:
            return Judged(ids, given, stratum, stratum, np.eye(self.classes)[given], q, np.eye(self.classes), 1.0)
        shares, likelihoods = (0.0, 0.25, 0.5, 0.75, 1.0), []
        rate = model.noise_rate(self.fit.matrix, self.shares)
        for share in shares:
            matrix = model.with_rate(self.fit.matrix, share * rate, self.shares)
            likelihoods.append(float(model.log_likelihood(q, model.columns(matrix, given, stratum)).sum()))
        best = int(np.argmax(likelihoods))
        # As noisy as training, unless the labels say otherwise.
        share = shares[best] if likelihoods[best] > likelihoods[-1] + NATS else 1.0
        matrix = self.fit.matrix if share == 1.0 else model.with_rate(self.fit.matrix, share * rate, self.shares)
        own = matrix if matrix.ndim == 2 else matrix[stratum]
        found = model.posterior(known, self.prior[stratum], own, given)
        return Judged(ids, given, stratum, stratum, found, q, matrix, share)


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
