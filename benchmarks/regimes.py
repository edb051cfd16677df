"""A grid of regimes: who is wrong, how much, and which method helps. Does the recipe `auto` find out?

    python benchmarks/regimes.py --seeds 10 11 12 13 14
    python benchmarks/regimes.py --seeds 10 11 12 13 14 --table docs/arbitration.md --picture docs/regimes.svg

Four data sets × labels (clean, 20 %, 40 %, 40 % in one group) × teacher (good, biased, weak) × groups declared or not.
Noise is in training and validation labels, never in test labels; teachers learned from other samples, with their true
labels. A fixed column selects its epoch by validation worst group as its user would see it: through the noisy labels,
and by class where groups are unknown. `auto` sees what they see. Each (data set, labels, groups, seed) is written to
`benchmarks/results/regimes.json` at once, and skipped when run again. The data come from the folder that LIMBECK_DATA
names (Adult comes with Limbeck). Arbitration and `auto` were developed on seeds 0 and 4.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student_t

import limbeck as lb
from limbeck.choosing import choose, unsupported
from limbeck.data import inject
from limbeck.models import MLP
from limbeck.presets import as_recipe
from limbeck.probes.cells import train_cells
from limbeck.probes.stages import Cell as Probe
from limbeck.selection import RULES
from limbeck.teachers import TableTeacher, as_teacher, collect

RESULTS = Path(__file__).parent / "results" / "regimes.json"
DATA = ("adult", "employment", "digits", "bar")
LABELS = ("clean", "20 %", "40 %", "40 % in one group")
TEACHERS = ("good", "biased", "weak")
KNOWN = {True: "groups known", False: "groups unknown"}
NO_TEACHER = {"no teacher": "erm", "+ group weights": "group_balanced"}
FIXED: dict[str, Any] = {
    "KD": "kd",
    "RLD": "rld",
    "BTKD": "btkd",
    "PLL": "pll",
    "DeTT": "dett",
    "GroupDistil": "groupdistil",
}
COLUMNS = (*NO_TEACHER, *FIXED, "arbitration", "auto")
STUDENT, TEACHER = [64], [128]
SETTINGS: dict[str, Any] = {"epochs": 10, "learning_rate": 1e-2}
ARBITRATE: dict[str, Any] = {"rounds": 3, "repeats": 1, "bootstrap": 2}
TRAINING, VALIDATION, POOL, TEST, FEW = 2_000, 1_000, 4_000, 4_000, 150
WITHIN, FAILURES = 0.005, 12


@dataclass(frozen=True)
class Regime:
    """One data set as a student's user sees it, and the truth beside it.

    Args:
        data: noisy labels in training and validation, groups as declared over them.
        test: true labels and groups.
        pool: other samples with true labels, for teachers: (unbiased or all, biased).
        attribute: what the label may be tied to.
    """

    data: lb.Data
    test: lb.Data
    pool: tuple[lb.Data, lb.Data]
    attribute: str


# Data -----------------------------------------------------------------------------------------------------------------


def make(name: str, labels: str, seed: int) -> Regime:
    """The regime without its teachers."""
    if name == "digits":
        return digits(labels, seed)
    whole, attribute = {"adult": adult, "employment": employment, "bar": bar}[name](seed)
    mine = whole.columns["part"] == "student"
    # BAR is small: its teachers have seen the student's training samples as well.
    pool = whole.subset(~mine | ((whole.split == 0) & (name == "bar")))
    student = whole.subset(mine)
    return Regime(with_noise(student, labels, attribute, seed), student.test, (pool, thinned(pool)), attribute)


def with_noise(data: lb.Data, labels: str, attribute: str, seed: int) -> lb.Data:
    if labels == "clean":
        return inject.label_noise(data, rate=0.0, seed=seed)
    if not labels.endswith("group"):
        return inject.label_noise(data, rate=float(labels.split()[0]) / 100, seed=seed)
    assert data.groups is not None
    column = data.attributes[attribute]
    rare = int(np.bincount(column.codes, minlength=len(column.values)).argmin())
    sides = data.with_groups(attribute)
    assert sides.groups is not None
    noisy = inject.label_noise(sides, rate=0.0, group={sides.groups.names[rare]: 0.4}, seed=seed)
    return noisy.with_groups(list(data.groups.columns))


def thinned(pool: lb.Data) -> lb.Data:
    """The pool with nine in ten of its minority left out: what a biased teacher learned from."""
    assert pool.groups is not None
    counts = pool.groups.counts(pool.split == 0)
    small = np.flatnonzero(counts < counts.sum() / (1.5 * len(counts)))
    inside = np.isin(pool.groups.index, small) & (pool.split == 0)
    seen = np.cumsum(inside)
    return pool.subset(~inside | (seen % 10 == 0))


def parts(count: int, testing: int, sizes: Sequence[int], seed: int) -> tuple[Any, Any, Any]:
    """Rows, split and part (student or pool) of a shuffled training and a test portion."""
    rng = np.random.default_rng(seed)
    training, validation, pool = sizes
    first = rng.permutation(count)[: training + validation + pool]
    training, pool = min(training, len(first) - validation - pool), pool
    last = count + rng.permutation(testing)[:TEST]
    # A teacher's epoch is selected on validation samples of its own.
    own = pool // 5
    split = np.repeat(
        ["train", "validation", "train", "validation", "test"], [training, validation, pool - own, own, len(last)]
    )
    part = np.repeat(["student", "pool", "student"], [training + validation, pool, len(last)])
    return np.concatenate([first, last]), split, part


def tabular(whole: lb.Data, attribute: str, values: Any, label: str, name: str, seed: int) -> lb.Data:
    train, test = np.flatnonzero(whole.split == 0), np.flatnonzero(whole.split == 2)
    rows, split, part = parts(len(train), len(test), (TRAINING, VALIDATION, POOL), seed)
    rows = np.concatenate([train, test])[rows]
    return lb.Data(
        whole.inputs(rows),
        np.array(whole.classes)[whole.y[rows]],
        attributes={attribute: values[rows]},
        groups=["label", attribute],
        columns={"part": part, **{key: value[rows] for key, value in whole.columns.items()}},
        ids=rows,
        split=split,
        fractions=None,
        label_name=label,
        name=name,
    )


def adult(seed: int) -> tuple[lb.Data, str]:
    """Income × sex."""
    whole = lb.load("adult", validation=0)
    return tabular(whole, "sex", whole.attributes["sex"].strings(), "income", "adult", seed), "sex"


def employment(seed: int) -> tuple[lb.Data, str]:
    """Employed × disability, people of 2015 in training and of 2016 in test."""
    whole = lb.load("acs-employment", train_years=[2015], test_years=[2016], validation=0)
    values = whole.attributes["disability"].strings()
    return tabular(whole, "disability", values, "employed", "employment", seed), "disability"


def bar(seed: int) -> tuple[lb.Data, str]:
    """BAR's features: class × (in the place that is usual for it or not); most of the unusual ones are for test."""
    whole = lb.load("bar")
    side = np.where(whole.attributes["aligned"].strings() == "yes", "usual", "unusual")
    rng = np.random.default_rng(seed)
    split = np.full(len(whole), "test", dtype="U10")
    part = np.full(len(whole), "student", dtype="U10")
    for k in range(whole.num_classes):
        for value, shares in (("usual", (0.45, 0.1, 0.28, 0.07)), ("unusual", (0.13, 0.13, 0.05, 0.03))):
            rows = rng.permutation(np.flatnonzero((whole.y == k) & (side == value)))
            ends = np.cumsum([round(share * len(rows)) for share in shares])
            for chunk, (where, who) in zip(
                np.split(rows, ends)[:4],
                (("train", "student"), ("validation", "student"), ("train", "pool"), ("validation", "pool")),
                strict=True,
            ):
                split[chunk], part[chunk] = where, who
    x = whole.x.astype(np.float32)
    training = x[split == "train"]
    data = lb.Data(
        (x - training.mean(axis=0)) / training.std(),
        np.array(whole.classes)[whole.y],
        attributes={"place": side},
        groups=["label", "place"],
        columns={"part": part},
        split=split,
        fractions=None,
        name="bar",
    )
    return data, "place"


