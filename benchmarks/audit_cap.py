"""The cap predicted by an audit against what students reach, and whether its advice was right.

    LIMBECK_DATA=... python benchmarks/audit_cap.py [--seeds 0 1 2 3] [--sets acs adult pacs] [--again]
    python benchmarks/audit_cap.py --table docs/audit.md

Three data sets × three or four teachers × labels clean or 30 % wrong (training and validation alike) × seeds. An
audit sees training and validation samples with these labels. Then students (MLP, 16 hidden units) are trained by each
recipe, the epoch selected by the worst validation group, and held against clean test labels. Predicted: the cap, what
the labels alone give, and the advised recipe. Reached: the student that copies (KD with α 1, τ 1), and the best of the
plain and the group-balanced student. A seed draws samples, noise, teacher and student anew. The advice was made on
seeds 0 and 1, and one cell of seed 2 was looked at; `--again` audits what is there anew, students stay. One JSON
a cell.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import limbeck as lb
from limbeck.audits import advise, check_advice
from limbeck.data.inject import label_noise, subsample_group
from limbeck.teachers import TableTeacher

Record = dict[str, Any]
RESULTS = Path(__file__).parent / "results" / "audit_cap"
RECIPES: dict[str, str | Record] = {
    "erm": "erm",
    "group_balanced": "group_balanced",
    "gce": "gce",
    "copy": {"recipe": "kd", "alpha": 1.0, "temperature": 1.0},
    "kd": "kd",
    "groupdistil": "groupdistil",
    "rld": "rld",
    "btkd": "btkd",
}
LABELS_ALONE = ("erm", "group_balanced", "gce")
ADVISED = ("erm", "group_balanced", "gce", "kd", "groupdistil", "rld", "btkd")
NOISE = (0.0, 0.3)
TEACHERS = ("good", "biased", "weak")
LOOKED_AT = (0, 1, 2)
"""Seeds on which the advice was improved (of 2, one cell was seen): only others test it."""
BIASED_AGAINST = {
    "acs": "employed=yes, disability=yes",
    "adult": "income >50K, sex=Female",
    "pacs": "label=dog, domain=sketch",
}


def load(name: str, seed: int) -> lb.Data:
    if name == "acs":
        return lb.load(
            "acs-employment", ["label", "disability"], seed, train_years=[2015], test_years=[2016], samples=20_000
        )
    if name == "adult":
        data = lb.load("adult", ["label", "sex"], seed)
        rows = np.random.default_rng(seed).permutation(np.flatnonzero(data.split < 2))[:10_000]
        return data.subset(np.sort(np.r_[rows, np.flatnonzero(data.split == 2)]))
    return lb.load("pacs", ["label", "domain"], seed)


def mlp(data: lb.Data, width: int) -> Callable[[], nn.Module]:
    sizes = int(data.sample_shape[0]), width, data.num_classes
    return lambda: nn.Sequential(nn.Linear(*sizes[:2]), nn.ReLU(), nn.Linear(*sizes[1:]))


def training(epochs: int) -> lb.Training:
    return lb.Training(epochs=epochs, batch_size=128, learning_rate=5e-3)


def teacher_of(kind: str, name: str, data: lb.Data, seed: int) -> Any:
    """A teacher trained on clean labels: well and fairly, without most of one group, or on 300 samples."""
    if kind == "deployed":
        p = data.columns["predicted_probability"]
        return TableTeacher({"id": data.ids, "no": 1 - p, "yes": p})
    if kind == "biased":
        data = subsample_group(data, BIASED_AGAINST[name], keep=0.05, seed=seed, splits=("train",))
    elif kind == "weak":
        rows = np.flatnonzero(data.split == 0)
        kept = np.random.default_rng(seed).permutation(rows)[:300]
        data = data.subset(np.sort(np.r_[kept, np.flatnonzero(data.split > 0)]))
    recipe = "group_dro" if kind == "good" else "erm"
    return lb.fit(mlp(data, 128), data, recipe=recipe, training=training(8), seed=seed, selection="average").model


def cells(name: str, seed: int, output: Path, again: bool) -> Iterator[tuple[Path, Record]]:
    """The cells of one data set and seed that are missing (or, `again`, that are there): file and record.

    Students that learn from labels alone are the same under every teacher, and are trained once. All students of a cell
    are trained together, which gives what `fit` gives.
    """
    kinds = (*TEACHERS, *(("deployed",) if name == "acs" else ()))
    targets = {(kind, noise): output / f"{name}-{kind}-{noise}-{seed}.json" for kind in kinds for noise in NOISE}
    wanted = {cell: file for cell, file in targets.items() if file.is_file() == again}
    if not wanted:
        return
    clean = load(name, seed)
    given = {noise: label_noise(clean, rate=noise, seed=seed) if noise else clean for noise in NOISE}
    alone: dict[float, Record] = {}
    for kind in kinds:
        teacher = teacher_of(kind, name, clean, seed) if any(cell[0] == kind for cell in wanted) else None
        for noise in (noise for other, noise in wanted if other == kind):
            file = wanted[kind, noise]
            if again:
                reached = json.loads(file.read_text())["reached"]
            else:
                if noise not in alone:
                    alone[noise] = students(given[noise], None, LABELS_ALONE, clean, seed)
                taught = [recipe for recipe in RECIPES if recipe not in LABELS_ALONE]
                reached = {**alone[noise], **students(given[noise], teacher, taught, clean, seed)}
            yield file, measured(name, kind, noise, seed, given[noise], teacher, summary(teacher, clean), reached)


def students(data: lb.Data, teacher: Any, recipes: Iterable[str], clean: lb.Data, seed: int) -> Record:
    """What each recipe's student reaches on test."""
    names = list(recipes)
    fitted = lb.fit_probes(
        mlp(data, 16), data, teacher=teacher, recipes=[RECIPES[each] for each in names], seeds=[seed],
        training=training(8),
    )  # fmt: skip
    return {each: summary(student, clean) for each, student in zip(names, fitted, strict=True)}


