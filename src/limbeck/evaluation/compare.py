"""Is A better than B? Paired tests, corrections for many questions, and how much more data would tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from limbeck.errors import ConfigError, DataError, unknown_name
from limbeck.evaluation.bootstrap import Accuracies, PairedCounts, accuracies, paired_bootstrap
from limbeck.evaluation.counts import ratio

Verdict = Literal["better", "worse", "not distinguishable", "not measured"]
Correction = Literal["holm", "benjamini_hochberg", "none"]

_MOST_SEEDS = 10_000
_MOST_SAMPLES = 1_000
"""How far a power calculation looks: seeds in all, and samples as a multiple of those there are."""


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
    return _adjust(p, lambda q, rank, m: np.maximum.accumulate(q * (m - rank)))


def benjamini_hochberg(p: Any) -> NDArray[np.float64]:
    """Adjusted p that keep the expected *share* of false claims at the level (Benjamini and Hochberg 1995)."""
    return _adjust(p, lambda q, rank, m: np.minimum.accumulate((q * m / (rank + 1))[::-1])[::-1])


def _adjust(p: Any, rule: Callable[[NDArray[Any], NDArray[Any], int], NDArray[Any]]) -> NDArray[np.float64]:
    values = np.asarray(p, np.float64)
    if values.ndim != 1 or bool(((values < 0) | (values > 1)).any()):
        raise DataError(f"p: expected probabilities of shape [M], found {values.tolist()}")
    adjusted = np.full(len(values), np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    adjusted[order] = np.minimum(rule(values[order], np.arange(len(order)), len(order)), 1.0)
    return adjusted


CORRECTIONS: dict[str, Callable[[Any], NDArray[np.float64]]] = {
    "holm": holm,
    "benjamini_hochberg": benjamini_hochberg,
    "none": lambda p: np.asarray(p, np.float64),
}


def verdict(difference: float, p: float, level: float = 0.95) -> Verdict:
    """A difference in one word: "better" or "worse" where p is at most 1 - level, else "not distinguishable"."""
    if np.isnan(p) or np.isnan(difference):
        return "not measured"
    # The slack forgives 1 - level its rounding, nothing else.
    if p > 1 - level + 1e-12 or difference == 0:
        return "not distinguishable"
    return "better" if difference > 0 else "worse"


class Variance(NamedTuple):
    """Variance of a measured difference of means over seeds and samples, by source.

    With T[s] the difference for seed s: `seeds` is var(T) / S, known with S - 1 degrees of freedom; `samples` the
    variance of mean(T) over test sets, known with n - 1; `interaction` the part that both contain (each seed errs on
    samples of its own). Two-way random effects: the total is seeds + samples - interaction.
    """

    seeds: float
    seeds_freedom: float
    samples: float
    samples_freedom: float
    interaction: float

    @property
    def total(self) -> float:
        """Variance of the difference; never below either of its sources."""
        return max(self.seeds + self.samples - self.interaction, self.seeds, self.samples)

    def half_width(self, alpha: float) -> float:
        """Half the width of the interval at level 1 - alpha: each source with Student's t of its own (Banerjee 1960).

        Such an interval never falls below its level. Welch-Satterthwaite's, which pools the degrees of freedom, does
        with two or three seeds: they happen to agree, and the pooled count then forgets how few they were.
        """
        square = (self.total - self.seeds) * _student(self.samples_freedom, alpha) ** 2
        if self.seeds > 0:
            square += self.seeds * _student(self.seeds_freedom, alpha) ** 2
        return math.sqrt(square)

    def p(self, difference: float) -> float:
        """Two-sided p: 1 - the level of the interval that just reaches 0; nan for a difference that is."""
        if math.isnan(difference):
            return math.nan
        if difference == 0 or self.total == 0:
            return 1.0
        # It lies between the p of Student's t with the most and with the least degrees of freedom.
        freedoms = [self.samples_freedom, self.seeds_freedom] if self.seeds > 0 else [self.samples_freedom]
        t = -abs(difference) / math.sqrt(self.total)
        low, high = (max(2 * float(special.stdtr(max(f, 1.0), t)), 1e-300) for f in (max(freedoms), min(freedoms)))
        for _ in range(40):
            if high - low <= 1e-9 * high:
                break
            middle = math.sqrt(low) * math.sqrt(high)
            low, high = (low, middle) if self.half_width(middle) <= abs(difference) else (middle, high)
        return high

    def scaled(self, seeds: float, samples: float) -> Variance:
        """What it would be with `seeds` times as many seeds and `samples` times as many samples."""
        both = self.interaction / (seeds * samples)
        return Variance(
            max(self.seeds - self.interaction, 0.0) / seeds + both,
            (self.seeds_freedom + 1) * seeds - 1,
            max(self.samples - self.interaction, 0.0) / samples + both,
            (self.samples_freedom + 1) * samples - 1,
            both,
        )


def _student(freedom: float, alpha: float) -> float:
    """The value that |t| exceeds with probability alpha."""
    return -float(special.stdtrit(max(freedom, 1.0), alpha / 2))


def detectable(variance: Variance, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest true difference that would be told with probability about `power`."""
    return variance.half_width(1 - level) + float(special.ndtri(power)) * math.sqrt(variance.total)


def more_seeds(
    difference: float, variance: Variance, seeds: int, level: float = 0.95, power: float = 0.8
) -> int | None:
    """How many more seeds would tell a true difference this large; None where seeds alone cannot, or with one seed."""
    if seeds < 2:
        return None
    enough = _smallest(
        lambda s: detectable(variance.scaled(s / seeds, 1.0), level, power) <= abs(difference), seeds, _MOST_SEEDS
    )
    return None if enough is None else enough - seeds


