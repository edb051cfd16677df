"""Five rounds of self-distillation in closed form against scikit-learn's logistic regression fitted five times.

    LIMBECK_DATA=... python benchmarks/probe_closed_form.py

Real features (PACS: i.i.d. split; BAR: the background-conflicting test set), clean labels and symmetric label noise in
training and validation. Each method chooses its weight decay, and the closed form its round, on validation; then both
are timed in turns at that choice, from the raw features to predictions of the test set, and medians compared. Times are
CPU seconds of one thread, so that neighbours on the machine do not count.
scikit-learn is timed twice: five plain fits on the given labels (its best case), and, once, five true rounds, where the
soft labels of a round are fed back as C weighted copies of every sample, the only way it can learn them.
Then: how the closed form grows with N, D and C, and what memory it needs beside the features.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from limbeck import probe

Array = NDArray[Any]
ROUNDS = 5


class Split(NamedTuple):
    train: Array
    train_given: Array
    validation: Array
    validation_given: Array
    test: Array
    test_true: Array
    classes: int


def load(folder: Path, name: str, noise: float, seed: int) -> Split:
    """Unit features, noisy training and validation labels, clean test labels."""
    with np.load(folder / f"{name}_efflite0_pca256.npz", allow_pickle=False) as stored:
        x, y = stored["x"].astype(np.float32), stored["y"].astype(np.int64)
        held_out = stored["split"] == 1 if name == "bar" else None
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    if held_out is None:
        order = rng.permutation(len(y))
        train, validation, test = np.split(order, [6000, 7500])
    else:
        order = rng.permutation(np.flatnonzero(~held_out))
        train, validation = np.split(order, [int(0.75 * len(order))])
        test = np.flatnonzero(held_out)
    classes = int(y.max()) + 1
    shares = probe.noise_matrix("symmetric", classes, noise).cumsum(1)
    given = (rng.random(len(y))[:, None] >= shares[y][:, :-1]).sum(1)
    return Split(x[train], given[train], x[validation], given[validation], x[test], y[test], classes)


def closed_form(data: Split, weight_decay: float, x: Array, solver: Any = "linear") -> Array:
    result = probe.self_distillation(
        data.train, data.train_given, ROUNDS, weight_decay, solver, bias=True, predict=x, keep_predictions=False
    )
    assert result.predicted is not None
    return result.predicted.argmax(-1)


def logistic(data: Split, weight_decay: float) -> LogisticRegression:
    return LogisticRegression(C=1 / (len(data.train) * weight_decay), max_iter=300)


def five_fits(data: Split, weight_decay: float) -> Array:
    for _ in range(ROUNDS):
        model = logistic(data, weight_decay).fit(data.train, data.train_given)
    return model.predict(data.test)


def five_rounds(data: Split, weight_decay: float) -> Array:
    count, classes = len(data.train), data.classes
    model = logistic(data, weight_decay).fit(data.train, data.train_given)
    copies, labels = np.tile(data.train, (classes, 1)), np.repeat(np.arange(classes), count)
    for _ in range(ROUNDS - 1):
        soft = model.predict_proba(data.train).T.ravel()
        model = logistic(data, weight_decay).fit(copies, labels, sample_weight=soft)
    return model.predict(data.test)


def choose(data: Split) -> tuple[float, int, float]:
    """Weight decay and round of the closed form, weight decay of scikit-learn, by validation accuracy."""
    grid = 10.0 ** np.arange(-1, -6.1, -1)
    ours = [(closed_form(data, decay, data.validation) == data.validation_given).mean(1) for decay in grid]
    best, rounds = np.unravel_index(np.argmax(ours), (len(grid), ROUNDS))
    fits = [logistic(data, decay).fit(data.train, data.train_given) for decay in grid]
    theirs = [fit.score(data.validation, data.validation_given) for fit in fits]
    return float(grid[best]), int(rounds), float(grid[int(np.argmax(theirs))])


def seconds(step: Callable[[], object]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def against_scikit_learn(folder: Path, repeats: int, seeds: int) -> None:
    print(
        f"closed form of {ROUNDS} rounds against scikit-learn: medians of {repeats} in turns, "
        f"accuracy over {seeds} seeds"
    )
    head = f"{'':12s}{'closed form':>13s}{'5 fits':>10s}{'ratio':>8s}"
    print(f"{head}{'5 rounds':>10s}{'ratio':>8s}   accuracy: closed form, scikit-learn")
    for name in ("pacs", "bar"):
        for noise in (0.0, 0.3, 0.6):
            accuracies = []
            for seed in range(seeds):
                data = load(folder, name, noise, seed)
                decay, chosen, theirs = choose(data)
                ours_right = closed_form(data, decay, data.test)[chosen] == data.test_true
                model = logistic(data, theirs).fit(data.train, data.train_given)
                accuracies.append((ours_right.mean(), model.score(data.test, data.test_true)))
            times: dict[str, list[float]] = {"ours": [], "fits": [], "rounds": []}
            for repeat in range(repeats):
                times["ours"].append(seconds(lambda d=data, w=decay: closed_form(d, w, d.test)))
                times["fits"].append(seconds(lambda d=data, w=theirs: five_fits(d, w)))
                if repeat == 0:
                    times["rounds"].append(seconds(lambda d=data, w=theirs: five_rounds(d, w)))
            medians = {key: statistics.median(values) for key, values in times.items()}
            line = f"{name:5s} {noise:4.1f}  {medians['ours']:12.4f}s"
            for key in ("fits", "rounds"):
                line += f"{medians[key]:9.2f}s{medians[key] / medians['ours']:8.0f}"
            mean, spread = np.mean(accuracies, axis=0), np.std(accuracies, axis=0)
            print(f"{line}   {mean[0]:.3f} ± {spread[0]:.3f}, {mean[1]:.3f} ± {spread[1]:.3f}", flush=True)


def measure(samples: int, width: int, classes: int) -> tuple[float, float]:
    """Seconds and peak MB beside the features, without keeping training predictions."""
    rng = np.random.default_rng(0)
    x = np.empty((samples, width), np.float32)
    for start in range(0, samples, 50_000):
        x[start : start + 50_000] = rng.standard_normal((min(50_000, samples - start), width), np.float32)
    y = rng.integers(0, classes, samples)

    def run() -> None:
        probe.self_distillation(x, y, ROUNDS, 1e-3, classes=classes, keep_predictions=False)

    taken = seconds(run)
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return taken, peak / 2**20


def growth(million: bool) -> None:
    print("\ngrowth of the closed form (5 rounds, weights of every round): seconds, peak MB beside the features")
    grids = {
        "N": [(n, 512, 10) for n in (12_500, 25_000, 50_000, 100_000)],
        "D": [(25_000, d, 10) for d in (128, 256, 512, 1024)],
        "C": [(25_000, 512, c) for c in (10, 100, 1000)],
        "N < D": [(n, 4096, 10) for n in (250, 500, 1000)],
    }
    if million:
        grids["a million"] = [(1_000_000, 512, 10)]
    for name, cells in grids.items():
        for samples, width, classes in cells:
            taken, peak = measure(samples, width, classes)
            size = samples * width * 4 / 2**20
            print(
                f"  {name:9s} N={samples:>9,} D={width:>5,} C={classes:>5,}  {taken:8.3f} s  {peak:8.0f} MB"
                f"  (features {size:,.0f} MB)",
                flush=True,
            )


def exact_rounds(folder: Path) -> None:
    print(
        "\nthe exact softmax fixed point, 5 rounds to 1e-9, against five fits of scikit-learn to its default tolerance"
    )
    for decay in (1e-3, 1e-5):
        data = load(folder, "pacs", 0.3, 0)
        exact = seconds(lambda d=data, w=decay: closed_form(d, w, d.test, "exact"))
        fits = seconds(lambda d=data, w=decay: five_fits(d, w))
        print(f"  pacs 0.3, weight decay {decay:g}: exact {exact:.2f} s, five fits {fits:.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LIMBECK_DATA", "../shared/data")))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--million", action="store_true", help="also N = 1,000,000, D = 512 (2 GB of features)")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="sklearn")
    with threadpool_limits(1):
        if (options.data / "pacs_efflite0_pca256.npz").is_file():
            against_scikit_learn(options.data, options.repeats, options.seeds)
            exact_rounds(options.data)
        else:
            print(f"no real features in {options.data} (set LIMBECK_DATA): only the growth is measured")
        growth(options.million)


if __name__ == "__main__":
    main()
