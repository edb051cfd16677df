"""How sure is a difference, and how many more seeds or samples would tell it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from scipy import optimize, special

NOTHING = 0.001
"""A difference under a tenth of a point: nobody would act on it, however sure it is."""

_MOST_SEEDS = 10_000
_MOST_SAMPLES = 1_000
"""How far a power calculation looks: seeds in all, and samples as a multiple of those there are."""


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

        def beyond(log_p: float) -> float:
            return self.half_width(math.exp(log_p)) - abs(difference)

        if high - low <= 1e-9 * high or beyond(math.log(low)) <= 0:
            return low
        if beyond(math.log(high)) >= 0:
            return high
        return math.exp(float(optimize.brentq(beyond, math.log(low), math.log(high), xtol=1e-10, rtol=1e-14)))

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
    difference: float, variance: Variance, seeds: int, level: float = 0.95, power: float = 0.8, allowance: float = 0.0
) -> int | None:
    """How many more seeds would tell a true difference this large; None where seeds alone cannot, or with one seed.

    `allowance` is what the test takes off the difference first (see `Difference.selection`); seeds do not shrink it.
    """
    if seeds < 2:
        return None
    enough = _smallest(
        lambda s: detectable(variance.scaled(s / seeds, 1.0), level, power) + allowance <= abs(difference),
        seeds,
        _MOST_SEEDS,
    )
    return None if enough is None else enough - seeds


def more_samples(
    difference: float, variance: Variance, samples: int, level: float = 0.95, power: float = 0.8, allowance: float = 0.0
) -> int | None:
    """How many more samples (of the group in question) would tell a true difference this large; None if they cannot.

    `allowance` shrinks like a standard error.
    """
    if samples < 1:
        return None

    def told(n: int) -> bool:
        shrunk = allowance * math.sqrt(samples / n)
        return detectable(variance.scaled(1.0, n / samples), level, power) + shrunk <= abs(difference)

    enough = _smallest(told, samples, samples * _MOST_SAMPLES)
    return None if enough is None else enough - samples


def more_of_both(
    difference: float,
    variance: Variance,
    seeds: int,
    samples: int,
    level: float = 0.95,
    power: float = 0.8,
    allowance: float = 0.0,
) -> tuple[int, int] | None:
    """How many more seeds *and* samples would tell, both grown by the same factor; None with one seed."""
    if seeds < 2 or samples < 1:
        return None

    def told(s: int) -> bool:
        factor = s / seeds
        shrunk = allowance / math.sqrt(factor)
        return detectable(variance.scaled(factor, factor), level, power) + shrunk <= abs(difference)

    enough = _smallest(told, seeds, _MOST_SEEDS)
    return None if enough is None else (enough - seeds, math.ceil(samples * enough / seeds) - samples)


def _smallest(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest integer in low..high for which `holds`, which never turns false again; None where there is none."""
    if not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


@dataclass(frozen=True)
class Advice:
    """What would tell a difference as large as the one observed, which was not told.

    It takes the observed difference for the true one. A difference that is nothing but luck is as often smaller as
    larger, so the numbers say what a difference of this size needs, not that there is one.

    Attributes:
        matters: whether the observed difference reaches a tenth of a point.
        detectable: the smallest true difference that the seeds and samples there are tell with probability `power`.
        more_seeds: more seeds of each model on the same test samples; None where no number of them would tell, or
            where one seed leaves their spread unknown.
        more_samples: more test samples, of the group that decides where there is one; None where no number would tell.
        more_by_group: where several groups take turns in being the worst: more samples of each, that group included.
        both: where neither alone would tell: more seeds and more samples together.
        one_run: whether there is one run of each, so that the spread over seeds is unknown.
    """

    matters: bool
    detectable: float
    more_seeds: int | None
    more_samples: int | None
    more_by_group: Mapping[str, int]
    both: tuple[int, int] | None
    group: str | None
    one_run: bool
    power: float = 0.8

    def sentence(self) -> str:
        """In words, without a capital and a full stop."""
        would_have = f"{100 * self.detectable:.1f} points or more would have been told (power {self.power:g})"
        if not self.matters:
            return f"a difference under a tenth of a point does not matter; one of {would_have}"
        size = "would tell a difference of this size"
        seeds = None if self.more_seeds is None else _number(self.more_seeds, "more seed")
        samples = None if self.more_samples is None else self._samples(self.more_samples)
        if seeds is not None and samples is not None:
            return f"about {seeds} or {samples} {size}"
        if samples is not None:
            if self.one_run:
                return f"about {samples} {size} between these two runs; one run each says nothing about other seeds"
            return f"about {samples} {size}, no number of seeds alone"
        if seeds is not None:
            return f"about {seeds} {size}, no number of test samples alone"
        if self.both is not None:
            together = f"about {_number(self.both[0], 'more seed')} and {self._samples(self.both[1])} together"
            return f"no number of seeds or test samples alone {size}, {together} would"
        return f"a difference of {would_have}"

    def _samples(self, more: int) -> str:
        if self.group is None:
            return f"{_number(more, 'more test sample')}"
        first = f"{_number(more, 'more test sample')} of group {self.group!r}"
        others = [name for name in self.more_by_group if name != self.group]
        if not others:
            return first
        rest = f" and {len(others) - 1} further groups" if len(others) > 2 else ""
        shown = others[:1] if rest else others
        return f"{first} (and as many times more of {', '.join(map(repr, shown))}{rest}, at times the worst)"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; None for nan."""
        plain = asdict(self) | {
            "more_by_group": dict(self.more_by_group),
            "both": None if self.both is None else {"seeds": self.both[0], "samples": self.both[1]},
            "detectable": None if math.isnan(self.detectable) else self.detectable,
        }
        return plain | {"sentence": self.sentence()}


def _number(number: int, what: str) -> str:
    """At least 1, to two digits, rounded up: a power calculation is not known any better."""
    unit = 10 ** max(len(str(number)) - 2, 0)
    rounded = max(-(-number // unit) * unit, 1)
    return f"{rounded:,} {what}{'' if rounded == 1 else 's'}"
