"""Do verdicts keep their word? Thousands of simulated pilots through the code that judges real ones.

    python benchmarks/verdicts.py                 # everything in docs/statistics.md: 10,000 pilots without a difference
    python benchmarks/verdicts.py --pilots 200    # a look
    python benchmarks/verdicts.py --pilots 0 --page    # only put earlier results into the page

A simulated pilot has a test and a validation set with groups, recipes with several seeds each, and students that err on
the same difficult samples, whose luck in a group differs from seed to seed, and whose luck on validation is their luck
on test. `comparisons` and `verdict` of `limbeck.pilots.result` then judge it exactly as they judge a real one.

Printed, each share with its Monte-Carlo error: how often a pilot without any difference claims one (family-wise, at
most 5 %), how often intervals cover the true values (95 %), how often true differences of 1, 2 and 5 points are told,
and whether the advised number of seeds or samples does tell in four cases of five.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from limbeck.evaluation import wilson, worst_group_interval
from limbeck.evaluation.compare import decide
from limbeck.evaluation.pareto import pareto_front
from limbeck.evaluation.power import more_samples, more_seeds
from limbeck.pilots.result import PLAIN, comparisons, validation_mean, verdict

TIED = (0.78, 0.78, 0.78, 0.78)
ONE_BAD = (0.60, 0.82, 0.90, 0.85)
SIZES = (300, 500, 700, 1500)
STRONGEST = "group_dro"


@dataclass(frozen=True)
class Scenario:
    """Pilots of one kind.

    Attributes:
        levels: true accuracy of a student in each group, in the middle of its luck.
        sizes: test samples expected of each group; validation has half.
        recipes: distilled recipes; beside them stand the plain student and one more baseline.
        changed: true accuracies of the distilled recipes where they differ from `levels`.
        agreement: share of a sample's latent difficulty that is the same for all students; a tenth of the rest is the
            same for all recipes of one seed. Students of UCI Adult have 0.95 to 0.99, image classifiers less.
        spread: standard deviation of a seed's luck in a group, in probits: 0.06 is about 1.7 points at 80 %.
        spread_changed: the same of the distilled recipes.
        heavy: luck with the tails of Student's t with three degrees of freedom: now and then a seed fails.
    """

    name: str
    levels: tuple[float, ...] = TIED
    sizes: tuple[int, ...] = SIZES
    seeds: int = 3
    recipes: int = 3
    changed: tuple[float, ...] | None = None
    agreement: float = 0.8
    spread: float = 0.06
    spread_changed: float | None = None
    heavy: bool = False

    @property
    def keys(self) -> list[str]:
        return [PLAIN, STRONGEST, *(f"recipe{n}" for n in range(self.recipes))]

    def level(self, key: str) -> tuple[float, ...]:
        return self.levels if self.changed is None or not key.startswith("recipe") else self.changed

    def luck_spread(self, key: str) -> float:
        given = self.spread_changed if key.startswith("recipe") else None
        return self.spread if given is None else given


def luck(scenario: Scenario, rng: np.random.Generator, pilots: int = 1) -> NDArray[np.float64]:
    """What a seed is better by in each group, in probits `[pilots, recipes, seeds, groups]`.

    A third is the run's own in each group, a third is a threshold that helps every other group and costs the others (as
    where groups are made of classes), a third is shared by all recipes of a seed (initial weights, order).
    """
    shape = (pilots, len(scenario.keys), scenario.seeds, len(scenario.sizes))

    def draw(shape: tuple[int, ...]) -> NDArray[np.float64]:
        return rng.standard_t(3, shape) / 3**0.5 if scenario.heavy else rng.standard_normal(shape)

    sign = np.where(np.arange(shape[-1]) % 2, -1.0, 1.0)
    unit = (draw(shape) + sign * draw((*shape[:-1], 1)) + draw((pilots, 1, *shape[2:]))) / 3**0.5
    spreads = np.array([scenario.luck_spread(key) for key in scenario.keys])
    return np.asarray(unit * spreads[:, None, None])


def thresholds(scenario: Scenario) -> NDArray[np.float64]:
    """Of the latent difficulty, for each recipe and group: below it a student is right."""
    return special.ndtri(np.array([scenario.level(key) for key in scenario.keys]))


def truth(scenario: Scenario, draws: int = 20_000) -> dict[str, dict[str | None, float]]:
    """What another run of each recipe reaches in expectation: average (None), worst group ("worst"), each group."""
    rng = np.random.default_rng(99)
    # Every recipe's expectation is taken over the same luck, so that equal recipes are equal to the last digit.
    one = luck(replace(scenario, recipes=1, seeds=1, spread=1.0, spread_changed=None), rng, draws)[:, 0, 0]
    weights = np.array(scenario.sizes) / sum(scenario.sizes)
    found = {}
    for key, threshold in zip(scenario.keys, thresholds(scenario), strict=True):
        accuracy = special.ndtr(threshold + scenario.luck_spread(key) * one)
        mean = accuracy.mean(axis=0)
        values: dict[str | None, float] = {f"g{g}": float(value) for g, value in enumerate(mean)}
        found[key] = values | {None: float(weights @ mean), "worst": float(accuracy.min(axis=1).mean())}
    return found


@dataclass(frozen=True)
class Pilot:
    """One simulated pilot: what `comparisons` and `verdict` ask for, and the true accuracies of its students."""

    models: list[dict[str, Any]]
    right: dict[str, NDArray[np.bool_]]
    groups: NDArray[np.int64]
    accuracy: dict[str, NDArray[np.float64]]
    """True accuracy of each trained student in each group `[seeds, groups]`."""


def simulate(scenario: Scenario, rng: np.random.Generator) -> Pilot:
    """Draw test and validation samples, train (that is, draw the luck of) every student, and answer every sample."""
    sizes = np.array(scenario.sizes)
    whole = int(sizes.sum())
    threshold = thresholds(scenario)[:, None] + luck(scenario, rng)[0]
    parts = {}
    for part, samples in (("test", whole), ("validation", whole // 2)):
        g = rng.choice(len(sizes), samples, p=sizes / whole)
        shared = (1 - scenario.agreement) * 0.1
        own = (1 - scenario.agreement) * 0.9
        shape = (len(scenario.keys), scenario.seeds, samples)
        latent = own**0.5 * rng.standard_normal(shape, np.float32)
        latent += scenario.agreement**0.5 * rng.standard_normal(samples, np.float32)
        latent += shared**0.5 * rng.standard_normal(shape[1:], np.float32)
        parts[part] = (g, latent < threshold[:, :, g])
    g, right = parts["validation"]
    counts = np.bincount(g, minlength=len(sizes))
    each = np.stack([np.bincount(g, weights=row, minlength=len(sizes)) for row in right.reshape(-1, len(g))]) / counts
    each = each.reshape(*right.shape[:2], -1)
    models = [
        {
            "key": key,
            "label": key,
            "role": "student" if key.startswith("recipe") else "baseline",
            "runs": [
                {"validation": {"average": float(row.mean()), "worst_group": float(groups.min())}}
                for row, groups in zip(right[n], each[n], strict=True)
            ],
        }
        for n, key in enumerate(scenario.keys)
    ]
    g, right = parts["test"]
    accuracy = special.ndtr(threshold)
    return Pilot(models, dict(zip(scenario.keys, right)), g, dict(zip(scenario.keys, accuracy)))


@dataclass
class Tally:
    """Counts over pilots: how often something happened, of how many."""

    times: Counter[str] = field(default_factory=Counter)
    of: Counter[str] = field(default_factory=Counter)

    def add(self, what: str, happened: bool) -> None:
        self.times[what] += bool(happened)
        self.of[what] += 1

    def share(self, what: str) -> float:
        return self.times[what] / self.of[what]

    def error(self, what: str, pilots: int) -> float:
        """One standard error, as if all entries of one pilot were one (they are not independent)."""
        p = self.share(what)
        return (max(p * (1 - p), 1e-4) / pilots) ** 0.5


def names_of(scenario: Scenario) -> tuple[str, ...]:
    return tuple(f"g{g}" for g in range(len(scenario.sizes)))


def judged(scenario: Scenario, pilot: Pilot, references: list[str]) -> list[Any]:
    """Every comparison that a pilot makes."""
    labels = np.zeros(len(pilot.groups), np.int64)
    test = SimpleNamespace(y=labels, groups=SimpleNamespace(index=pilot.groups, names=names_of(scenario)))
    predictions = {key: list((~right).astype(np.int64)) for key, right in pilot.right.items()}
    return list(comparisons(pilot.models, predictions, test, references))  # type: ignore[arg-type]


def judge(scenario: Scenario, pilot: Pilot, true: Mapping[str, Mapping[str | None, float]], tally: Tally) -> None:
    """Run the pilot's own judgement, and compare it with the truth."""
    baselines = [row for row in pilot.models if row["role"] == "baseline"]
    strongest = max(baselines, key=lambda row: validation_mean(row, "worst_group"))["key"]
    references = [PLAIN] if strongest == PLAIN else [PLAIN, strongest]
    found = judged(scenario, pilot, references)
    _, chosen = verdict(pilot.models, found, "worst_group", groups=True)
    told: dict[str, set[str]] = defaultdict(set)
    by_pair: dict[str, list[tuple[Any, float]]] = defaultdict(list)
    for d in found:
        where = "worst" if d.metric == "worst_group" else d.group
        real = true[d.model][where] - true[d.against][where]
        to = "plain" if d.against == PLAIN else "strongest"
        if d.against == PLAIN:
            tally.add(f"covered {d.metric}", d.alone[0] <= real <= d.alone[1])
            if d.metric == "group":
                by_pair[d.model].append((d, real))
        if d.verdict != "not distinguishable":
            wrong = (d.verdict == "better") != (real > 0) or real == 0
            told["right" if not wrong else "wrong"].add(f"{d.metric} {to}")
            if wrong:
                told[d.verdict].add(f"{d.metric} {to}")
            if d.metric == "group":
                told[f"pair {d.model} {d.against}"].add("wrong" if wrong else "right")
        if d.against == PLAIN and d.model == chosen and d.metric == "worst_group":
            tally.add("headline better", d.verdict == "better")
            tally.add("headline worse", d.verdict == "worse")
            tally.add("covered headline", d.low <= real <= d.high)
        if d.against == PLAIN and d.model == "recipe0" and d.metric != "group":
            tally.add(f"told {d.metric}", d.verdict == ("better" if real >= 0 else "worse"))
            tally.add(f"told alone {d.metric}", d.p <= 0.05 and (d.difference > 0) == (real >= 0))
    for family in ("average plain", "worst_group plain", "average strongest", "worst_group strongest"):
        if "strongest" in family and len(references) == 1:
            # No further reference, no further question: nothing wrong was said.
            tally.add(f"false {family}", False)
            continue
        tally.add(f"false {family}", family in told["wrong"])
        for side in ("better", "worse"):
            tally.add(f"false {side} {family}", family in told[side])
    plain = {"average plain", "worst_group plain"}
    tally.add("false any against plain", bool(told["wrong"] & plain))
    tally.add("false any better", bool({f for f in told["better"] if not f.startswith("group")}))
    tally.add("false any", bool({f for f in told["wrong"] if not f.startswith("group")}))
    for model, pairs in by_pair.items():
        at_once = decide([d for d, _ in pairs], "bonferroni")
        inside = [d.low <= real <= d.high for d, (_, real) in zip(at_once, pairs, strict=True)]
        tally.add("covered all groups at once", all(inside))
        tally.add("false any group of a pair", "wrong" in told[f"pair {model} {PLAIN}"])
    students(pilot, scenario, tally)
    stand = pareto_front({PLAIN: pilot.right[PLAIN]}, pilot.groups, names_of(scenario))[0]
    tally.add("covered a recipe's average", stand.average_low <= true[PLAIN][None] <= stand.average_high)
    tally.add("covered a recipe's worst group", stand.worst_low <= true[PLAIN]["worst"] <= stand.worst_high)


