"""Is A better than B? Paired tests, intervals from seeds and samples, and corrections for many questions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from limbeck.errors import ConfigError, DataError, unknown_name
from limbeck.evaluation.bootstrap import Accuracies, PairedCounts, accuracies, redraw_worst, run_covariance
from limbeck.evaluation.counts import ratio
from limbeck.evaluation.power import NOTHING, Advice, Variance, detectable, more_of_both, more_samples, more_seeds

Verdict = Literal["better", "worse", "not distinguishable", "not measured"]
Correction = Literal["holm", "bonferroni", "benjamini_hochberg", "none"]

_AT_TIMES_WORST = 0.9
"""The groups that are the worst in this share of redrawn test sets are those whose samples decide."""


def mcnemar(only_a: Any, only_b: Any, method: Literal["mid-p", "exact"] = "mid-p") -> NDArray[np.float64]:
    """Two-sided p of McNemar's test on the samples where exactly one of two models is right, elementwise.

    Given how many disagree, A's share is Binomial(1/2) where neither is better. "exact" (McNemar 1947) never exceeds
    its level; "mid-p" counts half of the observed outcome, which removes most of its waste (Fagerland et al. 2013).

    Args:
        only_a: samples that only A has right. only_b: that only B has right.
    """
    if method not in ("mid-p", "exact"):
        raise ConfigError(unknown_name("McNemar method", method, ("mid-p", "exact")))
    a, b = np.broadcast_arrays(np.asarray(only_a), np.asarray(only_b))
    if a.dtype.kind not in "iu" or b.dtype.kind not in "iu" or not ((a >= 0) & (b >= 0)).all():
        raise DataError("only_a and only_b must be counts, none negative")
    fewer, total = np.minimum(a, b).astype(np.float64), (a + b).astype(np.int64)
    p = 2 * special.bdtr(fewer, total, 0.5)
    if method == "mid-p":
        # P(X <= k) - P(X <= k - 1), whose second term is 0 for k = 0.
        below = np.where(fewer > 0, special.bdtr(np.maximum(fewer - 1, 0), total, 0.5), 0.0)
        p = p - (p / 2 - below)
    return np.asarray(np.minimum(p, 1.0))


def holm(p: Any) -> NDArray[np.float64]:
    """Adjusted p that keep the chance of *any* false claim at the level (Holm 1979); nan is not counted, stays nan."""
    return np.minimum(_adjust(p, _RULES["holm"]), 1.0)


def bonferroni(p: Any) -> NDArray[np.float64]:
    """Adjusted p as `holm`'s, told a little less often; the intervals that belong to them all hold at once."""
    return np.minimum(_adjust(p, _RULES["bonferroni"]), 1.0)


def benjamini_hochberg(p: Any) -> NDArray[np.float64]:
    """Adjusted p that keep the expected *share* of false claims at the level (Benjamini and Hochberg 1995)."""
    return np.minimum(_adjust(p, _RULES["benjamini_hochberg"]), 1.0)


_Rule = Callable[[NDArray[Any], NDArray[Any], int], NDArray[Any]]
_RULES: dict[str, _Rule] = {
    "holm": lambda q, rank, m: np.maximum.accumulate(q * (m - rank)),
    "bonferroni": lambda q, rank, m: q * m,
    "benjamini_hochberg": lambda q, rank, m: np.minimum.accumulate((q * m / (rank + 1))[::-1])[::-1],
    "none": lambda q, rank, m: q,
}
"""Adjusted p of m ascending p, which may exceed 1."""


