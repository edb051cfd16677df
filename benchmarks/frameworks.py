"""A distillation epoch here, by hand, in an ordinary DataLoader loop and in other frameworks: one objective, one end.

    python benchmarks/frameworks.py [--epochs 10] [--repeats 7] [--only head mlp cnn] [--output FILE.json]
    python benchmarks/frameworks.py --show FILE.json
    python benchmarks/frameworks.py --ways           # what precision: auto and compile: auto find on the same networks

Knowledge distillation (Hinton et al., 2015; alpha .9, temperature 4), SGD with momentum, batches of 128, shuffled anew
each epoch, on three workloads made from a fixed seed: a linear head, an MLP and a small CNN. Everybody sees the same
samples in the same order, so that all students must end alike: it fails where weights differ by more than 1e-6, and
says where a ratio is below its target.

| line | what is timed |
|---|---|
| limbeck | `lb.fit`, the epochs: the teacher has been asked before |
| limbeck with filling | `lb.fit` as a whole, divided by its epochs: checks, copies and the one pass of the teacher |
| limbeck from disk | the same with the outputs read from a memory-mapped store, batch by batch |
| limbeck without store | `teacher_memory=0`: the teacher is asked live in every step |
| by hand, stored | sliced tensors and stored logits |
| by hand, live | sliced tensors, the teacher asked in every step |
| DataLoader | the loop of most tutorials: a Dataset, a DataLoader that shuffles, the teacher asked in every step |
| timm | its LogitDistillationTask in the loop of its training script |
| torchdistill | its distillation box in the loop of its example scripts |

The last two need `pip install timm torchdistill` and a torchvision that belongs to the installed torch; without them
their lines are left out. One thread, no worker processes; CPU seconds of the process, which on an idle machine are
seconds, so that whatever else the machine does counts as little as can be. Runs alternate; a line gives medians, a
ratio is the median of the repeats' ratios with its quartiles.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import logging
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

import limbeck as lb
from limbeck.engine import choose_precision
from limbeck.loop import forward_mean
from limbeck.teachers import ModuleTeacher, Store
from limbeck.training import batch_bounds, epoch_order
from limbeck.tuning import TEACHER_WAYS, choose_compile, choose_teacher_ways
from loop_overhead import ALPHA, BATCH, CLASSES, TEMPERATURE
from loop_overhead import workload as basic_workload

RATE, MOMENTUM = 0.01, 0.9
TARGETS = {"head": 2.0, "mlp": 4.0, "cnn": 4.0}
OVERHEAD = 1.05
SAMPLES = {"head": 8192, "mlp": 8192, "cnn": 2048}
LIVE = ("DataLoader", "timm", "torchdistill")
OURS = "limbeck"


@dataclass(frozen=True)
class Workload:
    """One student, one teacher, and what both see; the first batch is held out."""

    name: str
    student: nn.Module
    teacher: nn.Module
    data: lb.Data
    x: Tensor
    y: Tensor
    held_out: tuple[Tensor, Tensor]


def convolutions(widths: tuple[int, ...], strides: tuple[int, ...]) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU, over and over; then the mean over positions and a linear layer."""
    layers: list[nn.Module] = []
    for before, width, stride in zip((3, *widths), widths, strides, strict=False):
        layers += [nn.Conv2d(before, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES))


def workload(name: str) -> Workload:
    """The head (512 → 10), an MLP taught by one of 670,000 weights, a CNN of 20,000 taught by one of 697,000."""
    if name == "cnn":
        torch.manual_seed(0)
        student, teacher = convolutions((16, 32, 48), (2, 2, 2)), convolutions((48, 96, 192, 280), (2, 2, 1, 2))
        inputs = np.random.default_rng(0).normal(size=(SAMPLES[name] + BATCH, 3, 32, 32)).astype(np.float32)
    else:
        student, teacher, inputs = basic_workload(name)
        inputs = inputs[: SAMPLES[name] + BATCH]
    labels = np.random.default_rng(1).integers(0, CLASSES, len(inputs))
    split = np.zeros(len(inputs), np.int8)
    split[:BATCH] = 1
    data = lb.Data(inputs, labels, split=split, fractions=None, classes=range(CLASSES))
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels)
    return Workload(name, student, teacher.eval(), data, x[BATCH:], y[BATCH:], (x[:BATCH], y[:BATCH]))