def students(pilot: Pilot, scenario: Scenario, tally: Tally) -> None:
    """The intervals of one trained student: its own true accuracy, average and worst group."""
    weights = np.array(scenario.sizes) / sum(scenario.sizes)
    right, accuracy = pilot.right[PLAIN][0], pilot.accuracy[PLAIN][0]
    low, high = wilson(right.sum(), right.size)
    tally.add("covered a student's average", low <= weights @ accuracy <= high)
    total = np.bincount(pilot.groups, minlength=len(weights))
    correct = np.bincount(pilot.groups, weights=right, minlength=len(weights))
    low, high = worst_group_interval(correct, total, minimum=10)
    tally.add("covered a student's worst group", low <= accuracy[total >= 10].min() <= high)


def run(scenario: Scenario, pilots: int, seed: int = 0) -> Tally:
    """Simulate and judge that many pilots."""
    tally, true = Tally(), truth(scenario)
    for n in range(pilots):
        judge(scenario, simulate(scenario, np.random.default_rng([seed, n])), true, tally)
    return tally


# What is asked --------------------------------------------------------------------------------------------------------

NO_DIFFERENCE = [
    Scenario("3 seeds, tied groups", seeds=3),
    Scenario("4 seeds, tied groups", seeds=4),
    Scenario("5 seeds, tied groups", seeds=5),
    Scenario("3 seeds, one bad group", seeds=3, levels=ONE_BAD),
    Scenario("4 seeds, one bad group", seeds=4, levels=ONE_BAD),
    Scenario("5 seeds, one bad group", seeds=5, levels=ONE_BAD),
    Scenario("5 seeds, students that agree", seeds=5, levels=ONE_BAD, agreement=0.97, spread=0.04),
    Scenario("4 seeds, a seed fails now and then", seeds=4, levels=ONE_BAD, heavy=True),
    Scenario("3 seeds, small groups", levels=(0.7, 0.75, 0.8, 0.85, 0.9), sizes=(25, 40, 80, 400, 1000)),
    Scenario("5 seeds, much luck, many samples", seeds=5, sizes=(1000, 1000, 1500, 1500), spread=0.15),
]
"""Recipes that are all the same: each difference claimed is a false one. 10,000 pilots are 1,000 of each."""