def digits(labels: str, seed: int, aligned: float = 0.95) -> Regime:
    """Coloured digits of 14×14 pixels; the attribute is the colour, the groups are label × (its colour or not)."""
    grey = lb.load("mnist", validation=0)
    pixels = grey.x.reshape(-1, 1, 14, 2, 14, 2).mean(axis=(3, 5)).astype(np.uint8)
    small = lb.Data(pixels, grey.y, ids=grey.ids, split=grey.split, fractions=None, classes=grey.classes, name="digits")
    train = np.flatnonzero(small.split == 0)
    rows, split, part = parts(len(train), int((small.split == 2).sum()), (TRAINING, VALIDATION, POOL), seed)
    rows = np.concatenate([train, np.flatnonzero(small.split == 2)])[rows]
    small = small.subset(rows)
    student, even = (inject.coloured(small, aligned=share, severity=2, seed=seed) for share in (aligned, 0.3))

    def grouped(painted: lb.Data, y: Any, chosen: Any) -> lb.Data:
        colour = painted.attributes["colour"].strings()
        flag = np.where(np.array(inject.COLOURS)[y] == colour, "own", "other")
        return lb.Data(
            painted.x[chosen].reshape(int(chosen.sum()), -1).astype(np.float32) / 255,
            y[chosen],
            attributes={"colour": colour[chosen], "own colour": flag[chosen]},
            groups=["label", "own colour"],
            columns={"true_label": painted.y[chosen]},
            ids=painted.ids[chosen],
            split=split[chosen],
            fractions=None,
            classes=[str(k) for k in range(10)],
            name="digits",
        )

    mine, true = part == "student", student.y
    given = true
    if labels.endswith("group"):
        conflicting = np.array(inject.COLOURS)[true] != student.attributes["colour"].strings()
        sides = student.with_groups(conflicting.astype(np.int64), group_names=["own", "other"])
        given = inject.label_noise(sides, rate=0.0, group={"other": 0.4}, seed=seed).y
    elif labels != "clean":
        given = inject.label_noise(student, rate=float(labels.split()[0]) / 100, seed=seed).y
    data = grouped(student, given, mine)
    biased = inject.coloured(small, aligned=0.99, seed=seed)
    pools = grouped(even, even.y, ~mine), grouped(biased, biased.y, ~mine)
    return Regime(data, data.test, pools, "colour")