def kd_loss(out: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """The objective that everybody trains on."""
    soft = F.log_softmax(logits / TEMPERATURE, 1)
    kl = F.kl_div(F.log_softmax(out / TEMPERATURE, 1), soft, reduction="batchmean", log_target=True)
    return ALPHA * TEMPERATURE**2 * kl + (1 - ALPHA) * F.cross_entropy(out, labels)


def validate(model: nn.Module, held_out: tuple[Tensor, Tensor]) -> float:
    """Accuracy on the held-out batch, after each epoch, in all loops."""
    model.eval()
    with torch.no_grad():
        return (model(held_out[0]).argmax(1) == held_out[1]).float().mean().item()


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)


class Order(Sampler[int]):
    """Shuffles as `lb.fit` does, so that all students end alike."""

    def __init__(self, count: int) -> None:
        self.count, self.epoch = count, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        yield from epoch_order(self.count, 0, self.epoch).tolist()
        self.epoch += 1


# The loops: each returns the student and the seconds of its epochs ----------------------------------------------------

Run = Callable[[Workload, int], tuple[nn.Module, float]]


def by_hand(work: Workload, epochs: int, stored: Tensor | None) -> tuple[nn.Module, float]:
    model = copy.deepcopy(work.student)
    optimiser = sgd(model)
    started = time.process_time()
    for epoch in range(epochs):
        model.train()
        order = epoch_order(len(work.x), 0, epoch)
        for start, end in batch_bounds(len(work.x), BATCH):
            rows = order[start:end]
            x = work.x[rows]
            if stored is None:
                with torch.no_grad():
                    logits = work.teacher(x)
            else:
                logits = stored[rows]
            loss = kd_loss(model(x), logits, work.y[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        validate(model, work.held_out)
    return model, time.process_time() - started


def data_loader(work: Workload, epochs: int) -> tuple[nn.Module, float]:
    model = copy.deepcopy(work.student)
    optimiser = sgd(model)
    loader = DataLoader(TensorDataset(work.x, work.y), BATCH, sampler=Order(len(work.x)))
    started = time.process_time()
    for _ in range(epochs):
        model.train()
        for x, labels in loader:
            with torch.no_grad():
                logits = work.teacher(x)
            loss = kd_loss(model(x), logits, labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        validate(model, work.held_out)
    return model, time.process_time() - started


def timm_task(work: Workload, epochs: int) -> tuple[nn.Module, float]:
    tasks = importlib.import_module("timm.task")
    student, teacher = copy.deepcopy(work.student), copy.deepcopy(work.teacher)
    for model in (student, teacher):
        # Equal statistics of both: its task then does not normalise the teacher's inputs anew.
        model.pretrained_cfg = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # type: ignore[assignment]
    task = tasks.LogitDistillationTask(
        student,
        tasks.DistillationTeacher(teacher),
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=1 - ALPHA,
        temperature=TEMPERATURE,
        verbose=False,
    )
    optimiser = sgd(student)
    loader = DataLoader(TensorDataset(work.x, work.y), BATCH, sampler=Order(len(work.x)))
    started = time.process_time()
    for _ in range(epochs):
        task.train()
        for x, labels in loader:
            loss = task(x, labels)["loss"]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        validate(student, work.held_out)
    return student, time.process_time() - started


def torchdistill_box(work: Workload, epochs: int) -> tuple[nn.Module, float]:
    logging.disable(logging.INFO)
    boxes = importlib.import_module("torchdistill.core.distillation")
    wrapper = importlib.import_module("torchdistill.datasets.wrapper")
    importlib.import_module("torchdistill.losses.mid_level")
    student = copy.deepcopy(work.student)
    logits = {"module_path": ".", "io": "output"}
    criterion = {
        "key": "KDLoss",
        "kwargs": {
            **{
                f"{whose}_module_{key[-4:]}": value for whose in ("student", "teacher") for key, value in logits.items()
            },
            **{f"{whose}_module_io": "output" for whose in ("student", "teacher")},
            "temperature": TEMPERATURE,
            "alpha": 1 - ALPHA,
        },
    }
    config = {
        "num_epochs": epochs,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": RATE, "momentum": MOMENTUM}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": criterion, "weight": 1.0}}},
        },
    }
    box = boxes.get_distillation_box(
        copy.deepcopy(work.teacher), student, {}, config, torch.device("cpu"), None, False, 1
    )
    dataset = wrapper.BaseDatasetWrapper(TensorDataset(work.x, work.y))
    box.train_data_loader = DataLoader(dataset, BATCH, sampler=Order(len(work.x)))
    started = time.process_time()
    for epoch in range(epochs):
        box.pre_epoch_process(epoch=epoch)
        for x, labels, extra in box.train_data_loader:
            box.pre_forward_process()
            loss = box.forward_process(x, labels, extra)
            box.post_forward_process(loss=loss)
        validate(student, work.held_out)
        box.post_epoch_process(metrics=0.0)
    seconds = time.process_time() - started
    box.clean_modules()
    return student, seconds


