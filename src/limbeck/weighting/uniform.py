"""The plain mean."""

from __future__ import annotations

from torch import Tensor, nn


class Uniform(nn.Module):
    """Every sample weighs the same: the mean of the losses.

    The only weighting that also takes a term over batch statistics (a scalar).
    """

    def forward(self, losses: Tensor) -> Tensor:
        """Mean of `losses`, `[B]` or a scalar."""
        return losses.mean()
