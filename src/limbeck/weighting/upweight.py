"""Samples that an early, biased model gets wrong weigh more.

Just train twice (JTT): Liu et al., ICML 2021, arXiv 2107.09044. Debiasing by teacher transplanting (DeTT): arXiv
2302.11187.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.errors import RecipeError
from limbeck.weighting.base import choose, per_sample

_REDUCTIONS = ("mean", "duplicates")


class Upweight(nn.Module):
    """A fixed weight for every training sample, larger in the error set E.

    Two published meanings of the same number, lambda:

    `reduction="mean"` (default; DeTT [text]): w = lambda in E, 1 elsewhere; loss = mean(w_i loss_i) over the batch.
    The loss grows with the share of E. lambda = 1 is the plain mean.

    `reduction="duplicates"` (JTT [code]): E is added to the training set lambda times more, so w = 1 + lambda in E,
    and the loss is the mean over that longer set: sum(w_i loss_i) / sum(w_i). The divisor is the whole training set's
    mean weight, not the batch's: over the batches of an epoch the mean comes out exactly, without a bias towards
    batches that hold few errors. lambda = 0 is the plain mean.

    An empty error set is the plain mean in both.

    Args:
        error_set: which training rows the biased model gets wrong, bool `[n]`.
        upweight: lambda.
        reduction: `"mean"` or `"duplicates"`.

    Raises:
        RecipeError: for an error set that is not a mask, a negative upweight or an unknown reduction.
    """

    weights: Tensor

    def __init__(self, error_set: Tensor, upweight: float = 20.0, reduction: str = "mean") -> None:
        super().__init__()
        if error_set.dtype != torch.bool or error_set.dim() != 1 or not len(error_set):
            raise RecipeError(
                f"error_set is {error_set.dtype} of shape {list(error_set.shape)}: "
                "expected one bool per training sample, [n]"
            )
        if upweight < 0:
            raise RecipeError(f"upweight={upweight} would reverse the loss of the error set: expected 0 or more")
        self.reduction = choose("reduction", reduction, _REDUCTIONS)
        duplicates = reduction == "duplicates"
        weights = torch.where(error_set, 1.0 + upweight if duplicates else float(upweight), 1.0)
        self.register_buffer("weights", weights / weights.double().mean().float() if duplicates else weights)

    def forward(self, losses: Tensor, rows: Tensor) -> Tensor:
        """The scalar loss from `losses` `[B]` and the samples' `rows` `[B]` in the training set."""
        return (self.weights.index_select(0, rows) * per_sample(losses, "upweight")).mean()