def measured(
    name: str, kind: str, noise: float, seed: int, data: lb.Data, teacher: Any, taught: Record, reached: Record
) -> Record:
    """The audit of one cell, held against what its students reached."""
    started = time.process_time()
    recipes = [RECIPES[each] for each in ADVISED]
    found = lb.audit(data, teacher, seed=seed, recipes=recipes, student=mlp(data, 16), training=training(8))
    seconds = time.process_time() - started
    reasoned = advise(found.measured, recipes)
    record = {"data": {"groups": list(found.measured.groups or ())}, "models": [row(k, v) for k, v in reached.items()]}
    record["models"] = [entry for entry in record["models"] if entry["key"] != "copy"]
    check, without = check_advice(found.advice, record), check_advice(reasoned, record)
    return {
        "data": name,
        "teacher": kind,
        "noise": noise,
        "seed": seed,
        "seconds": seconds,
        "predicted": {
            "copy": found.measured.teacher_worst,
            "copy_low": found.cap.copy.worst_low if found.cap.copy else None,
            "copy_high": found.measured.teacher_worst_high,
            "labels": found.cap.labels.worst,
            "corrected": found.cap.corrected,
            "noise": found.measured.noise,
            "memorised": found.measured.memorised,
            "hurt": list(found.measured.hurt),
            "copy_average": found.measured.teacher_average,
            "measured": found.measured.to_dict(),
            "advice": [(entry.recipe, entry.verdict) for entry in found.advice],
            "trial": None if found.trial is None else found.trial.to_dict(),
        },
        "reached": reached,
        "teacher_test": taught,
        "advised": check.advised,
        "best": check.best,
        "gap": check.gap,
        "reasoned": {"advised": without.advised, "gap": without.gap},
    }


