"""Do DeTT's and GroupDistil's claims hold, and what do combinations that no paper tried add?

    python benchmarks/group_robustness.py --choose
    python benchmarks/group_robustness.py --seeds 0 1 2
    python benchmarks/group_robustness.py --table docs/results-groups.md

One small student, one larger teacher, the same samples, start, order, epochs and optimiser for every row. Each row has
two settings; in every seed validation worst-group accuracy chooses the epoch and the setting, of teachers as of
students. Test chooses nothing.

What all rows share is chosen beforehand, by validation alone, on seeds 91 to 94, which no table uses (`--choose`):

* the grid: learning rate {.002, .006, .018} x batch {64, 128, 256} x projector {linear, mlp} on coloured MNIST .98; no
  smaller batch, for time;
* the score: validation worst-group accuracy, averaged over the four seeds and five rows: ERM, group DRO, and KD (all
  teacher, no label), SimKD and DeTT from a group DRO teacher that was trained with the same rate and batch; each row in
  the first of its two settings;
* the highest score wins, and of equals the higher validation average;
* BAR has few samples, and would have few steps: its batch is chosen in the same way from {16, 32, 64, 128} on BAR
  itself, with the rate and the projector that coloured MNIST chose.

Every finished fit is written to `benchmarks/results/group_robustness-DATA.json` at once (those of the choice to
`group_robustness-choice.json`), and skipped when run again. The data come from the folder that LIMBECK_DATA names
(Adult comes with Limbeck).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import limbeck as lb
from limbeck.data import inject
from limbeck.heads import build_projector
from limbeck.models import MLP, parameters

RESULTS = Path(__file__).parent / "results"
SHARES = ("0.95", "0.98", "0.99", "0.995")
DATA = (*(f"coloured-mnist-{share}" for share in SHARES), "adult", "bar", "pacs")
STUDENT, TEACHER, EPOCHS = [32, 32], [128, 128], 10
VALIDATION_PER_GROUP = 25
Settings = dict[str, Any]


@dataclass(frozen=True)
class Shared:
    """What all rows of a data set share: learning rate, batch, and the projector of transplanted students."""

    rate: float
    batch: int
    projector: str


SHARED, BAR_BATCH = Shared(0.006, 128, "linear"), 16
"""What `--choose` found."""
CHOICE_SEEDS = (91, 92, 93, 94)
CHOICE_DATA = "coloured-mnist-0.98"
GRID = tuple(Shared(*values) for values in product((0.002, 0.006, 0.018), (64, 128, 256), ("linear", "mlp")))
BAR_BATCHES = (16, 32, 64, 128)


def shared_by(name: str) -> Shared:
    """What the rows of a data set share."""
    return replace(SHARED, batch=BAR_BATCH) if name == "bar" else SHARED


# Data -----------------------------------------------------------------------------------------------------------------


def make_data(name: str, seed: int) -> lb.Data:
    """The data of one seed: subset, split and injected shortcut are drawn anew for each."""
    if name.startswith("coloured-mnist-"):
        return coloured_mnist(float(name.rpartition("-")[2]), seed)
    return {"adult": adult, "bar": bar, "pacs": pacs}[name](seed)


def coloured_mnist(aligned: float, seed: int, training: int = 6_000) -> lb.Data:
    """14×14 pixels; 6,000 training samples, 25 validation samples of each (class, aligned or not), 10,000 of test."""
    grey = lb.load("mnist", validation=0)
    pixels = grey.x.reshape(-1, 1, 14, 2, 14, 2).mean(axis=(3, 5)).astype(np.uint8)
    small = lb.Data(pixels, grey.y, ids=grey.ids, split=grey.split, fractions=None, classes=grey.classes, name="digits")
    painted = inject.coloured(small, aligned=aligned, severity=2, seed=seed)
    cell = 2 * painted.y + (painted.attributes["aligned"].codes == painted.attributes["aligned"].values.index("yes"))
    rng = np.random.default_rng(seed)
    pool = rng.permutation(np.flatnonzero(painted.split == 0))
    train, rest = pool[:training], pool[training:]
    validation = np.concatenate([rest[cell[rest] == group][:VALIDATION_PER_GROUP] for group in range(20)])
    test = np.flatnonzero(painted.split == 2)
    rows = np.concatenate([train, validation, test])
    x = painted.x[rows].reshape(len(rows), -1).astype(np.float32) / 255
    x = (x - x[: len(train)].mean()) / x[: len(train)].std()
    return lb.Data(
        x,
        painted.y[rows],
        attributes={"aligned": np.where(cell[rows] % 2 == 1, "aligned", "conflicting")},
        groups=["label", "aligned"],
        split=np.repeat(["train", "validation", "test"], [len(train), len(validation), len(test)]),
        fractions=None,
        name=f"coloured-mnist-{aligned}",
    )


def adult(seed: int, training: int = 6_000, validation: int = 8_000) -> lb.Data:
    """Income × sex × (white or not): the census has too few of some races for a validation group of their own."""
    whole = lb.load("adult", validation=0)
    rng = np.random.default_rng(seed)
    pool = rng.permutation(np.flatnonzero(whole.split == 0))[: training + validation]
    rows = np.concatenate([pool, np.flatnonzero(whole.split == 2)])
    sex, race = (
        np.array(whole.attributes[name].values)[whole.attributes[name].codes[rows]] for name in ("sex", "race")
    )
    return lb.Data(
        whole.inputs(rows),
        np.array(whole.classes)[whole.y[rows]],
        attributes={"sex": sex, "race": np.where(race == "White", "White", "not White")},
        groups=["label", "sex", "race"],
        split=np.repeat(["train", "validation", "test"], [training, validation, len(rows) - training - validation]),
        fractions=None,
        label_name="income",
        name="adult",
    )


def bar(seed: int) -> lb.Data:
    """BAR trains on aligned photographs alone: an eighth of the conflicting ones joins them, to have a minority."""
    whole = lb.load("bar")
    aligned = whole.attributes["aligned"].codes == whole.attributes["aligned"].values.index("yes")
    rng = np.random.default_rng(seed)
    split = np.full(len(whole), "test", dtype="U10")
    for label in range(whole.num_classes):
        for flag, shares in ((True, (0.8, 0.1)), (False, (0.125, 0.3))):
            rows = rng.permutation(np.flatnonzero((whole.y == label) & (aligned == flag)))
            first, second = (round(share * len(rows)) for share in shares)
            split[rows[:first]], split[rows[first : first + second]] = "train", "validation"
    return lb.Data(
        standardised(whole.x, split == "train"),
        np.array(whole.classes)[whole.y],
        attributes={"aligned": np.where(aligned, "aligned", "conflicting")},
        groups=["label", "aligned"],
        split=split,
        fractions=None,
        name="bar",
    )


def pacs(seed: int) -> lb.Data:
    """All four domains in every split; 28 groups of domain × class."""
    whole = lb.load("pacs", groups=["label", "domain"], seed=seed, validation=0.3, test=0.3)
    return whole.replace(x=standardised(whole.x, whole.split == 0))


def standardised(x: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Features on one scale: that of the training rows, all features alike."""
    x = x.astype(np.float32)
    return np.asarray((x - x[rows].mean(axis=0)) / x[rows].std())


