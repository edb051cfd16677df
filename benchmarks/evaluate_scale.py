"""Evaluation at scale: a million samples x 100 groups, 2,000 bootstrap replicates.

    python benchmarks/evaluate_scale.py

Prints the seconds of each step at full size, then the ratio to resampling samples (what most toolkits do) at a size
where that can be waited for: both timed in turns, medians compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from limbeck.evaluation import GroupCounts, PairedCounts, bootstrap_counts, evaluate, paired_bootstrap
from limbeck.evaluation.compare import compare
from limbeck.evaluation.counts import ratio


def sample(
    samples: int, groups: int, classes: int = 10
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Logits, labels and groups of very different sizes and difficulties."""
    rng = np.random.default_rng(0)
    sizes = rng.dirichlet(np.full(groups, 0.5)) + 20 / samples
    g = rng.choice(groups, samples, p=sizes / sizes.sum())
    y = rng.integers(0, classes, samples)
    logits = rng.standard_normal((samples, classes), np.float32)
    logits[np.arange(samples), y] += rng.uniform(1, 4, groups)[g].astype(np.float32)
    return logits, y, g


def accuracy_and_worst(outcomes: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average and worst group of replicated counts `[R, G, 2]`."""
    totals = outcomes.sum(axis=2)
    each = ratio(outcomes[..., 1], totals)
    return outcomes[..., 1].sum(axis=1) / totals.sum(axis=1), np.fmin.reduce(each, axis=1)


def by_counts(right: NDArray[np.bool_], g: NDArray[np.int64], groups: int, replicates: int) -> NDArray[np.float64]:
    outcomes = np.bincount(g * 2 + right, minlength=2 * groups).reshape(groups, 2)
    return np.stack(accuracy_and_worst(bootstrap_counts(outcomes, replicates)))


def by_samples(right: NDArray[np.bool_], g: NDArray[np.int64], groups: int, replicates: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    cell = g * 2 + right
    found = np.empty((replicates, groups, 2), np.int64)
    for replicate in range(replicates):
        rows = rng.integers(len(cell), size=len(cell))
        found[replicate] = np.bincount(cell[rows], minlength=2 * groups).reshape(groups, 2)
    return np.stack(accuracy_and_worst(found))


def seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--groups", type=int, default=100)
    parser.add_argument("--replicates", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    samples, groups, replicates = options.samples, options.groups, options.replicates

    logits, y, g = sample(samples, groups)
    names = [f"group {k}" for k in range(groups)]
    classes = [str(c) for c in range(logits.shape[1])]
    rng = np.random.default_rng(1)
    predicted = logits.argmax(axis=1)
    right = predicted == y
    runs = [(logits + rng.normal(0, 0.5, logits.shape)).argmax(axis=1) == y for _ in range(6)]
    counts = GroupCounts.from_predictions(y, predicted, g, class_names=classes, group_names=names)
    paired = PairedCounts.from_correct(right, runs[0], g, names)

    def pair(a: object, b: object) -> object:
        return compare(a, b, g, group_names=names, replicates=replicates)

    steps: dict[str, Callable[[], object]] = {
        "count group x true x predicted": lambda: GroupCounts.from_predictions(
            y, predicted, g, class_names=classes, group_names=names
        ),
        "bootstrap average and worst group": lambda: accuracy_and_worst(bootstrap_counts(counts.outcomes, replicates)),
        "paired bootstrap of two models": lambda: paired_bootstrap(paired, replicates),
        "compare two models, from samples": lambda: pair(right, runs[0]),
        "compare two recipes of 3 seeds, from samples": lambda: pair(np.stack(runs[:3]), np.stack(runs[3:])),
        "evaluate logits with calibration": lambda: evaluate(logits, labels=y, groups=g, group_names=names),
    }
    print(f"{samples:,} samples x {groups} groups, {replicates:,} replicates: median of {options.repeats}")
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.repeats):
        for name, step in steps.items():
            times[name].append(seconds(step))
    for name, found in times.items():
        print(f"  {statistics.median(found):8.3f} s  {name}")

    few, some = min(samples, 100_000), min(replicates, 100)
    small_right, small_g = right[:few], g[:few]
    in_turns: dict[str, list[float]] = {"counts": [], "samples": []}
    for _ in range(options.repeats):
        in_turns["counts"].append(seconds(lambda: by_counts(small_right, small_g, groups, some)))
        in_turns["samples"].append(seconds(lambda: by_samples(small_right, small_g, groups, some)))
    ours, theirs = statistics.median(in_turns["counts"]), statistics.median(in_turns["samples"])
    print(f"{few:,} samples, {some} replicates, in turns: counts {ours:.4f} s, samples {theirs:.4f} s")
    print(f"  {theirs / ours:.0f} times as fast; the gain grows with the number of samples")
    spread = [by(small_right, small_g, groups, some).std(axis=1) for by in (by_counts, by_samples)]
    print(f"  standard errors (average, worst group): counts {spread[0].round(5)}, samples {spread[1].round(5)}")


if __name__ == "__main__":
    main()
