"""Is an error set made of found groups worth more to DeTT and JTT than the errors of a plain student?

    python benchmarks/found_error_sets.py --seeds 0 1 2
    python benchmarks/found_error_sets.py --table docs/discovery.md

Data, networks and settings as in `benchmarks/discovery.py`. Nobody is told a group: the teacher of DeTT is trained with
group DRO over the found groups. Every student is chosen by the worst found group, so that only the error set differs;
the one with the annotated minority as its error set is the bound. Every finished seed is written at once, and skipped
when run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import limbeck as lb
from discovery import BATCH, EPOCHS, RATE, RESULTS, STEP, STUDENT, TEACHER, difference, hidden, load, percent, write
from group_robustness import minority, network
from limbeck.fitting import named_error_set

DATA = ("coloured-mnist-0.98", "bar")
OUTPUT = RESULTS / "found-error-sets.json"
BEGIN, END = "<!-- error sets: begin -->", "<!-- error sets: end -->"
UPWEIGHT = 5.0
"""Of DeTT and JTT alike, fixed beforehand: error sets of different size are then weighed alike."""


def recipes(found: Any, data: lb.Data) -> Iterator[tuple[str, dict[str, Any]]]:
    """By the words of the table."""
    yield "plain student", {"recipe": "erm"}
    yield "group DRO over the found groups", {"recipe": "group_dro", "step": STEP}
    yield "SimKD", {"recipe": "simkd"}
    told = lb.Weighting.named("upweight", error_set=torch.from_numpy(minority(data)), upweight=UPWEIGHT)
    for name in ("jtt", "dett"):
        title = {"jtt": "JTT", "dett": "DeTT"}[name]
        yield f"{title}, errors after one epoch", {"recipe": name, "upweight": UPWEIGHT}
        wrong = {"groups": ["*: wrong"]}
        yield f"{title}, every group that is wrong", {"recipe": name, "upweight": UPWEIGHT, "identify": wrong}
        if found.worse:
            worse = {"groups": list(found.worse)}
            yield f"{title}, groups worse out of sample", {"recipe": name, "upweight": UPWEIGHT, "identify": worse}
        yield f"{title}, the annotated minority", {"recipe": name, "identify": None, "weighting": told}


def measure(name: str, seed: int) -> dict[str, Any]:
    """All students of one seed."""
    data = load(name, seed)
    found = lb.discover_groups(hidden(data), "errors", seed=seed, repeats=1)
    on = found.apply(data)
    options: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH.get(data.name, 128), "seed": seed}
    options |= {"learning_rate": RATE, "selection": "worst_group"}
    teacher = lb.fit(network(data, TEACHER), on, recipe={"recipe": "group_dro", "step": STEP}, **options)
    rows: dict[str, Any] = {"teacher": kept(teacher, data)}
    rare = minority(data)
    for title, recipe in recipes(found, data):
        by = teacher if recipe["recipe"] in ("simkd", "dett") else None
        fitted = lb.fit(network(data, STUDENT), on, teacher=by, recipe=recipe, **options)
        rows[title] = kept(fitted, data)
        inside = error_set(fitted, on)
        if inside is not None:
            rows[title] |= {"size": float(inside.mean()), "minority": float(rare[inside].mean())}
            rows[title]["held"] = float(inside[rare].mean())
        print(f"{name} seed {seed} {title:40s} {rows[title]}", flush=True)
    return rows


def kept(fitted: Any, data: lb.Data) -> dict[str, Any]:
    summary = lb.evaluate(fitted, data.test).summary
    return {key: summary[key] for key in ("worst_group", "average")}


def error_set(fitted: Any, data: lb.Data) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    """The training samples that weighed more."""
    named = named_error_set(fitted.recipe, data.train)
    if named is not None:
        return named.numpy()
    if "identify" in fitted.earlier:
        return np.asarray(lb.predict_logits(fitted.earlier["identify"], data.train).argmax(1) != data.train.y)
    return None


def table(record: dict[str, Any]) -> str:
    """One row a student: mean ± standard deviation over seeds, the difference to the plain student seed by seed."""
    lines = []
    for name, seeds in record["data"].items():
        cells = list(seeds.values())
        lines += [f"**{name}**, {len(cells)} seeds", ""]
        titles = ("student", "worst annotated group", "over plain", "average", "error set", "minority in it")
        lines += [f"| {' | '.join([*titles, 'of the minority'])} |", "|---" * 7 + "|"]
        for row in dict.fromkeys(title for cell in cells for title in cell):
            own = [cell for cell in cells if row in cell]
            over = [100 * (cell[row]["worst_group"] - cell["plain student"]["worst_group"]) for cell in own]
            told = "" if row == "plain student" else difference(over)
            rows = [cell[row] for cell in own]
            sizes = [percent(rows, key) if "size" in rows[0] else "" for key in ("size", "minority", "held")]
            shown = [row, percent(rows, "worst_group"), told, percent(rows, "average"), *sizes]
            lines.append("| " + " | ".join(shown) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


def run(seeds: Sequence[int]) -> None:
    """Measure what is not there yet."""
    record: dict[str, Any] = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {"data": {}}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "limbeck": lb.__version__}
    record["about"] = {"versions": versions, "machine": f"{os.cpu_count()} cores, 1 thread"}
    for name in DATA:
        for seed in seeds:
            cells = record["data"].setdefault(name, {})
            if str(seed) not in cells:
                cells[str(seed)] = measure(name, seed)
                write(OUTPUT, record)


def main() -> None:
    """Measure, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", type=Path, help="put the table into a document")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table is None:
        run(arguments.seeds)
    else:
        before, rest = arguments.table.read_text(encoding="utf-8").split(BEGIN)
        measured = table(json.loads(OUTPUT.read_text()))
        arguments.table.write_text(f"{before}{BEGIN}\n{measured}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