def by_group(part: lb.Data) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The group of each sample, and the size of each group; every data set here has groups."""
    assert part.groups is not None
    return part.groups.index, np.bincount(part.groups.index, minlength=len(part.groups.names))


def minority(data: lb.Data) -> np.ndarray[Any, Any]:
    """Training samples of groups with less than half of the mean group size."""
    index, counts = by_group(data.train)
    return np.asarray(counts[index] < counts.sum() / (2 * data.num_groups))


# Methods --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of the table: a recipe with two settings, and the teacher that it listens to."""

    name: str
    recipe: Callable[[Settings, lb.Data], Any]
    settings: tuple[Settings, Settings]
    teacher: str | None = None
    control: bool = False
    many_classes: bool = False

    @property
    def key(self) -> str:
        return self.name if self.teacher is None else f"{self.name} ← {self.teacher}"


RATES = ({"rate_divisor": 1}, {"rate_divisor": 3})
TEMPERATURES = ({"temperature": 4.0}, {"temperature": 8.0})
STEPS = ({"step": 0.01}, {"step": 0.1})
UPWEIGHTS = ({"upweight": 5.0}, {"upweight": 50.0})
BALANCED = {"sampling": "group_balanced"}
# A multinomial L1 fit is slow: five refits to average instead of twenty, among all the published penalties.
REFIT = {"refits": 5}


