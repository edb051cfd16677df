"""Where and how a step runs: plain torch, or Lightning Fabric under `torchrun` on several devices; in which precision,
compiled or not."""

from __future__ import annotations

import atexit
import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck.errors import require

if TYPE_CHECKING:
    from limbeck.recipe import Objective

FLOAT32: dict[str, Any] = {"autocast": False, "channels_last": False}
WARM_UP, TIMED = 2, 5
WORTHWHILE = 0.95


class Engine:
    """One device: nothing between the loop and torch."""

    first = True

    def __init__(self, precision: Mapping[str, Any] = FLOAT32) -> None:
        self._nothing = nullcontext()
        self.compute_in(precision)

    def compute_in(self, precision: Mapping[str, Any]) -> None:
        """Set the precision of forward passes."""
        self._autocast = bool(precision["autocast"])

    def place(
        self, calls: nn.Module, objective: Objective, compiled: bool = False
    ) -> Callable[[Any], dict[str, Tensor]]:
        """The student as the loop calls it."""
        return Compiled(calls) if compiled else calls.forward

    def agree(self, choice: dict[str, Any]) -> dict[str, Any]:
        """What the first of several processes chose."""
        return choice

    def part(self, start: int, end: int) -> slice:
        """This device's part of the global batch of positions start..end-1 of an epoch."""
        return slice(start, end)

    def backward(self, root: Tensor, gradient: Tensor | None = None) -> None:
        """Gradients of a loss, or of what has this gradient itself."""
        root.backward(gradient)  # type: ignore[no-untyped-call]

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the student's forward pass."""
        return torch.autocast("cpu", torch.bfloat16) if self._autocast else self._nothing

    def gather(self, order: Tensor, bounds: Sequence[tuple[int, int]], losses: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and losses of an epoch over all devices, from this one's losses in the order it met them."""
        return order, losses


def engine_for() -> Engine:
    """Plain torch, or Fabric where `torchrun` started more than one process."""
    return FabricEngine() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Engine()


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class FabricEngine(Engine):
    """Several processes: the global batch is cut into equal strides, gradients are averaged by DDP."""

    def __init__(self, precision: Mapping[str, Any] = FLOAT32) -> None:
        super().__init__(precision)
        fabric_module = require("lightning_fabric", "distributed")
        world = int(os.environ["WORLD_SIZE"])
        nodes = max(1, world // int(os.environ.get("LOCAL_WORLD_SIZE", world)))
        self.fabric = fabric_module.Fabric(accelerator="cpu", devices=world // nodes, num_nodes=nodes, strategy="ddp")
        self.fabric.launch()
        # Left alone, the threads of the process group now and then abort the interpreter on its way out.
        atexit.unregister(_leave)
        atexit.register(_leave)
        self.rank, self.world = self.fabric.global_rank, self.fabric.world_size
        self.first = self.rank == 0
        self._objective: Objective | None = None
        self._beside: list[nn.Parameter] = []

    def place(
        self, calls: nn.Module, objective: Objective, compiled: bool = False
    ) -> Callable[[Any], dict[str, Tensor]]:
        """The student wrapped by DDP, not compiled; the objective's own parameters are averaged after each backward
        pass."""
        self._objective = objective
        self._beside = [part for part in objective.parameters() if part.requires_grad]
        return self.fabric.setup_module(calls)  # type: ignore[no-any-return]

    def agree(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Timings differ from process to process: the first one's choice is everybody's."""
        return self.fabric.broadcast(choice)  # type: ignore[no-any-return]

    def part(self, start: int, end: int) -> slice:
        """Every world-th position, so that the processes' parts differ by one sample at most."""
        mine = slice(start + self.rank, end, self.world)
        if self._objective is not None:
            # DDP averages over processes; the mean over the global batch weighs each process by its samples.
            self._objective.share = len(range(start + self.rank, end, self.world)) * self.world / (end - start)
        return mine

    def backward(self, root: Tensor, gradient: Tensor | None = None) -> None:
        """Gradients, averaged over processes."""
        self.fabric.backward(root, gradient)
        for parameter in self._beside:
            if parameter.grad is not None:
                parameter.grad = self.fabric.all_reduce(parameter.grad, reduce_op="mean")

    def gather(self, order: Tensor, bounds: Sequence[tuple[int, int]], losses: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the processes' parts, each of which is zero where another wrote."""
        mine = torch.cat([torch.arange(start + self.rank, end, self.world) for start, end in bounds])
        whole = losses.new_zeros(len(order)).index_copy_(0, mine, losses)
        return order, self.fabric.all_reduce(whole, reduce_op="sum")


def choose_precision(
    wanted: str | Mapping[str, Any], model: nn.Module, example: Any, step: Callable[[nn.Module, Any], Tensor]
) -> dict[str, Any]:
    """The precision of a run.

    Args:
        wanted: `float32`, `bfloat16`, `auto`, or a choice made before.
        model: the student; a copy of it is timed.
        example: a batch of inputs.
        step: from a model and inputs to a scalar to differentiate.

    Returns:
        {autocast, channels_last}, and for `auto` the milliseconds of each candidate.
    """
    if isinstance(wanted, Mapping):
        return dict(wanted)
    if wanted != "auto":
        return FLOAT32 | {"autocast": wanted == "bfloat16"}
    images = (
        isinstance(example, Tensor) and example.ndim == 4 and any(isinstance(m, nn.Conv2d) for m in model.modules())
    )
    candidates = [FLOAT32, FLOAT32 | {"autocast": True}]
    if images:
        candidates += [candidate | {"channels_last": True} for candidate in candidates]
    times = [_milliseconds(candidate, model, example, step) for candidate in candidates]
    fastest = min(range(len(candidates)), key=times.__getitem__)
    # A choice within the noise of the timing is not worth another arithmetic.
    chosen = fastest if times[fastest] < WORTHWHILE * times[0] else 0
    measured = [candidate | {"milliseconds": value} for candidate, value in zip(candidates, times, strict=True)]
    return candidates[chosen] | {"measured": measured}


def _milliseconds(
    candidate: Mapping[str, Any], model: nn.Module, example: Any, step: Callable[[nn.Module, Any], Tensor]
) -> float:
    engine, trial = Engine(candidate), copy.deepcopy(model).train()
    if candidate["channels_last"]:
        trial = trial.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        example = example.contiguous(memory_format=torch.channels_last)
    taken = []
    for _ in range(WARM_UP + TIMED):
        started = time.perf_counter()
        with engine.autocast():
            value = step(trial, example)
        engine.backward(value)
        taken.append(1000 * (time.perf_counter() - started))
    return min(taken[WARM_UP:])  # what else the machine does only ever adds


# Compilation ----------------------------------------------------------------------------------------------------------


class Compiled:
    """A module compiled at its first call, and called as it is where that fails (no C++ compiler, say).

    Attributes:
        failure: why it is not compiled, None while it is.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        # Every batch has one of two sizes: two exact programs are faster than one for all sizes.
        self._call: Callable[..., Any] = torch.compile(module, dynamic=False)
        self.failure: str | None = None

    def __call__(self, inputs: Any) -> Any:
        if self.failure is None:
            try:
                return self._call(inputs)
            except Exception as error:
                # A mistake of the module itself is raised again by the call below.
                self.failure = first_line(error)
        return self._module(inputs)


def first_line(error: Exception) -> str:
    """What an error says, short enough for a record."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
