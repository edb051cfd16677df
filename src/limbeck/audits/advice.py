"""Which recipes to try on these data, ranked, with the reasons; and whether a pilot proved it right."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from limbeck.audits.gates import Effect, Finding, Measured, copies, findings, seeks_errors, weighs_groups
from limbeck.audits.said import Said
from limbeck.audits.trial import Trial, Tried
from limbeck.errors import ConfigError
from limbeck.presets import as_recipe
from limbeck.recipe import Recipe

if TYPE_CHECKING:
    from limbeck.pilots import PilotResult

Verdict = Literal["use", "no difference expected", "avoid"]

_DECIDING: dict[Verdict, tuple[str, ...]] = {
    "use": ("help", "caution"),
    "no difference expected": ("caution",),
    "avoid": ("impossible", "harm"),
}
"""The effects that a verdict rests on, or that a reader should know with it."""

RECIPES = (
    "erm",
    "group_dro",
    "group_balanced",
    "dfr",
    "jtt",
    "gce",
    "elr",
    "kd",
    "dkd",
    "groupdistil",
    "dett",
    "rld",
    "btkd",
    "pll",
)
"""Those that advice is given on where none are named; of two expected alike the first is put first."""

BETTER, WORSE = 0.02, 0.02
"""How far from the plain student an expected accuracy must be to count."""

LEVEL_WITH_BEST = 0.01

EXPECTATION_ERROR = 0.13
"""How far a gain that is expected of a kind of recipe is from what its students reach: root mean square over six
recipes and 19 cells of `benchmarks/audit_cap.py`, seed 1."""


@dataclass(frozen=True)
class Advice:
    """What is advised on one recipe.

    Attributes:
        recipe: its name. verdict: "use", "no difference expected" or "avoid".
        average, worst: what to expect, from the trial or, where a recipe was not tried, from the audit's probes and the
            teacher's cap: good for comparing recipes, not a forecast for a student of another kind.
        reasons: the trial and gate by gate, with the numbers.
        possible: False where it cannot be run on these data at all.
        tried: whether it was measured in the trial.
    """

    recipe: str
    verdict: Verdict
    average: float
    worst: float
    reasons: tuple[Finding, ...]
    possible: bool = True
    tried: bool = False

    def sentence(self) -> str:
        """The advice in one line."""
        deciding = _DECIDING[self.verdict]
        why = "; ".join(finding.reason for finding in self.reasons if finding.effect in deciding)
        return f"{self.verdict}: {self.recipe}" + (f": {why}" if why else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; None for nan."""
        values = asdict(self) | {"sentence": self.sentence()}
        values["reasons"] = [finding.to_dict() for finding in self.reasons]
        return {key: None if isinstance(value, float) and value != value else value for key, value in values.items()}


@dataclass(frozen=True)
class AdviceCheck:
    """Advice held against a finished pilot.

    Attributes:
        metric: "worst_group" or "average", on test.
        advised: the first advised recipe that was run; None where none of them was.
        reached: its mean over seeds. best, best_value: the best of all students run. plain: the plain student's.
        gap: best_value − reached. right: whether it is within `tolerance`.
    """

    metric: str
    advised: str | None
    reached: float
    best: str
    best_value: float
    plain: float
    gap: float
    tolerance: float
    right: bool

    def sentence(self) -> str:
        """The result in words."""
        if self.advised is None:
            return "None of the advised recipes was run: nothing can be said of the advice."
        place = "in the worst group" if self.metric == "worst_group" else "on average"
        return (
            f"The advice was {'right' if self.right else 'wrong'}: {self.advised} reached {self.reached:.1%} {place}, "
            f"the best ({self.best}) {self.best_value:.1%}, the plain student {self.plain:.1%}."
        )


def advise(
    measured: Measured, recipes: Iterable[str | Mapping[str, Any] | Recipe] = RECIPES, trial: Trial | None = None
) -> tuple[Advice, ...]:
    """Rank recipes on these data, the one to try first in front.

    What was tried goes by what it gained over the plain student, in the worst group where groups are declared, drawn
    towards what is expected of its kind by as much as the trial is uncertain (the weights of two estimates of known
    error). What was not tried goes by what is expected of its kind, and comes after. A recipe is used where it gains,
    or is level with the best where nothing does; avoided where it loses, or where a gate says that it harms and the
    trial does not certainly show the contrary.

    Args:
        measured: the numbers of an audit.
        recipes: names, plain data or recipes.
        trial: of these recipes; None: all goes by expectation.
    """
    rows = [_Row.of(as_recipe(recipe), place, measured, trial) for place, recipe in enumerate(recipes)]
    able = [row for row in rows if not row.blocked]
    # An expectation is on another scale than what a student of the trial reached.
    best = max((row.value for row in [row for row in able if row.tried] or able), default=0.0)
    ordered = sorted(rows, key=lambda row: row.rank(best))
    return tuple(row.advice(best) for row in ordered)


_ORDER: dict[Verdict, int] = {"use": 0, "no difference expected": 1, "avoid": 2}