# Methods --------------------------------------------------------------------------------------------------------------


def network(data: lb.Data, hidden: Sequence[int]) -> Any:
    return lambda: MLP(data.sample_shape, data.num_classes, hidden=hidden)


def training(data: lb.Data) -> lb.Training:
    """About 150 steps for every student."""
    return lb.Training(**SETTINGS, batch_size=64 if len(data.train) < 1_500 else 128)


def teacher_of(kind: str, name: str, regime: Regime, seed: int) -> Any:
    """A teacher, or a table of what a real model said."""
    if kind == "biased" and name == "employment":
        probability = regime.data.columns["predicted_probability"].astype(np.float64)
        table = {"id": regime.data.ids, "probabilities": np.stack([1 - probability, probability], axis=1)}
        return TableTeacher(table, "probabilities", classes=regime.data.classes)
    pool = regime.pool[kind == "biased"]
    if kind == "weak":
        rows = np.flatnonzero(pool.split == 0)
        pool = pool.subset(np.concatenate([few(pool, rows), np.flatnonzero(pool.split == 1)]))
    recipe = "group_balanced" if kind == "good" else "erm"
    selection = "worst_group" if kind == "good" else "average"
    build = network(pool, TEACHER)
    return lb.fit(build, pool, recipe=recipe, seed=seed, selection=selection, training=training(pool))


def few(pool: lb.Data, rows: Any) -> Any:
    """The first few samples, one of each class at least."""
    first = [rows[np.flatnonzero(pool.y[rows] == k)[0]] for k in range(pool.num_classes)]
    return np.unique(np.concatenate([first, rows[:FEW]]))