def named(recipe: str, **fixed: Any) -> Callable[[Settings, lb.Data], Any]:
    return lambda settings, data: {"recipe": recipe, **fixed, **settings}


def under_dro(recipe: str, **fixed: Any) -> Callable[[Settings, lb.Data], Any]:
    """A recipe's terms and head under group DRO."""
    return lambda settings, data: {
        "recipe": recipe,
        "weighting": {"name": "group_dro", **settings},
        **BALANCED,
        **fixed,
    }


def under_upweight(recipe: str) -> Callable[[Settings, lb.Data], Any]:
    """A recipe's terms under DeTT's error set."""
    return lambda settings, data: {
        "recipe": recipe,
        "weighting": {"name": "upweight", **settings},
        "identify": {"epochs": 1},
    }


def true_minority(projector: str) -> Callable[[Settings, lb.Data], Any]:
    """DeTT told who the minority is."""

    def recipe(settings: Settings, data: lb.Data) -> Any:
        weighting = lb.Weighting.named("upweight", error_set=torch.from_numpy(minority(data)), **settings)
        return {"recipe": "dett", "weighting": weighting, "identify": None, "projector": projector}

    return recipe


TEACHERS = (
    Row("teacher ERM", named("erm"), RATES),
    Row("teacher group DRO", named("group_dro"), STEPS),
    Row("teacher DFR", named("dfr", refit=REFIT), RATES),
)


def rows(projector: str) -> Iterator[Row]:
    """All students."""
    head = {"projector": projector}
    yield Row("ERM (plain student)", named("erm"), RATES)
    yield Row("student + projector, no teacher", named("erm"), RATES, control=True)
    yield Row("group-balanced sampling", named("group_balanced"), RATES)
    yield Row("group DRO", named("group_dro"), STEPS)
    yield Row("JTT", named("jtt"), UPWEIGHTS)
    yield Row("DFR", named("dfr", refit=REFIT), RATES)
    for teacher in ("ERM", "group DRO", "DFR"):
        yield Row("KD α .9", named("kd", alpha=0.9), TEMPERATURES, teacher)
        yield Row("KD α 1", named("kd", alpha=1.0), TEMPERATURES, teacher)
        yield Row("SimKD", named("simkd", **head), RATES, teacher)
        yield Row("DeTT", named("dett", **head), UPWEIGHTS, teacher)
    yield Row("DeTT, T = 5", named("dett", identify_epochs=5, **head), UPWEIGHTS, "group DRO")
    yield Row("DeTT, E = true minority", true_minority(projector), UPWEIGHTS, "group DRO")
    yield Row("GroupDistil", named("groupdistil"), STEPS, "ERM")
    yield Row("GroupDistil", named("groupdistil"), STEPS, "group DRO")
    for change in (
        {"normalise_losses": True},
        {"cross_entropy": "outside"},
        {"cross_entropy": "none"},
        {"sampling": "shuffle"},
    ):
        ((switch, value),) = change.items()
        yield Row(f"GroupDistil, {switch}={value}", named("groupdistil", **change), STEPS, "group DRO")
    for teacher in ("ERM", "group DRO"):
        yield Row("DEDIER", named("dedier"), ({"beta": 1.0}, {"beta": 3.0}), teacher)
    yield Row("[new] RLD + group DRO + transplanted head", under_dro("rld", head=head), STEPS, "group DRO")
    yield Row("[new] RLD + group DRO", under_dro("rld"), STEPS, "group DRO")
    yield Row("[new] BTKD + group DRO", under_dro("btkd"), STEPS, "group DRO")
    yield Row("[new] BTKD + DeTT's upweighting", under_upweight("btkd"), UPWEIGHTS, "group DRO")
    yield Row("[new] PLL + DeTT's upweighting", under_upweight("pll"), UPWEIGHTS, "group DRO", many_classes=True)
    yield Row("[new] DeTT's head under group DRO", under_dro("simkd", **head), STEPS, "group DRO")
    yield Row("[new] KD α 1 + DFR refit", named("kd", alpha=1.0, refit=REFIT), TEMPERATURES, "group DRO")


