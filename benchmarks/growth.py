"""How the time of an epoch grows with samples, classes, groups and the size of a batch.

    python benchmarks/growth.py [--repeats 7] [--output FILE.json]
    python benchmarks/growth.py --show FILE.json

A linear student (64 features) learns from stored teacher logits, recipe `kd`, and for the groups `groupdistil`, which
weighs every group in every step. One quantity changes at a time; the others stay at 20,000 samples, 10 classes, 10
groups and batches of 128. A row gives the milliseconds of an epoch, validation of 1,000 samples included, and its
exponent: the slope against the row before on logarithmic axes, 1 where time is proportional. One thread, CPU seconds;
the settings alternate, and a row has the median of the repeats and their quartiles. The first epoch of a run does not
count.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import limbeck as lb

WIDTH, VALIDATION = 64, 1000
BASE = {"samples": 20_000, "classes": 10, "groups": 10, "batch_size": 128}
VALUES = {
    "samples": (5_000, 20_000, 80_000, 320_000),
    "classes": (2, 10, 100, 1_000, 4_000),
    "groups": (4, 10, 100, 1_000, 10_000),
    "batch_size": (32, 128, 512, 2_048),
}
RECIPES = {"groups": "groupdistil"}


class Clock:
    """The shortest epoch but the first."""

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self._since = 0.0

    def on_start(self, run: object) -> None:
        """The first epoch begins."""
        self._since = time.process_time()

    def on_epoch(self, run: object) -> None:
        """An epoch is over."""
        now = time.process_time()
        self.epochs.append(now - self._since)
        self._since = now

    def on_end(self, run: object) -> None:
        """Nothing."""

    @property
    def seconds(self) -> float:
        return min(self.epochs[1:])


def make(samples: int, classes: int, groups: int) -> tuple[lb.Data, dict[str, Any]]:
    """Data of one size, and a teacher for them."""
    generator = np.random.default_rng(0)
    count = samples + VALIDATION
    x = generator.normal(size=(count, WIDTH)).astype(np.float32)
    # In training every class and every group has its turn.
    order = generator.permutation(samples)
    split = (np.arange(count) >= samples).astype(np.int8)
    data = lb.Data(
        x,
        np.concatenate([order, np.arange(VALIDATION)]) % classes,
        split=split,
        fractions=None,
        classes=range(classes),
        attributes={"site": np.arange(count) % groups},
        groups=["site"],
    )
    torch.manual_seed(1)
    return data, {"teacher": nn.Linear(WIDTH, classes)}


def epoch_seconds(data: lb.Data, extra: dict[str, Any], recipe: str, batch_size: int) -> float:
    """Seconds of an epoch."""
    torch.manual_seed(0)
    clock = Clock()
    lb.fit(
        nn.Linear(WIDTH, data.num_classes),
        data,
        recipe=recipe,
        epochs=3,
        batch_size=batch_size,
        optimiser="sgd",
        learning_rate=0.01,
        schedule="constant",
        selection="last",
        callbacks=[clock],
        **extra,
    )
    return clock.seconds


def measure(axis: str, repeats: int) -> list[dict[str, Any]]:
    """One row a value of this axis."""
    settings = [{**BASE, axis: value} for value in VALUES[axis]]
    prepared = [make(row["samples"], row["classes"], row["groups"]) for row in settings]
    taken: list[list[float]] = [[] for _ in settings]
    for _ in range(repeats):
        for times, (data, extra), row in zip(taken, prepared, settings, strict=True):
            times.append(epoch_seconds(data, extra, RECIPES.get(axis, "kd"), row["batch_size"]))
    return [
        {axis: row[axis], "milliseconds": [1000 * value for value in times]}
        for row, times in zip(settings, taken, strict=True)
    ]


def show(axis: str, rows: list[dict[str, Any]]) -> None:
    """Print the table of one axis."""
    print(f"\n| {axis.replace('_', ' ')} | ms an epoch | quartiles | µs a sample | exponent |\n|---|---|---|---|---|")
    before: tuple[float, float] | None = None
    for row in rows:
        low, middle, high = statistics.quantiles(row["milliseconds"], n=4)
        samples = row[axis] if axis == "samples" else BASE["samples"]
        slope = "" if before is None else f"{math.log(middle / before[1]) / math.log(row[axis] / before[0]):.2f}"
        print(
            f"| {row[axis]:,} | {middle:.1f} | {low:.1f} to {high:.1f} | {1000 * middle / samples:.1f} | {slope} |",
            flush=True,
        )
        before = row[axis], middle


def main() -> int:
    """Print a table for each quantity."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, choices=range(2, 1000), metavar="N")
    parser.add_argument("--only", nargs="+", choices=tuple(VALUES), default=list(VALUES))
    parser.add_argument("--output", type=Path, help="write every measured number as JSON")
    parser.add_argument("--show", type=Path, help="print the tables of such a file, and measure nothing")
    arguments = parser.parse_args()
    if arguments.show:
        for axis, rows in json.loads(arguments.show.read_text(encoding="utf-8"))["axes"].items():
            show(axis, rows)
        return 0
    torch.set_num_threads(1)
    found = {}
    for axis in arguments.only:
        found[axis] = measure(axis, arguments.repeats)
        show(axis, found[axis])
    print(f"\none thread, torch {torch.__version__}, {arguments.repeats} repeats in turns")
    if arguments.output:
        told = {"torch": torch.__version__, "base": BASE, "axes": found}
        arguments.output.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