@dataclass(frozen=True)
class _Row:
    """One recipe on its way to a rank.

    Attributes:
        average, worst: expected, or reached in the trial.
        expected: the gain over the plain student that its kind is expected to have.
        tried: in the trial; None where it was not.
        reasoned: what the gates say. found: all its reasons. place: in the list given.
    """

    recipe: str
    average: float
    worst: float
    expected: float
    tried: Tried | None
    reasoned: tuple[Finding, ...]
    found: tuple[Finding, ...]
    place: int

    @classmethod
    def of(cls, recipe: Recipe, place: int, measured: Measured, trial: Trial | None) -> _Row:
        average, worst = expected(recipe, measured)
        ahead = worst - measured.plain_worst if measured.groups else average - measured.plain_average
        gates, tried = findings(recipe, measured), None if trial is None else trial.of(recipe.name)
        if trial is None or tried is None:
            return cls(recipe.name, average, worst, ahead, None, gates, gates, place)
        reach, found = tried.reach, (_measured_finding(trial, tried), *gates)
        return cls(recipe.name, reach.average, reach.worst, ahead, tried, gates, found, place)

    @property
    def impossible(self) -> bool:
        return any(finding.effect == "impossible" for finding in self.found)

    @property
    def hindered(self) -> bool:
        """A gate says that it harms."""
        return any(finding.effect == "harm" for finding in self.reasoned)

    @property
    def blocked(self) -> bool:
        """Ruled out: impossible, or harmful by a gate, unless the trial certainly shows the contrary."""
        contradicted = self.tried is not None and self.tried.gain_low > 0
        return self.impossible or (self.hindered and not contradicted)

    @property
    def value(self) -> float:
        """The gain to go by: as measured and as expected, each by its certainty."""
        if self.tried is None:
            return self.expected
        error = (self.tried.gain_high - self.tried.gain_low) / 3.92
        trust = EXPECTATION_ERROR**2 / (EXPECTATION_ERROR**2 + error**2)
        return trust * self.tried.gain + (1 - trust) * self.expected

    def verdict(self, best: float) -> Verdict:
        helped = any(finding.effect == "help" for finding in self.found)
        if self.blocked or self.value <= -WORSE:
            return "avoid"
        if self.value >= BETTER or (self.value >= best - LEVEL_WITH_BEST and (helped or best < BETTER)):
            return "use"
        return "no difference expected"

    def rank(self, best: float) -> tuple[Any, ...]:
        # Of recipes alike, the one that more speaks for: group weights add to a fair teacher where they help.
        favour = sum({"help": 1, "caution": -1}.get(finding.effect, 0) for finding in self.reasoned)
        untried = self.tried is None
        return _ORDER[self.verdict(best)], self.impossible, untried, -round(self.value, 3), -favour, self.place

    def advice(self, best: float) -> Advice:
        tried = self.tried is not None
        return Advice(self.recipe, self.verdict(best), self.average, self.worst, self.found, not self.impossible, tried)


def _measured_finding(trial: Trial, tried: Tried) -> Finding:
    """What the trial says of one recipe, as a reason."""
    best, plain = (trial.of(name) for name in (trial.best, "erm"))
    assert best is not None
    assert plain is not None
    others: dict[str, Any] = {"plain": trial.value(plain)} if tried.recipe != "erm" else {}
    if tried.recipe != trial.best:
        others |= {"best": trial.value(best), "recipe": trial.best}
    kind = "both" if len(others) == 3 else next(iter(others), None)
    told = {"student": trial.student, "value": trial.value(tried)}
    beside = "" if kind is None else Said(f"trial.{kind}", others)
    effect: Effect = "help" if tried.gain >= BETTER else "harm" if tried.gain <= -WORSE else "caution"
    return Finding("tried on these data", effect, Said(f"trial.{trial.metric}", {**told, "beside": beside}))


def expected(recipe: Recipe, measured: Measured) -> tuple[float, float]:
    """Average and worst-group accuracy to expect of a recipe, from what was measured.

    Whoever copies the teacher gets its cap, weighed groups or not; whoever learns the labels gets what a probe gets
    from them, on all samples alike or with every cell weighing the same; whoever seeks errors lies half-way.
    """
    if measured.teacher and copies(recipe):
        return measured.teacher_average, measured.teacher_worst
    plain, balanced = (
        (measured.plain_average, measured.plain_worst),
        (measured.balanced_average, measured.balanced_worst),
    )
    if weighs_groups(recipe):
        return balanced
    if seeks_errors(recipe):
        return (plain[0] + balanced[0]) / 2, (plain[1] + balanced[1]) / 2
    return plain


def check_advice(
    advice: Iterable[Advice], result: PilotResult | Mapping[str, Any], *, tolerance: float = 0.01
) -> AdviceCheck:
    """Hold advice against a finished pilot: is the advised recipe within `tolerance` of the best student?

    Args:
        advice: of an audit.
        result: of a pilot (or its record); every student counts, the plain one too.
        tolerance: on the mean over seeds of the test worst group (the average, where no groups are declared).

    Raises:
        ConfigError: where the record holds no students.
    """
    record = result if isinstance(result, Mapping) else result.to_dict()
    metric = "worst_group" if record["data"]["groups"] else "average"
    reached: dict[str, float] = {}
    names: dict[str, str] = {}
    for row in record["models"]:
        values = [run["test"][metric] for run in row["runs"] if run["test"].get(metric) is not None]
        if row["role"] != "teacher" and values:
            reached[row["key"]] = statistics.fmean(values)
            names[row["key"]] = row["recipe"]["name"] if row["recipe"] else row["key"]
    if not reached:
        raise ConfigError("the pilot holds no student that was measured: advice cannot be checked")
    best = max(reached, key=lambda key: reached[key])
    plain = reached.get("erm", float("nan"))
    # A recipe may have been run with several teachers: the advice is as good as the best of these.
    for entry in (entry for entry in advice if entry.verdict == "use"):
        runs = [value for key, value in reached.items() if entry.recipe in (key, names[key])]
        if runs:
            gap = reached[best] - max(runs)
            return AdviceCheck(
                metric, entry.recipe, max(runs), best, reached[best], plain, gap, tolerance, gap <= tolerance
            )
    nan = float("nan")
    return AdviceCheck(metric, None, nan, best, reached[best], plain, nan, tolerance, right=False)
