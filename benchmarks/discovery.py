"""Do discovered groups fail out of sample, are they the annotated ones, and what are they worth in training?

    python benchmarks/discovery.py --seeds 0 1 2
    python benchmarks/discovery.py --table docs/discovery.md

Data as in `benchmarks/group_robustness.py`, and ACS employment. Discovery never sees the annotated groups, nor the
attributes they are made of (but on ACS, where disability is one column among others). Every finished seed is written to
`benchmarks/results/discovery-DATA.json` at once, and skipped when run again. The data come from the folder that
LIMBECK_DATA names.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import limbeck as lb
from group_robustness import insert, make_data, network
from limbeck.groups import Discovery, judge_groups, within_class_information
from limbeck.selection import choose, worst_slice

RESULTS = Path(__file__).parent / "results"
DATA = ("coloured-mnist-0.98", "bar", "pacs", "acs-employment")
METHODS: dict[str, dict[str, Any]] = {
    "errors": {},
    "tree": {},
    "clusters": {},
    "mixture": {},
    "disagreement": {},
}
TRAINED = ("coloured-mnist-0.98", "bar")
"""Where students are trained on what was found."""
PARTITIONS = ("errors", "tree", "clusters")
"""Found by these methods; the other two are left out for time."""
STUDENT, TEACHER, EPOCHS, RATE, BATCH = [32, 32], [128, 128], 10, 6e-3, {"bar": 16}
"""As in `group_robustness.py`; 128 samples a batch elsewhere."""
REPEATS = 2
STEP = 0.01
"""Of group weights: one setting, so that nothing has to be chosen."""
RULES = ("average", "worst_class", "class_gap", "worst_slice: errors", "worst_slice: clusters", "worst_group")


def load(name: str, seed: int) -> lb.Data:
    """The data of one seed, their annotated groups declared."""
    if name != "acs-employment":
        return make_data(name, seed)
    groups = ["label", "disability"]
    return lb.load(name, groups=groups, seed=seed, samples=8_000, validation=0.25, test=0.4)


def hidden(data: lb.Data) -> lb.Data:
    """The data as a discovery sees them: without the attribute that the annotation is made of."""
    return data if data.name == "acs-employment" else data.with_groups(None).replace(attributes={})


# Finding --------------------------------------------------------------------------------------------------------------


def find(name: str, method: str, data: lb.Data, seed: int) -> tuple[Discovery, dict[str, Any]]:
    """One discovery, and what is kept of it."""
    started = time.process_time()
    found = lb.discover_groups(hidden(data), method, seed=seed, repeats=REPEATS, **METHODS[method])
    seconds = time.process_time() - started
    quality = found.quality
    assert quality is not None
    claimed = [part.name for part in quality.worse]
    tested = on_test(found, data)
    again = [part for part in tested.slices if part.name in claimed]
    worst = quality.worst
    annotated = annotated_gap(found, data)
    cell: dict[str, Any] = {
        "seconds": round(seconds, 1),
        "groups": len(found.names),
        "held": len(claimed),
        "sentence": quality.sentence,
        "worst": None if worst is None else worst.name,
        "gap": None if worst is None else worst.gap,
        "low": None if worst is None else worst.low,
        "high": None if worst is None else worst.high,
        "test_gap": None if worst is None else next(p.gap for p in again if p.name == worst.name),
        "again": sum(part.gap > 0 for part in again),
        "worst_found_accuracy": min((p.accuracy for p in tested.slices if p.n >= 10), default=None),
        "worst_annotated_accuracy": annotated,
        "stability": quality.stability.information if quality.stability is not None else None,
    }
    assert data.groups is not None
    for part, number in (("train", 0), ("validation", 1), ("test", 2)):
        rows = data.split == number
        told = within_class_information(found.index[rows], data.groups.index[rows], data.y[rows])
        cell[f"share_{part}"], cell[f"adjusted_{part}"] = told.share, told.adjusted
    return found, {key: none(value) for key, value in cell.items()}


def none(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value


def on_test(found: Discovery, data: lb.Data) -> Any:
    """The same groups and the same model on test samples, which chose nothing."""
    seen = found.see(hidden(data).test)
    judged = found.rule.assign(seen.without("probabilities") if found.rule.sees_errors else seen)
    return judge_groups(judged, ~seen.wrong, found.names)


def annotated_gap(found: Discovery, data: lb.Data) -> float:
    """The accuracy of the same model in the worst annotated group of the test part."""
    seen, groups = found.see(hidden(data).test), data.test.groups
    assert groups is not None
    right, counts = ~seen.wrong, groups.counts()
    return float(min(right[groups.index == g].mean() for g in range(len(counts)) if counts[g] >= 10))


# Training on what was found -------------------------------------------------------------------------------------------


def train(data: lb.Data, found: Mapping[str, Discovery], seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Students with no groups, with declared and with found ones; and which of them each rule would choose."""
    partitions = {"declared": data, **{method: found[method].apply(data) for method in PARTITIONS}}
    options: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH.get(data.name, 128), "seed": seed}
    options["learning_rate"] = RATE
    plain = data.with_groups(None)
    teacher = lb.fit(network(data, TEACHER), plain, recipe="erm", selection="average", **options)

    def fit(on: lb.Data, recipe: Any, selection: str, by: Any = None) -> Any:
        return lb.fit(network(data, STUDENT), on, teacher=by, recipe=recipe, selection=selection, **options)

    kd = {"recipe": "kd", "alpha": 0.9}
    students = {
        "plain student": fit(plain, "erm", "average"),
        "plain student, chosen by declared groups": fit(data, "erm", "worst_group"),
        "KD ← ERM teacher": fit(plain, kd, "average", teacher),
    }
    for groups, on in partitions.items():
        dro, distil = ({"recipe": name, "step": STEP} for name in ("group_dro", "groupdistil"))
        students[f"group DRO, groups: {groups}"] = fit(on, dro, "worst_group")
        students[f"GroupDistil ← ERM teacher, groups: {groups}"] = fit(on, distil, "worst_group", teacher)
    rows: dict[str, Any] = {}
    for name, fitted in {"ERM teacher": teacher, **students}.items():
        summary = lb.evaluate(fitted, data.test).summary
        rows[name] = {key: summary[key] for key in ("worst_group", "average", "worst_group_name")}
        rows[name]["epoch"] = fitted.selected_epoch
    outputs = {name: lb.predict_logits(fitted, data.validation) for name, fitted in students.items()}
    chosen: dict[str, Any] = {}
    for name in RULES:
        method = name.partition(": ")[2]
        choice = choose(outputs, data.validation, worst_slice(found[method]) if method else name)
        chosen[name] = {"model": choice.name, "consumes": choice.rule.consumes, **rows[choice.name]}
    return rows, chosen