def limbeck(work: Workload, epochs: int, teacher: Any = None, **settings: Any) -> tuple[nn.Module, float, float]:
    """The student, the seconds of its epochs and those of the whole call."""
    clock = Clock()
    started = time.process_time()
    fitted = lb.fit(
        work.student,
        work.data,
        teacher=work.teacher if teacher is None else teacher,
        recipe={"recipe": "kd", "alpha": ALPHA, "temperature": TEMPERATURE},
        epochs=epochs,
        batch_size=BATCH,
        optimiser="sgd",
        learning_rate=RATE,
        momentum=MOMENTUM,
        schedule="constant",
        selection="last",
        callbacks=[clock],
        **settings,
    )
    return fitted.model, clock.seconds, time.process_time() - started


class Clock:
    """Takes the time that the loop spends in its epochs, validation included."""

    def __init__(self) -> None:
        self.seconds = self._since = 0.0

    def on_start(self, run: object) -> None:
        """The first epoch begins."""
        self._since = time.process_time()

    def on_epoch(self, run: object) -> None:
        """An epoch is over."""
        self.seconds = time.process_time() - self._since

    def on_end(self, run: object) -> None:
        """Nothing."""


# The comparison -------------------------------------------------------------------------------------------------------


def installed(name: str) -> str | None:
    """The version of a framework, or None where it cannot be imported."""
    try:
        # Beside a CPU build of torch, torchvision imports only after these have been declared.
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        KEPT.append(library)
    except RuntimeError:
        pass  # already declared
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(f"{name} is left out: {error}", file=sys.stderr)
        return None
    return importlib.metadata.version(name)


KEPT: list[object] = []
"""A declaration lives as long as its library."""


