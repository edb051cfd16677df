"""Forty probes at once: their time against that of one, and against the same forty one by one.

    python benchmarks/many_probes.py

Features of N training samples (a tenth as many for validation), D dimensions and C classes; one epoch, adamw. What a
probe costs does not depend on the values, so they are drawn. In each repeat, in turns: one probe of each of the eight
recipes by `lb.fit` ("one" is their mean) and by `fit_probes`, the forty together by `fit_probes`, and the forty one by
one by `lb.fit`. Times are CPU seconds of one thread, so that neighbours on the machine count for little, and seconds of
the clock with more threads (`--threads`; the forty then train in as many processes); medians over repeats, ratios in
the same run. Every probe starts from raw features and ends
in a selected student, teacher outputs included. "bare" is what no way of taking forty together can save: gathering
their batches, the two matrix products and the optimiser's step, nothing else. "deviation" is the largest difference of
a final weight between the two ways.
Then: recipes that cannot be taken together, small networks, settings and noise draws in place of seeds, and growth.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import limbeck as lb
from limbeck.data import inject
from limbeck.errors import ConfigError
from limbeck.loop import Fitted

RECIPES = ("erm", "label_smoothing", "gce", "kd", "dkd", "lskd", "rld", "pll")
TWO_CLASSES = ("erm", "label_smoothing", "gce", "kd", "dkd", "rld", "nkd", "ttm")
"""Eight that make sense at two classes."""
HARDER = ("groupdistil", "btkd", "dist", "elr", "ctkd", "dett", "jtt", "multi_round")
SEEDS = 5


def features(samples: int, width: int, classes: int) -> lb.Data:
    """Gaussian classes in two groups."""
    rng = np.random.default_rng(0)
    count = samples + samples // 10
    y = np.arange(count) % classes
    centres = 0.1 * rng.standard_normal((classes, width), dtype=np.float32)
    x = rng.standard_normal((count, width), dtype=np.float32)
    for start in range(0, count, 50_000):
        x[start : start + 50_000] += centres[y[start : start + 50_000]]
    split = np.where(np.arange(count) < samples, 0, 1)
    return lb.Data(x, y, split=split, fractions=None, attributes={"site": rng.integers(0, 2, count)}, groups=["site"])


def seconds(step: Callable[[], Any]) -> tuple[float, Any]:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    result = step()
    return clock() - start, result


def peak_megabytes(step: Callable[[], object]) -> float:
    """Peak of the resident memory above what was resident before; NaN where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        step()
        return (_resident("VmHWM") - before) / 1024
    except OSError:
        return float("nan")


def _resident(name: str) -> int:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(name))
    return int(line.split()[1])


def deviation(found: Sequence[Fitted], expected: Sequence[Fitted]) -> float:
    pairs = (
        (a - b).abs().max()
        for one, other in zip(found, expected, strict=True)
        for a, b in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    )
    return float(max(pairs))


class Problem:
    """Data, a student and a teacher."""

    def __init__(self, samples: int, width: int, classes: int, hidden: int, batch: int) -> None:
        self.data = features(samples, width, classes)
        torch.manual_seed(0)
        # Of another width than the student's features, so that DeTT has something to learn.
        self.teacher = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, classes))
        self.settings = {"epochs": 1, "batch_size": batch}
        self.width, self.classes, self.hidden = width, classes, hidden

    def student(self) -> nn.Module:
        if not self.hidden:
            return nn.Linear(self.width, self.classes)
        return nn.Sequential(nn.Linear(self.width, self.hidden), nn.ReLU(), nn.Linear(self.hidden, self.classes))

    def together(self, recipes: Sequence[Any], seeds: int, **more: Any) -> list[Fitted]:
        given = {"data": self.data, **self.settings, **more}
        data = given.pop("data")
        return lb.fit_probes(self.student, data, teacher=self.teacher, recipes=recipes, seeds=seeds, **given)

    def alone(self, recipe: Any, seed: int, data: lb.Data | None = None, **more: Any) -> Fitted:
        given = {**self.settings, **more}
        return lb.fit(self.student, data or self.data, teacher=self.teacher, recipe=recipe, seed=seed, **given)


