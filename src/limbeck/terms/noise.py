"""Losses that bear wrong labels: a bounded cross entropy, and a memory of what was learned before the noise was.

Per-sample losses `[B]`, computed in float32 (float64 logits stay float64).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.errors import RecipeError
from limbeck.terms._numerics import check, precise
from limbeck.terms.basic import cross_entropy


def bounded(log_probability: Tensor, q: float) -> Tensor:
    """(1 - p^q)/q from log p: between cross entropy (q → 0) and 1 - p (q = 1)."""
    if not 0.0 < q <= 1.0:
        raise RecipeError(f"q: found {q!r}, expected above 0 and up to 1 (cross entropy is the limit at 0)")
    return torch.expm1(log_probability * q) / -q


def gce(student_logits: Tensor, labels: Tensor, q: float = 0.7) -> Tensor:
    """Generalised cross entropy, (1 - p_y^q)/q: never above 1/q, so a wrong label cannot dominate.

    Source: Zhang & Sabuncu, NeurIPS 2018, arXiv 1805.07836, equation 6.

    Args:
        student_logits: `[B, C]`.
        labels: `[B]`.
        q: in (0, 1].

    Returns:
        `[B]`, in 0..1/q.
    """
    return bounded(-cross_entropy(student_logits, labels), q)


class ELR(nn.Module):
    """Early-learning regularisation: strength·log(1 - ⟨t, p⟩), t a running mean of the student's own output.

    Goes beside cross entropy. Each call in training mode first moves t ← momentum·t + (1-momentum)·p (renormalised p,
    clamped as released to [1e-4, 1-1e-4]); in evaluation mode t is only read.
    Source: Liu et al., Early-Learning
    Regularization Prevents Memorization of Noisy Labels, NeurIPS 2020, arXiv 2007.00151, eq. 6.

    Args:
        samples: number of training samples; t is a buffer `[samples, classes]`.
        classes: C.
        strength: λ.
        momentum: β.
    """

    targets: Tensor

    def __init__(self, samples: int, classes: int, strength: float = 3.0, momentum: float = 0.7) -> None:
        super().__init__()
        if not 0.0 <= momentum < 1.0:
            raise RecipeError(f"momentum: found {momentum!r}, expected from 0 to below 1")
        self.strength, self.momentum = strength, momentum
        self.register_buffer("targets", torch.zeros(samples, classes))

    def forward(self, student_logits: Tensor, rows: Tensor) -> Tensor:
        """The regulariser `[B]` (never positive) for `student_logits` `[B, C]` of the training samples `rows` `[B]`."""
        check(student_logits)
        p = torch.softmax(precise(student_logits), 1).clamp(1e-4, 1.0 - 1e-4)
        target = self.targets[rows]
        if self.training:
            with torch.no_grad():
                own = p / p.sum(1, keepdim=True)
                target = torch.lerp(own.to(target.dtype), target, self.momentum)
                self.targets.index_copy_(0, rows, target)
        return self.strength * torch.log1p(-(target.to(p.dtype) * p).sum(1))
