"""What a batch of augmented images costs when it is made at once, over making it sample by sample.

    python benchmarks/augmentation_speed.py [--repeats 15]

Ours reads uint8 images by one index call and augments the whole batch on tensors, every sample with draws and a partner
of its own. The two others are the usual loops over samples, followed by stacking and normalisation: with Pillow on
images, as transforms on a data set work, and with numpy on slices of arrays, the least a loop can do. They
mix with one share and one permutation a batch, which is less work than ours. The ways alternate in one process on one
thread; medians and quartiles are printed. Fails where the Pillow pipeline of the same steps is faster; where the numpy
loop is, the table says so (a ratio below 1).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

import limbeck as lb
from limbeck.augment import bind

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
SIZES = ((32, 256, 4, 8), (96, 128, 12, 24), (224, 32, 28, 56))
"""Side, batch, padding of the crop, side of the cutout."""
STEPS = ("crop and flip", "crop, flip, cutout", "crop, flip, colour jitter", "crop, flip, mixup", "crop, flip, cutmix")
Pipeline = Callable[[np.ndarray], Tensor]


def ours(data: lb.Data, steps: str, padding: int, size: int) -> Pipeline:
    """Batches as `limbeck.fit` makes them."""
    known = {
        "crop": {"name": "crop", "padding": padding},
        "cutout": {"name": "cutout", "size": size},
        "colour jitter": "colour_jitter",
    }
    names = [name for part in steps.split(", ") for name in part.split(" and ")]
    bound = bind({"augment": [known.get(name, name) for name in names]}, data)
    views = iter(range(1 << 30))
    return lambda rows: bound.batch(torch.from_numpy(rows), next(views)).inputs


class Loop:
    """One sample at a time, as a dataset with transforms and a collate function do it."""

    def __init__(self, x: np.ndarray, steps: str, padding: int, size: int) -> None:
        self.x, self.steps, self.padding, self.size = x, steps, padding, size
        self.random = np.random.default_rng(0)

    def stacked(self, images: list[np.ndarray]) -> Tensor:
        batch = np.stack(images).astype(np.float32) / 255
        mean, std = (np.array(part, np.float32).reshape(3, 1, 1) for part in (MEAN, STD))
        return torch.from_numpy((batch - mean) / std)

    def mixed(self, batch: Tensor) -> Tensor:
        """Mixing as it is usually written."""
        if "mixup" in self.steps:
            share = self.random.beta(0.2, 0.2)
            return share * batch + (1 - share) * batch[torch.randperm(len(batch))]
        if "cutmix" in self.steps:
            height, width = batch.shape[2:]
            side = (1 - self.random.beta(1.0, 1.0)) ** 0.5
            row, column = self.random.integers(height), self.random.integers(width)
            tall, wide = int(side * height) // 2, int(side * width) // 2
            part = (..., slice(max(row - tall, 0), row + tall), slice(max(column - wide, 0), column + wide))
            batch[part] = batch[torch.randperm(len(batch))][part]
        return batch

    def hole(self) -> tuple[slice, slice]:
        side, half = self.x.shape[2], self.size // 2
        row, column = (int(value) for value in self.random.integers(0, side, 2))
        return slice(max(row - half, 0), row + half), slice(max(column - half, 0), column + half)


class NumpyLoop(Loop):
    """Arrays [C, H, W]."""

    def __call__(self, rows: np.ndarray) -> Tensor:
        return self.mixed(self.stacked([self.one(self.x[row]) for row in rows]))

    def one(self, image: np.ndarray) -> np.ndarray:
        side, pad = image.shape[1], self.padding
        up, left = self.random.integers(0, 2 * pad + 1, 2)
        image = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))[:, up : up + side, left : left + side]
        if self.random.random() < 0.5:
            image = image[:, :, ::-1]
        if "cutout" in self.steps:
            image = image.copy()
            image[(slice(None), *self.hole())] = 0
        if "jitter" in self.steps:
            brightness, contrast, saturation = 1 + 0.2 * (2 * self.random.random(3) - 1)
            luma = np.array([0.299, 0.587, 0.114], np.float32)
            values = image.astype(np.float32) * np.float32(brightness)
            grey = np.tensordot(luma, values, 1).mean()
            values = grey + (values - grey) * np.float32(contrast)
            grey = np.tensordot(luma, values, 1)
            image = np.clip(grey + (values - grey) * np.float32(saturation), 0, 255)
        return image


class PillowLoop(Loop):
    """Pillow images, as torchvision's transforms on a data set of images."""

    def __call__(self, rows: np.ndarray) -> Tensor:
        return self.mixed(self.stacked([self.one(self.x[row]) for row in rows]))

    def one(self, array: np.ndarray) -> np.ndarray:
        side, pad = array.shape[1], self.padding
        up, left = (int(value) for value in self.random.integers(0, 2 * pad + 1, 2))
        image = ImageOps.expand(Image.fromarray(array.transpose(1, 2, 0)), pad).crop((left, up, left + side, up + side))
        if self.random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if "jitter" in self.steps:
            for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                image = kind(image).enhance(1 + 0.2 * (2 * self.random.random() - 1))
        found = np.array(image).transpose(2, 0, 1)
        if "cutout" in self.steps:
            found[(slice(None), *self.hole())] = 0
        return found


def measured(ways: dict[str, Pipeline], count: int, batch: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds a batch of every way, in turn."""
    random, taken = np.random.default_rng(1), {name: [] for name in ways}
    for repeat in range(repeats + 2):
        rows = random.choice(count, batch, replace=False)
        for name, way in ways.items():
            started = time.perf_counter()
            way(rows)
            if repeat >= 2:
                taken[name].append(1000 * (time.perf_counter() - started))
    return taken


def main() -> int:
    """Print the table; 1 where we are slower than a loop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    slower = []
    print(f"{'images':>16s}  {'steps':26s} {'batched':>22s} {'numpy loop':>18s} {'Pillow loop':>18s}")
    for side, batch, padding, size in SIZES:
        count = 4 * batch
        x = np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
        data = lb.Data(x, np.arange(count) % 2, normalise=(MEAN, STD), split="train", fractions=None)
        for steps in STEPS:
            loops = {"numpy": NumpyLoop(x, steps, padding, size), "pillow": PillowLoop(x, steps, padding, size)}
            found = measured({"ours": ours(data, steps, padding, size), **loops}, count, batch, repeats)
            own = statistics.median(found["ours"])
            low, _, high = statistics.quantiles(found["ours"], n=4)
            ratios = {name: statistics.median(found[name]) / own for name in loops}
            if ratios["pillow"] < 1:
                slower.append(f"{steps} at {side}")
            print(
                f"{batch:4d} × 3×{side}×{side}".rjust(16)
                + f"  {steps:26s} {own:8.2f} ({low:.2f}–{high:.2f}) ms"
                + "".join(f" {statistics.median(found[name]):8.2f} ms ×{ratios[name]:.2f}" for name in loops)
            )
    for case in slower:
        print(f"slower than the Pillow loop: {case}", file=sys.stderr)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