def summary(model: Any, data: lb.Data) -> Record:
    from limbeck.teachers import as_teacher, collect

    logits = collect(as_teacher(model), data.test)["logits"].numpy()
    found = lb.evaluate(logits, data.test).summary
    return {"average": found["average"], "worst_group": found["worst_group"], "group": found["worst_group_name"]}


def row(name: str, values: Record) -> Record:
    return {"key": name, "role": "student", "recipe": {"name": name}, "runs": [{"test": values}]}


def tables(records: list[Record]) -> str:
    cells: dict[tuple[str, str, float], list[Record]] = defaultdict(list)
    for record in records:
        cells[record["data"], record["teacher"], record["noise"]].append(record)
    lines = [
        "| data, teacher, wrong labels | cap predicted | copy reached | teacher on test | labels alone, predicted "
        "| best of erm and group_balanced | hurt, said | advised (by a trial) | best | gap, points |",
        "|---" * 10 + "|",
    ]
    for (data, kind, noise), runs in sorted(cells.items()):
        tried = [run for run in runs if _tried(run)]
        labels = [max(run["reached"][k]["worst_group"] for k in ("erm", "group_balanced")) for run in runs]
        lines.append(
            f"| {data}, {kind}, {noise:.0%} | {_spread([r['predicted']['copy'] for r in runs])} | "
            f"{_spread([r['reached']['copy']['worst_group'] for r in runs])} | "
            f"{_spread([r['teacher_test']['worst_group'] for r in runs])} | "
            f"{_spread([r['predicted']['labels'] for r in runs])} | {_spread(labels)} | "
            f"{sum(bool(r['predicted']['hurt']) for r in runs)}/{len(runs)} | "
            f"{_names(r['advised'] for r in tried) or '–'} | {_names(r['best'] for r in tried) or '–'} | "
            f"{_spread([100 * r['gap'] for r in tried], 1) if tried else '–'} |"
        )
    return "\n".join([*_cap(records), "", *_choices(records), "", *_trial(records), *lines])


def _cap(records: list[Record]) -> list[str]:
    predicted = np.array([r["predicted"]["copy"] for r in records])
    reached = np.array([r["reached"]["copy"]["worst_group"] for r in records])
    taught = np.array([r["teacher_test"]["worst_group"] for r in records])
    alone = np.array([max(r["reached"][k]["worst_group"] for k in ("erm", "group_balanced")) for r in records])
    said = np.array([bool(r["predicted"]["hurt"]) for r in records])
    worse = reached < alone
    noisy = np.array([r["noise"] > 0 for r in records])
    error, own = 100 * (predicted - reached), 100 * (predicted - taught)
    return [
        f"{len(records)} cells. Predicted cap minus the worst test group of the copying student: mean "
        f"{error.mean():+.1f} points, mean absolute {abs(error).mean():.1f}, correlation "
        f"{np.corrcoef(predicted, reached)[0, 1]:.2f}. Minus the teacher's own worst test group: mean "
        f"{own.mean():+.1f}, mean absolute {abs(own).mean():.1f} (clean labels {abs(own[~noisy]).mean():.1f}, noisy "
        f"ones {abs(own[noisy]).mean():.1f}). The copy ended more than 2 points above the cap in "
        f"{int((error < -2).sum())} cells.",
        "",
        f"Said to hurt a group: {int(said.sum())} cells. In {int((said & worse).sum())} of these the copy was worse in "
        f"the worst group than the better of erm and group_balanced; of the {int((~said).sum())} other cells in "
        f"{int((~said & worse).sum())}.",
    ]