# Running and tables ---------------------------------------------------------------------------------------------------


def run(name: str, seeds: Sequence[int], output: Path) -> None:
    """Measure what `output` does not hold yet."""
    record = json.loads(output.read_text()) if output.exists() else {"data": name, "seeds": {}}
    for seed in seeds:
        if str(seed) in record["seeds"]:
            continue
        data = load(name, seed)
        found: dict[str, Discovery] = {}
        kept: dict[str, Any] = {"methods": {}}
        for method in METHODS:
            found[method], kept["methods"][method] = find(name, method, data, seed)
            print(f"{name} seed {seed} {method:13s} {kept['methods'][method]['sentence']}", flush=True)
        if name in TRAINED:
            kept["students"], kept["chosen"] = train(data, found, seed)
            for row, cell in kept["students"].items():
                print(f"{name} seed {seed} {row:50s} worst {cell['worst_group']:.3f} average {cell['average']:.3f}")
        record["about"] = {
            "samples": data.sizes,
            "groups": data.num_groups,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "limbeck": lb.__version__},
            "machine": f"{os.cpu_count()} cores, {torch.get_num_threads()} thread",
        }
        record["seeds"][str(seed)] = kept
        write(output, record)


def write(path: Path, record: Mapping[str, Any]) -> None:
    """So that an interrupted run leaves a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
    part.replace(path)


def numbers(cells: Sequence[Mapping[str, Any]], key: str, form: str = "{:.2f}") -> str:
    """Mean ± standard deviation over the seeds that have the number; how many, where not all do."""
    values = [cell[key] for cell in cells if cell[key] is not None]
    if not values:
        return "–"
    spread = f" ± {form.format(statistics.stdev(values))}" if len(values) > 1 else ""
    return form.format(statistics.fmean(values)) + spread + ("" if len(values) == len(cells) else f" ({len(values)})")


def found_table(record: Mapping[str, Any]) -> str:
    """How good each method's groups are."""
    lines = [
        "| method | groups | worse out of sample | gap of the worst (held-out) | the same on test "
        "| still worse on test | worst found group, test | stability | share of the annotation, train | … test "
        "| adjusted, train | … test | CPU s |",
        "|---" * 13 + "|",
    ]
    for method in METHODS:
        cells = [seed["methods"][method] for seed in record["seeds"].values()]
        held = "/".join(str(cell["held"]) for cell in cells)
        again = f"{sum(cell['again'] for cell in cells)} of {sum(cell['held'] for cell in cells)}"
        columns = [
            method,
            numbers(cells, "groups", "{:.0f}"),
            held,
            *(numbers(cells, key) for key in ("gap", "test_gap")),
            again,
            *(numbers(cells, key) for key in ("worst_found_accuracy", "stability", "share_train", "share_test")),
            *(numbers(cells, key) for key in ("adjusted_train", "adjusted_test")),
            numbers(cells, "seconds", "{:.0f}"),
        ]
        lines.append("| " + " | ".join(columns) + " |")
    annotated = numbers([seed["methods"]["errors"] for seed in record["seeds"].values()], "worst_annotated_accuracy")
    lines += ["", f"Worst annotated group of the same network on test: {annotated}."]
    return "\n".join(lines)


