"""RLD's and BTKD's claims on CIFAR-10: does repairing a teacher's mistakes pay, and more so the more it makes?

    python benchmarks/imperfect_teachers.py --seeds 0 1 2 [--tune] [--quick] [--output PREFIX]
    python benchmarks/imperfect_teachers.py --table [--docs docs/results-teachers.md]

Needs the folder LIMBECK_DATA with CIFAR-10 and the two pre-trained ResNets. Each teacher is asked once, its logits are
kept in `--cache`. Each seed has its own file, PREFIX_seed0.json, written after every run; finished runs are skipped, so
an interrupted benchmark goes on where it was, and several processes may share the work: `--seeds`, `--teachers`.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import limbeck as lb
from limbeck.models import build, parameters
from limbeck.teachers import TableTeacher, as_teacher, collect

RESULTS = Path(__file__).parent / "results" / "imperfect_teachers"
STUDENT = {"name": "cnn", "channels": [8, 16, 32]}
FULL = {"samples": 8000, "test_samples": 10_000, "epochs": 12, "batch_size": 128, "learning_rate": 2e-2}
QUICK = {"samples": 800, "test_samples": 500, "epochs": 2, "batch_size": 128, "learning_rate": 2e-2}
# A quarter less time for these small maps; given, not timed, so that every run has the same arithmetic.
PRECISION = {"autocast": False, "channels_last": True}

Record = dict[str, Any]


@dataclass(frozen=True)
class TeacherKind:
    """A pre-trained network, and how it is made worse.

    Args:
        network: of which the weights are.
        how: for the table.
        weight_noise: standard deviation of what is added to each convolution, in units of the layer's own.
        blur: side of the mean filter over the images it sees.
    """

    network: str
    how: str
    weight_noise: float = 0.0
    blur: int = 1


TEACHERS = {
    "resnet20": TeacherKind("resnet20", "pre-trained, as it is"),
    "resnet20-blurred": TeacherKind("resnet20", "sees images through a 3×3 mean filter", blur=3),
    "resnet20-noisy": TeacherKind(
        "resnet20", "Gaussian noise of .45 layer standard deviations on each convolution", 0.45
    ),
    "resnet56": TeacherKind("resnet56", "pre-trained, as it is"),
}
CLAIMS = ("kd", "dkd", "rld", "btkd", "btkd_elimination")
REPAIRS = ("la", "lr", "rc")
RECIPES: dict[str, Record] = {name: {"recipe": name} for name in (*CLAIMS, *REPAIRS)}
LIGHT: dict[str, Record] = {f"{name} β=1": {"recipe": name, "beta": 1.0} for name in ("dkd", "rld")}
"""Another balance between what both methods do with the label's class and with the rest."""


def settings_of(name: str, **variants: Record) -> dict[str, Record]:
    """Settings of a recipe beside its default, by what the tables call them."""
    return {f"{name} {key}": {"recipe": name, **options} for key, options in variants.items()}


COOL, HALF = {"temperature": 1.0}, {"alpha": 0.5}
TUNED: dict[str, dict[str, Record]] = {
    "erm": settings_of("erm", **{f"η={rate:g}": {"learning_rate": rate} for rate in (0.005, 0.01, 0.04)}),
    **{name: settings_of(name, **{"τ=1": COOL, "α=.5": HALF, "τ=1 α=.5": COOL | HALF}) for name in ("kd", "rc")},
    **{
        name: settings_of(name, **{"β=1": {"beta": 1.0}, "β=4": {"beta": 4.0}, "β=1 τ=1": {"beta": 1.0} | COOL})
        for name in ("dkd", "rld")
    },
    **{
        name: settings_of(name, **{"τ=1": COOL, "λ=.1": {"alpha": 0.1}, "λ=.9": {"alpha": 0.9}})
        for name in ("btkd", "btkd_elimination")
    },
    "la": settings_of("la", **{f"τ={value:g}": {"temperature": value} for value in (1.0, 2.0, 8.0)}),
    "lr": settings_of("lr", **{"τ=4": {"temperature": 4.0}, "η=.5": {"eta": 0.5}, "w=.3": {"weight": 0.3}}),
}
"""Three settings beside the default for each. Plain training has no number of its own: its learning rate takes it."""


