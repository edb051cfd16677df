"""Five rounds of self-distillation in closed form against scikit-learn's logistic regression fitted five times.

    LIMBECK_DATA=... python benchmarks/probe_closed_form.py [--cache runs/features]

Real features, clean labels and symmetric label noise in training and validation, clean test labels: PACS (i.i.d.
split), BAR (tested on background-conflicting images), CIFAR-10 through the pre-trained ResNet-56 and MNIST through a
small network (5,000 training and 2,000 validation samples each; features as in pll_rounds.py).

scikit-learn, the local and the linear solver each choose weight decay and whether to standardise from the same 16
settings on the same validation labels; ours their round as well, which comes of the same settings. Then they are timed
in turns at that choice, from the raw features to one prediction of the test set, and medians compared; "choosing" is
what the choice itself costs. Times are CPU seconds of one thread, so that neighbours on the machine do not count.
scikit-learn is timed by five plain fits on the given labels (its best case), and with --rounds by five true rounds,
where the soft labels of a round are fed back as C weighted copies of every sample, the only way it can learn them.
Then: how the closed form grows with N, D and C, and what memory it needs beside the features; the exact solver; and
what an audit's witness costs, cross-fitted on the census.
"""

from __future__ import annotations

import argparse
import os
import sys
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
SOLVERS: tuple[Any, ...] = ("local", "linear")
GRID = 10.0 ** np.arange(-1.5, -5.1, -0.5)


class Split(NamedTuple):
    train: Array
    train_given: Array
    validation: Array
    validation_given: Array
    test: Array
    test_true: Array
    classes: int


def load(folder: Path, name: str, noise: float, seed: int, cache: Path = Path("runs/features")) -> Split:
    """Unit features, noisy training and validation labels, clean test labels."""
    rng = np.random.default_rng(seed)
    if name in ("cifar10", "mnist"):
        sys.path.insert(0, str(Path(__file__).parent))
        import pll_rounds

        sample = pll_rounds.load(name, folder, cache)
        assert sample.test is not None
        order = rng.permutation(np.setdiff1d(np.arange(len(sample.y)), sample.test))
        return noisy(sample.x, sample.y, order[:5000], order[5000:7000], sample.test, noise, rng)
    with np.load(folder / f"{name}_efflite0_pca256.npz", allow_pickle=False) as stored:
        x, y = stored["x"].astype(np.float32), stored["y"].astype(np.int64)
        held_out = stored["split"] == 1 if name == "bar" else None
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    if held_out is None:
        order = rng.permutation(len(y))
        train, validation, test = np.split(order, [6000, 7500])
    else:
        order = rng.permutation(np.flatnonzero(~held_out))
        train, validation = np.split(order, [int(0.75 * len(order))])
        test = np.flatnonzero(held_out)
    return noisy(x, y, train, validation, test, noise, rng)


def noisy(
    x: Array, y: Array, train: Array, validation: Array, test: Array, noise: float, rng: np.random.Generator
) -> Split:
    classes = int(y.max()) + 1
    shares = probe.noise_matrix("symmetric", classes, noise).cumsum(1)
    given = (rng.random(len(y))[:, None] >= shares[y][:, :-1]).sum(1)
    return Split(x[train], given[train], x[validation], given[validation], x[test], y[test], classes)


def closed_form(
    data: Split, weight_decay: float, solver: Any = "linear", standardise: bool = False
) -> probe.SelfDistillation:
    return probe.self_distillation(
        data.train,
        data.train_given,
        ROUNDS,
        weight_decay,
        solver,
        bias=True,
        standardise=standardise,
        keep_predictions=False,
    )


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
    solver: Any = "linear"


def choose_ours(data: Split, solver: Any) -> Choice:
    """Weight decay, standardisation and round: prepared features serve the whole grid."""
    found = []
    for standardise in (False, True):
        prepared = probe.Features(data.train, bias=True, standardise=standardise)
        for decay in GRID:
            run = probe.self_distillation(
                prepared, data.train_given, ROUNDS, decay, solver, predict=data.validation, keep_predictions=False
            )
            assert run.predicted is not None
            right = (run.predicted.argmax(-1) == data.validation_given).mean(1)
            found += [
                Choice(float(decay), standardise, index, float(share), solver) for index, share in enumerate(right)
            ]
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


def ours_at(data: Split, choice: Choice) -> Array:
    """Five rounds, and what the one chosen predicts: scikit-learn predicts once as well."""
    run = closed_form(data, choice.weight_decay, choice.solver, choice.standardise)
    weights, intercept = run.weights[choice.round], run.intercepts[choice.round]
    return np.asarray((data.test @ weights.astype(data.test.dtype) + intercept).argmax(1))