def more_samples(
    difference: float, variance: Variance, samples: int, level: float = 0.95, power: float = 0.8
) -> int | None:
    """How many more samples (of the group in question) would tell a true difference this large; None if they cannot."""
    if samples < 1:
        return None
    enough = _smallest(
        lambda n: detectable(variance.scaled(1.0, n / samples), level, power) <= abs(difference),
        samples,
        samples * _MOST_SAMPLES,
    )
    return None if enough is None else enough - samples


def _smallest(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest integer in low..high for which `holds`, which never turns false again; None where there is none."""
    if not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


@dataclass(frozen=True)
class Difference:
    """How much better `model` is than `against` in one metric.

    Attributes:
        metric: "average", "worst_group" or "group".
        group: the group compared; for "worst_group" the one that is most often the worst.
        value, reference: the metric of `model` and of `against`, means over seeds.
        low, high: interval of the difference at `level`, of this comparison taken alone.
        p: two-sided, of this comparison taken alone.
        adjusted_p: corrected for `comparisons` questions by `correction`; the verdict rests on it.
        seeds: of `model` and of `against`. samples: those the metric rests on (those of `group`, or all).
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

    @property
    def verdict(self) -> Verdict:
        """In one word, after correction."""
        return verdict(self.difference, self.adjusted_p, self.level)

    @property
    def detectable(self) -> float:
        """The smallest true difference that this many seeds and samples tell with probability 0.8."""
        return detectable(self.variance, self._corrected_level)

    @property
    def more_seeds(self) -> int | None:
        """More seeds of each that would tell a difference as large as this one (power 0.8); None where they cannot."""
        return more_seeds(self.difference, self.variance, max(self.seeds), self._corrected_level)

    @property
    def more_samples(self) -> int | None:
        """More samples of `group` (of all groups, for the average) that would tell; None where they cannot."""
        return more_samples(self.difference, self.variance, self.samples, self._corrected_level)

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
        return (
            f"{self.model} and {self.against} are not distinguishable {place} at this size: {facts}; {self._advice()}."
        )

    def _advice(self) -> str:
        ways = []
        if (seeds := self.more_seeds) is not None:
            ways.append(f"{_about(seeds)} more seed{'s' if seeds > 1 else ''}")
        if (samples := self.more_samples) is not None:
            ways.append(f"{_about(samples)} more samples" + ("" if self.group is None else f" of group {self.group!r}"))
        if ways:
            return f"about {' or '.join(ways)} would tell a difference of this size"
        return f"a difference of {100 * self.detectable:.1f} points or more would have been told (power 0.8)"

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
            "adjusted_p": self.adjusted_p,
            "comparisons": self.comparisons,
            "correction": self.correction,
            "level": self.level,
            "seeds": list(self.seeds),
            "samples": self.samples,
            "verdict": self.verdict,
            "more_seeds": None,
            "more_samples": None,
            "detectable": self.detectable,
            "sentence": self.sentence(),
        }
        if self.verdict == "not distinguishable":
            plain |= {"more_seeds": self.more_seeds, "more_samples": self.more_samples}
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
    """The same differences with p corrected for asking all of these questions; unmeasured ones are not counted."""
    if correction not in CORRECTIONS:
        raise ConfigError(unknown_name("correction", correction, CORRECTIONS))
    p = np.array([d.p for d in differences], np.float64)
    adjusted = CORRECTIONS[correction](p)
    asked = int((~np.isnan(p)).sum())
    return [
        replace(d, adjusted_p=float(q), comparisons=asked, correction=correction)
        for d, q in zip(differences, adjusted, strict=True)
    ]


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
    a sample added to each outcome (Agresti and Min 2005), and a bootstrap of counts for the worst group.

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
        replicates: bootstrap replicates for the worst group.
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
    ) -> Difference:
        value, reference = float(a.mean()), float(b.mean())
        found = value - reference
        variance = _variance(a, b, sampling, pairwise)
        half = variance.half_width(1 - level)
        p = max(variance.p(found), exact_p)
        return Difference(
            names[0], names[1], metric, group, value, reference, found, found - half, found + half, p, p, level, seeds,
            sampling.samples, variance,
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
    worst = difference(
        "worst_group",
        None if decisive is None else paired.group_names[decisive],
        observed_a.worst,
        observed_b.worst,
        _worst_sampling(paired, decisive, minimum, pairwise, replicates, seed),
        _swap_p(paired, minimum, replicates, seed) if one_each and decisive is not None else 0.0,
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


def _worst_sampling(
    paired: PairedCounts, decisive: int | None, minimum: int, pairwise: bool, replicates: int, seed: int
) -> _Sampling:
    """The samples' part for the worst group's accuracy, by resampling counts within groups."""
    if decisive is None:
        return _Sampling(0, 0.0, 0.0)
    a, b = paired_bootstrap(paired, replicates, seed, minimum=minimum, stratified=True, smoothing=0.5)
    variance = float((a.worst.mean(axis=1) - b.worst.mean(axis=1)).var())
    interaction = 0.0
    for x in [a.worst - b.worst] if pairwise else [a.worst, b.worst]:
        seeds = x.shape[1]
        if seeds > 1:
            interaction += float((x - x.mean(axis=1, keepdims=True)).var(axis=0).sum()) / (seeds * (seeds - 1))
    return _Sampling(int(paired.totals[decisive]), variance, interaction)


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


def _about(number: int) -> str:
    """At least 1, to two digits, rounded up: a power calculation is not known any better."""
    unit = 10 ** max(len(str(number)) - 2, 0)
    return f"{max(-(-number // unit) * unit, 1):,}"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.0995 else f"p = {p:.2f}"
