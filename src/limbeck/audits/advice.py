"""Which recipes to try on these data, ranked, with the reasons; and whether a pilot proved it right."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from limbeck.audits.gates import Finding, Measured, copies, findings, seeks_errors, weighs_groups
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


@dataclass(frozen=True)
class Advice:
    """What is advised on one recipe.

    Attributes:
        recipe: its name. verdict: "use", "no difference expected" or "avoid".
        average, worst: what to expect, from the audit's probes and the teacher's cap: good for comparing recipes, not a
            forecast for a student of another kind.
        reasons: gate by gate, with the numbers.
        possible: False where it cannot be run on these data at all.
    """

    recipe: str
    verdict: Verdict
    average: float
    worst: float
    reasons: tuple[Finding, ...]
    possible: bool = True

    def sentence(self) -> str:
        """The advice in one line."""
        deciding = _DECIDING[self.verdict]
        why = "; ".join(finding.reason for finding in self.reasons if finding.effect in deciding)
        return f"{self.verdict}: {self.recipe}" + (f": {why}" if why else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; None for nan."""
        values = asdict(self) | {"sentence": self.sentence()}
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


def advise(measured: Measured, recipes: Iterable[str | Mapping[str, Any] | Recipe] = RECIPES) -> tuple[Advice, ...]:
    """Rank recipes on these data, the one to try first in front.

    A recipe is avoided where a gate says that it harms, cannot be run, or is expected below the plain student; used
    where it is expected above the plain student, or level with the best where nothing is above it.

    Args:
        measured: the numbers of an audit.
        recipes: names, plain data or recipes.
    """
    entries = [as_recipe(recipe) for recipe in recipes]
    metric = "worst" if measured.groups else "average"
    outlook = [dict(zip(("average", "worst"), expected(recipe, measured), strict=True)) for recipe in entries]
    reasons = [findings(recipe, measured) for recipe in entries]
    blocked = [{finding.effect for finding in found} & {"harm", "impossible"} for found in reasons]
    plain = measured.plain_worst if metric == "worst" else measured.plain_average
    open_ = [look[metric] for look, bad in zip(outlook, blocked, strict=True) if not bad]
    best = max(open_, default=plain)
    rows = []
    for place, (recipe, look, found, bad) in enumerate(zip(entries, outlook, reasons, blocked, strict=True)):
        verdict = "avoid" if bad else _verdict(look[metric], plain, best, found)
        # Of recipes expected alike, the one that more speaks for: group weights add to a fair teacher where they help.
        favour = sum({"help": 1, "caution": -1}.get(finding.effect, 0) for finding in found)
        rank = (_ORDER[verdict], "impossible" in bad, -round(look[metric], 3), -favour, place)
        entry = Advice(recipe.name, verdict, look["average"], look["worst"], found, "impossible" not in bad)
        rows.append((rank, entry))
    return tuple(entry for _, entry in sorted(rows, key=lambda row: row[0]))


_ORDER: dict[Verdict, int] = {"use": 0, "no difference expected": 1, "avoid": 2}


def _verdict(value: float, plain: float, best: float, found: tuple[Finding, ...]) -> Verdict:
    helped = any(finding.effect == "help" for finding in found)
    if value <= plain - WORSE:
        return "avoid"
    if value >= plain + BETTER or (value >= best - LEVEL_WITH_BEST and (helped or best < plain + BETTER)):
        return "use"
    return "no difference expected"


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
