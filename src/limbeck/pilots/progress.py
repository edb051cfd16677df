"""What a person sees while a pilot runs."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

from limbeck.callbacks import Callback, Progress


class Watcher(Protocol):
    """Told of what a pilot does; it never changes what is computed."""

    callbacks: Sequence[Callback]

    def begin(self, name: str, arms: Sequence[str], seeds: int) -> None:
        """The pilot starts."""

    def cell(self, label: str, seed: int) -> None:
        """A cell starts."""

    def done(self, label: str, seed: int, record: dict[str, Any]) -> None:
        """A cell is complete."""

    def end(self) -> None:
        """All cells are complete."""


class Quiet:
    """Says nothing."""

    callbacks: Sequence[Callback] = ()

    def begin(self, name: str, arms: Sequence[str], seeds: int) -> None:
        """Nothing."""

    def cell(self, label: str, seed: int) -> None:
        """Nothing."""

    def done(self, label: str, seed: int, record: dict[str, Any]) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class Lines:
    """One line a cell on standard error, with the time left; on a terminal also a bar within the cell."""

    def __init__(self) -> None:
        self.callbacks: Sequence[Callback] = (Progress(),)
        self._total = self._count = 0
        self._started = time.perf_counter()
        self._scores: dict[str, list[float]] = {}

    def begin(self, name: str, arms: Sequence[str], seeds: int) -> None:
        """Say how much there is to do."""
        self._total, self._count, self._started = len(arms) * seeds, 0, time.perf_counter()
        self._scores = {}
        print(f"{name}: {len(arms)} models × {seeds} seeds = {self._total} trainings", file=sys.stderr)

    def cell(self, label: str, seed: int) -> None:
        """Nothing: the bar shows it."""

    def done(self, label: str, seed: int, record: dict[str, Any]) -> None:
        """One line: what came out on validation, so that nobody is tempted to select on the test part."""
        self._count += 1
        passed = time.perf_counter() - self._started
        left = passed / self._count * (self._total - self._count)
        found = record["validation"]
        text = f"validation average {100 * found['average']:.1f} %"
        if found.get("worst_group") is not None:
            text += f", worst group {100 * found['worst_group']:.1f} %"
        print(
            f"[{self._count:>3}/{self._total}] {label:<28} seed {seed}  {text}  ({record['seconds']:.1f} s, "
            f"{left:.0f} s left{self._best(label, found)})",
            file=sys.stderr,
            flush=True,
        )

    def _best(self, label: str, found: dict[str, Any]) -> str:
        """Which student is best so far, by its mean over the seeds that are done; of several pilots, in this one."""
        if label.endswith("(teacher)"):
            return ""
        score = found.get("worst_group")
        self._scores.setdefault(label, []).append(found["average"] if score is None else score)
        place, _, _ = label.rpartition(": ")
        beside = [other for other in self._scores if other.rpartition(": ")[0] == place]
        best = max(beside, key=lambda other: statistics.fmean(self._scores[other]))
        return f", best so far: {best.removeprefix(f'{place}: ')}"

    def end(self) -> None:
        """Nothing: the result follows."""
