"""Five rounds of self-distillation in closed form against scikit-learn's logistic regression fitted five times.

    LIMBECK_DATA=... python benchmarks/probe_closed_form.py

Real features (PACS: i.i.d. split; BAR: the background-conflicting test set), clean labels and symmetric label noise in
training and validation. Each side chooses its weight decay and whether to standardise on validation, and the closed
form its round as well; then both are timed in turns at that choice, from the raw features to predictions of the test
set, and medians compared. "choosing" is what the choice itself costs: one eigendecomposition serves the whole grid of
the closed form. Times are CPU seconds of one thread, so that neighbours on the machine do not count.
scikit-learn is timed by five plain fits on the given labels (its best case), and with --rounds by five true rounds,
where the soft labels of a round are fed back as C weighted copies of every sample, the only way it can learn them.
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
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from limbeck import probe

Array = NDArray[Any]
ROUNDS = 5
GRID = 10.0 ** np.arange(-1.5, -5.1, -0.5)


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


def closed_form(data: Split, weight_decay: float, x: Array, solver: Any = "linear", standardise: bool = False) -> Array:
    result = probe.self_distillation(
        data.train,
        data.train_given,
        ROUNDS,
        weight_decay,
        solver,
        bias=True,
        standardise=standardise,
        predict=x,
        keep_predictions=False,
    )
    assert result.predicted is not None
    return result.predicted.argmax(-1)


def logistic(data: Split, weight_decay: float, standardise: bool = False) -> Any:
    model = LogisticRegression(C=1 / (len(data.train) * weight_decay), max_iter=300)
    return make_pipeline(StandardScaler(), model) if standardise else model


def five_fits(data: Split, choice: Choice) -> Array:
    for _ in range(ROUNDS):
        model = logistic(data, choice.weight_decay, choice.standardise).fit(data.train, data.train_given)
    return np.asarray(model.predict(data.test))


def five_rounds(data: Split, choice: Choice) -> Array:
    count, classes = len(data.train), data.classes
    first = logistic(data, choice.weight_decay, choice.standardise).fit(data.train, data.train_given)
    copies, labels = np.tile(data.train, (classes, 1)), np.repeat(np.arange(classes), count)
    soft = first.predict_proba(data.train)
    for _ in range(ROUNDS - 1):
        model = logistic(data, choice.weight_decay, choice.standardise)
        weights = {"logisticregression__sample_weight" if choice.standardise else "sample_weight": soft.T.ravel()}
        soft = model.fit(copies, labels, **weights).predict_proba(data.train)
    return np.asarray(model.predict(data.test))


class Choice(NamedTuple):
    """Chosen on validation."""

    weight_decay: float
    standardise: bool
    round: int
    score: float


def choose_ours(data: Split) -> Choice:
    """Weight decay, standardisation and round of the closed form: one eigendecomposition serves the whole grid."""
    found = []
    for standardise in (False, True):
        prepared = probe.Features(data.train, bias=True, standardise=standardise)
        for decay in GRID:
            run = probe.self_distillation(
                prepared, data.train_given, ROUNDS, decay, predict=data.validation, keep_predictions=False
            )
            assert run.predicted is not None
            right = (run.predicted.argmax(-1) == data.validation_given).mean(1)
            found += [Choice(float(decay), standardise, index, float(share)) for index, share in enumerate(right)]
    return max(found, key=lambda choice: choice.score)


def choose_theirs(data: Split) -> Choice:
    """Weight decay and standardisation of scikit-learn's logistic regression: one fit each."""
    found = []
    for standardise in (False, True):
        for decay in GRID:
            model = logistic(data, decay, standardise).fit(data.train, data.train_given)
            found.append(Choice(float(decay), standardise, 0, model.score(data.validation, data.validation_given)))
    return max(found, key=lambda choice: choice.score)