def measure(name: str, labels: str, known: bool, seed: int, teachers: dict[str, Any]) -> dict[str, Any]:
    """All columns for all teachers; `teachers` keeps them: they do not depend on the student's labels."""
    regime = make(name, labels, seed)
    data, test, build = regime.data, regime.test, network(regime.data, STUDENT)
    for kind in TEACHERS:
        if kind not in teachers:
            teachers[kind] = as_teacher(teacher_of(kind, name, regime, seed))
    if not known:
        data = data.with_groups(["label"])
    attribute = regime.attribute if known else None
    started = time.perf_counter()
    arbitration = lb.arbitrate(data, attribute=attribute, seed=seed, **ARBITRATE)
    seconds = time.perf_counter() - started
    fixed = fixed_columns(build, data, test, teachers, seed)
    recipe = as_recipe({"recipe": "auto", "attribute": attribute})
    settings: dict[str, Any] = {"seed": seed, "training": training(data)}
    by_itself = as_recipe({"recipe": "arbitration", "attribute": attribute})
    unheard = lb.fit(build, data, recipe=by_itself, arbitration=arbitration, selection="worst_group", **settings)
    true = data.train.columns["true_label"]
    found = {}
    for kind, source in teachers.items():
        trained: dict[str, lb.Fitted] = {}

        def fit(*given: Any, recipe: Any, **more: Any) -> lb.Fitted:
            """`lb.fit`, and what it made is kept."""
            trained[recipe.name] = lb.fit(*given, recipe=recipe, **more)  # noqa: B023
            return trained[recipe.name]  # noqa: B023

        heard = lb.arbitrate(data, source, attribute=attribute, seed=seed, **ARBITRATE)
        auto = choose(fit, build, data, source, recipe, heard, None, RULES["worst_group"], **settings)
        chosen = auto.details["chosen"]
        reached = {key: accuracy(one, test) for key, one in trained.items()}
        candidates = {
            row["recipe"]: {**reached[row["recipe"]], "score": round(row["score"], 4), "share": round(row["share"], 4)}
            for row in chosen["candidates"]
            if row["score"] is not None
        }
        found[kind] = {
            "columns": {**fixed[kind], "arbitration": accuracy(unheard, test), "auto": accuracy(auto, test)},
            "candidates": candidates,
            "merged": None if chosen["merged"] is None else {**reached["merged"], "score": chosen["merged"]["score"]},
            "chosen": chosen["recipe"],
            "teacher": accuracy(collect(source, test)["logits"].numpy(), test),
            "noise_found": heard.noise_rate,
            "posterior_right": float((heard.posterior.argmax(axis=1) == true).mean()),
        }
    return {
        "teachers": found,
        "noise_true": float((data.train.y != true).mean()),
        "noise_found": arbitration.noise_rate,
        "posterior_right": float((arbitration.posterior.argmax(axis=1) == true).mean()),
        "seconds": round(seconds, 1),
    }


def fixed_columns(
    build: Any, data: lb.Data, test: lb.Data, teachers: Mapping[str, Any], seed: int
) -> dict[str, dict[str, Any]]:
    """What each method reaches for each teacher, None where it does not apply; all students are trained together."""
    places: list[tuple[str, str | None]] = []
    cells = []
    for column, recipe in NO_TEACHER.items():
        places.append((column, None))
        cells.append(Probe(build, data, as_recipe(recipe), None, training(data), seed))
    for kind, source in teachers.items():
        for column, recipe in FIXED.items():
            if unsupported(as_recipe(recipe), data, source) is None:
                places.append((column, kind))
                cells.append(Probe(build, data, as_recipe(recipe), source, training(data), seed))
    reached = {
        place: accuracy(one, test)
        for place, one in zip(places, train_cells(cells, selection="worst_group"), strict=True)
    }
    return {
        kind: {
            **{column: reached[column, None] for column in NO_TEACHER},
            **{column: reached.get((column, kind)) for column in FIXED},
        }
        for kind in teachers
    }


def accuracy(outputs: Any, test: lb.Data) -> dict[str, float]:
    """Of the worst group and on average, by true labels and groups."""
    found = lb.evaluate(outputs, test).summary
    return {"worst": round(found["worst_group"], 4), "average": round(found["average"], 4)}


def run(seeds: Sequence[int], names: Sequence[str], output: Path) -> None:
    found: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
    for seed in seeds:
        for name in names:
            teachers: dict[str, Any] = {}
            for known in (True, False):
                for labels in LABELS:
                    key = f"{name} | {labels} | {KNOWN[known]} | {seed}"
                    if key in found:
                        continue
                    started = time.perf_counter()
                    found[key] = measure(name, labels, known, seed, teachers)
                    part = output.with_suffix(".part")
                    part.write_text(written(found), encoding="utf-8")
                    part.replace(output)
                    print(f"{key}: {time.perf_counter() - started:.0f} s", flush=True)