def bare(problem: Problem, streams: int, columns: int) -> None:
    """An epoch of what is left of so many linear probes without losses, records and validation."""
    x = torch.from_numpy(problem.data.x)
    width, outputs, size = problem.width, columns * problem.classes, problem.settings["batch_size"]
    weight = torch.zeros(streams, width, outputs, requires_grad=True)
    optimiser = torch.optim.AdamW([weight], fused=True)
    count = len(problem.data.train)
    orders = torch.stack([torch.randperm(count) for _ in range(streams)], 1)
    for start in range(0, count, size):
        rows = orders[start : start + size].t().flatten()
        batch = x.index_select(0, rows).view(streams, -1, width)
        with torch.no_grad():
            logits = torch.bmm(batch, weight)
            weight.grad = torch.bmm(batch.transpose(1, 2), logits)
        optimiser.step()


def compare(name: str, problem: Problem, recipes: Sequence[str], repeats: int, one_by_one: bool = True) -> None:
    """One line: recipes × seeds."""
    times: dict[str, list[float]] = {"one": [], "probe": [], "all": [], "apart": [], "bare": []}
    problem.together(recipes[:1], 1)
    apart: float | str = "-"
    for repeat in range(repeats):
        times["one"].append(statistics.fmean(seconds(lambda r=r: problem.alone(r, 0))[0] for r in recipes))
        taken, found = seconds(lambda: problem.together(recipes, SEEDS))
        times["all"].append(taken)
        times["probe"].append(statistics.fmean(seconds(lambda r=r: problem.together([r], 1))[0] for r in recipes))
        if not problem.hidden:
            times["bare"].append(seconds(lambda: bare(problem, SEEDS, len(recipes)))[0])
        if one_by_one:
            taken, expected = seconds(lambda: [problem.alone(r, seed) for r in recipes for seed in range(SEEDS)])
            times["apart"].append(taken)
            if repeat == 0:
                apart = deviation(found, expected)
    report(name, times, len(recipes) * SEEDS, apart)


def report(name: str, times: dict[str, list[float]], count: int, apart: float | str) -> None:
    middle = {key: statistics.median(values) for key, values in times.items() if values}
    ratio = [whole / one for whole, one in zip(times["all"], times["one"], strict=True)]
    rest = [
        f"{middle['all'] / middle['probe']:10.1f}×" if "probe" in middle else f"{'-':>11}",
        f"{middle['bare']:8.2f}{middle['bare'] / middle['one']:6.1f}×" if "bare" in middle else f"{'-':>8}{'-':>7}",
        f"{middle['apart']:8.2f}{middle['apart'] / middle['all']:6.1f}×" if "apart" in middle else f"{'-':>8}{'-':>7}",
    ]
    shown = f"{apart:.0e}" if isinstance(apart, float) else apart
    print(
        f"{name:<28}{middle['one']:7.3f}{middle.get('probe', float('nan')):7.3f}{middle['all']:7.2f}"
        f"{statistics.median(ratio):6.1f}× ({min(ratio):.1f}–{max(ratio):.1f}){''.join(rest)}"
        f"{1000 * middle['all'] / count:7.0f}  {shown}",
        flush=True,
    )


def head(title: str) -> None:
    print(f"\n{title}")
    print(
        f"{'':28}{'one':>7}{'probe':>7}{'all':>7}{'all / one':>17}{'all / probe':>12}{'bare':>7}{'/ one':>7}"
        f"{'by one':>8}{'gain':>7}{'ms each':>8}  deviation",
        flush=True,
    )