def _adjust(p: Any, rule: _Rule) -> NDArray[np.float64]:
    values = np.asarray(p, np.float64)
    if values.ndim != 1 or bool(((values < 0) | (values > 1)).any()):
        raise DataError(f"p: expected probabilities of shape [M], found {values.tolist()}")
    adjusted = np.full(len(values), np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    adjusted[order] = rule(values[order], np.arange(len(order)), len(order))
    return adjusted


def verdict(difference: float, p: float, level: float = 0.95) -> Verdict:
    """A difference in one word: "better" or "worse" where p is at most 1 - level, else "not distinguishable"."""
    if np.isnan(p) or np.isnan(difference):
        return "not measured"
    # The slack forgives 1 - level its rounding, nothing else.
    if p > 1 - level + 1e-12 or difference == 0:
        return "not distinguishable"
    return "better" if difference > 0 else "worse"


@dataclass(frozen=True)
class Difference:
    """How much better `model` is than `against` in one metric.

    Attributes:
        metric: "average", "worst_group" or "group".
        group: the group compared; for "worst_group" the one that is most often the worst.
        value, reference: the metric of `model` and of `against`, means over seeds.
        low, high: interval of the difference, corrected as p is: it excludes 0 where the difference is told.
        p: two-sided, of this comparison taken alone; at most 1 - level only where the interval `alone` excludes 0.
        adjusted_p: corrected for `comparisons` questions by `correction`; the verdict rests on it.
        seeds: of `model` and of `against`. samples: those the metric rests on (those of `group`, or all).
        selection: for "worst_group", how far picking the worst of measured groups favours `model` (or, negative,
            `against`), estimated. The interval is made longer by it on one side; it counts against a claim, never for
            one.
        deciding: for "worst_group", the groups that are the worst in nearly all redrawn test sets, with their samples.
    """

    model: str
    against: str
    metric: str
    group: str | None
    value: float
    reference: float
    difference: float
    low: float
    high: float
    p: float
    adjusted_p: float
    level: float
    seeds: tuple[int, int]
    samples: int
    variance: Variance
    comparisons: int = 1
    correction: str = "none"
    selection: float = 0.0
    deciding: tuple[tuple[str, int], ...] = ()

    @property
    def verdict(self) -> Verdict:
        """In one word, after correction."""
        return verdict(self.difference, self.adjusted_p, self.level)

    @property
    def alone(self) -> tuple[float, float]:
        """The interval at `level` of this comparison taken alone, as if it had been the only question."""
        return _limits(self.difference, self.variance.half_width(1 - self.level), self.selection)

    @cached_property
    def advice(self) -> Advice | None:
        """What would tell a difference as large as this one (power 0.8); None where it is told or not measured."""
        if self.verdict != "not distinguishable":
            return None
        known = self.difference, self.variance
        seeds, level = max(self.seeds), self._corrected_level
        # What picking the worst group gives away is taken off the difference before it is believed.
        allowance = max(math.copysign(1.0, self.difference) * self.selection, 0.0)
        matters = abs(self.difference) >= NOTHING
        further_seeds = more_seeds(*known, seeds, level, allowance=allowance) if matters else None
        further_samples = more_samples(*known, self.samples, level, allowance=allowance) if matters else None
        alone = further_seeds is not None or further_samples is not None
        factor = 0.0 if further_samples is None else further_samples / self.samples
        return Advice(
            matters=matters,
            detectable=detectable(self.variance, level) + allowance,
            more_seeds=further_seeds,
            more_samples=further_samples,
            more_by_group={name: math.ceil(factor * n) for name, n in self.deciding if further_samples is not None},
            both=None
            if alone or not matters
            else more_of_both(*known, seeds, self.samples, level, allowance=allowance),
            group=self.group,
            one_run=self.seeds == (1, 1),
        )

    @property
    def _corrected_level(self) -> float:
        # The strictest step of Holm is Bonferroni's: enough for it is enough for all.
        return 1 - (1 - self.level) / (1 if self.correction == "none" else max(self.comparisons, 1))

    def sentence(self) -> str:
        """The verdict in words, from the measured numbers only."""
        place = {"average": "on average", "worst_group": "in the worst group"}.get(
            self.metric, f"in group {self.group!r}"
        )
        if self.verdict == "not measured":
            return f"{self.model} and {self.against} cannot be compared {place}: no sample was measured."
        facts = (
            f"{100 * self.difference:+.1f} points ({100 * self.low:+.1f} to {100 * self.high:+.1f}), "
            f"{_p(self.adjusted_p)}{self._corrected()}, {self._basis()}"
        )
        if self.verdict != "not distinguishable":
            return f"{self.model} is {self.verdict} than {self.against} {place}: {facts}."
        advice = self.advice
        return (
            f"{self.model} and {self.against} are not distinguishable {place} at this size: {facts}"
            f"{'' if advice is None else f'; {advice.sentence()}'}."
        )

    def _corrected(self) -> str:
        if self.correction == "none" or self.comparisons < 2:
            return ""
        return f" corrected for {self.comparisons} comparisons"

    def _basis(self) -> str:
        a, b = self.seeds
        runs = "one run each" if a == b == 1 else f"{a} seeds" if a == b else f"{a} seeds against {b}"
        return f"{runs}, {self.samples:,} samples"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; None for nan."""
        advice, (alone_low, alone_high) = self.advice, self.alone
        plain = {
            "model": self.model,
            "against": self.against,
            "metric": self.metric,
            "group": self.group,
            "value": self.value,
            "reference": self.reference,
            "difference": self.difference,
            "low": self.low,
            "high": self.high,
            "p": self.p,
            "alone_low": alone_low,
            "alone_high": alone_high,
            "adjusted_p": self.adjusted_p,
            "comparisons": self.comparisons,
            "correction": self.correction,
            "level": self.level,
            "seeds": list(self.seeds),
            "samples": self.samples,
            "selection": self.selection,
            "verdict": self.verdict,
            "more_seeds": None if advice is None else advice.more_seeds,
            "more_samples": None if advice is None else advice.more_samples,
            "advice": None if advice is None else advice.to_dict(),
            "sentence": self.sentence(),
        }
        return {key: None if isinstance(value, float) and np.isnan(value) else value for key, value in plain.items()}


@dataclass(frozen=True)
class Comparison:
    """`model` against `against` on the same samples: on average, in the worst group and group by group."""

    average: Difference
    worst_group: Difference
    groups: tuple[Difference, ...]

    @property
    def better_off(self) -> tuple[str, ...]:
        """Groups in which the model is better, corrected for their number."""
        return tuple(d.group for d in self.groups if d.verdict == "better" and d.group is not None)

    @property
    def worse_off(self) -> tuple[str, ...]:
        """Groups in which the model is worse, corrected for their number."""
        return tuple(d.group for d in self.groups if d.verdict == "worse" and d.group is not None)

    def to_list(self) -> list[dict[str, Any]]:
        """Every difference as plain JSON."""
        return [d.to_dict() for d in (self.average, self.worst_group, *self.groups)]

    def __str__(self) -> str:
        lines = [self.worst_group.sentence(), self.average.sentence()]
        if self.worse_off:
            lines.append(f"worse off: {', '.join(self.worse_off)}")
        if self.better_off:
            lines.append(f"better off: {', '.join(self.better_off)}")
        return "\n".join(lines)


def decide(differences: Sequence[Difference], correction: Correction = "holm") -> list[Difference]:
    """The same differences, corrected for asking all of these questions; unmeasured ones are not counted.

    Each interval is corrected by the factor its p is, so that it excludes 0 where the difference is told. With
    "bonferroni" the intervals of all questions hold at once at the level; with "holm", which tells more, each one does,
    and the one of the smallest p although it was picked (there the two are the same); with "benjamini_hochberg" the
    expected share of told ones that fail is at the level (Benjamini and Yekutieli 2005).
    """
    if correction not in _RULES:
        raise ConfigError(unknown_name("correction", correction, _RULES))
    p = np.array([d.p for d in differences], np.float64)
    adjusted = _adjust(p, _RULES[correction])
    asked = int((~np.isnan(p)).sum())
    found = []
    for d, q in zip(differences, adjusted, strict=True):
        alpha = (1 - d.level) * (d.p / q if q > 0 else 1 / max(asked, 1))
        low, high = _limits(d.difference, d.variance.half_width(alpha), d.selection)
        found.append(
            replace(
                d, low=low, high=high, adjusted_p=float(np.minimum(q, 1.0)), comparisons=asked, correction=correction
            )
        )
    return found


def compare(
    right_a: Any,
    right_b: Any,
    groups: Any = None,
    *,
    group_names: Sequence[str] | None = None,
    names: tuple[str, str] = ("A", "B"),
    minimum: int = 10,
    level: float = 0.95,
    paired_seeds: bool | None = None,
    correction: Correction = "holm",
    replicates: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare two models, or two recipes of several seeds each, on the same test samples.

    The interval has a part from seeds (another training run) and a part from samples (another test set), crossed
    because all seeds see the same samples, each with Student's t of its own degrees of freedom: with three seeds,
    resampling them would claim far too much. The samples' part is exact for the average and for one group, with half
    a sample added to each outcome (Agresti and Min 2005), and for the worst group a parametric bootstrap of the groups'
    accuracies, which are as good as normal.

    The worst of several measured accuracies lies below the lowest true one, the further the more groups are nearly
    as bad: a model that treats its groups alike looks worse than one with a single bad group. `Difference.selection`
    estimates by how much, and the interval is longer by it on that side.

    With one run of each the verdict is on these two models, not on their recipes, and p is at least that of McNemar's
    mid-p test (for the worst group: of a permutation test that swaps the models where they disagree).
    p <= 1 - level implies that the interval excludes 0, though not the reverse.

    Args:
        right_a: whether the first model is right on each sample, bool `[N]`, or `[seeds, N]`.
        right_b: the same of the second, on the same samples in the same order. One run beside several seeds (a
            teacher) is taken as given.
        groups: group of each sample `[N]`, -1 where unknown (counts in the average only); None: one group "all".
        group_names: names of the groups, required with `groups`.
        minimum: samples that a group needs to count among the worst.
        paired_seeds: seed s of both shared something (order, split, noise): compare them pairwise. By default where
            both have as many seeds.
        correction: of the groups' p for the number of groups. Average and worst group are left uncorrected: `decide`
            corrects them over the recipes of a pilot.
        replicates: redrawn test sets for the worst group.
    """
    paired = PairedCounts.from_correct(right_a, right_b, groups, group_names)
    return compare_counts(
        paired,
        names=names,
        minimum=minimum,
        level=level,
        paired_seeds=paired_seeds,
        correction=correction,
        replicates=replicates,
        seed=seed,
    )


def compare_counts(
    paired: PairedCounts,
    *,
    names: tuple[str, str] = ("A", "B"),
    minimum: int = 10,
    level: float = 0.95,
    paired_seeds: bool | None = None,
    correction: Correction = "holm",
    replicates: int = 2000,
    seed: int = 0,
) -> Comparison:
    """`compare` from counts of patterns already made."""
    if not 0 < level < 1:
        raise ConfigError(f"level: {level} is not a confidence level between 0 and 1, such as 0.95")
    if replicates < 1:
        raise ConfigError(f"replicates: at least 1 is needed, found {replicates}")
    seeds = (paired.right_a.shape[1], paired.right_b.shape[1])
    pairwise = seeds[0] == seeds[1] if paired_seeds is None else paired_seeds
    if pairwise and seeds[0] != seeds[1]:
        raise ConfigError(f"paired_seeds: A has {seeds[0]} seeds and B {seeds[1]}; pass paired_seeds=False")
    observed_a, observed_b = accuracies(paired, minimum)
    one_each = seeds == (1, 1)
    disagree = paired.table[:, 1:3] if one_each else None

    def difference(
        metric: str,
        group: str | None,
        a: NDArray[np.float64],
        b: NDArray[np.float64],
        sampling: _Sampling,
        exact_p: float,
        selection: float = 0.0,
        deciding: tuple[tuple[str, int], ...] = (),
    ) -> Difference:
        value, reference = float(a.mean()), float(b.mean())
        found = value - reference
        variance = _variance(a, b, sampling, pairwise)
        low, high = _limits(found, variance.half_width(1 - level), selection)
        p = max(variance.p(_without(found, selection)), exact_p)
        return Difference(
            names[0], names[1], metric, group, value, reference, found, low, high, p, p, level, seeds,
            sampling.samples, variance, selection=selection, deciding=deciding,
        )  # fmt: skip

    everything = np.zeros_like(paired.group)
    average = difference(
        "average",
        None,
        observed_a.average,
        observed_b.average,
        _linear_sampling(paired, everything, 1, pairwise)[0],
        0.0 if disagree is None else float(mcnemar(*disagree.sum(axis=0))),
    )
    by_group = _linear_sampling(paired, paired.group, len(paired.group_names) + 1, pairwise)
    each = [
        difference(
            "group",
            name,
            observed_a.groups[:, g],
            observed_b.groups[:, g],
            by_group[g],
            0.0 if disagree is None else float(mcnemar(*disagree[g])),
        )
        for g, name in enumerate(paired.group_names)
    ]
    decisive = _decisive_group(paired, observed_a, observed_b, minimum)
    redrawn = _worst_sampling(paired, decisive, observed_a, observed_b, minimum, pairwise, replicates, seed)
    worst = difference(
        "worst_group",
        None if decisive is None else paired.group_names[decisive],
        observed_a.worst,
        observed_b.worst,
        redrawn.sampling,
        _swap_p(paired, minimum, replicates, seed) if one_each and decisive is not None else 0.0,
        redrawn.selection,
        redrawn.deciding,
    )
    return Comparison(average, worst, tuple(decide(each, correction)))


class _Sampling(NamedTuple):
    """What another draw of test samples does to the mean difference over seeds."""

    samples: int
    variance: float
    interaction: float


def _variance(a: NDArray[np.float64], b: NDArray[np.float64], sampling: _Sampling, pairwise: bool) -> Variance:
    """All parts, from the metric of each seed of A and of B."""
    if pairwise:
        parts = [(a - b, len(a))]
    else:
        parts = [(a, len(a)), (b, len(b))]
    shares = [(float(x.var(ddof=1)) / n, n - 1) for x, n in parts if n > 1]
    return Variance(
        sum(share for share, _ in shares),
        float(min((freedom for _, freedom in shares), default=1)),
        sampling.variance,
        float(max(sampling.samples - 1, 1)),
        sampling.interaction,
    )


def _linear_sampling(paired: PairedCounts, stratum: NDArray[np.int64], strata: int, pairwise: bool) -> list[_Sampling]:
    """The samples' part for a mean over the samples of each stratum, in closed form."""

    def total(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.bincount(stratum, weights=values * paired.count, minlength=strata).astype(np.float64)

    a, b = paired.right_a.astype(np.float64), paired.right_b.astype(np.float64)
    mean = a.mean(axis=1) - b.mean(axis=1)
    n = total(np.ones(len(mean)))
    # Half a sample in each of "only A" and "only B" adds 1 to the sum of squares; with "both" and "none", 2 samples.
    variance = ((total(mean**2) + 1) / (n + 2) - (total(mean) / (n + 2)) ** 2) / (n + 2)
    interaction = np.zeros(strata)
    for x in [a - b] if pairwise else [a, b]:
        seeds = x.shape[1]
        if seeds > 1:
            within = ratio(total(x.var(axis=1)), n)
            by_seed = np.stack([ratio(total(x[:, s]), n) for s in range(seeds)])
            # Sample by sample the seeds differ by `within`; what of it is the seeds' own level is not interaction.
            interaction += np.maximum(ratio(within - by_seed.var(axis=0), n * (seeds - 1)), 0)
    return [_Sampling(int(n[g]), float(variance[g]), float(np.nan_to_num(interaction[g]))) for g in range(strata)]


class _Redrawn(NamedTuple):
    """What another draw of test samples does to the worst group."""

    sampling: _Sampling
    selection: float
    deciding: tuple[tuple[str, int], ...]


def _worst_sampling(
    paired: PairedCounts,
    decisive: int | None,
    observed_a: Accuracies,
    observed_b: Accuracies,
    minimum: int,
    pairwise: bool,
    replicates: int,
    seed: int,
) -> _Redrawn:
    """The samples' part for the worst group's accuracy, its selection, and the groups that are at times the worst."""
    if decisive is None:
        return _Redrawn(_Sampling(0, 0.0, 0.0), 0.0, ())
    eligible = np.flatnonzero(paired.totals >= max(minimum, 1))
    accuracy = np.concatenate([observed_a.groups, observed_b.groups])[:, eligible].T
    worst, bias, times = redraw_worst(accuracy, run_covariance(paired)[eligible], replicates, seed)
    seeds_a = len(observed_a.worst)
    a, b = worst[:, :seeds_a], worst[:, seeds_a:]
    interaction = 0.0
    for x in [a - b] if pairwise else [a, b]:
        seeds = x.shape[1]
        if seeds > 1:
            interaction += float((x - x.mean(axis=1, keepdims=True)).var(axis=0).sum()) / (seeds * (seeds - 1))
    order = np.argsort(-times, kind="stable")
    enough = int(np.searchsorted(np.cumsum(times[order]), _AT_TIMES_WORST * times.sum())) + 1
    deciding = dict.fromkeys([decisive, *(int(eligible[g]) for g in order[:enough])])
    return _Redrawn(
        _Sampling(int(paired.totals[decisive]), float((a.mean(axis=1) - b.mean(axis=1)).var()), interaction),
        float(bias[:seeds_a].mean() - bias[seeds_a:].mean()),
        tuple((paired.group_names[g], int(paired.totals[g])) for g in deciding),
    )


def _limits(difference: float, half: float, selection: float) -> tuple[float, float]:
    """The interval, longer on the side from which the selection of the worst group has moved the difference."""
    return difference - half - max(selection, 0.0), difference + half - min(selection, 0.0)


def _without(difference: float, selection: float) -> float:
    """What is left of a difference once the selection has been taken off; never more than there was."""
    allowance = max(math.copysign(1.0, difference) * selection, 0.0)
    return math.copysign(max(abs(difference) - allowance, 0.0), difference)


def _decisive_group(paired: PairedCounts, a: Accuracies, b: Accuracies, minimum: int) -> int | None:
    """The group that is the worst for most seeds of either model, the smaller of equals."""
    totals = paired.totals
    if not (totals >= max(minimum, 1)).any():
        return None
    times = np.zeros(len(totals), np.int64)
    for side in (a, b):
        worst = np.where(totals >= max(minimum, 1), side.groups, np.inf).argmin(axis=1)
        times += np.bincount(worst, minlength=len(totals))
    candidates = np.flatnonzero(times == times.max())
    return int(candidates[np.argmin(totals[candidates])])


def _swap_p(paired: PairedCounts, minimum: int, replicates: int, seed: int) -> float:
    """Permutation p of the worst group's difference: the models are swapped on samples where they disagree."""
    totals = paired.totals
    eligible = totals >= max(minimum, 1)
    both, only_a, only_b, _ = paired.table[:-1][eligible].T
    disagree, total = only_a + only_b, totals[eligible]
    found = ((both + only_a) / total).min() - ((both + only_b) / total).min()
    drawn = np.random.default_rng([seed, 2]).binomial(disagree, 0.5, size=(replicates, len(total)))
    swapped = ((both + drawn) / total).min(axis=1) - ((both + disagree - drawn) / total).min(axis=1)
    # The observed assignment is one of the equally likely ones, so p is never 0 (Phipson and Smyth 2010).
    return float((1 + (np.abs(swapped) >= abs(found) - 1e-12).sum()) / (replicates + 1))


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.0995 else f"p = {p:.2f}"
