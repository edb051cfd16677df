"""Who is wrong, the teacher or the label? Arbitration beside group weights and distillation, under label noise.

    python benchmarks/arbitration.py --seeds 0 1 2
    python benchmarks/arbitration.py --table docs/arbitration.md

Two shortcuts: coloured MNIST (made, ten classes; the colour is the attribute) and employment with or without a
disability (natural, two classes). Noise is in training and validation labels, never in test labels. Last epoch
everywhere: nothing is selected. Every seed is written to `benchmarks/results/arbitration.json` at once, and skipped
when run again. The data come from the folder that LIMBECK_DATA names.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import limbeck as lb
from limbeck.data import inject
from limbeck.models import MLP

RESULTS = Path(__file__).parent / "results" / "arbitration.json"
DIGITS = ((0.0, 0.98), (0.18, 0.98), (0.27, 0.95), (0.45, 0.90))
"""(share of wrong labels, share of digits in their own colour)."""
ACS = (0.0, 0.2, 0.35)
GAMMAS = (0.4, 0.7, 1.0)
ALIGNED = ("conflicting", "aligned")


# Data -----------------------------------------------------------------------------------------------------------------


def coloured_digits(noise: float, aligned: float, seed: int, training: int, validation: int) -> lb.Data:
    """14×14 pixels; groups are label × (colour of the label or not), by the labels that somebody would see."""
    grey = lb.load("mnist", validation=0)
    pixels = grey.x.reshape(-1, 1, 14, 2, 14, 2).mean(axis=(3, 5)).astype(np.uint8)
    small = lb.Data(pixels, grey.y, ids=grey.ids, split=grey.split, fractions=None, classes=grey.classes, name="digits")
    painted = inject.coloured(small, aligned=aligned, severity=2, seed=seed)
    noisy = inject.label_noise(painted, rate=noise, seed=seed)
    pool = np.random.default_rng(seed).permutation(np.flatnonzero(painted.split == 0))[: training + validation]
    rows = np.concatenate([pool, np.flatnonzero(painted.split == 2)])
    colour = painted.attributes["colour"].strings()[rows]
    true, given = painted.y[rows], noisy.y[rows]
    own = np.array(inject.COLOURS)
    return lb.Data(
        painted.x[rows].reshape(len(rows), -1).astype(np.float32) / 255,
        given,
        attributes={"colour": colour, "aligned": np.where(own[given] == colour, *reversed(ALIGNED))},
        groups=["label", "aligned"],
        columns={"true_label": true, "true_aligned": (own[true] == colour).astype(np.int64)},
        split=np.repeat(["train", "validation", "test"], [training, validation, len(rows) - training - validation]),
        fractions=None,
        classes=[str(k) for k in range(10)],
        name="coloured digits",
    )


def employment(noise: float, seed: int, training: int, validation: int, testing: int = 10_000) -> lb.Data:
    """People of 2015 in training and validation, of 2016 in test; groups employed × disability."""
    whole = lb.load("acs-employment", train_years=[2015], test_years=[2016], validation=0)
    rng = np.random.default_rng(seed)
    first = rng.permutation(np.flatnonzero(whole.split == 0))[: training + validation]
    later = rng.permutation(np.flatnonzero(whole.split == 2))[:testing]
    rows = np.concatenate([first, later])
    data = lb.Data(
        whole.inputs(rows),
        np.array(whole.classes)[whole.y[rows]],
        attributes={"disability": whole.attributes["disability"].strings()[rows]},
        groups=["label", "disability"],
        split=np.repeat(["train", "validation", "test"], [training, validation, len(later)]),
        fractions=None,
        label_name="employed",
        name="employment",
    )
    return inject.label_noise(data, rate=noise, seed=seed)


def true_groups(data: lb.Data, part: lb.Data) -> lb.Data:
    """A part of the data with its true labels and the groups that go with them."""
    true = part.columns["true_label"]
    changes: dict[str, Any] = {"y": np.array(data.classes)[true], "classes": data.classes}
    if "true_aligned" in part.columns:
        aligned = np.array(ALIGNED)[part.columns["true_aligned"]]
        changes["attributes"] = {"colour": part.attributes["colour"], "aligned": aligned}
    return part.replace(**changes)


# Measuring ------------------------------------------------------------------------------------------------------------


def measure(data: lb.Data, attribute: str, student: Sequence[int], seed: int, small: bool) -> dict[str, Any]:
    """All columns for one data set and seed."""
    settings: dict[str, Any] = {
        "epochs": 2 if small else 10,
        "optimiser": "adam",
        "learning_rate": 1e-3,
        "schedule": "constant",
        "seed": seed,
        "selection": "last",
    }

    def network(hidden: Sequence[int]) -> Any:
        return lambda: MLP(data.sample_shape, data.num_classes, hidden=hidden)

    def score(fitted: lb.Fitted) -> dict[str, float]:
        found = lb.evaluate(fitted, true_groups(data, data.test)).summary
        return {"average": found["average"], "worst": found["worst_group"]}

    train = data.train
    true = train.columns["true_label"]
    started = time.perf_counter()
    arbitration = lb.arbitrate(data, attribute=attribute, seed=seed)
    seconds = time.perf_counter() - started
    likeliest = arbitration.posterior.argmax(axis=1)
    balanced = {"recipe": "group_balanced"}
    columns = {
        "no teacher": score(lb.fit(network(student), data, recipe="erm", **settings)),
        "no teacher + group weights": score(lb.fit(network(student), data, recipe=balanced, **settings)),
    }
    teacher = lb.fit(network([256, 256]), data, recipe=balanced, **settings)
    kd = {"recipe": "kd", "sampling": "group_balanced"}
    columns["KD + group weights"] = score(lb.fit(network(student), data, teacher=teacher, recipe=kd, **settings))
    for gamma in GAMMAS:
        recipe = {"recipe": "arbitration", "gamma": gamma, "attribute": attribute}
        fitted = lb.fit(network(student), data, recipe=recipe, arbitration=arbitration, **settings)
        columns[f"arbitration γ {gamma:g}"] = score(fitted)
    clean = data.replace(y=np.array(data.classes)[data.columns["true_label"]], classes=data.classes)
    if "true_aligned" in data.columns:
        aligned = np.array(ALIGNED)[data.columns["true_aligned"]]
        clean = clean.replace(attributes={"aligned": aligned}, groups=["label", "aligned"])
    columns["[true labels] + group weights"] = score(lb.fit(network(student), clean, recipe=balanced, **settings))
    counts = np.bincount(true, minlength=data.num_classes)
    table = np.zeros((data.num_classes, data.num_classes))
    np.add.at(table, (true, train.y), 1)
    minority = rare(data, true)
    wrong = likeliest != true
    return {
        "seed": seed,
        "columns": columns,
        "noise_true": float((train.y != true).mean()),
        "noise_found": arbitration.noise_rate,
        "noise_interval": list(arbitration.noise_rate_interval),
        "matrix_error": float(np.abs(arbitration.noise - table / counts[:, None]).sum(axis=1).mean() / 2),
        "labels_right": float((train.y == true).mean()),
        "posterior_right": float((~wrong).mean()),
        "minority": int(minority.sum()),
        "labels_right_minority": float((train.y == true)[minority].mean()),
        "posterior_right_minority": float((~wrong)[minority].mean()),
        "uncertain": float(arbitration.uncertain.mean()),
        "uncertain_wrong": float(wrong[arbitration.uncertain].mean()) if arbitration.uncertain.any() else None,
        "certain_wrong": float(wrong[~arbitration.uncertain].mean()),
        "noise_gain": list(arbitration.noise_gain),
        "likelihood": [record["likelihood"] for record in arbitration.history],
        "converged": arbitration.converged,
        "identifiable": arbitration.identifiable,
        "reason": arbitration.reason,
        "seconds": round(seconds, 1),
    }


def rare(data: lb.Data, true: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Training samples whose attribute speaks against their true class: conflicting colours, employed and disabled."""
    train = data.train
    if "true_aligned" in train.columns:
        return train.columns["true_aligned"] == 0
    groups = true_groups(data, train).groups
    assert groups is not None
    return groups.index == groups.counts().argmin()


