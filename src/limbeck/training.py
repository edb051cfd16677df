"""How long and how a student is trained, and every random choice as a function of the seed."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError, unknown_name
from limbeck.views import Views

OPTIMISERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "exponential", "step")
PRECISIONS = ("float32", "bfloat16", "auto")
COMPILES = ("auto",)
Parameters = Iterable[nn.Parameter]


@dataclass(frozen=True)
class Training:
    """How long and how a student is trained; the same for every recipe of a comparison.

    Args:
        epochs: passes over the training samples.
        batch_size: samples a step, over all devices.
        optimiser: `adam`, `adamw`, `sgd`, or a function from parameters to a `torch.optim.Optimizer`.
        learning_rate: at the start; ignored by an optimiser of the user's own.
        weight_decay: of the optimiser.
        momentum: of `sgd`.
        schedule: factor on the learning rate by epoch: `constant`, `cosine` to zero, `step` (a tenth at 1/2 and at
            3/4), `exponential` (.98 an epoch, as PLL's protocol), or a function of (epoch from 0, epochs).
        clip: largest norm of the gradient, or None.
        precision: `float32`; `bfloat16` autocasts the student; `auto` times both, and channels_last, for a moment at
            the start and keeps what pays (the choice is recorded and reused on resuming).
        compile: whether the student and the frozen teacher are compiled, and the teacher's batch normalisation folded
            into the layers before; `auto` tries each for a moment and keeps what pays within the run (recorded and
            reused likewise).
        teacher_memory: gigabytes that the teacher's outputs may take in memory. Larger ones are read from their store
            batch by batch, to the same student; a teacher without a store is then asked live in every step.
        views: how training images are augmented, as `limbeck.views.Views` or plain data; None leaves them as they are.
    """

    epochs: int = 10
    batch_size: int = 128
    optimiser: str | Callable[[Parameters], torch.optim.Optimizer] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: str | Callable[[int, int], float] = "cosine"
    clip: float | None = None
    precision: str | Mapping[str, Any] = "float32"
    compile: str | bool | Mapping[str, Any] = False
    teacher_memory: float = 2.0
    views: Views | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", Views.of(self.views))
        if self.epochs < 1 or self.batch_size < 1:
            raise ConfigError(
                f"training: epochs and batch_size must be at least 1, found {self.epochs} and {self.batch_size}"
            )
        if not self.learning_rate > 0 or not math.isfinite(self.learning_rate):
            raise ConfigError(f"training: learning_rate must be above 0, found {self.learning_rate}")
        if not self.teacher_memory >= 0:
            raise ConfigError(f"training: teacher_memory must not be below 0, found {self.teacher_memory}")
        for kind, value, known in (
            ("optimiser", self.optimiser, OPTIMISERS),
            ("schedule", self.schedule, SCHEDULES),
            ("precision", self.precision, PRECISIONS),
            ("compile", self.compile, COMPILES),
        ):
            if isinstance(value, str) and value not in known:
                raise ConfigError("training: " + unknown_name(kind, value, known))

    def make_optimiser(self, parameters: Sequence[nn.Parameter], sparse: bool = False) -> torch.optim.Optimizer:
        """The optimiser over these parameters; `sparse` says that some of their gradients are sparse tensors."""
        if not isinstance(self.optimiser, str):
            return self.optimiser(parameters)
        # One call for all parameters: several times as fast as one after the other where they are small.
        fused = not sparse and all(part.is_floating_point() for part in parameters)
        settings: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay, "fused": fused}
        if self.optimiser == "sgd":
            return torch.optim.SGD(parameters, momentum=self.momentum, **settings)
        kind = torch.optim.AdamW if self.optimiser == "adamw" else torch.optim.Adam
        return kind(parameters, **settings)

    def stepper(self, optimiser: torch.optim.Optimizer) -> Callable[[], Any]:
        """An optimiser's step; of our own without torch's hooks and profiling, which take longer than a small update.

        Args:
            optimiser: from `make_optimiser`.
        """
        bare = inspect.unwrap(type(optimiser).step)
        if callable(self.optimiser) or bare is type(optimiser).step:
            return optimiser.step
        return torch.no_grad()(partial(bare, optimiser))

    def factor(self, epoch: int) -> float:
        """The factor on the learning rate in this epoch (counted from 0)."""
        if not isinstance(self.schedule, str):
            return float(self.schedule(epoch, self.epochs))
        done = epoch / self.epochs
        if self.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        if self.schedule == "step":
            return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
        return 0.98**epoch if self.schedule == "exponential" else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a function of the user's own is named."""
        found = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "views"}
        if (views := Views.of(self.views)) is not None:
            found["views"] = views.to_dict()
        return {name: getattr(value, "__name__", value) if callable(value) else value for name, value in found.items()}


def derive_seed(seed: int, *names: object) -> int:
    """A seed of its own for each purpose, so that one more random number in one place moves nothing elsewhere."""
    text = json.dumps([seed, *map(str, names)]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def epoch_order(count: int, seed: int, epoch: int, weights: Tensor | None = None) -> Tensor:
    """The rows of an epoch `[count]`, a function of (seed, epoch): a permutation, or draws with `weights` `[count]`."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    if weights is None:
        return torch.randperm(count, generator=generator)
    # torch.multinomial takes at most 2^24 categories: a search in the cumulative weights takes any number.
    cumulative = weights.double().cumsum(0)
    draws = torch.rand(count, generator=generator, dtype=torch.float64) * cumulative[-1]
    return torch.searchsorted(cumulative, draws, right=True).clamp_(max=count - 1)


def batch_bounds(count: int, batch_size: int) -> list[tuple[int, int]]:
    """Where each batch begins and ends.

    A last batch of one sample, which batch normalisation cannot train on, joins the one before it.
    """
    starts = list(range(0, count, batch_size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))