def seconds(step: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = step()
    return time.process_time() - start, result


def against_scikit_learn(folder: Path, repeats: int, seeds: int, rounds: bool) -> None:
    print(
        f"closed form of {ROUNDS} rounds against scikit-learn, each at what it chose on validation from {len(GRID)} "
        f"weight decays × standardised or not\n(the closed form also its round): medians of {repeats} in turns, "
        f"accuracy over {seeds} seeds"
    )
    print(
        f"{'':12s}{'closed form':>12s}{'5 fits':>9s}{'ratio':>7s}{'5 rounds':>10s}{'ratio':>7s}"
        f"{'choosing':>10s}{'theirs':>8s}{'ratio':>7s}   accuracy: closed form, scikit-learn, difference"
    )
    for name in ("pacs", "bar"):
        for noise in (0.0, 0.3, 0.6):
            accuracies, choosing = [], []
            for seed in range(seeds):
                data = load(folder, name, noise, seed)
                time_ours, ours = seconds(lambda d=data: choose_ours(d))
                time_theirs, theirs = seconds(lambda d=data: choose_theirs(d))
                choosing.append((time_ours, time_theirs))
                outcome = closed_form(data, ours.weight_decay, data.test, standardise=ours.standardise)[ours.round]
                model = logistic(data, theirs.weight_decay, theirs.standardise).fit(data.train, data.train_given)
                accuracies.append(((outcome == data.test_true).mean(), model.score(data.test, data.test_true)))
            times: dict[str, list[float]] = {"ours": [], "fits": [], "rounds": []}
            for repeat in range(repeats):
                times["ours"].append(
                    seconds(lambda d=data, c=ours: closed_form(d, c.weight_decay, d.test, standardise=c.standardise))[0]
                )
                times["fits"].append(seconds(lambda d=data, c=theirs: five_fits(d, c))[0])
                if repeat == 0 and rounds:
                    times["rounds"].append(seconds(lambda d=data, c=theirs: five_rounds(d, c))[0])
            medians = {key: statistics.median(values) for key, values in times.items() if values}
            line = f"{name:5s} {noise:4.1f}  {medians['ours']:11.4f}s"
            for key, width in (("fits", 8), ("rounds", 9)):
                known = key in medians
                line += (
                    f"{medians[key]:{width}.2f}s{medians[key] / medians['ours']:7.0f}" if known else " " * (width + 8)
                )
            chosen = np.median(choosing, axis=0)
            line += f"{chosen[0]:9.2f}s{chosen[1]:7.1f}s{chosen[1] / chosen[0]:7.0f}"
            mean, spread = np.mean(accuracies, axis=0), np.std(accuracies, axis=0)
            gap = np.array([ours - theirs for ours, theirs in accuracies])
            print(
                f"{line}   {mean[0]:.3f} ± {spread[0]:.3f}, {mean[1]:.3f} ± {spread[1]:.3f}, "
                f"{gap.mean():+.3f} ± {gap.std():.3f}",
                flush=True,
            )


def measure(samples: int, width: int, classes: int) -> tuple[float, float]:
    """Seconds and peak MB beside the features, without keeping training predictions."""
    rng = np.random.default_rng(0)
    x = np.empty((samples, width), np.float32)
    for start in range(0, samples, 50_000):
        x[start : start + 50_000] = rng.standard_normal((min(50_000, samples - start), width), np.float32)
    y = rng.integers(0, classes, samples)

    def run() -> None:
        probe.self_distillation(x, y, ROUNDS, 1e-3, classes=classes, keep_predictions=False)

    taken, _ = seconds(run)
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
        exact, _ = seconds(lambda d=data, w=decay: closed_form(d, w, d.test, "exact"))
        fits, _ = seconds(lambda d=data, w=decay: five_fits(d, Choice(w, False, 0, 0.0)))
        print(f"  pacs 0.3, weight decay {decay:g}: exact {exact:.2f} s, five fits {fits:.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LIMBECK_DATA", "../shared/data")))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", action="store_true", help="also five true rounds by scikit-learn")
    parser.add_argument("--parts", default="against,exact,growth")
    parser.add_argument("--million", action="store_true", help="also N = 1,000,000, D = 512 (2 GB of features)")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="sklearn")
    with threadpool_limits(1):
        if (options.data / "pacs_efflite0_pca256.npz").is_file():
            if "against" in options.parts:
                against_scikit_learn(options.data, options.repeats, options.seeds, options.rounds)
            if "exact" in options.parts:
                exact_rounds(options.data)
        else:
            print(f"no real features in {options.data} (set LIMBECK_DATA): only the growth is measured")
        if "growth" in options.parts:
            growth(options.million)


if __name__ == "__main__":
    main()