STRESS = [
    Scenario("equal groups against one bad, 3 seeds", levels=ONE_BAD, changed=(0.60,) * 4, seeds=3),
    Scenario("equal groups against one bad, 5 seeds", levels=ONE_BAD, changed=(0.60,) * 4, seeds=5),
    Scenario(
        "eight equal small groups against one bad, 5 seeds",
        levels=(0.70, *(0.9,) * 7),
        changed=(0.70,) * 8,
        sizes=(100,) * 8,
        seeds=5,
    ),
    Scenario("recipes with three times the luck, 4 seeds", levels=ONE_BAD, seeds=4, spread=0.05, spread_changed=0.15),
    Scenario("ten recipes, 5 seeds", levels=ONE_BAD, seeds=5, recipes=10),
    Scenario("2 seeds", levels=ONE_BAD, seeds=2),
    Scenario("1 seed", levels=ONE_BAD, seeds=1),
]
"""Where procedures break. In the first three the worst groups are as good (but for luck), the others are not."""

FAMILIES = {
    "headline": ("headline better", "headline worse"),
    "worst group against plain": ("false worst_group plain",),
    "average against plain": ("false average plain",),
    "against the strongest baseline": ("false worst_group strongest", "false average strongest"),
    "all of these, any": ("false any",),
    "of these, a false better": ("false any better",),
    "groups of a pair": ("false any group of a pair",),
}
COVERAGE = {
    "difference alone, average": "covered average",
    "difference alone, worst group": "covered worst_group",
    "difference alone, one group": "covered group",
    "all groups at once": "covered all groups at once",
    "headline": "covered headline",
    "recipe, average": "covered a recipe's average",
    "recipe, worst group": "covered a recipe's worst group",
    "student, average": "covered a student's average",
    "student, worst group": "covered a student's worst group",
}


