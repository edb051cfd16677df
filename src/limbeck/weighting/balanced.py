"""Every group, or every class, weighs the same: by the loss, or by how often its samples are drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.weighting.base import GroupWeighting, checked_counts, choose

_ABSENT = ("skip", "zero", "expected")
_SAMPLING = ("uniform", "group_balanced", "class_balanced")


class _Balanced(GroupWeighting):
    share: Tensor

    def __init__(self, size: int, counts: Tensor | None, absent: str, counts_name: str) -> None:
        super().__init__(size)
        self.absent = choose("absent", absent, _ABSENT)
        counts = checked_counts(counts, size, counts_name)
        if counts is None and absent == "expected":
            raise RecipeError(f"absent='expected' weighs by training counts: give {counts_name}")
        counts = torch.ones(size) if counts is None else counts
        inhabited = counts > 0
        share = counts.sum() / (inhabited.sum() * counts.clamp(min=1))
        self.register_buffer("share", torch.where(inhabited, share, 0.0))
        self.inhabited = int(inhabited.sum())

    def sample_weights(self, sums: Tensor, counts: Tensor) -> Tensor:
        if self.absent == "expected":
            return self.share / counts.sum().clamp(min=1)
        groups = self.inhabited if self.absent == "zero" else (counts > 0).sum().clamp(min=1)
        return 1 / (groups * counts.clamp(min=1))


class GroupBalanced(_Balanced):
    """The mean over groups of the group's mean loss.

    A sample of unknown group (-1) is left out; a batch with no known group has the loss 0 and no gradient.

    Args:
        groups: number of groups m.
        group_counts: training samples of each group `[m]`; groups with none do not count towards m.
        absent: what a group that the batch does not hold stands for.
            `"skip"` (default): the mean is over the groups present.
            `"zero"`: it enters with loss 0, so the sum is divided by m: group DRO with a step of 0.
            `"expected"`: no batch means; a sample weighs n/(m n_g), whose expectation over shuffled batches is the
            balanced loss of the whole training set, however rarely a group appears. Needs `group_counts`.

    Raises:
        RecipeError: for an unknown `absent`, or counts that do not fit.
    """

    def __init__(self, groups: int, group_counts: Tensor | None = None, absent: str = "skip") -> None:
        super().__init__(groups, group_counts, absent, "group_counts")


class ClassBalanced(_Balanced):
    """The mean over classes of the class's mean loss: `GroupBalanced` with the given label as the group.

    Args:
        classes: number of classes.
        class_counts: training samples of each class `[C]`.
        absent: as in `GroupBalanced`.

    Raises:
        RecipeError: for an unknown `absent`, or counts that do not fit.
    """

    def __init__(self, classes: int, class_counts: Tensor | None = None, absent: str = "skip") -> None:
        super().__init__(classes, class_counts, absent, "class_counts")

    def forward(self, losses: Tensor, labels: Tensor) -> Tensor:
        """The scalar loss from `losses` `[B]` and `labels` `[B]`."""
        return super().forward(losses, labels)


def sampling_weights(kind: str, index: Tensor) -> Tensor:
    """Weights for drawing training samples with replacement, float64 `[n]`.

    `"uniform"` gives 1; `"group_balanced"` and `"class_balanced"` give n/n_g of the sample's group or class, so that
    each is drawn equally often, as group DRO samples (Sagawa et al. 2020, arXiv 1911.08731 [code]). A sample of
    unknown group (-1) gets 0 and is never drawn; n counts the known ones.

    Args:
        kind: one of the three names.
        index: group or class of each training sample, int64 `[n]`.

    Raises:
        RecipeError: for an unknown kind, or where no sample has a known group.
    """
    choose("sampling", kind, _SAMPLING)
    if kind == "uniform":
        return torch.ones(len(index), dtype=torch.float64)
    known = index >= 0
    if not bool(known.any()):
        raise RecipeError(f"{kind} sampling needs groups (or classes), and all {len(index)} samples have none")
    counts = torch.bincount(index[known])
    weights = known.sum() / counts.clamp(min=1).double()
    return torch.where(known, weights[index.clamp(min=0)], 0.0)
