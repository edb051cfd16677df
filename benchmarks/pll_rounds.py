"""Rounds of self-distillation and partial labels on real frozen features, under label noise (arXiv 2402.10482).

    LIMBECK_DATA=... python benchmarks/pll_rounds.py --data-sets pacs bar
    LIMBECK_DATA=... python benchmarks/pll_rounds.py --data-sets cifar10 --cache runs/features
    LIMBECK_DATA=... python benchmarks/pll_rounds.py --data-sets bar --exact --rates 0 .3 .6 .8

The paper's linear-probe protocol with the solvers of `limbeck.probe` in place of SGD: unit features, no bias, noise in
training and validation labels, clean test labels, three seeds. Rows: the teacher (round 1), rounds 2 to 5, the
partial-label student (two candidates, half each), the same with a weight decay of its own, and with k and weights
chosen on validation. Every row chooses its weight decay on the *noisy* validation labels; the released code of the
paper selects on test accuracy instead, so its numbers are not comparable.

PACS: EfficientNet-Lite0 features, i.i.d. split, worst of 28 groups (class x domain). BAR: the same features, trained on
bias-aligned and tested on bias-conflicting images, worst of 6 classes. CIFAR-10: 64 features of a ResNet-56 trained on
clean labels (extracted once into --cache), worst of 10 classes, and the human labels of CIFAR-10N. --train takes fewer
training samples than features, where a linear teacher can hold on to wrong labels.

Writes one JSON file per data set, noise and seed, and a table in Markdown.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from limbeck import probe
from limbeck.data.inject import superclasses

Array = NDArray[Any]
Scores = dict[str, dict[str, float]]
ROUNDS = 5
RATES = (0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
GRID = tuple(10.0 ** np.arange(-1, -6.1, -1))
HUMAN = ("aggre", "random1", "random2", "random3", "worse")


class Sample(NamedTuple):
    """A data set: features, true labels, groups of the test samples, and the fixed split where there is one."""

    name: str
    x: Array
    y: Array
    group: Array
    test: Array | None
    human: dict[str, Array]


class Draw(NamedTuple):
    """One seed: rows of each split and the given labels."""

    train: Array
    validation: Array
    test: Array
    given: Array


def load(name: str, folder: Path, cache: Path) -> Sample:
    human: dict[str, Array] = {}
    if name == "cifar10":
        x, y, test = cifar_features(folder, cache)
        group = y
        with np.load(folder / "cifar_n_labels.npz", allow_pickle=False) as stored:
            for kind in HUMAN:
                human[kind] = np.r_[stored[f"c10_{kind}"].astype(np.int64), y[50_000:]]
    else:
        with np.load(folder / f"{name}_efflite0_pca256.npz", allow_pickle=False) as stored:
            x, y = stored["x"].astype(np.float32), stored["y"].astype(np.int64)
            test = np.flatnonzero(stored["split"] == 1) if name == "bar" else None
            group = y if name == "bar" else y * 4 + stored["domain"]
    return Sample(name, x / np.linalg.norm(x, axis=1, keepdims=True), y, group, test, human)


def cifar_features(folder: Path, cache: Path) -> tuple[Array, Array, Array]:
    """Pooled features `[60,000, 64]` of the pre-trained ResNet-56, labels, and the rows of the test images."""
    file = cache / "cifar10_resnet56_features.npz"
    if not file.is_file():
        import torch
        from PIL import Image

        from limbeck.models import CifarResNet, load_weights

        torch.set_num_threads(1)
        model = CifarResNet((3, 32, 32), 10, depth=56)
        load_weights(model, folder / "cifar10_resnet56.safetensors")
        model.eval()
        pooled: list[Array] = []
        model.linear.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0].numpy()))
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        labels = []
        with np.load(folder / "cifar10_jpeg.npz", allow_pickle=False) as stored, torch.inference_mode():
            header = stored["header"].tobytes()
            for split in ("train", "test"):
                ends, content = np.cumsum(stored[f"{split}_len"], dtype=np.int64), stored[f"{split}_bytes"].tobytes()
                starts = np.r_[0, ends[:-1]]
                labels.append(stored[f"y_{split}"].astype(np.int64))
                for first in range(0, len(ends), 500):
                    pairs = zip(starts[first : first + 500], ends[first : first + 500])
                    files = (io.BytesIO(header + content[start:end]) for start, end in pairs)
                    images = torch.from_numpy(np.stack([np.asarray(Image.open(stream)) for stream in files]))
                    model(((images / 255 - mean) / std).permute(0, 3, 1, 2))
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(file, x=np.concatenate(pooled).astype(np.float32), y=np.concatenate(labels))
    with np.load(file, allow_pickle=False) as stored:
        return stored["x"], stored["y"], np.arange(50_000, 60_000)


def draw(sample: Sample, kind: str, rate: float | None, seed: int, size: int | None) -> Draw | None:
    """Splits and noisy labels of one seed; None where the classes form no superclass."""
    rng = np.random.default_rng(seed)
    rows = np.arange(len(sample.y)) if sample.test is None else np.setdiff1d(np.arange(len(sample.y)), sample.test)
    rows = rng.permutation(rows)
    if sample.test is None:
        train, validation, test = np.split(rows, [int(0.6 * len(rows)), int(0.75 * len(rows))])
    else:
        train, validation = np.split(rows, [int(0.8 * len(rows))])
        test = sample.test
    train = train[:size]
    if kind in sample.human:
        return Draw(train, validation, test, sample.human[kind])
    classes = int(sample.y.max()) + 1
    clusters = None
    if kind == "superclass":
        clusters = superclasses(sample.x[train], sample.y[train], classes).tolist()
        if len(set(clusters)) == classes:
            return None
    assert rate is not None
    matrix = probe.noise_matrix(kind, classes, rate, clusters)  # type: ignore[arg-type]
    shares = matrix.cumsum(1)[sample.y][:, :-1]
    given = (rng.random(len(sample.y))[:, None] >= shares).sum(1)
    return Draw(train, validation, test, given)


class Row:
    """The best setting of one row so far, by validation."""

    def __init__(self) -> None:
        self.validation = -1.0
        self.found: dict[str, float] = {}

    def offer(self, outputs: Array, sample: Sample, cell: Draw, **setting: float) -> None:
        """Outputs `[validation + test, C]` of one setting; kept where they agree best with the validation labels."""
        count = len(cell.validation)
        predicted = outputs.argmax(-1)
        validation = float((predicted[:count] == cell.given[cell.validation]).mean())
        if validation > self.validation:
            right, group = predicted[count:] == sample.y[cell.test], sample.group[cell.test]
            worst = min(float(right[group == one].mean()) for one in np.unique(group))
            self.validation = validation
            self.found = {"validation": validation, "test": float(right.mean()), "worst_group": worst, **setting}


def run(sample: Sample, cell: Draw, exact: bool) -> Scores:
    rows: dict[str, Row] = defaultdict(Row)
    features = probe.Features(sample.x[cell.train])
    labels, classes = cell.given[cell.train], int(sample.y.max()) + 1
    more = sample.x[np.r_[cell.validation, cell.test]]
    held_out = more[: len(cell.validation)], cell.given[cell.validation]
    teachers = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for decay in GRID:
            steps = probe.self_distillation(features, labels, ROUNDS, decay, classes=classes, predict=more)
            assert steps.predictions is not None
            assert steps.predicted is not None
            for index, outputs in enumerate(steps.predicted, start=1):
                rows[f"round {index}"].offer(outputs, sample, cell, weight_decay=decay)
            teachers.append(steps.predictions[0])
        for decay, teacher in zip(GRID, teachers):
            for own in GRID:
                student = probe.partial_label_student(teacher, features, own, predict=more)
                setting = {"weight_decay": own, "teacher_weight_decay": decay}
                rows["PLL, own decay"].offer(student.predicted, sample, cell, **setting)
                if own == decay:
                    rows["PLL"].offer(student.predicted, sample, cell, **setting)
            choice = probe.choose_partial_labels(teacher, features, decay, validation=held_out)
            student = probe.partial_label_student(teacher, features, decay, choice.k, choice.weights, predict=more)
            rows["PLL, k chosen"].offer(student.predicted, sample, cell, weight_decay=decay, k=choice.k)
        if exact:
            run_exact(rows, sample, cell, features, labels, classes, more)
    return {name: row.found for name, row in rows.items()}


def run_exact(
    rows: dict[str, Row], sample: Sample, cell: Draw, features: probe.Features, labels: Array, classes: int, more: Array
) -> None:
    for decay in GRID[1:5]:
        steps = probe.self_distillation(
            features, labels, ROUNDS, decay, "exact", classes=classes, predict=more, tolerance=1e-6
        )
        assert steps.predictions is not None
        assert steps.predicted is not None
        for index, outputs in enumerate(steps.predicted, start=1):
            rows[f"exact round {index}"].offer(outputs, sample, cell, weight_decay=decay)
        for loss in ("ce", "gce"):
            student = probe.partial_label_student(
                steps.predictions[0],
                features,
                decay,
                solver="exact",
                loss=loss,  # type: ignore[arg-type]
                predict=more,
                tolerance=1e-6,
            )
            rows[f"exact PLL {loss}"].offer(student.predicted, sample, cell, weight_decay=decay)


def markdown(results: dict[tuple[str, str, float | None], list[Scores]]) -> str:
    """One table a data set and kind of noise: mean ± std of test accuracy (and the mean of the worst group)."""
    lines = []
    blocks: dict[tuple[str, str], dict[float | None, list[Scores]]] = defaultdict(dict)
    for (name, kind, rate), scores in results.items():
        blocks[name, kind][rate] = scores
    for (name, kind), cells in blocks.items():
        first = next(iter(cells.values()))
        lines += [f"\n### {name}, {kind} noise: test accuracy (worst group), {len(first)} seeds\n"]
        lines += ["| | " + " | ".join(_shown(rate) for rate in cells) + " |", "|---" * (len(cells) + 1) + "|"]
        best = {
            rate: max(np.mean([score[row]["test"] for score in scores]) for row in scores[0])
            for rate, scores in cells.items()
        }
        for row in first[0]:
            entries = []
            for rate, scores in cells.items():
                test = [score[row]["test"] for score in scores]
                worst = np.mean([score[row]["worst_group"] for score in scores])
                text = f"{np.mean(test):.3f} ± {np.std(test):.3f} ({worst:.2f})"
                entries.append(f"**{text}**" if np.mean(test) >= best[rate] - 1e-12 else text)
            lines.append(f"| {row} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def _shown(rate: float | None) -> str:
    return "as given" if rate is None else f"{rate:g}"


def cells_of(sample: Sample, kinds: Iterable[str], rates: Iterable[float]) -> Iterable[tuple[str, float | None]]:
    for kind in kinds:
        if kind == "human":
            yield from ((label, None) for label in sample.human)
        else:
            yield from ((kind, rate) for rate in rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LIMBECK_DATA", "../shared/data")))
    parser.add_argument("--data-sets", nargs="+", default=["pacs", "bar"], choices=["pacs", "bar", "cifar10"])
    parser.add_argument("--kinds", nargs="+", default=["symmetric", "asymmetric", "superclass", "human"])
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=None, help="training samples, all of them by default")
    parser.add_argument("--exact", action="store_true", help="also the exact softmax fixed point, PLL with CE and GCE")
    parser.add_argument("--cache", type=Path, default=Path("runs/features"), help="where extracted features are kept")
    parser.add_argument("--output", type=Path, default=Path("runs/pll_rounds"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    results: dict[tuple[str, str, float | None], list[Scores]] = {}
    with threadpool_limits(1):
        for name in options.data_sets:
            sample = load(name, options.data, options.cache)
            for kind, rate in cells_of(sample, options.kinds, options.rates):
                scores = []
                for seed in range(options.seeds):
                    cell = draw(sample, kind, rate, seed, options.train)
                    if cell is None:
                        print(f"{name}: at the paper's cut no two classes form a superclass, {kind} noise is skipped")
                        break
                    found = run(sample, cell, options.exact)
                    right = float((cell.given[cell.train] == sample.y[cell.train]).mean())
                    record = {
                        "data": name,
                        "noise": kind,
                        "rate": rate,
                        "seed": seed,
                        "labels_right": right,
                        "rows": found,
                    }
                    file = options.output / f"{name}-{kind}-{'human' if rate is None else f'{rate:g}'}-{seed}.json"
                    file.write_text(json.dumps(record, indent=1))
                    scores.append(found)
                if scores:
                    results[name, kind, rate] = scores
                    best = {row: np.mean([score[row]["test"] for score in scores]) for row in scores[0]}
                    print(
                        name,
                        kind,
                        _shown(rate),
                        " ".join(f"{row}: {value:.3f}" for row, value in best.items()),
                        flush=True,
                    )
    table = markdown(results)
    (options.output / "table.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
