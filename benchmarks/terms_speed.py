"""How long the terms take and how much memory they need, against the usual way of writing them.

    python benchmarks/terms_speed.py [--repeats 15] [--memory] [--output FILE.json]
    python benchmarks/terms_speed.py --show FILE.json

The usual way is what the papers' own code does: `log_softmax`, `softmax`, `kl_div`, boolean masks, and autograd for the
rest. BTKD is `rectified_bias`, half-way through training; PLL is `partial_label` with its two-hot targets. Each round
runs both, one after the other, so that whatever else the machine does meets both; a row gives the median of the rounds'
ratios and their quartiles. Memory is the peak of a process of its own, less what the inputs take.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck import terms

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
SHAPES = ((128, 10), (512, 100), (256, 1000), (1024, 32000))
TAU = 4.0


def usual_kl(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    log_student, p_teacher = F.log_softmax(student / TAU, dim=1), F.softmax(teacher / TAU, dim=1)
    return F.kl_div(log_student, p_teacher, reduction="none").sum(1) * TAU**2


def usual_coin(logits: Tensor, index: Tensor) -> Tensor:
    p = F.softmax(logits / TAU, dim=1)
    mask = torch.zeros_like(p).scatter_(1, index.unsqueeze(1), 1).bool()
    return torch.cat([(p * mask).sum(1, keepdim=True), (p * ~mask).sum(1, keepdim=True)], dim=1)


def usual_masked(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    log_student = F.log_softmax((student / TAU).masked_fill(mask, -1e9), dim=1)
    p_teacher = F.softmax((teacher / TAU).masked_fill(mask, -1e9), dim=1)
    return F.kl_div(log_student, p_teacher, reduction="none").sum(1) * TAU**2


def usual_decoupled(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    target = F.kl_div(torch.log(usual_coin(student, labels)), usual_coin(teacher, labels), reduction="none").sum(1)
    mask = torch.zeros_like(student).scatter_(1, labels.unsqueeze(1), 1).bool()
    return TAU**2 * target + 8.0 * usual_masked(student, teacher, mask)


def usual_refined(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    wished = usual_coin(teacher, teacher.argmax(1))
    confidence = F.kl_div(torch.log(usual_coin(student, labels)), wished, reduction="none").sum(1)
    mask = teacher >= teacher.gather(1, labels.unsqueeze(1))
    return TAU**2 * confidence + 8.0 * usual_masked(student, teacher, mask)


def usual_rectified(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    p, first = F.softmax(teacher / TAU, dim=1), teacher.argmax(1)
    wrong = first != labels
    rows = torch.arange(len(labels))[wrong]
    own, top = p[rows, labels[wrong]], p[rows, first[wrong]]
    share = (own + top) / (own + top + 1)
    repaired = p.clone()
    repaired[rows, labels[wrong]] = (own + 1) * share
    repaired[rows, first[wrong]] = top * share
    losses = F.kl_div(F.log_softmax(student / TAU, dim=1), repaired, reduction="none").sum(1) * TAU**2
    weight = torch.where(wrong, 0.5 / wrong.float().mean(), 0.5 / (~wrong).float().mean())
    return losses * weight


def usual_partial(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    candidates = F.softmax(teacher, dim=1).topk(2, dim=1).indices
    targets = torch.zeros_like(teacher).scatter_(1, candidates, 0.5)
    p = F.softmax(student, dim=1)
    return (targets * (1 - (p + 1e-12) ** 0.7) / 0.7).sum(1)


PAIRS: dict[str, tuple[Loss, Loss]] = {
    "kl_divergence": (usual_kl, lambda s, t, y: terms.kl_divergence(s, t)),
    "decoupled": (usual_decoupled, terms.decoupled),
    "refined_logits": (usual_refined, terms.refined_logits),
    "rectified_bias": (usual_rectified, lambda s, t, y: terms.rectified_bias(s, t, y, 0.5)),
    "partial_label": (usual_partial, lambda s, t, y: terms.partial_label(s, t)),
}


def inputs(samples: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    # In place, so that the peak memory of making the inputs is that of the inputs.
    student = torch.randn(samples, classes, generator=generator).mul_(3).requires_grad_()
    teacher = torch.randn(samples, classes, generator=generator).mul_(5)
    right = torch.rand(samples, generator=generator) < 0.7
    labels = torch.where(right, teacher.argmax(1), torch.randint(classes, (samples,), generator=generator))
    return student, teacher, labels


def step(loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor) -> float:
    student.grad = None
    start = time.perf_counter()
    loss(student, teacher, labels).mean().backward()
    return time.perf_counter() - start


def time_pair(name: str, shape: tuple[int, int], repeats: int) -> dict[str, object]:
    values = inputs(*shape)
    usual, ours = PAIRS[name]
    for loss in (usual, ours):
        step(loss, *values)
    torch.testing.assert_close(ours(*values), usual(*values), rtol=1e-3, atol=1e-3)
    rounds = [(step(usual, *values), step(ours, *values)) for _ in range(repeats)]
    low, _, high = statistics.quantiles([a / b for a, b in rounds], n=4)
    return {
        "term": name,
        "shape": list(shape),
        "usual_ms": 1e3 * statistics.median(a for a, _ in rounds),
        "ours_ms": 1e3 * statistics.median(b for _, b in rounds),
        "speedup": statistics.median(a / b for a, b in rounds),
        "speedup_quartiles": [low, high],
    }


def peak_megabytes() -> float:
    """The most this process has had in memory (Linux). Not `ru_maxrss`, which a child takes over from its parent."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def measure_memory(name: str, which: str, shape: tuple[int, int]) -> float:
    """Peak of a fresh process above its inputs, in MB."""
    command = [sys.executable, str(Path(__file__)), "--peak", name, which, str(shape[0]), str(shape[1])]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return float(found.stdout)