def settings_and_draws(problem: Problem, repeats: int, one_by_one: bool) -> None:
    """One seed, forty learning rates; one seed, forty draws of label noise."""
    rates = [float(rate) for rate in np.geomspace(1e-4, 1e-1, 40)]
    trainings = [lb.Training(learning_rate=rate) for rate in rates]
    draws = [inject.label_noise(problem.data, rate=0.3, seed=seed, splits=("train",)) for seed in range(40)]
    sweeps: list[tuple[str, Callable[[], list[Fitted]], Callable[[int], Fitted]]] = [
        (
            "kd, 40 learning rates",
            lambda: problem.together(["kd"], 1, training=trainings),
            lambda place: problem.alone("kd", 0, learning_rate=rates[place]),
        ),
        (
            "gce, 40 noise draws",
            lambda: problem.together(["gce"], 1, data=draws),
            lambda place: problem.alone("gce", 0, draws[place]),
        ),
    ]
    problem.together(["kd"], 1)
    for name, together, alone in sweeps:
        recipe = name.split(",")[0]
        times: dict[str, list[float]] = {"one": [], "probe": [], "all": [], "apart": []}
        apart: float | str = "-"
        for repeat in range(repeats):
            times["one"].append(seconds(lambda a=alone: a(0))[0])
            taken, found = seconds(together)
            times["all"].append(taken)
            times["probe"].append(seconds(lambda r=recipe: problem.together([r], 1))[0])
            if repeat == 0 and one_by_one:
                taken, expected = seconds(lambda a=alone: [a(place) for place in range(40)])
                times["apart"].append(taken)
                apart = deviation(found, expected)
        report(name, times, 40, apart)


def recipes_for(classes: int) -> tuple[str, ...]:
    return RECIPES if classes > 2 else TWO_CLASSES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--together", action="store_true", help="leave out the forty one by one")
    parser.add_argument("--parts", default="batches,kinds,sweeps,growth,memory")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = (options.samples, options.width, options.classes)
    parts = options.parts.split(",")
    unknown = set(parts) - {"batches", "kinds", "sweeps", "growth", "memory"}
    if unknown:
        raise ConfigError(f"--parts: {', '.join(sorted(unknown))} not known: batches, kinds, sweeps, growth, memory")
    print(f"8 recipes × {SEEDS} seeds, N={size[0]:,} D={size[1]} C={size[2]}, {options.threads} thread(s) or processes")
    if "batches" in parts:
        recipes = recipes_for(size[2])
        head(f"{', '.join(recipes)}")
        for batch in options.batches:
            compare(f"batches of {batch}", Problem(*size, 0, batch), recipes, options.repeats, not options.together)
    if "kinds" in parts:
        head(f"{', '.join(HARDER)}: weightings, statistics of a batch, states, stages")
        compare("batches of 128", Problem(*size, 0, 128), HARDER, options.repeats, not options.together)
        head("small networks, 64 hidden units")
        compare("the first eight recipes", Problem(*size, 64, 128), RECIPES, options.repeats, not options.together)
    if "sweeps" in parts:
        head("one seed: the batches are shared by all")
        settings_and_draws(Problem(*size, 0, 128), options.repeats, not options.together)
    if "growth" in parts:
        head("growth, batches of 128 (one by one left out)")
        for samples, width, classes in (
            (12_500, 512, 10),
            (100_000, 512, 10),
            (50_000, 128, 10),
            (50_000, 2048, 10),
            (50_000, 512, 2),
            (50_000, 512, 100),
        ):
            problem = Problem(samples, width, classes, 0, 128)
            compare(f"N={samples:,} D={width} C={classes}", problem, recipes_for(classes), 1, one_by_one=False)
    if "memory" in parts:
        print("\npeak memory above the features, MB: one probe, forty together")
        for samples, width, classes in (size, (200_000, 512, 10), (50_000, 512, 100)):
            problem = Problem(samples, width, classes, 0, 128)
            problem.together(["kd"], 1)
            one = peak_megabytes(lambda p=problem: p.together(["kd"], 1))
            many = peak_megabytes(lambda p=problem: p.together(RECIPES, SEEDS))
            held = samples * width * 4 / 2**20
            print(f"  N={samples:,} D={width} C={classes} (features {held:,.0f} MB){one:8.0f}{many:8.0f}", flush=True)


if __name__ == "__main__":
    main()
