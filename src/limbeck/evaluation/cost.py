"""What a model costs to run: parameters, size, latency, and energy where the machine tells.

torch is imported inside the functions, as this room is usable without it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.errors import ConfigError

if TYPE_CHECKING:
    from limbeck.data import Data

BATCHES = (1, 64)
POWERCAP = Path("/sys/class/powercap")
_WARM_UP = 3
_SECONDS = 1.0
"""How long a model is run for its energy: the counters move in steps of a millisecond or more."""


@dataclass(frozen=True)
class Latency:
    """How long a forward pass takes, in milliseconds, on one thread of this machine.

    Args:
        batch: samples a pass.
        median, low, high: over the passes: median and quartiles.
        passes: how many were timed.
    """

    batch: int
    median: float
    low: float
    high: float
    passes: int

    @property
    def samples_per_second(self) -> float:
        """At the median."""
        return 1000 * self.batch / self.median


@dataclass(frozen=True)
class Cost:
    """What one model costs.

    Args:
        parameters: numbers that were learned.
        size: bytes of weights and buffers, as they are stored.
        latency: one entry a batch size.
        joules: for a sample at the largest batch size: of the processor packages, over what they take when idle; None
            where the machine does not tell.
    """

    parameters: int
    size: int
    latency: tuple[Latency, ...]
    joules: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Cost:
        """The inverse of `to_dict`."""
        return cls(**{**values, "latency": tuple(Latency(**entry) for entry in values["latency"])})

    def against(self, teacher: Cost) -> dict[str, float | None]:
        """Teacher over student, for each quantity: 10 means a tenth of the teacher's. None where either is unknown.

        Raises:
            ConfigError: where the two were timed at other batch sizes.
        """
        theirs = {entry.batch: entry for entry in teacher.latency}
        if [entry.batch for entry in self.latency] != list(theirs):
            raise ConfigError(
                f"latency was measured at batches of {[entry.batch for entry in self.latency]} and {list(theirs)}: "
                "measure both at the same"
            )
        found: dict[str, float | None] = {
            "parameters": teacher.parameters / self.parameters if self.parameters else None,
            "size": teacher.size / self.size if self.size else None,
        }
        for entry in self.latency:
            found[f"latency_{entry.batch}"] = theirs[entry.batch].median / entry.median
        known = self.joules is not None and teacher.joules is not None and self.joules > 0
        found["joules"] = teacher.joules / self.joules if known else None  # type: ignore[operator]
        return found

    def __str__(self) -> str:
        lines = [f"{self.parameters:,} parameters, {self.size / 1e6:.3g} MB"]
        for entry in self.latency:
            rate = f"{entry.samples_per_second:,.0f} samples/s"
            spread = f"quartiles {entry.low:.3g} to {entry.high:.3g}"
            lines.append(f"batch {entry.batch}: {entry.median:.3g} ms ({spread}), {rate}")
        told = self.joules is not None
        lines.append(f"{1000 * (self.joules or 0):.3g} mJ a sample" if told else "energy: not told by this machine")
        return "\n".join(lines)


def measure_cost(
    model: Any, data: Data, *, batches: Sequence[int] = BATCHES, passes: int = 30, energy: bool = True
) -> Cost:
    """Count and time a model on real samples, in evaluation mode, on one thread.

    Args:
        model: a module, or what `fit` returned. It is left as it was.
        data: whose first samples are its inputs; where there are fewer than a batch they are repeated.
        batches: the batch sizes to time.
        passes: timed passes a batch size.
        energy: whether to run it for about two seconds longer to read the machine's energy counters, if it has any.

    Raises:
        ConfigError: for batch sizes or passes below 1.
    """
    import torch

    if not batches or min(batches) < 1 or passes < 1:
        raise ConfigError(f"batches {list(batches)} and passes {passes}: expected numbers of at least 1")
    module = model if isinstance(model, torch.nn.Module) else model.model
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured(module, data, tuple(batches), passes, energy)
    finally:
        torch.set_num_threads(before)


def _measured(module: Any, data: Data, batches: tuple[int, ...], passes: int, energy: bool) -> Cost:
    import torch

    from limbeck.modes import evaluating
    from limbeck.predict import InputReader, call_model

    reader = InputReader(data)
    parts = {id(part): part for part in (*module.parameters(), *module.buffers())}.values()
    latency, joules = [], None
    with evaluating(module), torch.inference_mode():
        for batch in batches:
            inputs = reader(torch.arange(batch) % len(data))
            latency.append(_timed(partial(call_model, module, inputs), batch, passes))
        if energy:
            largest = max(batches)
            inputs = reader(torch.arange(largest) % len(data))
            joules = _energy(partial(call_model, module, inputs), largest)
    return Cost(
        parameters=sum(part.numel() for part in module.parameters()),
        size=sum(part.numel() * part.element_size() for part in parts),
        latency=tuple(latency),
        joules=joules,
    )


def _timed(run: Callable[[], Any], batch: int, passes: int) -> Latency:
    for _ in range(_WARM_UP):
        run()
    taken = []
    for _ in range(passes):
        started = time.perf_counter()
        run()
        taken.append(1000 * (time.perf_counter() - started))
    low, high = np.quantile(taken, (0.25, 0.75))
    return Latency(batch, statistics.median(taken), float(low), float(high), passes)


# Energy ---------------------------------------------------------------------------------------------------------------


def _energy(run: Callable[[], Any], batch: int) -> float | None:
    """Joules a sample over idling, by RAPL counters; None without them, or where other work drowns the model's."""
    counters = packages()
    if not counters:
        return None
    resting = Meter(counters)
    time.sleep(_SECONDS)
    idle = resting.joules() / resting.seconds()
    working, samples = Meter(counters), 0
    while working.seconds() < _SECONDS:
        run()
        samples += batch
    used = working.joules() - idle * working.seconds()
    return used / samples if used > 0 else None


def packages(root: Path = POWERCAP) -> list[Path]:
    """The energy counters of the processor packages that may be read: RAPL zones called `package-…`."""
    found = []
    for zone in sorted(root.glob("*-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
            int((zone / "energy_uj").read_text())
        except (OSError, ValueError):  # readable by root alone on many machines
            continue
        # Others, such as core and dram, are parts of a package or overlap with it.
        if name.startswith("package"):
            found.append(zone)
    return found


class Meter:
    """Joules and seconds since it was made; a counter that wraps round is taken to have done so once.

    Args:
        zones: what `packages` found.
    """

    def __init__(self, zones: Sequence[Path]) -> None:
        self._zones = list(zones)
        self._before = [_microjoules(zone, "energy_uj") for zone in self._zones]
        self._started = time.perf_counter()

    def seconds(self) -> float:
        """Since it was made."""
        return time.perf_counter() - self._started

    def joules(self) -> float:
        """Of all packages together, since it was made."""
        total = 0
        for zone, before in zip(self._zones, self._before, strict=True):
            used = _microjoules(zone, "energy_uj") - before
            total += used if used >= 0 else used + _microjoules(zone, "max_energy_range_uj")
        return total / 1e6


def _microjoules(zone: Path, name: str) -> int:
    return int((zone / name).read_text())
