"""Other ways to compare logits: normalised, transformed, at a learned temperature, by correlation.

Computed in float32 (float64 logits stay float64); a teacher's logits never receive a gradient. All are per sample `[B]`
but `dist`, which correlates over the batch and returns one number.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import RecipeError
from limbeck.terms._numerics import LOWEST, RowLoss, check, column, divergence, fixed, positive, precise, row_term


def nkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    gamma: float = 1.5,
) -> Tensor:
    """Normalised distillation: -T_y·log S_y - γτ²·Σ_{i≠y} N(T)_i·log N(S)_i, N the softmax at τ over all but the label.

    T_y and S_y are taken at temperature 1. Goes beside cross entropy with weight 1. A cross entropy, so not 0 at a
    match. At two classes the sum is 0 and only the first part is left.
    Source: Yang et al., From Knowledge Distillation
    to Self-Knowledge Distillation, ICCV 2023, arXiv 2303.13005, as released.

    Args:
        student_logits: `[B, C]`.
        teacher_logits: `[B, C]`.
        labels: `[B]`.
        temperature: τ above 0.
        gamma: γ.

    Returns:
        `[B]`, in nats.
    """
    check(student_logits, teacher_logits, labels)
    positive(temperature=temperature)
    student, label = precise(student_logits), column(labels)
    teacher = fixed(teacher_logits, student)
    at_label = torch.softmax(teacher, 1).gather(1, label) * torch.log_softmax(student, 1).gather(1, label)
    others_teacher = torch.softmax((teacher / temperature).scatter_(1, label, -torch.inf), 1)
    scaled = student / temperature
    others_student = scaled.scatter(1, label, -torch.inf).logsumexp(1)
    relations = others_student - (others_teacher * scaled).sum(1)
    return gamma * temperature**2 * relations - at_label.squeeze(1)


@row_term
def ttm(student_logits: Tensor, teacher_logits: Tensor, gamma: float = 0.25) -> RowLoss:
    """Transformed teacher matching: KL(p^γ/Σp^γ ‖ p^S), the student at temperature 1.

    Beside cross entropy with a weight β. γ is one over KD's temperature, which the student does without; there is no
    factor τ².
    Source: Zheng & Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024, arXiv 2402.11148, as
    released.

    Args:
        student_logits: `[B, C]`.
        teacher_logits: `[B, C]`.
        gamma: γ above 0.

    Returns:
        `[B]`, in nats.
    """
    check(student_logits, teacher_logits)
    positive(gamma=gamma)
    return divergence(teacher_logits, 1.0, 1.0 / gamma)


def wttm(student_logits: Tensor, teacher_logits: Tensor, gamma: float = 0.25) -> Tensor:
    """Weighted TTM: each sample's `ttm` times Σ_i p_i^γ, from 1 to C^(1-γ), larger the less sure the teacher is.

    Source, arguments and result as `ttm`.
    """
    losses = ttm(student_logits, teacher_logits, gamma)
    logs = torch.log_softmax(fixed(teacher_logits, losses), 1)
    return losses * (logs * gamma).logsumexp(1).exp()


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 4.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """DIST: τ²·(β·inter + γ·intra), inter = 1 - Pearson's correlation of each row of p, intra = that of each column.

    **One number for the batch**, so no weighting can listen to single samples; goes with weight 2 beside cross entropy.
    A batch of one has no columns to correlate, and rows of two classes correlate to ±1: intra, or inter, has no
    gradient there.
    Source: Huang et al., Knowledge Distillation from a Stronger Teacher, NeurIPS 2022, arXiv
    2205.10536, as released.

    Args:
        student_logits: `[B, C]`.
        teacher_logits: `[B, C]`.
        temperature: τ above 0.
        beta: weight of the relations among classes.
        gamma: weight of the relations among samples.

    Returns:
        A scalar.
    """
    check(student_logits, teacher_logits)
    positive(temperature=temperature)
    student = torch.softmax(precise(student_logits) / temperature, 1)
    teacher = torch.softmax(fixed(teacher_logits, student) / temperature, 1)
    inter = 1.0 - _correlation(student, teacher, 1).mean()
    intra = 1.0 - _correlation(student, teacher, 0).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def _correlation(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along a dimension; 0 where either is constant."""
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    length: Tensor = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    return (a * b).sum(dim) / (length + 1e-8)


class _Reverse(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        return outer[0] * ctx.factor, None


class CTKD(nn.Module):
    """Curriculum temperature: KD whose temperature τ = start + span·σ(θ) is learned *against* the student.

    θ starts at 1. Its gradient is multiplied by a factor that falls from 0 to -1 by a cosine over the first `ramp`
    epochs, so the optimiser that lowers the student's loss raises it in θ: tasks become harder. Both sides' softmax
    depend on τ, and the factor τ² is included.
    Source: Li et al., Curriculum Temperature for Knowledge Distillation,
    AAAI 2023, arXiv 2211.16231, as released (the global temperature; the epoch counted from 1 there).

    Args:
        start: the lowest temperature.
        span: how far above it the temperature can rise.
        ramp: epochs until the gradient is fully reversed.
    """

    def __init__(self, start: float = 1.0, span: float = 20.0, ramp: int = 10) -> None:
        super().__init__()
        positive(start=start, ramp=ramp)
        if span < 0:
            raise RecipeError(f"span: found {span!r}, expected 0 or more")
        self.start, self.span, self.ramp = start, span, ramp
        self.theta = nn.Parameter(torch.ones(()))

    @property
    def temperature(self) -> Tensor:
        """The current τ."""
        return self.start + self.span * torch.sigmoid(self.theta)

    def factor(self, epoch: int) -> float:
        """What θ's gradient is multiplied by in an epoch (counted from 0)."""
        return (math.cos(math.pi * min(epoch + 1, self.ramp) / self.ramp) - 1.0) / 2.0

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, epoch: int) -> Tensor:
        """τ²·KL `[B]` for logits `[B, C]` in an epoch counted from 0."""
        check(student_logits, teacher_logits)
        theta: Tensor = _Reverse.apply(self.theta, self.factor(epoch))  # type: ignore[no-untyped-call]
        student = precise(student_logits)
        temperature = (self.start + self.span * torch.sigmoid(theta)).to(student.dtype)
        log_student = torch.log_softmax(student / temperature, 1)
        log_teacher = torch.log_softmax(fixed(teacher_logits, student) / temperature, 1).clamp(min=LOWEST)
        return temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(1)
