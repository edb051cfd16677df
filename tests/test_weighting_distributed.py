"""Two processes at half the batch each against one process at the whole batch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from limbeck.errors import RecipeError
from limbeck.weighting import GroupBalanced, GroupDRO, LfF

RANKS, STEPS, GROUPS, BATCH = 2, 4, 5, 12
COUNTS = torch.tensor([40, 30, 20, 9, 1])


def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """A global batch whose halves hold different groups; group 4 only ever in one half, some samples of none."""
    generator = torch.Generator().manual_seed(step)
    groups = torch.cat((torch.randint(-1, 3, (BATCH // 2,), generator=generator), torch.tensor([2, 3, 3, 4, -1, 4])))
    return torch.randn(BATCH, 3, generator=generator), torch.randn(BATCH, generator=generator), groups


def weightings() -> dict[str, nn.Module]:
    return {
        "dro": GroupDRO(GROUPS, 0.3, 1.0, COUNTS),
        "skip": GroupBalanced(GROUPS),
        "expected": GroupBalanced(GROUPS, COUNTS, absent="expected"),
    }


def train(part: slice, distributed: bool) -> dict[str, Tensor]:
    """A few steps of a linear regression under each weighting; losses, final weights and q."""
    found = {}
    for name, weighting in weightings().items():
        torch.manual_seed(0)
        linear = nn.Linear(3, 1)
        model = DistributedDataParallel(linear) if distributed else linear
        optimiser = torch.optim.SGD(linear.parameters(), lr=0.1)
        values = []
        for step in range(STEPS):
            x, y, groups = (whole[part] for whole in batch(step))
            loss = weighting((model(x).squeeze(1) - y) ** 2, groups)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            values.append(loss.detach())
        found |= {f"{name}.loss": torch.stack(values), f"{name}.weight": linear.weight.detach().clone()}
        if isinstance(weighting, GroupDRO):
            found["q"] = weighting.q
    return found


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    try:
        half = BATCH // RANKS
        found = train(slice(rank * half, (rank + 1) * half), distributed=True)
        with pytest.raises(RecipeError, match="use one process"):
            LfF(nn.Linear(3, 2), 4, 2, torch.zeros(4, dtype=torch.long))
        save_file(found, Path(folder) / f"{rank}.safetensors")
        dist.barrier()
    finally:
        dist.destroy_process_group()
    # What was found is on disk. A thread of gloo that still lets go of a tensor while the interpreter shuts down, wants
    # a lock that is gone, and aborts the process: seldom, and nothing of what is tested here.
    os._exit(0)


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does(tmp_path: Path) -> None:
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=RANKS)
    expected = train(slice(0, BATCH), distributed=False)
    for rank in range(RANKS):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert set(found) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
