"""Mixing a sample with a partner, and what becomes of its target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from limbeck.errors import ConfigError, unknown_name
from limbeck.views.draws import Draws
from limbeck.views.steps import Augmentation, _is_number, _is_share, box, select

TEACHERS = ("recomputed", "mixed")


@dataclass(frozen=True)
class Mixing(Augmentation):
    """What mixup and cutmix share.

    The partner is a training sample, a function of (seed, id, view), each as likely. The loss of a mixed sample is
    share·loss(its own target) + (1-share)·loss(the partner's target).

    Args:
        alpha: the share of the sample itself is drawn from Beta(alpha, alpha).
        probability: the share of samples mixed.
        teacher: `recomputed`: the teacher says what it makes of the mixed pixels, as the student sees them; `mixed`:
            it is asked about the sample and about its partner, each before mixing, and the losses are mixed like those
            of the labels.
    """

    mixes: ClassVar[bool] = True
    alpha: float = 1.0
    probability: float = 1.0
    teacher: str = "recomputed"

    def __post_init__(self) -> None:
        self._require(_is_number(self.alpha) and self.alpha > 0, f"alpha is {self.alpha!r}, expected a number above 0")
        self._require(_is_share(self.probability), f"probability is {self.probability!r}, expected a number in 0..1")
        if self.teacher not in TEACHERS:
            raise ConfigError(f"augment: {self.name}: " + unknown_name("teacher", self.teacher, TEACHERS))

    def weights(self, draws: Draws, height: int, width: int) -> tuple[Tensor, Tensor]:
        """How much of each pixel is the sample's own.

        Returns:
            Weights `[B, 1, H, W]` or `[B, 1, 1, 1]`, float32 or, where every pixel is of one of the two, bool; and the
            share of the sample itself `[B]`, float32.
        """
        raise TypeError(f"{type(self).__name__} does not say how it mixes")


@dataclass(frozen=True)
class Mixup(Mixing):
    """A weighted mean of two images (Zhang et al., ICLR 2018, arXiv 1710.09412); one share a sample, not a batch."""

    name: ClassVar[str] = "mixup"
    alpha: float = 0.2

    def weights(self, draws: Draws, height: int, width: int) -> tuple[Tensor, Tensor]:
        share = draws.beta("share", self.alpha).float()
        share = share.masked_fill(~draws.chosen(self.probability), 1.0)
        return share[:, None, None, None], share


@dataclass(frozen=True)
class CutMix(Mixing):
    """A rectangle of the partner in the image (Yun et al., ICCV 2019, arXiv 1905.04899).

    The rectangle has the image's proportions; where it reaches over the edge, the share is that of what is seen.
    """

    name: ClassVar[str] = "cutmix"

    def weights(self, draws: Draws, height: int, width: int) -> tuple[Tensor, Tensor]:
        side = (1 - draws.beta("share", self.alpha)).float().sqrt()
        side = side.masked_fill(~draws.chosen(self.probability), 0.0)
        tall, wide = (side * height).long(), (side * width).long()
        top = draws.integers("row", height) - tall // 2
        left = draws.integers("column", width) - wide // 2
        own = ~box(top, top + tall, left, left + wide, height, width)
        return own[:, None], own.sum((1, 2)).float() / (height * width)


def blend(x: Tensor, other: Tensor, weights: Tensor) -> Tensor:
    """Images of which `weights` are of `x` and the rest of `other`, a new tensor; float where weights are."""
    if weights.dtype is torch.bool:
        return select(weights, x, other)
    # Two products and a sum, not one fused operation, whose rounding depends on where in memory a number lies.
    return (x * weights).add_(other * (1 - weights))
