"""What it saves that a pilot asks its teacher once, and keeps what it says for all students.

    python benchmarks/shared_teacher.py [--repeats 5] [--only images|adult] [--table docs/pilots.md]

Two pilots of four recipes and two seeds from a finished teacher, with stores and with each student asking for itself
(as it is where there is no store), in turns: small CNNs from a ResNet-20 of random weights on 512 training images of
16×16 pixels, and UCI Adult with the networks of the bundled example. Time is the processor's for the
whole pilot without its report, after one that does not count: medians and quartiles of the ratio over repeats. Samples
are those that went through the teacher.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import limbeck as lb
from limbeck.models import CNN, MLP, build
from limbeck.pilots.sharing import Sharing
from limbeck.training import Training

RECIPES = ("kd", "rld", "nkd", "dkd")
SEEDS = (0, 1)


class Counted(nn.Module):
    """A network that counts the samples it sees."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.samples = 0

    def forward(self, x: Tensor) -> Tensor:
        self.samples += len(x)
        return self.network(x)  # type: ignore[no-any-return]


def workload(name: str) -> tuple[lb.Data, nn.Module, nn.Module, Training]:
    """Data, teacher, student, settings."""
    torch.manual_seed(0)
    if name == "adult":
        data = lb.load("adult", groups=["label", "sex"])
        shape = data.sample_shape
        return data, MLP(shape, 2, hidden=(256, 256)), MLP(shape, 2, hidden=(16,)), Training(epochs=2, batch_size=256)
    generator = np.random.default_rng(0)
    split = np.repeat([0, 1, 2], [512, 128, 128])
    x = generator.normal(size=(len(split), 3, 16, 16)).astype(np.float32)
    data = lb.Data(x, generator.integers(0, 10, len(split)), split=split, fractions=None)
    teacher = build("resnet20", inputs_shape=data.sample_shape, classes=10)
    return data, teacher, CNN(data.sample_shape, 10, channels=(8, 16)), Training(epochs=3, batch_size=64)


def run(name: str, shared: bool) -> tuple[float, int]:
    """Processor seconds of the pilot, and samples that its teacher saw."""
    data, network, student, training = workload(name)
    teacher = Counted(network)
    arguments: dict[str, Any] = {"recipes": RECIPES, "seeds": SEEDS, "training": training}
    started = time.process_time()
    if shared:
        lb.pilot(data, teacher, student, **arguments)
    else:
        with mock.patch.object(Sharing, "write", return_value=[]):
            lb.pilot(data, teacher, student, **arguments)
    return time.process_time() - started, teacher.samples


def row(name: str, repeats: int) -> str:
    """A line of the table."""
    ratios: list[float] = []
    samples: dict[bool, int] = {}
    run(name, True)
    for _ in range(repeats):
        seconds = {}
        for shared in (True, False):
            seconds[shared], samples[shared] = run(name, shared)
        ratios.append(seconds[True] / seconds[False])
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]) if repeats > 1 else [statistics.median(ratios)] * 3
    return f"| {name} | {samples[True]:,} | {samples[False]:,} | {middle:.2f} ({low:.2f} to {high:.2f}) |"


def main() -> None:
    """Print the table, and write it where one is named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("images", "adult"))
    parser.add_argument("--table", type=Path)
    asked = parser.parse_args()
    names = [asked.only] if asked.only else ["images", "adult"]
    title = f"four recipes, two seeds, {asked.repeats} repeats"
    lines = [
        f"| {title} | samples asked, shared | each for itself | processor time, shared over each |",
        "|---|---:|---:|---:|",
        *(row(name, asked.repeats) for name in names),
    ]
    print("\n".join(lines))
    if asked.table is not None:
        begin, end = (
            "<!-- shared: begin (python benchmarks/shared_teacher.py --table docs/pilots.md) -->\n",
            "<!-- shared: end -->",
        )
        text = asked.table.read_text(encoding="utf-8")
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        asked.table.write_text(before + begin + "\n".join(lines) + "\n" + end + after, encoding="utf-8")


if __name__ == "__main__":
    main()
