"""A grid of regimes: who is wrong, how much, and which method helps. Does the recipe `auto` find out?

    python benchmarks/regimes.py --seeds 0 1 2
    python benchmarks/regimes.py --table docs/arbitration.md --picture docs/regimes.svg

Four data sets × labels (clean, 20 %, 40 %, 40 % in one group) × teacher (good, biased, weak). Noise is in training and
validation labels, never in test labels; teachers learned from other samples, with their true labels. A fixed column
selects its epoch by validation worst group as its user would see it: through the noisy labels. `auto` chooses among its
candidates on validation alone. Each (data set, labels, seed) is written to `benchmarks/results/regimes.json` at once,
and skipped when run again. The data come from the folder that LIMBECK_DATA names (Adult comes with Limbeck).
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import limbeck as lb
from limbeck.arbitration import expected_groups
from limbeck.choosing import pick, unsupported
from limbeck.data import inject
from limbeck.models import MLP
from limbeck.presets import as_recipe
from limbeck.teachers import TableTeacher, as_teacher

RESULTS = Path(__file__).parent / "results" / "regimes.json"
DATA = ("adult", "employment", "digits", "bar")
LABELS = ("clean", "20 %", "40 %", "40 % in one group")
TEACHERS = ("good", "biased", "weak")
NO_TEACHER = {"no teacher": "erm", "+ group weights": "group_balanced"}
FIXED: dict[str, Any] = {
    "KD": "kd",
    "RLD": "rld",
    "BTKD": "btkd",
    "PLL": "pll",
    "DeTT": {"recipe": "dett", "projector": "mlp"},
    "GroupDistil": "groupdistil",
}
COLUMNS = (*NO_TEACHER, *FIXED, "arbitration", "auto")
STUDENT, TEACHER = [24, 24], [64, 64]
SETTINGS: dict[str, Any] = {"epochs": 10, "learning_rate": 6e-3, "batch_size": 128}
TRAINING, VALIDATION, POOL, TEST, FEW = 3_000, 1_500, 4_000, 4_000, 150
WITHIN = 0.005


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
    if name == "bar":
        whole, attribute = bar(seed)
    else:
        whole, attribute = {"adult": adult, "employment": employment}[name](seed)
    part = {value: whole.subset(np.flatnonzero(whole.columns["part"] == value)) for value in ("student", "pool")}
    noisy = with_noise(part["student"], labels, attribute, seed)
    return Regime(noisy, part["student"].test, (part["pool"], thinned(part["pool"])), attribute)


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
    pools = tuple(
        grouped(painted, painted.y, ~mine) for painted in (even, inject.coloured(small, aligned=0.99, seed=seed))
    )
    return Regime(data, data.test, pools, "colour")


# Methods --------------------------------------------------------------------------------------------------------------


def network(data: lb.Data, hidden: Sequence[int]) -> Any:
    return lambda: MLP(data.sample_shape, data.num_classes, hidden=hidden)


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
    return lb.fit(network(pool, TEACHER), pool, recipe=recipe, seed=seed, selection=selection, **SETTINGS)


def few(pool: lb.Data, rows: Any) -> Any:
    """The first few samples, one of each class at least."""
    first = [rows[np.flatnonzero(pool.y[rows] == k)[0]] for k in range(pool.num_classes)]
    return np.unique(np.concatenate([first, rows[:FEW]]))


def measure(name: str, labels: str, seed: int) -> dict[str, Any]:
    """All columns for all teachers."""
    regime = make(name, labels, seed)
    data, build = regime.data, network(regime.data, STUDENT)
    truth = regime.test
    started = time.perf_counter()
    arbitration = lb.arbitrate(data, attribute=regime.attribute, seed=seed)
    seconds = time.perf_counter() - started
    groups = expected_groups(arbitration, data)
    # What a sample counts by the posterior instead: the way not taken, measured beside.
    believed = replace(groups, membership=arbitration.validation.posterior)

    def fit(recipe: Any, teacher: Any = None, **more: Any) -> dict[str, Any]:
        fitted = lb.fit(
            build, data, teacher=teacher, recipe=recipe, seed=seed, selection="worst_group", **SETTINGS, **more
        )
        test = lb.evaluate(fitted, truth).summary
        said = lb.predict_logits(fitted, data.validation).argmax(axis=1)
        return {
            "worst": test["worst_group"],
            "average": test["average"],
            "score": groups.worst(said),
            "score_posterior": believed.worst(said),
            "validation_worst": fitted.history[fitted.selected_epoch - 1]["validation_worst_group"],
        }

    auto = as_recipe({"recipe": "auto", "attribute": regime.attribute})
    candidates = auto.choose.candidates
    shared: dict[str, Any] = {column: fit(recipe) for column, recipe in NO_TEACHER.items()}
    tried: dict[str, Any] = {
        one.name: fit(one, arbitration=arbitration) for one in candidates if not one.teacher_outputs
    }
    found: dict[str, Any] = {}
    for kind in TEACHERS:
        teacher = teacher_of(kind, name, regime, seed)
        source = as_teacher(teacher)
        columns = dict(shared)
        for column, recipe in FIXED.items():
            reason = unsupported(as_recipe(recipe), data, source)
            columns[column] = None if reason else fit(recipe, teacher)
        scored: dict[str, Any] = {}
        for one in candidates:
            if one.name in tried:
                scored[one.name] = tried[one.name]
            elif unsupported(one, data, source) is None:
                scored[one.name] = fit(one, teacher, arbitration=arbitration)
        order = [one.name for one in candidates]
        number = pick([scored[key]["score"] if key in scored else None for key in order], auto.choose.margin)
        columns["arbitration"] = tried["arbitration"]
        columns["auto"] = scored[order[number]]
        reach = as_teacher_accuracy(source, truth)
        found[kind] = {"columns": columns, "candidates": scored, "chosen": order[number], "teacher": reach}
    true = data.train.columns["true_label"]
    return {
        "teachers": found,
        "noise_true": float((data.train.y != true).mean()),
        "noise_found": arbitration.noise_rate,
        "noise_gain": list(arbitration.noise_gain),
        "posterior_right": float((arbitration.posterior.argmax(axis=1) == true).mean()),
        "identifiable": arbitration.identifiable,
        "groups": {group: int(count) for group, count in zip(truth.groups.names, data.groups.counts(data.split == 0))},
        "seconds": round(seconds, 1),
    }


def as_teacher_accuracy(source: Any, test: lb.Data) -> dict[str, float]:
    from limbeck.teachers import collect

    found = lb.evaluate(collect(source, test)["logits"].numpy(), test).summary
    return {"worst": found["worst_group"], "average": found["average"]}


def run(seeds: Sequence[int], names: Sequence[str], output: Path) -> None:
    found: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
    for seed in seeds:
        for labels in LABELS:
            for name in names:
                key = f"{name} | {labels} | {seed}"
                if key in found:
                    continue
                started = time.perf_counter()
                found[key] = measure(name, labels, seed)
                part = output.with_suffix(".part")
                part.write_text(json.dumps(found, indent=1, ensure_ascii=False))
                part.replace(output)
                print(f"{key}: {time.perf_counter() - started:.0f} s", flush=True)


# Tables ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A regime with all its seeds; `columns` has the test worst group of each seed, in percent."""

    name: str
    labels: str
    teacher: str
    columns: dict[str, list[float]]
    average: dict[str, list[float]]
    chosen: list[str]
    best_candidate: list[float]
    reach: float

    @property
    def title(self) -> str:
        return f"{self.name}, {self.labels}, {self.teacher}"

    def mean(self, column: str) -> float:
        return statistics.fmean(self.columns[column])

    @property
    def best(self) -> str:
        """The best of the fixed columns."""
        return max((column for column in self.columns if column != "auto"), key=self.mean)

    def behind(self, column: str) -> tuple[float, float]:
        """How far auto is behind a column, in points: mean over seeds and its standard error (nan for one seed)."""
        gaps = [theirs - ours for theirs, ours in zip(self.columns[column], self.columns["auto"], strict=True)]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
        return statistics.fmean(gaps), error