def print_peak(name: str, which: str, samples: int, classes: int) -> None:
    values = inputs(samples, classes)
    loss = PAIRS[name][which == "ours"]
    step(loss, *inputs(4, 16))
    before = peak_megabytes()
    step(loss, *values)
    print(peak_megabytes() - before)


def show(rows: list[dict[str, Any]]) -> None:
    """A table: the ratio of times with its quartiles, and the peaks where they were measured."""
    print("| term | shape | usual, ms | ours, ms | usual over ours | quartiles | usual, MB | ours, MB |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        low, high = row["speedup_quartiles"]
        peaks = f"{row['usual_mb']:.0f} | {row['ours_mb']:.0f}" if "usual_mb" in row else " | "
        print(
            f"| {row['term']} | {row['shape']} | {row['usual_ms']:.2f} | {row['ours_ms']:.2f} | {row['speedup']:.2f} | "
            f"{low:.2f} to {high:.2f} | {peaks} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="rounds per row; a tenth of it for the largest shape")
    parser.add_argument(
        "--memory", action="store_true", help="measure the peak memory of the two largest shapes as well"
    )
    parser.add_argument("--output", type=Path, help="write the rows as JSON")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--show", type=Path, help="print the table of such a file, and measure nothing")
    arguments = parser.parse_args()
    if arguments.show:
        show(json.loads(arguments.show.read_text(encoding="utf-8"))["rows"])
        return
    torch.set_num_threads(1)
    if arguments.peak:
        name, which, samples, classes = arguments.peak
        print_peak(name, which, int(samples), int(classes))
        return
    rows = []
    for shape in SHAPES:
        repeats = max(3, arguments.repeats if shape[0] * shape[1] < 1 << 20 else arguments.repeats // 4)
        for name in PAIRS:
            row = time_pair(name, shape, repeats)
            text = f"{name:16} {shape!s:14} {row['usual_ms']:9.3f} ms {row['ours_ms']:9.3f} ms  {row['speedup']:5.2f}x"
            if arguments.memory and shape[0] * shape[1] >= 1 << 18:
                usual, ours = (measure_memory(name, which, shape) for which in ("usual", "ours"))
                row |= {"usual_mb": usual, "ours_mb": ours, "memory_ratio": usual / max(ours, 1e-3)}
                text += f"  {usual:7.0f} MB {ours:7.0f} MB  {usual / max(ours, 1e-3):5.2f}x"
            rows.append(row)
            print(text, flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps({"torch": torch.__version__, "threads": 1, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
