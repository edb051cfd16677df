"""What the ledger adds to a training, how large it is, and how near a mixed target is to the exact one.

    python benchmarks/ledger_overhead.py [--repeats 5] [--only adult|digits|cnn|head]

Four trainings, each with RLD from a teacher of random weights: UCI Adult with the networks and settings of the bundled
example, a small CNN on 32x32 images, and two worst cases: scikit-learn's digits, so small that a ledger's fixed cost
shows, and a linear head on stored features, whose steps cost next to nothing. Time is that of the ledger, written to
disk, over that of the training beside it in the same run; medians and quartiles over repeats. Fails where a median is
above 2 % (but for the worst cases), or a million samples would take 100 MB.

The last table compares the target of KD (alpha .9) with the distribution at which the sum of its two losses is
smallest, by Newton's method in float64, for each temperature.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import limbeck as lb
from limbeck.ledgers import Ledger, overhear

ALLOWED, WORST_CASES = 0.02, ("digits", "head")
MEGABYTES = 100


def mlp(features: int, hidden: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def cnn(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, 2, 1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * channels, 10),
    )


def drawn(shape: tuple[int, ...], count: int) -> lb.Data:
    generator = np.random.default_rng(0)
    split = np.zeros(count, np.int8)
    split[:200] = 1
    x = generator.normal(size=(count, *shape)).astype(np.float32)
    return lb.Data(
        x,
        generator.integers(0, 10, count),
        attributes={"side": generator.integers(0, 2, count).astype(str)},
        groups=["side"],
        split=split,
        fractions=None,
    )


def workload(name: str) -> tuple[lb.Data, nn.Module, nn.Module, int, int]:
    """Data, student, teacher, epochs, batch size."""
    torch.manual_seed(0)
    if name == "adult":
        data = lb.load("adult", groups=["label", "sex"])
        width = data.sample_shape[0]
        return data, mlp(width, 96, 2), nn.Sequential(nn.Linear(width, 256), nn.ReLU(), mlp(256, 256, 2)), 10, 256
    if name == "digits":
        data = lb.load("digits")
        size = int(np.prod(data.sample_shape))
        flat = nn.Flatten()
        return data, nn.Sequential(flat, mlp(size, 16, 10)), nn.Sequential(flat, mlp(size, 128, 10)), 30, 64
    if name == "cnn":
        return drawn((3, 32, 32), 8200), cnn(16), cnn(32), 5, 128
    return drawn((512,), 32968), nn.Linear(512, 10), nn.Linear(512, 10), 10, 128


def overhead(name: str, repeats: int, folder: Path) -> tuple[list[float], list[float], float]:
    """Seconds of trainings, of their ledgers, and bytes a sample."""
    data, student, teacher, epochs, batch = workload(name)
    data.fingerprint()  # known once a data set, not once a run
    trainings, ledgers, size = [], [], 0.0
    for seed in range(repeats):
        heard = overhear(teacher)
        started = time.perf_counter()
        fitted = lb.fit(student, data, teacher=heard, recipe="rld", epochs=epochs, batch_size=batch, seed=seed)
        middle = time.perf_counter()
        path = Ledger.of(fitted, data, heard).write(folder / name)
        trainings.append(middle - started)
        ledgers.append(time.perf_counter() - middle)
        size = path.stat().st_size / len(data.train)
    return trainings, ledgers, size


def exact_minimum(teacher: Tensor, label: Tensor, alpha: float, temperature: float) -> Tensor:
    """Where alpha·KD + (1-alpha)·cross entropy is smallest, `[N, C]`: Newton's method, with backtracking."""
    count, classes = teacher.shape
    target = torch.softmax(teacher / temperature, 1)
    onehot = nn.functional.one_hot(label, classes).double()

    def loss(z: Tensor) -> Tensor:
        kd = -(target * torch.log_softmax(z / temperature, 1)).sum(1) * temperature**2
        return alpha * kd - (1 - alpha) * (onehot * torch.log_softmax(z, 1)).sum(1)

    def bend(p: Tensor) -> Tensor:
        return torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)

    z = teacher.clone()
    for _ in range(60):
        soft, hard = torch.softmax(z / temperature, 1), torch.softmax(z, 1)
        gradient = alpha * temperature * (soft - target) + (1 - alpha) * (hard - onehot)
        curve = alpha * bend(soft) + (1 - alpha) * bend(hard) + 1e-9 * torch.eye(classes).double()
        step = torch.linalg.solve(curve, gradient.unsqueeze(2)).squeeze(2)
        length, before = torch.ones(count, 1).double(), loss(z)
        for _ in range(40):
            worse = (loss(z - length * step) > before).unsqueeze(1)
            length = torch.where(worse, length / 2, length)
        z = z - length * step
    return torch.softmax(z, 1)


def mixtures() -> list[tuple[float, float, float, float]]:
    """Per temperature: total variation between the mixed and the exact target (median, 95th percentile, largest)."""
    data, _, teacher, *_ = workload("digits")
    fitted = lb.fit(teacher, data, epochs=5)
    generator = torch.Generator().manual_seed(0)
    logits = torch.from_numpy(lb.predict_logits(fitted, data.train))[:500].double()
    labels = torch.from_numpy(data.train.y)[:500].clone()
    wrong = torch.rand(len(labels), generator=generator) < 0.2
    labels[wrong] = (labels[wrong] + 1) % 10
    mixed = 0.9 * torch.softmax(logits, 1) + 0.1 * nn.functional.one_hot(labels, 10)
    found = []
    for temperature in (1.0, 2.0, 4.0, 8.0):
        exact = exact_minimum(logits, labels, 0.9, temperature)
        apart = (exact - mixed).abs().sum(1) / 2
        found.append((temperature, *(float(apart.quantile(share)) for share in (0.5, 0.95, 1.0))))
    return found


def spread(values: list[float], show: Callable[[float], str]) -> str:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{show(middle)} ({show(low)}–{show(high)})"


def main() -> int:
    """Print the tables; 1 where a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("adult", "digits", "cnn", "head"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    failed = False
    titles = f"{'training, s':>22s} {'ledger, ms':>22s} {'added, %':>20s} {'bytes a sample':>15s}"
    print(f"{'training':8s} {'samples':>8s} {titles}")
    for name in (arguments.only,) if arguments.only else ("adult", "digits", "cnn", "head"):
        with tempfile.TemporaryDirectory() as folder:
            trainings, ledgers, size = overhead(name, arguments.repeats, Path(folder))
        added = [ledger / training for ledger, training in zip(ledgers, trainings, strict=True)]
        count = len(workload(name)[0].train)
        times = f"{spread(trainings, '{:.2f}'.format):>22s} {spread([1000 * s for s in ledgers], '{:.0f}'.format):>22s}"
        print(f"{name:8s} {count:8,} {times} {spread([100 * s for s in added], '{:.2f}'.format):>20s} {size:15.1f}")
        # A file of few samples is mostly its own header.
        failed |= name not in WORST_CASES and statistics.median(added) > ALLOWED
        failed |= count > 5000 and size > MEGABYTES
    if not arguments.only:
        print("\nKD's mixed target against the exact minimum: total variation")
        print(f"{'temperature':>11s} {'median':>8s} {'95 %':>8s} {'largest':>8s}")
        for temperature, *values in mixtures():
            print(f"{temperature:11g} " + " ".join(f"{value:8.4f}" for value in values))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