def cells(found: Mapping[str, Any]) -> Iterator[Cell]:
    for name in DATA:
        for labels in LABELS:
            seeds = [value for key, value in found.items() if key.startswith(f"{name} | {labels} | ")]
            for teacher in TEACHERS if seeds else ():
                rows = [seed["teachers"][teacher] for seed in seeds]
                columns = [c for c in COLUMNS if all(row["columns"].get(c) is not None for row in rows)]
                yield Cell(
                    name,
                    labels,
                    teacher,
                    {c: [100 * row["columns"][c]["worst"] for row in rows] for c in columns},
                    {c: [100 * row["columns"][c]["average"] for row in rows] for c in columns},
                    [row["chosen"] for row in rows],
                    [100 * max(one["worst"] for one in row["candidates"].values()) for row in rows],
                    100 * statistics.fmean(row["teacher"]["worst"] for row in rows),
                )


def document(found: Mapping[str, Any]) -> str:
    every = list(cells(found))
    seeds = len({key.rpartition("| ")[2] for key in found})
    lines = [
        f"Worst group of test, percent, mean over {seeds} seeds where all are there; bold the best column; T the "
        "teacher's own worst group.",
        "",
        "| data, labels, teacher | T | " + " | ".join(COLUMNS) + " | auto chose |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    for cell in every:
        top = max(cell.columns, key=cell.mean)
        entries = [
            "–"
            if column not in cell.columns
            else f"**{cell.mean(column):.1f}**"
            if column == top
            else f"{cell.mean(column):.1f}"
            for column in COLUMNS
        ]
        chosen = ", ".join(dict.fromkeys(cell.chosen))
        lines.append(f"| {cell.title} | {cell.reach:.1f} | " + " | ".join(entries) + f" | {chosen} |")
    return "\n".join([*lines, "", *goals(every, found)])


def goals(every: Sequence[Cell], found: Mapping[str, Any]) -> list[str]:
    """What was aimed at, and how far it was reached."""
    near, behind = [], []
    for cell in every:
        gap, error = cell.behind(cell.best)
        (near if gap <= 100 * WITHIN or (error == error and gap <= 2 * error) else behind).append((cell, gap, error))
    clear = sum(cell.behind(cell.best)[0] <= 100 * WITHIN for cell in every)
    guard = [cell for cell in every if (gap := cell.behind("+ group weights"))[0] > max(2 * gap[1], 0.5)]
    shared = [column for column in COLUMNS if all(column in cell.columns for cell in every)]
    means = sorted(((statistics.fmean(cell.mean(column) for cell in every), column) for column in shared), reverse=True)
    regret = statistics.fmean(statistics.fmean(cell.best_candidate) - cell.mean("auto") for cell in every)
    lines = [
        f"* **Within half a point of the best column**: {clear} of {len(every)} regimes; within half a point or two "
        f"standard errors: {len(near)}.",
        "* **Mean over all regimes** (columns that every regime has): "
        + ", ".join(f"{column} {mean:.1f}" for mean, column in means)
        + ".",
        f"* **Below the plain student with group weights by more than noise**: {len(guard)} of {len(every)}"
        + (": " + "; ".join(cell.title for cell in guard) if guard else "")
        + ".",
        f"* **What choosing costs**: the best candidate on test is {regret:.1f} points above the chosen one (mean).",
        "* **Where auto fails** (points behind the best column ± standard error): "
        + (
            "; ".join(
                f"{cell.title}: {gap:.1f} ± {error:.1f} behind {cell.best}"
                for cell, gap, error in sorted(behind, key=lambda row: -row[1])
            )
            or "nowhere"
        )
        + ".",
    ]
    lines.append(
        "* **Which validation score goes with the test worst group** (correlation over the candidates of a regime, "
        "mean over regimes and seeds with noise): " + ", ".join(correlations(found)) + "."
    )
    return lines


def correlations(found: Mapping[str, Any]) -> Iterator[str]:
    """How well each way to read noisy validation labels tells good candidates from bad ones."""
    names = {
        "score": "through the noise matrix (used)",
        "score_posterior": "by the posterior",
        "validation_worst": "labels as they are",
    }
    for key, name in names.items():
        values = []
        for unit, cell in found.items():
            for row in cell["teachers"].values() if "clean" not in unit else ():
                pairs = np.array([(one[key], one["worst"]) for one in row["candidates"].values()])
                if pairs.std(axis=0).min() > 0:
                    values.append(float(np.corrcoef(pairs.T)[0, 1]))
        if values:
            yield f"{name} {statistics.fmean(values):.2f}"


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
        y=alt.Y("regime:N", sort=titles, title=None),
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
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
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
    found = json.loads(arguments.output.read_text())
    if arguments.picture is not None:
        picture(found, arguments.picture)
    if arguments.table is not None and str(arguments.table) != "-":
        insert(arguments.table, document(found), "regimes")
    elif arguments.table is not None:
        print(document(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