def network(data: lb.Data, hidden: Sequence[int]) -> Callable[[], nn.Module]:
    return lambda: MLP(data.sample_shape, data.num_classes, hidden=hidden)


def control(data: lb.Data, projector: str) -> Callable[[], nn.Module]:
    """The transplanted student's architecture, trained without a teacher."""

    def build() -> nn.Module:
        backbone = MLP(data.sample_shape, data.num_classes, hidden=STUDENT).hidden
        layers = build_projector(projector, STUDENT[-1], TEACHER[-1])
        return nn.Sequential(backbone, layers, nn.Linear(TEACHER[-1], data.num_classes))

    return build


# Measuring ------------------------------------------------------------------------------------------------------------


def train(
    row: Row, settings: Settings, data: lb.Data, seed: int, teacher: Any, shared: Shared, epochs: int = EPOCHS
) -> lb.Fitted:
    """One fit. It sees the training and the validation part."""
    options = dict(settings)
    rate = shared.rate / options.pop("rate_divisor", 1)
    hidden = TEACHER if row in TEACHERS else STUDENT
    return lb.fit(
        control(data, shared.projector) if row.control else network(data, hidden),
        data,
        teacher=teacher,
        recipe=row.recipe(options, data),
        epochs=epochs,
        batch_size=shared.batch,
        learning_rate=rate,
        seed=seed,
        selection="worst_group",
    )


def describe_fit(row: Row, settings: Settings, data: lb.Data, seed: int, fitted: lb.Fitted) -> dict[str, Any]:
    """What is kept of a fit."""
    validation = lb.evaluate(fitted, data.validation)
    test = lb.evaluate(fitted, data.test)
    summary = test.summary
    found: dict[str, Any] = {
        "row": row.key,
        "seed": seed,
        "settings": settings,
        "selected_epoch": fitted.selected_epoch,
        "seconds": round(fitted.seconds, 2),
        "parameters": parameters(fitted.model),
        "validation_worst_group": validation.summary["worst_group"],
        "validation_average": validation.summary["average"],
        "worst_group": summary["worst_group"],
        "worst_group_name": summary["worst_group_name"],
        "average": summary["average"],
        "balanced_over_groups": float(np.nanmean(test.counts.accuracy)),
        "group_correct": test.counts.correct.tolist(),
        "group_total": test.counts.totals.tolist(),
        "training_average": lb.evaluate(fitted, data.train).summary["average"],
    }
    if "identify" in fitted.earlier:
        found["error_set"] = describe_errors(fitted.earlier["identify"], data)
    weights = [record["group_weights"] for record in fitted.history]
    if weights[0] is not None:
        found["q"] = [[round(value, 3) for value in epoch] for epoch in weights]
    return found


def describe_errors(biased: lb.Fitted, data: lb.Data) -> dict[str, float]:
    """|E|, and how well it finds the true minority."""
    wrong = lb.predict_logits(biased, data.train).argmax(axis=1) != data.train.y
    rare = minority(data)
    hit = int((wrong & rare).sum())
    return {
        "size": int(wrong.sum()),
        "minority": int(rare.sum()),
        "precision": hit / max(int(wrong.sum()), 1),
        "recall": hit / max(int(rare.sum()), 1),
    }