# Data and teachers ----------------------------------------------------------------------------------------------------


def load(settings: Record) -> lb.Data:
    """CIFAR-10, the same samples and validation split whatever the seed: each teacher is asked once."""
    return lb.load(
        "cifar10", samples=settings["samples"], test_samples=settings["test_samples"], validation=0.25, seed=0
    )


def halved(data: lb.Data) -> lb.Data:
    """The same samples at 16×16, the mean of each 2×2 pixels: what the students see."""
    x = np.asarray(data.x)
    count, channels, height, width = x.shape
    mean = x.reshape(count, channels, height // 2, 2, width // 2, 2).mean((3, 5), dtype=np.float32)
    return data.replace(x=mean.round().astype(np.uint8))


def blurred(data: lb.Data, side: int) -> lb.Data:
    x = torch.from_numpy(np.asarray(data.x)).float()
    mean = nn.functional.avg_pool2d(x, side, 1, side // 2, count_include_pad=False)
    return data.replace(x=mean.round().to(torch.uint8).numpy())


def build_teacher(kind: TeacherKind, folder: Path) -> nn.Module:
    spec = {"name": kind.network, "weights": str(folder / f"cifar10_{kind.network}.safetensors")}
    model = build(spec, inputs_shape=(3, 32, 32), classes=10).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.modules():
            if kind.weight_noise and isinstance(layer, nn.Conv2d):
                scale = kind.weight_noise * layer.weight.std()
                layer.weight += scale * torch.randn(layer.weight.shape, generator=generator)
    return model


def teacher_logits(name: str, data: lb.Data, cache: Path) -> np.ndarray[Any, Any]:
    """Logits `[N, C]` of a teacher for all samples, in their order; computed once."""
    kind = TEACHERS[name]
    path = cache / f"{name}-{kind.weight_noise}-{kind.blur}-{data.fingerprint()[:12]}.npz"
    if path.is_file():
        return np.load(path)["logits"]
    seen = blurred(data, kind.blur) if kind.blur > 1 else data
    model = build_teacher(kind, Path(os.environ["LIMBECK_DATA"]))
    logits = collect(as_teacher(model), seen, batch_size=128)["logits"].numpy()
    cache.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(partial, logits=logits)
    partial.replace(path)
    return logits


def describe_teacher(name: str, data: lb.Data, logits: np.ndarray[Any, Any]) -> Record:
    """What the methods' arguments turn on: how often and how the teacher is wrong where the student learns."""
    train = logits[data.split == 0]
    y = data.y[data.split == 0]
    own = train[np.arange(len(y)), y][:, None]
    wrong = train.argmax(1) != y
    masked = (train >= own).sum(1)
    shifted = np.exp(train - train.max(1, keepdims=True))
    rank = (train > own).sum(1)
    right = logits.argmax(1) == data.y
    return {
        "teacher": name,
        "how": TEACHERS[name].how,
        "parameters": parameters(build(TEACHERS[name].network, inputs_shape=(3, 32, 32), classes=10)),
        "samples": len(y),
        "distillation_accuracy": float(1 - wrong.mean()),
        "wrong_share": float(wrong.mean()),
        "mean_mask": float(masked.mean()),
        "mean_mask_wrong": float(masked[wrong].mean()) if wrong.any() else None,
        "top2": float((rank < 2).mean()),
        "mean_confidence": float((1 / shifted.sum(1)).mean()),
        "predicted_shares": (np.bincount(train.argmax(1), minlength=data.num_classes) / len(y)).tolist(),
        "validation_accuracy": float(right[data.split == 1].mean()),
        "test_accuracy": float(right[data.split == 2].mean()),
    }


# Runs -----------------------------------------------------------------------------------------------------------------


def make_student() -> nn.Module:
    return build(STUDENT, inputs_shape=(3, 16, 16), classes=10)


def run(data: lb.Data, recipe: Record, logits: np.ndarray[Any, Any] | None, settings: Record, seed: int) -> Record:
    """One student. Recipes of a seed share its start and its order of samples: both are functions of the seed alone."""
    started = time.process_time()
    teacher = None
    if logits is not None:
        teacher = TableTeacher({"id": data.ids, "logits": logits}, "logits", classes=data.classes)
    training = {key: settings[key] for key in ("epochs", "batch_size", "learning_rate")}
    training |= {key: value for key, value in recipe.items() if key in training}
    fitted = lb.fit(
        make_student,
        data,
        teacher=teacher,
        recipe={key: value for key, value in recipe.items() if key not in training},
        seed=seed,
        selection="average",
        precision=PRECISION,
        **training,
    )
    chosen = lb.predict_logits(fitted, data.test).argmax(1)
    y = data.test.y
    record: Record = {
        "selected_epoch": fitted.selected_epoch,
        "validation": max(entry["validation_average"] for entry in fitted.history),
        "test": float((chosen == y).mean()),
        "test_by_class": [float((chosen == y)[y == k].mean()) for k in range(data.num_classes)],
        "history": [
            {key: entry[key] for key in ("loss", "validation_average", "validation_loss")} for entry in fitted.history
        ],
    }
    if logits is not None:
        theirs = logits[data.split == 2].argmax(1)
        wrong = theirs != y
        record["right_where_teacher_wrong"] = float((chosen == y)[wrong].mean())
        record["copied_where_teacher_wrong"] = float((chosen == theirs)[wrong].mean())
    record["cpu_seconds"] = time.process_time() - started
    return record


def cells(teachers: Sequence[str], tune: bool) -> Iterator[tuple[str | None, str, Record]]:
    """What is to be run, the claims first, so that an interrupted benchmark has said something of each."""
    if "resnet20" in teachers:
        yield None, "erm", {"recipe": "erm"}
    claims = {name: RECIPES[name] for name in CLAIMS} | LIGHT
    for part in (claims, {name: RECIPES[name] for name in REPAIRS}):
        for teacher in teachers:
            for name, recipe in part.items():
                yield teacher, name, recipe
    if not tune:
        return
    if "resnet20" in teachers:
        for name, recipe in TUNED["erm"].items():
            yield None, name, recipe
    for teacher in teachers:
        for method, variants in TUNED.items():
            if method != "erm":
                for name, recipe in variants.items():
                    yield teacher, name, recipe
        yield teacher, "rld standardised", {"recipe": "rld", "standardise": True}


@contextmanager
def opened(path: Path, settings: Record) -> Iterator[Record]:
    """The results of a seed, to be changed while no other process does; what is new is written at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Path(tempfile.gettempdir(), f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        content: Record = {"settings": settings, "torch": torch.__version__, "teachers": {}, "runs": []}
        if path.is_file():
            content = json.loads(path.read_text())
        if content["settings"] != settings:
            raise SystemExit(f"{path} holds runs with other settings ({content['settings']}): give another --output")
        before = json.dumps(content)
        yield content
        if json.dumps(content) != before:
            partial = path.with_suffix(".tmp")
            partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
            partial.replace(path)


def measure(
    seeds: Sequence[int],
    teachers: Sequence[str],
    settings: Record,
    prefix: Path,
    cache: Path,
    *,
    tune: bool,
    only: Sequence[str] | None,
) -> None:
    full = load(settings)
    data = halved(full)
    known: dict[str | None, Any] = {None: None}
    settings = settings | {"student": STUDENT, "student_parameters": parameters(make_student()), "sizes": data.sizes}
    for seed in seeds:
        path = Path(f"{prefix}_seed{seed}.json")
        for teacher, name, recipe in cells(teachers, tune):
            if only is not None and name not in only:
                continue
            with opened(path, settings) as content:
                content["seed"] = seed
                done = {(entry["teacher"], entry["recipe"]) for entry in content["runs"]}
            if (teacher, name) in done:
                continue
            if teacher not in known:
                known[teacher] = teacher_logits(str(teacher), full, cache)
            record = run(data, recipe, known[teacher], settings, seed)
            with opened(path, settings) as content:
                if teacher is not None and teacher not in content["teachers"]:
                    content["teachers"][teacher] = describe_teacher(teacher, full, known[teacher])
                content["runs"].append({"teacher": teacher, "recipe": name, "options": recipe, **record})
            print(f"seed {seed}  {teacher or '–':17} {name:17} test {record['test']:.4f}", flush=True)


# Tables ---------------------------------------------------------------------------------------------------------------


class Results:
    """Finished runs of all seeds, `value(teacher, recipe, seed)`."""

    def __init__(self, prefix: Path) -> None:
        files = sorted(prefix.parent.glob(f"{prefix.name}_seed*.json"))
        if not files:
            raise SystemExit(f"there are no results {prefix}_seed*.json yet: run with --seeds first")
        self.contents = [json.loads(path.read_text()) for path in files]
        self.seeds = [content["seed"] for content in self.contents]
        self.settings = self.contents[0]["settings"]
        self.runs = {
            (entry["teacher"], entry["recipe"], content["seed"]): entry
            for content in self.contents
            for entry in content["runs"]
        }
        known: dict[str, Record] = {}
        for content in self.contents:
            known |= content.get("teachers", {})
        self.teachers = dict(sorted(known.items(), key=lambda item: -item[1]["distillation_accuracy"]))

    def values(self, teacher: str | None, recipe: str, key: str = "test") -> dict[int, float]:
        """By seed."""
        where = None if recipe.partition(" ")[0] == "erm" else teacher
        found = {seed: self.runs.get((where, recipe, seed)) for seed in self.seeds}
        return {seed: entry[key] for seed, entry in found.items() if entry is not None and key in entry}

    def difference(self, teacher: str, recipe: str, against: str) -> list[float]:
        """Paired by seed, in percentage points."""
        ours, theirs = self.values(teacher, recipe), self.values(teacher, against)
        return [100 * (ours[seed] - theirs[seed]) for seed in ours if seed in theirs]


def spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def percent(values: Sequence[float]) -> str:
    if not values:
        return "–"
    if len(values) == 1:
        return f"{100 * values[0]:.1f} (1)"
    text = f"{100 * statistics.mean(values):.1f} ± {100 * spread(values):.1f}"
    return text if len(values) >= 3 else f"{text} ({len(values)})"


def points(values: Sequence[float]) -> str:
    if not values:
        return "–"
    above = sum(value > 0 for value in values)
    if len(values) == 1:
        return f"{values[0]:+.1f} ({above}/1)"
    return f"{statistics.mean(values):+.1f} ± {spread(values):.1f} ({above}/{len(values)})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def short(teacher: str, results: Results) -> str:
    return f"{teacher} ({100 * results.teachers[teacher]['distillation_accuracy']:.1f})"


def teacher_table(results: Results) -> str:
    rows = [
        [
            name,
            t["how"],
            f"{t['parameters']:,}",
            f"{100 * t['distillation_accuracy']:.1f}",
            f"{100 * t['wrong_share']:.1f}",
            f"{t['mean_mask']:.2f}",
            f"{t['mean_mask_wrong']:.2f}",
            f"{100 * t['top2']:.1f}",
            f"{t['mean_confidence']:.2f}",
            f"{100 * max(t['predicted_shares']):.0f}",
            f"{100 * t['test_accuracy']:.1f}",
        ]
        for name, t in results.teachers.items()
    ]
    header = [
        *("teacher", "how", "parameters", "accuracy on the distillation set %", "wrong there, \\|W\\|/N %"),
        *("mean size of RLD's mask", "the same over W", "label in the top two %", "mean confidence (τ 1)"),
        *("share of the commonest answer %", "test accuracy %"),
    ]
    return markdown(header, rows)


def grid(results: Results, recipes: Sequence[str], cell: Callable[[str, str], str], first: str = "recipe") -> str:
    rows = [[name, *(cell(teacher, name) for teacher in results.teachers)] for name in recipes]
    return markdown([first, *(short(teacher, results) for teacher in results.teachers)], rows)


def accuracy_table(results: Results, recipes: Sequence[str]) -> str:
    table = grid(
        results, ["erm", *recipes], lambda teacher, name: percent(list(results.values(teacher, name).values()))
    )
    own = ["*the teacher itself*", *(f"{100 * t['test_accuracy']:.1f}" for t in results.teachers.values())]
    return f"{table}\n| {' | '.join(own)} |"


def difference_table(results: Results, recipes: Sequence[str], against: str) -> str:
    compared = [name for name in ["erm", *recipes] if name != against]
    return grid(results, compared, lambda teacher, name: points(results.difference(teacher, name, against)))


def slopes(results: Results, ours: str, theirs: str) -> list[float]:
    """Per seed: how much a lead grows for every ten points of accuracy that the teacher loses, by least squares."""
    found = []
    for seed in results.seeds:
        pairs = []
        for name, described in results.teachers.items():
            a, b = results.values(name, ours).get(seed), results.values(name, theirs).get(seed)
            if a is not None and b is not None:
                pairs.append((100 * described["distillation_accuracy"], 100 * (a - b)))
        if len(pairs) > 2:
            found.append(-10 * statistics.linear_regression(*zip(*pairs)).slope)
    return found


def lead_table(results: Results) -> str:
    rows = []
    for ours, theirs in (("rld", "dkd"), ("rld β=1", "dkd β=1"), ("btkd", "kd"), ("btkd", "btkd_elimination")):
        by_teacher = [points(results.difference(teacher, ours, theirs)) for teacher in results.teachers]
        found = slopes(results, ours, theirs)
        slope = f"{statistics.mean(found):+.2f} ± {spread(found):.2f}" if found else "–"
        rows.append([f"{ours} − {theirs}", *by_teacher, slope])
    header = ["lead", *(short(teacher, results) for teacher in results.teachers), "growth per ten points lost"]
    return markdown(header, rows)


def mistakes_table(results: Results, recipes: Sequence[str]) -> str:
    def cell(teacher: str, name: str) -> str:
        right = list(results.values(teacher, name, "right_where_teacher_wrong").values())
        copied = list(results.values(teacher, name, "copied_where_teacher_wrong").values())
        return f"{100 * statistics.mean(right):.1f} / {100 * statistics.mean(copied):.1f}" if right else "–"

    return grid(results, recipes, cell)


def chosen(results: Results, teacher: str, method: str) -> str | None:
    """The setting of a method with the best mean validation accuracy; None before all settings are finished."""
    names = [method, *TUNED[method]]
    found = {name: results.values(teacher, name, "validation") for name in names}
    if any(len(values) < len(results.seeds) for values in found.values()):
        return None
    return max(names, key=lambda name: statistics.mean(found[name].values()))


def passing_table(results: Results) -> str:
    rows = []
    for teacher, described in results.teachers.items():
        own = described["test_accuracy"]
        settings = {method: chosen(results, teacher, method) for method in TUNED}
        names = ["erm", settings["erm"], "btkd", settings["btkd"]]
        distilled = [name for method, name in settings.items() if name is not None and method != "erm"]
        if distilled:
            scores = {name: statistics.mean(results.values(teacher, name, "validation").values()) for name in distilled}
            names.append(max(scores, key=lambda name: scores[name]))
        row = [short(teacher, results), f"{100 * own:.1f}"]
        for name in names:
            found = list(results.values(teacher, name).values()) if name is not None else []
            above = sum(value > own for value in found)
            row.append(f"{name}: {percent(found)} (passes {above}/{len(found)})" if found else "–")
        rows.append(row)
    header = [
        *("teacher", "its test accuracy", "plain", "plain, tuned", "BTKD", "BTKD, tuned"),
        "best distilled of all settings",
    ]
    return markdown(header, rows)


def chosen_table(results: Results) -> str:
    """Each method at the setting that validation chose, and its lead over plain training at its own."""
    rows = []
    for method in TUNED:
        row = [method]
        for teacher in results.teachers:
            name, plain = chosen(results, teacher, method), chosen(results, teacher, "erm")
            if name is None or plain is None:
                row.append("–")
                continue
            setting = name.removeprefix(method).strip() or "default"
            text = f"{setting}: {percent(list(results.values(teacher, name).values()))}"
            row.append(text if method == "erm" else f"{text}; {points(results.difference(teacher, name, plain))}")
        rows.append(row)
    return markdown(["method", *(short(teacher, results) for teacher in results.teachers)], rows)


def chosen_lead_table(results: Results) -> str:
    """Leads between methods of which each has the setting that validation chose."""
    rows = []
    for ours, theirs in (
        *(("rld", "dkd"), ("rld", "kd"), ("btkd", "kd"), ("btkd", "btkd_elimination")),
        *(("btkd_elimination", "lr"), ("la", "kd"), ("rc", "kd")),
    ):
        row = [f"{ours} − {theirs}"]
        for teacher in results.teachers:
            first, second = chosen(results, teacher, ours), chosen(results, teacher, theirs)
            row.append("–" if first is None or second is None else points(results.difference(teacher, first, second)))
        rows.append(row)
    return markdown(["lead", *(short(teacher, results) for teacher in results.teachers)], rows)


def tuned_table(results: Results) -> str:
    """Test (validation) accuracy of every setting; the one with the best mean validation accuracy is marked."""
    rows = []
    for method, variants in TUNED.items():
        for name in (method, *variants):
            row = [name]
            for teacher in results.teachers:
                test = list(results.values(teacher, name).values())
                validation = list(results.values(teacher, name, "validation").values())
                text = f"{percent(test)} ({100 * statistics.mean(validation):.1f})" if test else "–"
                row.append(f"**{text}**" if name == chosen(results, teacher, method) else text)
            rows.append(row)
    return markdown(["setting", *(short(teacher, results) for teacher in results.teachers)], rows)


def tables(results: Results) -> str:
    names = {recipe for _, recipe, _ in results.runs}
    recipes = [name for name in (*RECIPES, *LIGHT, "rld standardised") if name in names]
    sizes = results.settings["sizes"]
    note = (
        f"Seeds {', '.join(map(str, results.seeds))}; {sizes['train']:,} training, {sizes['validation']:,} validation, "
        f"{sizes['test']:,} test images; {results.settings['epochs']} epochs; a student of "
        f"{results.settings['student_parameters']:,} parameters; torch {results.contents[0]['torch']}. In "
        "brackets behind a teacher: its accuracy on the distillation set in %."
    )
    parts = [
        note,
        "### The teachers\n\n" + teacher_table(results),
        "### Test accuracy, %\n\nMean ± standard deviation over seeds; a number in brackets where fewer than three are "
        "finished.\n\n" + accuracy_table(results, recipes),
    ]
    for against, title in (("kd", "KD"), ("dkd", "DKD"), ("erm", "plain training (erm)")):
        parts.append(
            f"### Difference to {title}, points of test accuracy\n\nPaired by seed: mean ± standard deviation (seeds "
            f"above 0).\n\n{difference_table(results, recipes, against)}"
        )
    parts.append(
        "### Leads and the teacher's accuracy\n\nPoints of test accuracy, paired by seed. The last column: a "
        "line of least squares through the teachers, per seed; mean ± standard deviation.\n\n" + lead_table(results)
    )
    parts.append(
        "### Where the teacher is wrong\n\nOf the test images that the teacher gets wrong: % that the student gets "
        "right / % where it gives the teacher's wrong answer.\n\n" + mistakes_table(results, recipes)
    )
    parts.append(
        "### Tuned: each method at the best of its four settings\n\nChosen per teacher by mean validation accuracy "
        "over the seeds: setting, test accuracy in %; lead over plain training at its own best setting, points, paired "
        "by seed (seeds above 0).\n\n" + chosen_table(results)
    )
    parts.append(
        "### Leads between tuned methods\n\nPoints of test accuracy, paired by seed.\n\n" + chosen_lead_table(results)
    )
    parts.append("### Does a student pass its teacher?\n\n" + passing_table(results))
    parts.append(
        "### Tuning\n\nFour settings of each method: test accuracy (mean validation accuracy), %; bold: best on "
        "validation. η of plain training is the learning rate, in lr it is LR's own.\n\n" + tuned_table(results)
    )
    return "\n\n".join(parts) + "\n"


def longer_table(results: Results) -> str:
    """The same runs with more epochs: what is a matter of budget and what is not."""
    names = {recipe for _, recipe, _ in results.runs}
    settings = [name for method in TUNED for name in (method, *TUNED[method]) if name in names and name != "erm"]
    return (
        f"### Longer training: {results.settings['epochs']} epochs\n\nTest accuracy, %; in brackets the number of "
        f"seeds where fewer than three.\n\n{accuracy_table(results, settings)}\n\n"
        "Difference to plain training of the same length, points, paired by seed (seeds above 0).\n\n"
        f"{difference_table(results, settings, 'erm')}\n"
    )


def put(text: str, path: Path) -> None:
    """Replace what stands between the markers of a document."""
    begin, end = "<!-- tables: begin -->\n", "<!-- tables: end -->"
    before, found, rest = path.read_text().partition(begin)
    if not found or end not in rest:
        raise SystemExit(f"{path} has no lines {begin.strip()} and {end}")
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=list(TEACHERS), metavar="TEACHER")
    parser.add_argument("--epochs", type=int, help="another length of training; needs an --output of its own")
    parser.add_argument("--quick", action="store_true", help="little data and two epochs: to see that it runs")
    parser.add_argument(
        "--tune", action="store_true", help="after the grid: further hyper-parameters, RLD standardised"
    )
    parser.add_argument("--only", nargs="+", metavar="ROW", help="only these rows of the tables, such as 'kd τ=1'")
    parser.add_argument("--table", action="store_true", help="only print the tables of the finished runs")
    parser.add_argument("--docs", type=Path, help="with --table: put them between the markers of this document")
    parser.add_argument("--output", type=Path, help="prefix of the result files")
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "limbeck-imperfect-teachers", help="for logits"
    )
    arguments = parser.parse_args()
    prefix = arguments.output or (RESULTS.with_name("imperfect_teachers_quick") if arguments.quick else RESULTS)
    if not arguments.table:
        torch.set_num_threads(1)
        if "LIMBECK_DATA" not in os.environ:
            raise SystemExit("set LIMBECK_DATA to the folder with CIFAR-10 and the pre-trained ResNets")
        settings = dict(QUICK if arguments.quick else FULL)
        settings["epochs"] = arguments.epochs or settings["epochs"]
        measure(
            arguments.seeds,
            arguments.teachers,
            settings,
            prefix,
            arguments.cache,
            tune=arguments.tune,
            only=arguments.only,
        )
    text = tables(Results(prefix))
    longer = prefix.with_name(f"{prefix.name}_long")
    if list(longer.parent.glob(f"{longer.name}_seed*.json")):
        text += "\n" + longer_table(Results(longer))
    if arguments.docs:
        put(text, arguments.docs)
    else:
        print(text)


if __name__ == "__main__":
    main()