def _choices(records: list[Record]) -> list[str]:
    """How far each way of choosing is from the best recipe: on the seeds the advice was made on, and on fresh ones."""
    parts = {
        "seeds on which the advice was made": [r for r in records if r["seed"] in LOOKED_AT],
        "fresh seeds": [r for r in records if r["seed"] not in LOOKED_AT],
    }
    parts = {title: part for title, part in parts.items() if part}
    gaps = {title: _gaps(part) for title, part in parts.items()}
    head = " | ".join(f"{title} ({len(part)} cells): within 1 point of the best, within 2, mean gap, largest gap"
                      for title, part in parts.items())  # fmt: skip
    lines = [f"| choice | {head} |", "|---" * (len(parts) + 1) + "|"]
    for name in next(iter(gaps.values())):
        shown = [
            f"{(gap <= 0.01).mean():.0%}, {(gap <= 0.02).mean():.0%}, {100 * gap.mean():.1f}, {100 * gap.max():.1f}"
            if np.isfinite(gap).all()
            else "–"
            for gap in (found[name] for found in gaps.values())
        ]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines


def _gaps(records: list[Record]) -> dict[str, Any]:
    best = np.array([max(r["reached"][k]["worst_group"] for k in ADVISED) for r in records])
    always = {
        f"always {name}": best - np.array([r["reached"][name]["worst_group"] for r in records]) for name in ADVISED
    }
    # Audits that were made before there was a trial hold the advice without one.
    tried = np.array([r["gap"] if _tried(r) else np.nan for r in records])
    reasoned = np.array([r["reasoned"]["gap"] if _tried(r) else r["gap"] for r in records])
    return {"**the first advised recipe**": tried, "the first advised without a trial": reasoned, **always}


def _tried(record: Record) -> bool:
    return record["predicted"].get("trial") is not None


def _trial(records: list[Record]) -> list[str]:
    """How near a recipe's worst group in the trial is to that of its student on test."""
    rows = [
        (
            entry["recipe"],
            record["noise"] > 0,
            entry["reach"]["worst"] - record["reached"][entry["recipe"]]["worst_group"],
        )
        for record in records
        if _tried(record)
        for entry in record["predicted"]["trial"]["tried"]
    ]
    if not rows:
        return []
    error, noisy = np.array([100 * row[2] for row in rows]), np.array([row[1] for row in rows])
    parts = {"clean labels": error[~noisy], "noisy ones": error[noisy]}
    shown = [
        f"{title} mean {part.mean():+.1f}, mean absolute {abs(part).mean():.1f}"
        for title, part in parts.items()
        if len(part)
    ]
    return [
        f"Worst group in the trial minus that of the student on test, points, {len(rows)} students: "
        f"{'; '.join(shown)}.",
        "",
    ]


def _names(values: Any) -> str:
    found = [str(value) for value in values]
    return ", ".join(f"{name} {found.count(name)}×" if found.count(name) > 1 else name for name in dict.fromkeys(found))


def _spread(values: list[float], digits: int = 3) -> str:
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--sets", nargs="+", choices=tuple(BIASED_AGAINST), default=list(BIASED_AGAINST))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="Only audit anew what is there; students stay.")
    parser.add_argument("--table", type=Path, help="Only write the tables of the results into this document.")
    options = parser.parse_args()
    if options.table is None:
        torch.set_num_threads(1)
        options.output.mkdir(parents=True, exist_ok=True)
        for seed in options.seeds:
            for name in options.sets:
                for target, record in cells(name, seed, options.output, options.again):
                    target.write_text(json.dumps(record, indent=1) + "\n")
                    print(target.name, record["advised"], record["best"], record["gap"], flush=True)
    shown = tables([json.loads(file.read_text()) for file in sorted(options.output.glob("*.json"))])
    if options.table is None:
        print(shown)
        return
    before, _, rest = options.table.read_text().partition("<!-- cap tables: begin -->")
    _, _, after = rest.partition("<!-- cap tables: end -->")
    options.table.write_text(f"{before}<!-- cap tables: begin -->\n\n{shown}\n\n<!-- cap tables: end -->{after}")


if __name__ == "__main__":
    main()