def best(cells: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of one row and seed, the setting of the best validation worst group; the average decides between equals."""
    return max(cells, key=lambda cell: (cell["validation_worst_group"], cell["validation_average"]))


def run(name: str, seeds: Sequence[int], output: Path, quick: bool) -> None:
    """Measure what `output` does not hold yet."""
    found = read(output) or {"data": name, "cells": {}}
    cells, shared, epochs = found["cells"], shared_by(name), 2 if quick else EPOCHS
    for seed in seeds:
        data = make_data(name, seed)
        found.setdefault("about", describe(data, shared, epochs))
        teachers: dict[str, Any] = {}

        def fit(row: Row, settings: Settings, seed: int = seed, data: lb.Data = data, teachers: Any = teachers) -> Any:
            teacher = None if row.teacher is None else teacher_for(row.teacher)
            fitted = train(row, settings, data, seed, teacher, shared, epochs)
            cell = cells[cell_key(row, settings, seed)] = describe_fit(row, settings, data, seed, fitted)
            write(output, found)
            print(
                f"{name} seed {seed} {row.key:55s} {json.dumps(settings):28s} validation "
                f"{cell['validation_worst_group']:.3f} test {cell['worst_group']:.3f} {cell['seconds']:5.1f} s",
                flush=True,
            )
            return fitted

        def teacher_for(kind: str, seed: int = seed, teachers: dict[str, Any] = teachers) -> Any:
            """The teacher of the better setting; fitted again where an earlier run measured it."""
            if kind not in teachers:
                row = next(row for row in TEACHERS if row.name == f"teacher {kind}")
                tried = row.settings[: 1 if quick else 2]
                fits = {
                    number: fit(row, settings)
                    for number, settings in enumerate(tried)
                    if cell_key(row, settings, seed) not in cells
                }
                scores = [cells[cell_key(row, settings, seed)] for settings in tried]
                number = scores.index(best(scores))
                teachers[kind] = fits[number] if number in fits else fit(row, tried[number])
            return teachers[kind]

        for row in rows(shared.projector):
            if data.num_classes > 2 or not row.many_classes:
                for settings in row.settings[: 1 if quick else 2]:
                    if cell_key(row, settings, seed) not in cells:
                        fit(row, settings)


def cell_key(row: Row, settings: Settings, seed: int) -> str:
    return f"{row.key} | {json.dumps(settings)} | {seed}"


def describe(data: lb.Data, shared: Shared, epochs: int) -> dict[str, Any]:
    assert data.groups is not None
    return {
        "samples": data.sizes,
        "inputs": int(np.prod(data.sample_shape)),
        "groups": list(data.groups.names),
        "training_counts": by_group(data.train)[1].tolist(),
        "test_counts": by_group(data.test)[1].tolist(),
        "minority": int(minority(data).sum()),
        "student": STUDENT,
        "teacher": TEACHER,
        "epochs": epochs,
        **asdict(shared),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "limbeck": lb.__version__},
        "machine": f"{os.cpu_count()} cores, {torch.get_num_threads()} thread",
    }


def read(path: Path) -> dict[str, Any]:
    """What an earlier run has written, or nothing."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def write(path: Path, found: Mapping[str, Any]) -> None:
    """One line a fit; by way of a second file, so that an interrupted run leaves a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in found.items() if key != "cells"]
    cells = [f"{json.dumps(key)}: {json.dumps(cell)}" for key, cell in found["cells"].items()]
    text = ",\n".join([*lines, '"cells": {\n' + ",\n".join(cells) + "\n}"])
    part = path.with_suffix(".part")
    part.write_text("{\n" + text + "\n}\n", encoding="utf-8")
    part.replace(path)


# Choosing what all rows share -----------------------------------------------------------------------------------------

CHOOSING = {
    "ERM (plain student)": False,
    "group DRO": False,
    "KD α 1 ← group DRO": False,
    "SimKD ← group DRO": True,
    "DeTT ← group DRO": True,
}
"""The rows that choose, and whether they have a projector."""


def choice_key(name: str, row: str, shared: Shared, seed: int) -> str:
    projector = shared.projector if CHOOSING[row] else "none"
    return f"{name} | {row} | {shared.rate} | {shared.batch} | {projector} | {seed}"


def try_shared(name: str, candidates: Sequence[Shared], output: Path) -> Shared:
    """Fit the choosing rows under each candidate, as far as `output` does not hold them, and return the best one."""
    found = read(output) or {"cells": {}}
    for seed in CHOICE_SEEDS:
        data = make_data(name, seed)
        teachers: dict[tuple[float, int], lb.Fitted] = {}
        for shared in candidates:
            for row in (row for row in rows(shared.projector) if row.key in CHOOSING):
                key = choice_key(name, row.key, shared, seed)
                if key in found["cells"]:
                    continue
                at = (shared.rate, shared.batch)
                if row.teacher is not None and at not in teachers:
                    dro = next(row for row in TEACHERS if row.name == "teacher group DRO")
                    teachers[at] = train(dro, dro.settings[0], data, seed, None, shared)
                teacher = None if row.teacher is None else teachers[at]
                fitted = train(row, row.settings[0], data, seed, teacher, shared)
                summary = lb.evaluate(fitted, data.validation).summary
                found["cells"][key] = {
                    "validation_worst_group": summary["worst_group"],
                    "validation_average": summary["average"],
                }
                write(output, found)
    return max(candidates, key=lambda shared: choice_score(found, name, shared))


def choice_score(found: Mapping[str, Any], name: str, shared: Shared) -> tuple[float, float]:
    """Validation worst-group and average accuracy, the mean over choosing rows and seeds."""
    cells = [found["cells"][choice_key(name, row, shared, seed)] for row in CHOOSING for seed in CHOICE_SEEDS]
    worst, average = (
        statistics.fmean(cell[key] for cell in cells) for key in ("validation_worst_group", "validation_average")
    )
    return worst, average


def choose(output: Path) -> tuple[Shared, int]:
    """The shared settings and BAR's batch, by the rule at the top of this file."""
    shared = try_shared(CHOICE_DATA, GRID, output)
    return shared, try_shared("bar", [replace(shared, batch=batch) for batch in BAR_BATCHES], output).batch


def choice_table(found: Mapping[str, Any]) -> str:
    """The grid of the choice. The tables must have been made with what it chose."""
    best_shared = max(GRID, key=lambda shared: choice_score(found, CHOICE_DATA, shared))
    for_bar = [replace(best_shared, batch=batch) for batch in BAR_BATCHES]
    bar_batch = max(for_bar, key=lambda shared: choice_score(found, "bar", shared)).batch
    if (best_shared, bar_batch) != (SHARED, BAR_BATCH):
        raise SystemExit(f"validation chose {best_shared} and BAR's batch {bar_batch}, not {SHARED} and {BAR_BATCH}")

    def cell(name: str, shared: Shared, chosen: bool) -> str:
        text = f"{100 * choice_score(found, name, shared)[0]:.1f}"
        return f"**{text}**" if chosen else text

    batches = sorted({shared.batch for shared in GRID})
    lines = [
        f"| {CHOICE_DATA}: learning rate, projector | " + " | ".join(f"batch {batch}" for batch in batches) + " |",
        "|---" * (len(batches) + 1) + "|",
    ]
    for rate, projector in dict.fromkeys((shared.rate, shared.projector) for shared in GRID):
        line = [Shared(rate, batch, projector) for batch in batches]
        cells = " | ".join(cell(CHOICE_DATA, shared, shared == SHARED) for shared in line)
        lines.append(f"| {rate:g}, {projector} | {cells} |")
    lines += [
        "",
        "| bar: learning rate, projector | " + " | ".join(f"batch {batch}" for batch in BAR_BATCHES) + " |",
        "|---" * (len(BAR_BATCHES) + 1) + "|",
        f"| {SHARED.rate:g}, {SHARED.projector} | "
        + " | ".join(cell("bar", shared, shared.batch == BAR_BATCH) for shared in for_bar)
        + " |",
    ]
    return "\n".join(lines)


# Tables ---------------------------------------------------------------------------------------------------------------


def chosen_cells(found: Mapping[str, Any]) -> dict[str, dict[int, Mapping[str, Any]]]:
    """What the tables show, by row and seed: the setting that validation chose."""
    tried: dict[str, dict[int, list[Mapping[str, Any]]]] = {}
    for cell in found["cells"].values():
        tried.setdefault(cell["row"], {}).setdefault(cell["seed"], []).append(cell)
    return {row: {seed: best(cells) for seed, cells in sorted(by.items())} for row, by in tried.items()}


def settings_of(cells: Sequence[Mapping[str, Any]]) -> str:
    """The settings that were chosen, and how often."""
    counts = Counter((name, value) for cell in cells for name, value in cell["settings"].items())
    name = next(iter(counts))[0].replace("_", " ")
    return f"{name} " + ", ".join(f"{value:g} ({count})" for (_, value), count in sorted(counts.items()))


def spread(values: Sequence[float], signed: bool = False) -> str:
    """Mean ± standard deviation, in percentage points."""
    mean = f"{100 * statistics.fmean(values):{'+' if signed else ''}.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def group_weights(cells: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """How far q went: the effective number of groups 1/Σq² after the first and the last epoch, and who leads."""
    if "q" not in cells[0]:
        return ""
    first, last = (
        statistics.fmean(1 / sum(value**2 for value in cell["q"][epoch]) for cell in cells) for epoch in (0, -1)
    )
    mean = np.mean([cell["q"][-1] for cell in cells], axis=0)
    return f"{first:.1f} → {last:.1f} of {len(names)}; {names[int(mean.argmax())]} {mean.max():.2f}"


def errors(cells: Sequence[Mapping[str, Any]]) -> str:
    if "error_set" not in cells[0]:
        return ""
    size, precision, recall = (
        statistics.fmean(cell["error_set"][key] for cell in cells) for key in ("size", "precision", "recall")
    )
    return f"{size:,.0f}, {precision:.2f}, {recall:.2f}"


def table(found: Mapping[str, Any]) -> str:
    """All rows of one data set."""
    about, measured = found["about"], chosen_cells(found)
    chosen = {row.key: measured[row.key] for row in (*TEACHERS, *rows(SHARED.projector)) if row.key in measured}
    plain = chosen.get("ERM (plain student)", {})
    lines = [
        f"### {found['data']}",
        "",
        f"{about['samples']['train']:,} training, {about['samples']['validation']:,} validation and "
        f"{about['samples']['test']:,} test samples, {about['inputs']} inputs, {len(about['groups'])} groups; "
        f"training groups of {min(about['training_counts'])} to {max(about['training_counts']):,}, "
        f"test groups of {min(about['test_counts'])} to {max(about['test_counts']):,}; true minority "
        f"{about['minority']} training samples (first seed).",
        "",
        "| row | seeds | setting | worst group | over plain | average | error set | q |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, by_seed in chosen.items():
        cells = list(by_seed.values())
        paired = [cell["worst_group"] - plain[seed]["worst_group"] for seed, cell in by_seed.items() if seed in plain]
        columns = [
            row,
            str(len(cells)),
            settings_of(cells),
            spread([cell["worst_group"] for cell in cells]),
            "" if not paired or row.startswith(("ERM (", "teacher")) else spread(paired, signed=True),
            spread([cell["average"] for cell in cells]),
            errors(cells),
            group_weights(cells, about["groups"]),
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


CLAIMS = (
    ("DeTT ← group DRO", "SimKD ← group DRO"),
    ("DeTT ← DFR", "SimKD ← DFR"),
    ("DeTT ← ERM", "SimKD ← ERM"),
    ("DeTT, E = true minority ← group DRO", "DeTT ← group DRO"),
    ("DeTT, E = true minority ← group DRO", "SimKD ← group DRO"),
    ("DeTT, T = 5 ← group DRO", "DeTT ← group DRO"),
    ("DeTT ← group DRO", "ERM (plain student)"),
    ("DeTT ← group DRO", "KD α .9 ← group DRO"),
    ("DeTT ← group DRO", "KD α 1 ← group DRO"),
    ("DeTT ← DFR", "KD α 1 ← DFR"),
    ("DeTT ← ERM", "KD α 1 ← ERM"),
    ("DeTT ← group DRO", "JTT"),
    ("DeTT ← group DRO", "group DRO"),
    ("student + projector, no teacher", "ERM (plain student)"),
    ("SimKD ← group DRO", "student + projector, no teacher"),
    ("KD α 1 ← ERM", "ERM (plain student)"),
    ("KD α 1 ← group DRO", "KD α 1 ← ERM"),
    ("KD α 1 ← DFR", "KD α 1 ← group DRO"),
    ("KD α 1 ← group DRO", "KD α .9 ← group DRO"),
    ("GroupDistil ← group DRO", "KD α .9 ← group DRO"),
    ("GroupDistil ← ERM", "KD α .9 ← ERM"),
    ("GroupDistil ← group DRO", "group DRO"),
    ("GroupDistil ← ERM", "group DRO"),
    ("GroupDistil ← group DRO", "group-balanced sampling"),
    ("GroupDistil ← group DRO", "teacher group DRO"),
    ("GroupDistil, normalise_losses=True ← group DRO", "GroupDistil ← group DRO"),
    ("GroupDistil, cross_entropy=outside ← group DRO", "GroupDistil ← group DRO"),
    ("GroupDistil, cross_entropy=none ← group DRO", "GroupDistil ← group DRO"),
    ("GroupDistil, sampling=shuffle ← group DRO", "GroupDistil ← group DRO"),
    ("group DRO", "group-balanced sampling"),
    ("DFR", "ERM (plain student)"),
    ("DEDIER ← ERM", "KD α .9 ← ERM"),
    ("DEDIER ← group DRO", "KD α .9 ← group DRO"),
    ("[new] DeTT's head under group DRO ← group DRO", "DeTT ← group DRO"),
    ("[new] DeTT's head under group DRO ← group DRO", "group DRO"),
    ("[new] KD α 1 + DFR refit ← group DRO", "KD α 1 ← group DRO"),
    ("[new] KD α 1 + DFR refit ← group DRO", "DFR"),
    ("[new] RLD + group DRO ← group DRO", "GroupDistil ← group DRO"),
    ("[new] RLD + group DRO + transplanted head ← group DRO", "[new] RLD + group DRO ← group DRO"),
    ("[new] BTKD + group DRO ← group DRO", "GroupDistil ← group DRO"),
    ("[new] BTKD + DeTT's upweighting ← group DRO", "KD α .9 ← group DRO"),
    ("[new] PLL + DeTT's upweighting ← group DRO", "KD α .9 ← group DRO"),
)


def claims(all_found: Sequence[Mapping[str, Any]]) -> str:
    """Differences in test worst-group accuracy, paired by seed, and in how many seeds the first is ahead."""
    lines = [
        "| difference in worst-group accuracy | " + " | ".join(found["data"] for found in all_found) + " |",
        "|---" * (len(all_found) + 1) + "|",
    ]
    for first, second in CLAIMS:
        cells = []
        for found in all_found:
            chosen = chosen_cells(found)
            seeds = sorted(chosen.get(first, {}).keys() & chosen.get(second, {}).keys())
            gaps = [chosen[first][seed]["worst_group"] - chosen[second][seed]["worst_group"] for seed in seeds]
            cells.append(f"{spread(gaps, signed=True)} ({sum(gap > 0 for gap in gaps)}/{len(gaps)})" if gaps else "")
        lines.append(f"| {first} − {second} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def document() -> str:
    """Every table, from the JSON files."""
    all_found = [found for name in DATA if (found := read(result_path(name)))]
    parts = ["### Claims and combinations, paired by seed", claims(all_found), *map(table, all_found)]
    return "\n\n".join([*parts, "### What all rows share, chosen by validation", choice_table(read(CHOICE))])


def result_path(name: str, folder: Path = RESULTS, mark: str = "") -> Path:
    return folder / f"group_robustness{mark}-{name}.json"


CHOICE = result_path("choice")


def insert(path: Path, text: str) -> None:
    """Put the tables between the two markers of a document."""
    start, end = "<!-- tables: begin -->", "<!-- tables: end -->"
    page = path.read_text(encoding="utf-8")
    if start not in page or end not in page:
        raise SystemExit(f"{path} has no lines {start} and {end}")
    pattern = re.escape(start) + ".*" + re.escape(end)
    path.write_text(re.sub(pattern, lambda _: f"{start}\n\n{text}\n\n{end}", page, flags=re.DOTALL), encoding="utf-8")


def main() -> int:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=DATA, nargs="+", default=DATA)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--choose", action="store_true", help="choose by validation what all rows share")
    parser.add_argument("--quick", action="store_true", help="two epochs, one setting: that it runs, not what it finds")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument(
        "--table", type=Path, nargs="?", const=Path("-"), help="print the tables, or put them into a document"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table is not None:
        if str(arguments.table) == "-":
            print(document())
        else:
            insert(arguments.table, document())
        return 0
    started = time.perf_counter()
    if arguments.choose:
        shared, bar_batch = choose(arguments.output / CHOICE.name)
        print(f"{shared}, BAR's batch {bar_batch}; {time.perf_counter() - started:.0f} s")
        return 0
    for name in arguments.data:
        mark = "-quick" if arguments.quick else ""
        run(name, arguments.seeds, result_path(name, arguments.output, mark), arguments.quick)
    print(f"{time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