def student_table(record: Mapping[str, Any]) -> str:
    """What the groups are worth in training, and which student each rule chooses."""
    seeds = list(record["seeds"].values())
    lines = ["| student | worst annotated group | over plain | average |", "|---|---|---|---|"]
    for row in seeds[0]["students"]:
        cells = [seed["students"][row] for seed in seeds]
        over = [
            100 * (seed["students"][row]["worst_group"] - seed["students"]["plain student"]["worst_group"])
            for seed in seeds
        ]
        against = "" if row == "plain student" else difference(over)
        lines.append(f"| {row} | {percent(cells, 'worst_group')} | {against} | {percent(cells, 'average')} |")
    lines += ["", "| chosen by | worst annotated group | average | what was chosen |", "|---|---|---|---|"]
    for rule in RULES:
        cells = [seed["chosen"][rule] for seed in seeds]
        models = "; ".join(dict.fromkeys(cell["model"] for cell in cells))
        lines.append(f"| {rule} | {percent(cells, 'worst_group')} | {percent(cells, 'average')} | {models} |")
    return "\n".join(lines)


def percent(cells: Sequence[Mapping[str, Any]], key: str) -> str:
    return numbers([{key: 100 * cell[key]} for cell in cells], key, "{:.1f}")


def difference(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):+.1f}{spread} ({sum(value > 0 for value in values)}/{len(values)})"


def worst_rules(record: Mapping[str, Any]) -> str:
    """The sentence of every discovery of the first seed."""
    first = next(iter(record["seeds"].values()))["methods"]
    return "\n".join(f"* {method}: {first[method]['sentence']}." for method in METHODS)


def document() -> str:
    """Every table, from the JSON files."""
    paths = [RESULTS / f"discovery-{name}.json" for name in DATA]
    parts = []
    for record in (json.loads(path.read_text()) for path in paths if path.exists()):
        sizes = record["about"]["samples"]
        parts.append(
            f"### {record['data']}\n\n{sizes['train']:,} training, {sizes['validation']:,} validation and "
            f"{sizes['test']:,} test samples, {record['about']['groups']} annotated groups, "
            f"{len(record['seeds'])} seeds.\n\n{found_table(record)}\n\nIn the first seed:\n\n{worst_rules(record)}"
        )
        if record["data"] in TRAINED:
            parts.append(student_table(record))
    return "\n\n".join(parts)


def main() -> int:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=DATA, nargs="+", default=DATA)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
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
    for name in arguments.data:
        run(name, arguments.seeds, arguments.output / f"discovery-{name}.json")
    print(f"{time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
