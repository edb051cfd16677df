"""Learning from a distribution over classes instead of one label, whoever made it.

Used by arbitration (`limbeck.arbitration`), whose posterior over the true class becomes the target of every training
sample. With a one-hot target these are the losses with that label.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import DataError, RecipeError
from limbeck.terms._numerics import check, fixed, precise
from limbeck.terms.refined import refined_logits


def soft_cross_entropy(student_logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy with a target distribution, -Σ_k t_k log p_k.

    A row of targets need not sum to 1: its sum is then the sample's weight.

    Args:
        student_logits: `[B, C]`.
        targets: `[B, C]`, none negative.

    Returns:
        `[B]`, in nats.
    """
    _check(student_logits, targets)
    logits = precise(student_logits)
    return -(fixed(targets, logits) * torch.log_softmax(logits, 1)).sum(1)


def expected_refined_logits(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    likely: int = 2,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """RLD's refined loss as an expectation over the few likeliest classes, Σ_k t_k·L_RLD(k).

    With a one-hot target this is `refined_logits` with that label. The targets of the `likely` classes that are kept
    are scaled to the row's sum.
    Source: Sun et al., arXiv 2408.07703 (`refined_logits`); the expectation is ours.

    Args:
        student_logits: `[B, C]`.
        teacher_logits: `[B, C]`.
        targets: `[B, C]`, none negative.
        likely: how many classes of each row, 1..C.
        temperature: τ above 0.
        alpha: weight of the sample confidence.
        beta: weight of the masked correlation.

    Returns:
        `[B]`, in nats times τ².
    """
    _check(student_logits, targets)
    classes = student_logits.shape[1]
    if not 1 <= likely <= classes:
        raise RecipeError(f"likely: found {likely!r}, expected 1 to {classes}, the number of classes")
    left = fixed(targets, precise(student_logits)).clone()
    total = left.sum(1)
    losses, kept = torch.zeros_like(total), torch.zeros_like(total)
    for _ in range(likely):
        share, place = left.max(1)
        loss = refined_logits(student_logits, teacher_logits, place, temperature=temperature, alpha=alpha, beta=beta)
        losses, kept = losses + share * loss, kept + share
        left = left.scatter(1, place.unsqueeze(1), -1.0)
    return losses * (total / kept.clamp(min=torch.finfo(kept.dtype).tiny))


def _check(student_logits: Tensor, targets: Tensor) -> None:
    check(student_logits)
    if targets.shape != student_logits.shape or not targets.is_floating_point():
        raise DataError(
            f"targets: found {targets.dtype} of shape {list(targets.shape)}, expected one distribution a sample, "
            f"floating-point numbers of the logits' shape {list(student_logits.shape)}"
        )