def run(seeds: Sequence[int], output: Path, small: bool) -> None:
    """Measure what `output` does not hold yet."""
    found: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
    sizes = (4_000, 500) if small else (6_000, 1_000)
    larger = (1_000, 500) if small else (6_000, 1_000)
    for seed in seeds:
        for noise, aligned in DIGITS:
            key = f"coloured digits | {noise} | {aligned} | {seed}"
            if key not in found:
                data = coloured_digits(noise, aligned, seed, *sizes)
                found[key] = measure(data, "colour", [24, 24], seed, small)
                write(output, found, key)
        for noise in ACS:
            key = f"employment | {noise} |  | {seed}"
            if key not in found:
                found[key] = measure(employment(noise, seed, *larger), "disability", [16, 16], seed, small)
                write(output, found, key)


def write(path: Path, found: Mapping[str, Any], key: str) -> None:
    """So that an interrupted run leaves a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1, ensure_ascii=False))
    part.replace(path)
    print(key, flush=True)


# Tables ---------------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.fmean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def document(found: Mapping[str, Any]) -> str:
    """The tables of what was measured."""
    settings: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for key, cell in found.items():
        name, noise, aligned, _ = (part.strip() for part in key.split("|"))
        settings.setdefault((name, noise, aligned), []).append(cell)
    ordered = sorted(settings.items(), key=lambda item: (item[0][0], float(item[0][1])))
    names = list(next(iter(settings.values()))[0]["columns"])
    heads = [f"{name} {noise}" + (f", aligned {aligned}" if aligned else "") for (name, noise, aligned), _ in ordered]
    lines = ["Test accuracy, average / worst group:", "", "| noise | seeds | " + " | ".join(names) + " |"]
    lines.append("|---" * (len(names) + 2) + "|")
    for head, (_, cells) in zip(heads, ordered, strict=True):
        entries = [
            " / ".join(spread([cell["columns"][name][kind] for cell in cells]) for kind in ("average", "worst"))
            for name in names
        ]
        lines.append(f"| {head} | {len(cells)} | " + " | ".join(entries) + " |")
    lines += [
        "",
        "What arbitration finds (minority: training samples whose attribute speaks against their true class):",
        "",
        "| noise | true rate | found | N, error of a row | labels → posterior right | in the minority | "
        "open | wrong if open / not | rounds | identified | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for head, (_, cells) in zip(heads, ordered, strict=True):
        pick = {key: [cell[key] for cell in cells] for key in cells[0] if key not in ("columns", "reason")}
        opened = [value for value in pick["uncertain_wrong"] if value is not None]
        lines.append(
            f"| {head} | {spread(pick['noise_true'])} | {spread(pick['noise_found'])} | {spread(pick['matrix_error'])} "
            f"| {spread(pick['labels_right'])} → {spread(pick['posterior_right'])} | "
            f"{spread(pick['labels_right_minority'])} → {spread(pick['posterior_right_minority'])} | "
            f"{spread(pick['uncertain'])} | {spread(opened) if opened else '–'} / {spread(pick['certain_wrong'])} | "
            f"{statistics.fmean(len(value) - 1 for value in pick['likelihood']):.1f} | "
            f"{sum(pick['identifiable'])} of {len(cells)} | {statistics.fmean(pick['seconds']):.0f} |"
        )
    return "\n".join(lines)


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
    parser.add_argument("--quick", action="store_true", help="few samples, two epochs: that it runs, not what it finds")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument(
        "--table", type=Path, nargs="?", const=Path("-"), help="print the tables, or put them into a document"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table is None:
        run(arguments.seeds, arguments.output, arguments.quick)
        return 0
    text = document(json.loads(arguments.output.read_text()))
    if str(arguments.table) == "-":
        print(text)
    else:
        insert(arguments.table, text, "arbitration")
    return 0


if __name__ == "__main__":
    sys.exit(main())