def measure(work: Workload, runs: dict[str, Run], epochs: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Seconds an epoch of every line, from runs in turns, and how far the students are apart."""
    with torch.no_grad():
        stored = torch.cat([work.teacher(part) for part in work.x.split(1024)])
    store = Store.write(folder / work.name, lb.teachers.as_teacher(work.teacher), work.data.train, progress=False)
    seconds: dict[str, list[float]] = {}
    gaps: dict[str, float] = {}
    for _ in range(repeats):
        found: dict[str, tuple[nn.Module, float]] = {}
        found["by hand, stored"] = by_hand(work, epochs, stored)
        model, loop, whole = limbeck(work, epochs)
        found[OURS], found["limbeck with filling"] = (model, loop), (model, whole)
        found["limbeck from disk"] = limbeck(work, epochs, lb.teachers.as_teacher(store), teacher_memory=0)[:2]
        found["limbeck without store"] = limbeck(work, epochs, teacher_memory=0)[:2]
        found["by hand, live"] = by_hand(work, epochs, None)
        for name, run in runs.items():
            found[name] = run(work, epochs)
        reference = list(found["by hand, stored"][0].parameters())
        for name, (model, taken) in found.items():
            seconds.setdefault(name, []).append(taken / epochs)
            gaps[name] = max(
                float((a - b).detach().abs().max()) for a, b in zip(reference, model.parameters(), strict=True)
            )
    return {"seconds": seconds, "gaps": gaps}


def ratios(found: dict[str, Any], name: str, to: str) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the repeats' ratios."""
    seconds = found["seconds"]
    low, middle, high = statistics.quantiles([a / b for a, b in zip(seconds[name], seconds[to], strict=True)], n=4)
    return low, middle, high


def report(name: str, found: dict[str, Any]) -> list[str]:
    """Print a workload's table; the targets that are not met."""
    print(f"\n{name}: {SAMPLES[name]:,} samples, {len(batch_bounds(SAMPLES[name], BATCH))} steps an epoch\n")
    print("| line | ms an epoch | over limbeck | quartiles | largest difference of weights |")
    print("|---|---|---|---|---|")
    for line, taken in found["seconds"].items():
        low, middle, high = ratios(found, line, OURS)
        print(
            f"| {line} | {1000 * statistics.median(taken):.1f} | {middle:.2f} | {low:.2f} to {high:.2f} | "
            f"{found['gaps'][line]:.0e} |"
        )
    missed = [
        f"{name}: {line} is {ratios(found, line, OURS)[1]:.2f} times limbeck's time, the target is {TARGETS[name]:g}"
        for line in LIVE
        if line in found["seconds"] and ratios(found, line, OURS)[1] < TARGETS[name]
    ]
    over = ratios(found, OURS, "by hand, stored")
    print(f"\nlimbeck over by hand, stored: {over[1]:.3f} ({over[0]:.3f} to {over[2]:.3f})")
    if over[1] > OVERHEAD:
        missed.append(f"{name}: {over[1]:.3f} times the hand-written loop, the target is {OVERHEAD}")
    return missed


def show_ways(name: str) -> None:
    """Print the milliseconds of a batch in each way that `auto` tries, for a run long enough to try all."""
    work, long = workload(name), 10**7
    x, ids = work.x[:BATCH], torch.arange(BATCH)
    undecided: dict[str, bool | None] = dict.fromkeys(TEACHER_WAYS)
    found = choose_teacher_ways(undecided, ModuleTeacher(work.teacher), ("logits",), x, ids, long)
    for row in found["measured"]:
        on = " + ".join(way for way in TEACHER_WAYS if row["ways"].get(way)) or "as it is"
        print(f"| {name} teacher | {on} | {row.get('milliseconds', math.nan):.2f} | {row.get('note', '')} |")
    precision = choose_precision("auto", work.student, x, forward_mean)
    for row in precision["measured"]:
        on = " + ".join(way for way in ("autocast", "channels_last") if row[way]) or "as it is"
        print(f"| {name} student | {on} | {row['milliseconds']:.2f} | |")
    plain = {"autocast": False, "channels_last": False}
    taken = choose_compile("auto", work.student, frozenset({"student_logits"}), x, long, plain)
    measured = taken.get("student_measured", {})
    note = taken.get("student_note", f"{measured.get('seconds_to_compile', math.nan):.0f} s to compile")
    print(f"| {name} student | compile | {measured.get('compiled', math.nan):.2f} | {note} |", flush=True)


def main() -> int:
    """Print the tables; 1 where students differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=tuple(SAMPLES), default=list(SAMPLES))
    parser.add_argument("--output", type=Path, help="write every measured number as JSON")
    parser.add_argument("--show", type=Path, help="print the tables of such a file, and measure nothing")
    parser.add_argument("--ways", action="store_true", help="time the ways that auto tries, and nothing else")
    arguments = parser.parse_args()
    if arguments.ways:
        torch.set_num_threads(1)
        print("| network | way | ms a batch | |\n|---|---|---|---|")
        for name in arguments.only:
            show_ways(name)
        return 0
    if arguments.show:
        told = json.loads(arguments.show.read_text(encoding="utf-8"))
        print("\n".join(text for name, found in told["workloads"].items() for text in report(name, found)))
        return 0
    torch.set_num_threads(1)
    versions = {name: installed(name) for name in ("timm", "torchdistill")}
    others: dict[str, Run] = {"timm": timm_task, "torchdistill": torchdistill_box}
    runs: dict[str, Run] = {"DataLoader": data_loader}
    runs |= {name: run for name, run in others.items() if versions[name] is not None}
    results, missed, apart = {}, [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            found = measure(workload(name), runs, arguments.epochs, arguments.repeats, Path(folder))
            missed += report(name, found)
            apart += [f"{name}: {line} ends {gap:.1e} apart" for line, gap in found["gaps"].items() if gap > 1e-6]
            results[name] = found
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
    print(
        f"\none thread, torch {torch.__version__}{', ' if named else ''}{named}; {arguments.repeats} repeats in turns"
    )
    print("\n".join([*apart, *missed, *([] if missed else ["all targets are met"])]))
    if arguments.output:
        told = {"torch": torch.__version__, **versions, "epochs": arguments.epochs, "workloads": results}
        arguments.output.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return int(bool(apart))


if __name__ == "__main__":
    sys.exit(main())