def against_scikit_learn(options: argparse.Namespace) -> None:
    print(
        f"{ROUNDS} rounds against five fits of scikit-learn, each at what it chose on validation from {len(GRID)} "
        "weight decays × standardised or not (ours also its round). Medians over seeds "
        f"{options.seeds} of medians of {options.repeats} in turns; accuracy mean ± standard deviation;\n"
        "lead over scikit-learn in points, paired by seed"
    )
    columns = (
        "data, noise | five fits | local | ratio | linear | ratio | choosing: theirs | local | linear | "
        "rounds chosen: local | linear | accuracy: theirs | local, lead | linear, lead"
    )
    print(f"| {columns} |\n" + (columns.count("|") + 1) * "|---" + "|")
    for name in options.data_sets:
        for noise in options.noise:
            rows = [one_split(options, name, noise, seed) for seed in options.seeds]
            times, choosing = (np.median([row[part] for row in rows], axis=0) for part in ("times", "choosing"))
            right = 100 * np.array([row["right"] for row in rows])
            theirs, leads = right[:, 0], (right[:, 1:] - right[:, :1]).T
            cells = [f"{name} {noise:g}", f"{1000 * times[0]:.0f} ms"]
            cells += [part for each in times[1:] for part in (f"{1000 * each:.1f} ms", f"{times[0] / each:.1f}")]
            cells += [f"{each:.2f} s" for each in choosing]
            cells += [", ".join(str(row["rounds"][index]) for row in rows) for index in range(len(SOLVERS))]
            cells += [f"{theirs.mean():.1f} ± {theirs.std(ddof=1):.1f}"]
            cells += [f"{each.mean():+.1f} ± {each.std(ddof=1):.1f}" for each in leads]
            print("| " + " | ".join(cells) + " |", flush=True)


def one_split(options: argparse.Namespace, name: str, noise: float, seed: int) -> dict[str, list[Any]]:
    """Choices, seconds and shares of right test predictions: scikit-learn, then every solver."""
    data = load(options.data, name, noise, seed, options.cache)
    choices = [seconds(lambda: choose_theirs(data))]
    choices += [seconds(lambda s=solver: choose_ours(data, s)) for solver in SOLVERS]
    steps = [lambda: five_fits(data, choices[0][1])]
    steps += [lambda c=choice: ours_at(data, c) for _, choice in choices[1:]]
    runs = [[seconds(step) for step in steps] for _ in range(options.repeats)]
    times = np.median([[each[0] for each in run] for run in runs], axis=0)
    if options.rounds and seed == options.seeds[0]:
        took = seconds(lambda: five_rounds(data, choices[0][1]))[0]
        print(f"  five true rounds of scikit-learn: {took:.2f} s, {took / times[1]:.0f}× the local solver")
    return {
        "times": list(times),
        "choosing": [taken for taken, _ in choices],
        "rounds": [choice.round + 1 for _, choice in choices[1:]],
        "right": [float((outcome == data.test_true).mean()) for _, outcome in runs[0]],
    }


def witness(folder: Path) -> None:
    """A witness of an audit: five folds of the census, at the audit's tolerance, alone and each from the one before."""
    import limbeck as lb
    from limbeck.audits.crossfit import deal_folds
    from limbeck.probe.labels import one_hot
    from limbeck.probe.softmax import SoftmaxFit, SoftmaxProbe

    data = lb.load("adult", folder=folder).train
    x = np.asarray(data.x, np.float64)
    x = (x - x.mean(0)) / np.where(x.std(0) > 1e-9, x.std(0), 1)
    fold, targets = deal_folds(data.y, 5, 0), one_hot(data.y, 2)
    parts = [(probe.Features(x[fold != index], bias=True), targets[fold != index]) for index in range(5)]

    def alone() -> list[SoftmaxFit]:
        return [SoftmaxProbe(each, 1e-3, tolerance=1e-3).fit(labels) for each, labels in parts]

    def in_turn() -> SoftmaxFit | None:
        last = None
        for each, labels in parts:
            last = SoftmaxProbe(each, 1e-3, tolerance=1e-3).fit(labels, last)
        return last

    times = np.median([(seconds(alone)[0], seconds(in_turn)[0]) for _ in range(3)], axis=0) / 5
    print(
        f"\nwitness on the census ({len(x):,} × {x.shape[1]}), residual below 1e-3: {times[0]:.3f} s a fold alone, "
        f"{times[1]:.3f} s from the fold before"
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
        exact, _ = seconds(lambda d=data, w=decay: closed_form(d, w, "exact"))
        fits, _ = seconds(lambda d=data, w=decay: five_fits(d, Choice(w, False, 0, 0.0)))
        print(f"  pacs 0.3, weight decay {decay:g}: exact {exact:.2f} s, five fits {fits:.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LIMBECK_DATA", "../shared/data")))
    parser.add_argument("--cache", type=Path, default=Path("runs/features"), help="where extracted features are kept")
    parser.add_argument("--data-sets", nargs="+", default=["pacs", "bar", "cifar10", "mnist"])
    parser.add_argument("--noise", nargs="+", type=float, default=[0.0, 0.3, 0.6])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", nargs="+", type=int, default=[20, 21, 22])
    parser.add_argument("--rounds", action="store_true", help="also five true rounds by scikit-learn")
    parser.add_argument("--parts", default="against,exact,witness,growth")
    parser.add_argument("--million", action="store_true", help="also N = 1,000,000, D = 512 (2 GB of features)")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="sklearn")
    with threadpool_limits(1):
        if (options.data / "pacs_efflite0_pca256.npz").is_file():
            if "against" in options.parts:
                against_scikit_learn(options)
            if "exact" in options.parts:
                exact_rounds(options.data)
            if "witness" in options.parts:
                witness(options.data)
        else:
            print(f"no real features in {options.data} (set LIMBECK_DATA): only the growth is measured")
        if "growth" in options.parts:
            growth(options.million)


if __name__ == "__main__":
    main()