def written(found: Mapping[str, Any]) -> str:
    """JSON with a line for each unit."""
    lines = (f"{json.dumps(key)}: {json.dumps(unit, ensure_ascii=False)}" for key, unit in found.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


# Tables ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A regime with all its seeds; `columns` has the test worst group of each seed, in percent."""

    title: str
    teacher: str
    known: bool
    columns: dict[str, list[float]]
    average: dict[str, list[float]]
    chosen: str
    best_candidate: list[float]
    alone: list[float]
    reach: float

    def mean(self, column: str) -> float:
        return statistics.fmean(self.columns[column])

    @property
    def best(self) -> str:
        """The best of the fixed columns."""
        return max((column for column in self.columns if column != "auto"), key=self.mean)

    @property
    def best_elsewhere(self) -> float:
        """The fixed column that is best on the other seeds, seed by seed: what is reached by knowing the regime."""
        fixed = [values for column, values in self.columns.items() if column != "auto"]
        seeds = range(len(fixed[0]))
        others = [max(fixed, key=lambda values: sum(values) - values[seed])[seed] for seed in seeds]
        return statistics.fmean(others)

    def behind(self, column: str) -> tuple[float, float]:
        """How far auto is behind a column, in points: mean over seeds and its standard error (nan for one seed)."""
        gaps = [theirs - ours for theirs, ours in zip(self.columns[column], self.columns["auto"], strict=True)]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
        return statistics.fmean(gaps), error

    def surely_behind(self, column: str, errors: float | None = None) -> bool:
        """Whether auto is behind a column by more than half a point and more than its seeds can tell.

        Args:
            column: to compare with.
            errors: so many standard errors; None for those of a 95 % interval (Student's t).
        """
        gap, error = self.behind(column)
        if errors is None:
            errors = float(student_t.ppf(0.975, max(len(self.columns[column]) - 1, 1)))
        return not gap <= max(100 * WITHIN, errors * error)


def cells(found: Mapping[str, Any]) -> Iterator[Cell]:
    """All regimes that were measured, in the order of the grid."""
    for known, name, labels in product((True, False), DATA, LABELS):
        seeds = [value for key, value in found.items() if key.startswith(f"{name} | {labels} | {KNOWN[known]} | ")]
        for teacher in TEACHERS if seeds else ():
            rows = [seed["teachers"][teacher] for seed in seeds]
            columns = [c for c in COLUMNS if all(row["columns"].get(c) is not None for row in rows)]
            heaviest = [max(row["candidates"], key=lambda key: row["candidates"][key]["share"]) for row in rows]
            yield Cell(
                f"{name}, {labels}, {teacher}" + ("" if known else ", groups unknown"),
                teacher,
                known,
                {c: [100 * row["columns"][c]["worst"] for row in rows] for c in columns},
                {c: [100 * row["columns"][c]["average"] for row in rows] for c in columns},
                ", ".join(dict.fromkeys(heaviest)),
                [100 * max(one["worst"] for one in row["candidates"].values()) for row in rows],
                [100 * row["candidates"][key]["worst"] for row, key in zip(rows, heaviest, strict=True)],
                100 * statistics.fmean(row["teacher"]["worst"] for row in rows),
            )


def document(found: Mapping[str, Any]) -> str:
    every = list(cells(found))
    counts = {len(cell.columns["auto"]) for cell in every}
    lines = [
        f"Worst group of test, percent, mean over {' or '.join(map(str, sorted(counts)))} seeds; bold the best fixed "
        "column; T the teacher's own worst group; last the candidate with the largest say.",
        "",
        "| data, labels, teacher | T | " + " | ".join(COLUMNS) + " | largest say |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    for cell in every:
        entries = [
            "–"
            if column not in cell.columns
            else f"**{cell.mean(column):.0f}**"
            if column == cell.best
            else f"{cell.mean(column):.0f}"
            for column in COLUMNS
        ]
        lines.append(f"| {cell.title} | {cell.reach:.0f} | " + " | ".join(entries) + f" | {cell.chosen} |")
    return "\n".join([*lines, "", *goals(every, found), "", *noise_table(found)])


def noise_table(found: Mapping[str, Any]) -> list[str]:
    """Noise rates that arbitration finds, by the teacher that it hears."""
    lines = [
        "Wrong labels, percent, where groups are known: the true rate, and what arbitration finds without a teacher "
        "and with each; in brackets the share of training samples whose posterior is right.",
        "",
        "| data, labels | true | no teacher | " + " | ".join(TEACHERS) + " |",
        "|---" * (len(TEACHERS) + 3) + "|",
    ]
    for name, labels in product(DATA, LABELS):
        units = [unit for key, unit in found.items() if key.startswith(f"{name} | {labels} | {KNOWN[True]} | ")]
        if not units:
            continue
        sources = [units, *([unit["teachers"][kind] for unit in units] for kind in TEACHERS)]
        entries = [f"{100 * statistics.fmean(unit['noise_true'] for unit in units):.1f}"]
        for source in sources:
            rate, right = (
                100 * statistics.fmean(one[key] for one in source) for key in ("noise_found", "posterior_right")
            )
            entries.append(f"{rate:.1f} ({right:.1f})")
        lines.append(f"| {name}, {labels} | " + " | ".join(entries) + " |")
    return lines


def goals(every: Sequence[Cell], found: Mapping[str, Any]) -> list[str]:
    """What was aimed at, and how far it was reached."""
    behind = [(cell, *cell.behind(cell.best)) for cell in every if cell.surely_behind(cell.best, 2)]
    measured = [cell for cell in every if len(cell.columns["auto"]) > 1]
    guard = [cell for cell in measured if cell.surely_behind("+ group weights", 2)]
    shared = [column for column in COLUMNS if all(column in cell.columns for cell in every)]
    means = ranked(every, shared)
    averages = {c: statistics.fmean(statistics.fmean(cell.average[c]) for cell in every) for c in shared}
    alone = statistics.fmean(statistics.fmean(cell.alone) for cell in every)
    oracle = statistics.fmean(statistics.fmean(cell.best_candidate) for cell in every)
    return [
        "Mean worst group, columns that every regime has; last the best fixed column of each regime, known afterwards "
        "(chosen on the other seeds it is what somebody reaches who knows the regime), "
        "and in how many regimes auto is within half a point of it, within that or two standard errors over seeds, or "
        "within that or a 95 % interval over seeds:",
        "",
        *(
            f"* **{name}** ({len(part)} regimes): "
            + ", ".join(f"{c} {mean:.1f}" for mean, c in ranked(part, shared))
            + f"; best of each {statistics.fmean(cell.mean(cell.best) for cell in part):.1f}, or chosen on the other "
            f"seeds {statistics.fmean(cell.best_elsewhere for cell in part):.1f}; within half a point "
            f"{sum(cell.behind(cell.best)[0] <= 100 * WITHIN for cell in part)}, or two errors "
            f"{sum(not cell.surely_behind(cell.best, 2) for cell in part)}, or the interval "
            f"{sum(not cell.surely_behind(cell.best) for cell in part)}."
            for name, part in slices(every)
        ),
        "* **Mean average accuracy**: " + ", ".join(f"{column} {averages[column]:.1f}" for _, column in means) + ".",
        f"* **Below the plain student with group weights by more than noise**: {len(guard)} of {len(measured)} with "
        "two seeds or more" + (": " + "; ".join(cell.title for cell in guard) if guard else "") + ".",
        f"* **What merging brings**: the candidate with the best validation score alone {alone:.1f}, one student of "
        f"several {statistics.fmean(cell.mean('auto') for cell in every):.1f}; the best candidate of each seed on test "
        f"{oracle:.1f}.",
        "* **Where auto fails most** (points behind the best column ± standard error, those over two errors, "
        f"{min(FAILURES, len(behind))} of {len(behind)}): "
        + (
            "; ".join(
                f"{cell.title}: {gap:.1f}{'' if error != error else f' ± {error:.1f}'} behind {cell.best}"
                for cell, gap, error in sorted(behind, key=lambda row: -row[1])[:FAILURES]
            )
            or "nowhere"
        )
        + ".",
        "* **How validation score and test worst group go together** (correlation over the candidates of a regime, "
        f"mean over regimes and seeds): {agreement(found):.2f}.",
        *(
            f"* **Which candidates the score passes over, {KNOWN[known]}** (points by which they reach more on test "
            "than scored, against the mean of all candidates): "
            + ", ".join(f"{name} {points:+.1f}" for name, points in passed_over(found, known))
            + "."
            for known in sorted({cell.known for cell in every}, reverse=True)
        ),
    ]


def ranked(every: Sequence[Cell], columns: Sequence[str]) -> list[tuple[float, str]]:
    """Columns by their mean over regimes, best first."""
    return sorted(((statistics.fmean(cell.mean(column) for cell in every), column) for column in columns), reverse=True)


def slices(every: Sequence[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    """All regimes, those with known groups, these for each teacher, and those with unknown groups."""
    yield "All", list(every)
    yield "Groups known", [cell for cell in every if cell.known]
    for teacher in TEACHERS:
        yield f"Groups known, teacher {teacher}", [cell for cell in every if cell.known and cell.teacher == teacher]
    if unknown := [cell for cell in every if not cell.known]:
        yield "Groups unknown", unknown


def agreement(found: Mapping[str, Any]) -> float:
    """The mean correlation of validation score and test worst group over candidates."""
    values = []
    for unit in found.values():
        for row in unit["teachers"].values():
            pairs = np.array([(one["score"], one["worst"]) for one in row["candidates"].values()])
            if pairs.std(axis=0).min() > 0:
                values.append(float(np.corrcoef(pairs.T)[0, 1]))
    return statistics.fmean(values)


def passed_over(found: Mapping[str, Any], known: bool) -> list[tuple[str, float]]:
    """By how many points more each candidate reaches on test than it scores, against the others' mean; most first."""
    points: dict[str, list[float]] = {}
    for key, unit in found.items():
        for row in unit["teachers"].values() if f"| {KNOWN[known]} |" in key else ():
            gaps = {name: 100 * (one["worst"] - one["score"]) for name, one in row["candidates"].items()}
            for name, gap in gaps.items():
                points.setdefault(name, []).append(gap - statistics.fmean(gaps.values()))
    return sorted(((name, statistics.fmean(values)) for name, values in points.items()), key=lambda row: -row[1])


def picture(found: Mapping[str, Any], path: Path) -> None:
    """The grid as a heat map: points behind the best column of each regime."""
    import altair as alt
    import vl_convert

    rows = []
    for cell in cells(found):
        top = max(cell.mean(column) for column in cell.columns)
        for column in cell.columns:
            rows.append(
                {
                    "regime": cell.title,
                    "column": column,
                    "behind": round(top - cell.mean(column), 1),
                    "worst": f"{cell.mean(column):.0f}",
                    "far": top - cell.mean(column) > 18,
                }
            )
    titles = list(dict.fromkeys(row["regime"] for row in rows))
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("column:N", sort=list(COLUMNS), title=None, axis=alt.Axis(orient="top", labelAngle=-35)),
        y=alt.Y("regime:N", sort=titles, title=None, axis=alt.Axis(labelLimit=300)),
    )
    heat = base.mark_rect().encode(
        color=alt.Color(
            "behind:Q",
            title="points behind the best",
            scale=alt.Scale(domain=[0, 30], range=["#f2f7f5", "#8a2f2f"], clamp=True),
        )
    )
    text = base.mark_text(fontSize=10).encode(
        text="worst:N", color=alt.condition("datum.far", alt.value("white"), alt.value("#222"))
    )
    chart = (heat + text).properties(
        width=440, height=15 * len(titles), title="Worst group of test, percent, by regime and method"
    )
    path.write_text(vl_convert.vegalite_to_svg(chart.to_json()), encoding="utf-8")


def insert(path: Path, text: str, mark: str) -> None:
    """Put the tables between the two markers of a document."""
    start, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    page = path.read_text(encoding="utf-8")
    if start not in page or end not in page:
        raise SystemExit(f"{path} has no lines {start} and {end}")
    pattern = re.escape(start) + ".*" + re.escape(end)
    path.write_text(re.sub(pattern, lambda _: f"{start}\n\n{text}\n\n{end}", page, flags=re.DOTALL), encoding="utf-8")


def main() -> int:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, help="write the heat map")
    parser.add_argument(
        "--table", type=Path, nargs="?", const=Path("-"), help="print the tables, or put them into a document"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.table is None and arguments.picture is None:
        run(arguments.seeds, arguments.data, arguments.output)
        return 0
    everything = json.loads(arguments.output.read_text())
    found = {key: unit for key, unit in everything.items() if int(key.rpartition("| ")[2]) in arguments.seeds}
    if arguments.picture is not None:
        picture(found, arguments.picture)
    if arguments.table is not None and str(arguments.table) != "-":
        insert(arguments.table, document(found), "regimes")
    elif arguments.table is not None:
        print(document(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