def no_difference(pilots: int) -> Iterator[dict[str, Any]]:
    """Scenarios without any difference, and at last all of them together."""
    each = max(pilots // len(NO_DIFFERENCE), 1)
    whole = Tally()
    for scenario in NO_DIFFERENCE:
        tally = run(scenario, each)
        whole.times.update(tally.times)
        whole.of.update(tally.of)
        yield row(scenario, tally, each)
    yield row(Scenario("all together"), whole, each * len(NO_DIFFERENCE))


def stress(pilots: int) -> Iterator[dict[str, Any]]:
    """Scenarios where procedures break."""
    for scenario in STRESS:
        yield row(scenario, run(scenario, pilots), pilots)


def row(scenario: Scenario, tally: Tally, pilots: int) -> dict[str, Any]:
    """One scenario as plain data, and shown."""
    shares = {name: tally.share(name) for name in sorted(tally.of)}
    errors = {name: tally.error(name, pilots) for name in shares}
    found = {"name": scenario.name, "pilots": pilots, "seeds": scenario.seeds, "shares": shares, "errors": errors}
    print(f"\n{scenario.name}, {pilots:,} pilots")
    for title, parts in FAMILIES.items():
        shown = " / ".join(percent(found, part) for part in parts if part in shares)
        if shown and not scenario.changed:
            print(f"  false claims, {title:32} {shown}")
    for title, part in COVERAGE.items():
        if part in shares:
            print(f"  covered, {title:37} {percent(found, part)}")
    return found


def percent(found: Mapping[str, Any], part: str) -> str:
    """A share with its Monte-Carlo error, in percent."""
    return f"{100 * found['shares'][part]:.1f} ± {100 * found['errors'][part]:.1f}"


def power(pilots: int) -> Iterator[dict[str, Any]]:
    """How often a true difference of 1, 2 and 5 points in every group is told, by seeds and test samples."""
    for samples, seeds in ((3000, 3), (3000, 5), (3000, 10), (12_000, 5), (12_000, 10)):
        for points in (0.01, 0.02, 0.05):
            sizes = tuple(size * samples // sum(SIZES) for size in SIZES)
            name = f"{100 * points:.0f} points, {seeds} seeds, {samples:,} samples"
            levels = tuple(level + points for level in ONE_BAD)
            scenario = Scenario(name, levels=ONE_BAD, changed=levels, sizes=sizes, seeds=seeds)
            tally = run(scenario, pilots)
            found = {"points": points, "seeds": seeds, "samples": samples, "worst_samples": sizes[0], "pilots": pilots}
            told = ("told average", "told worst_group", "told alone average", "told alone worst_group")
            found |= {
                "shares": {k: tally.share(k) for k in told},
                "errors": {k: tally.error(k, pilots) for k in told},
            }
            print(f"{name}: " + ", ".join(f"{k} {percent(found, k)} %" for k in told))
            yield found


def advice(pilots: int) -> Iterator[dict[str, Any]]:
    """Pilots of the size that undecided ones were advised: do they tell the difference in four cases of five?

    The advice is asked for the true difference; of the undecided pilots the median is taken.
    """
    for points, seeds, size in ((0.05, 4, 1.0), (0.04, 3, 2.0), (0.08, 3, 0.5)):
        sizes = tuple(int(n * size) for n in SIZES)
        levels = tuple(level + points for level in ONE_BAD)
        start = Scenario("advice", levels=ONE_BAD, changed=levels, sizes=sizes, seeds=seeds, recipes=1)
        true = truth(start)
        real = true["recipe0"]["worst"] - true[PLAIN]["worst"]
        wanted: dict[str, list[int]] = {"seeds": [], "samples": []}
        asked = max(pilots, 10)
        for n in range(asked):
            d = compared(start, n)
            if d.verdict == "better":
                continue
            level = 1 - (1 - d.level) / d.comparisons
            for kind, more in (
                ("seeds", more_seeds(real, d.variance, seeds, level)),
                ("samples", more_samples(real, d.variance, d.samples, level)),
            ):
                wanted[kind].append(10**9 if more is None else more)
        for kind, values in wanted.items():
            middle = int(np.median(values))
            found = {"points": points, "seeds": seeds, "worst_samples": sizes[0], "kind": kind, "pilots": pilots}
            found |= {"undecided": len(values) / asked, "more": None if middle >= 10**9 else middle}
            if middle < 10**9:
                grown = (sizes[0] + middle, *sizes[1:]) if kind == "samples" else sizes
                larger = replace(start, sizes=grown, seeds=seeds + (middle if kind == "seeds" else 0))
                told = sum(compared(larger, 10_000 + n).verdict == "better" for n in range(pilots)) / pilots
                found |= {"told": told, "error": (told * (1 - told) / pilots) ** 0.5}
            print("advice:", found)
            yield found


def compared(scenario: Scenario, n: int) -> Any:
    """The worst group of `recipe0` against the plain student, judged with the others of its pilot."""
    pilot = simulate(scenario, np.random.default_rng([7, n]))
    return next(d for d in judged(scenario, pilot, [PLAIN]) if (d.model, d.metric) == ("recipe0", "worst_group"))


# The page -------------------------------------------------------------------------------------------------------------

PAGE = Path(__file__).resolve().parents[1] / "docs" / "statistics.md"
BEGIN, END = "<!-- measured: {} -->\n", "<!-- end -->"


def write_page(results: Path) -> None:
    """Put what was measured into docs/statistics.md, each part between its marks."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in (
        ("no_difference", claims_table),
        ("stress", claims_table),
        ("power", power_table),
        ("advice", advice_table),
    ):
        path = results / f"{name}.json"
        if path.is_file():
            before, _, rest = text.partition(BEGIN.format(name))
            text = before + BEGIN.format(name) + table(json.loads(path.read_text())["rows"]) + "\n" + END
            text += rest.partition(END)[2]
    PAGE.write_text(text, encoding="utf-8")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def claims_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """False claims, then coverage, one row a scenario."""
    return _claims(rows) + "\n" + _coverage(rows)


def _claims(rows: Sequence[Mapping[str, Any]]) -> str:
    keys = ("headline better", "headline worse", "false worst_group plain", "false average plain")
    keys = (*keys, "false any group of a pair", "false any better", "false any")
    header = ["% false claims", "pilots", "headline better", "headline worse", "worst group", "average"]
    return markdown(
        [*header, "groups of a pair", "any better", "any"],
        [[one["name"], f"{one['pilots']:,}", *(_cell(one, key) for key in keys)] for one in rows],
    )


def _coverage(rows: Sequence[Mapping[str, Any]]) -> str:
    keys = {
        "difference, average": "covered average",
        "worst group": "covered worst_group",
        "all groups at once": "covered all groups at once",
        "headline": "covered headline",
        "recipe, average": "covered a recipe's average",
        "recipe, worst group": "covered a recipe's worst group",
        "student, average": "covered a student's average",
        "student, worst group": "covered a student's worst group",
    }
    return markdown(["% covered", *keys], [[one["name"], *(_cell(one, key) for key in keys.values())] for one in rows])


def power_table(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ["% told", "pilots", "average", "average, alone", "worst group", "worst group, alone"]
    keys = ("told average", "told alone average", "told worst_group", "told alone worst_group")
    return markdown(
        header,
        [
            [
                f"{100 * one['points']:.0f} points, {one['seeds']} seeds, {one['samples']:,} samples "
                f"({one['worst_samples']:,} in the worst group)",
                f"{one['pilots']:,}",
                *(_cell(one, key) for key in keys),
            ]
            for one in rows
        ],
    )


def advice_table(rows: Sequence[Mapping[str, Any]]) -> str:
    return markdown(
        ["true difference", "seeds, samples of the worst group", "undecided", "advised (median)", "then told"],
        [
            [
                f"{100 * one['points']:.0f} points",
                f"{one['seeds']}, {one['worst_samples']:,}",
                f"{100 * one['undecided']:.0f} %",
                f"no number of {one['kind']}" if one["more"] is None else f"{one['more']:,} more {one['kind']}",
                "" if one["more"] is None else f"{100 * one['told']:.0f} ± {100 * one['error']:.0f} %",
            ]
            for one in rows
        ],
    )


def _cell(found: Mapping[str, Any], part: str) -> str:
    return percent(found, part) if part in found["shares"] else ""


PARTS = {"no_difference": no_difference, "stress": stress, "power": power, "advice": advice}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pilots", type=int, default=10_000, help="without a difference; others take fewer; 0: none")
    parser.add_argument("--part", choices=list(PARTS), action="append", help="all of them by default")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "verdicts")
    parser.add_argument("--page", action="store_true", help="put the results into docs/statistics.md as well")
    options = parser.parse_args(arguments)
    sizes = {"no_difference": options.pilots, "stress": options.pilots // 20, "power": options.pilots // 100}
    sizes["advice"] = sizes["power"]
    options.output.mkdir(parents=True, exist_ok=True)
    for name in (options.part or PARTS) if options.pilots else ():
        started, rows = time.process_time(), []
        for found in PARTS[name](max(sizes[name], 10)):
            rows.append(found)
            seconds = round(time.process_time() - started)
            text = json.dumps({"processor_seconds": seconds, "rows": rows}, indent=1)
            (options.output / f"{name}.json").write_text(text + "\n")
            sys.stdout.flush()
    if options.page:
        write_page(options.output)


if __name__ == "__main__":
    main()
