"""Partial labels: what a teacher says, reduced to its few likeliest classes.

A student that is told only "one of these two" is right after one round wherever the true class is among them, however
the labels were corrupted. The given label is not used again.

Source: Jeong & Chung, Rethinking Self-Distillation: Label Averaging and Enhanced Soft Label Refinement with Partial
Labels, ICLR 2025, arXiv 2402.10482 (as released; the general k and weights are ours).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.errors import RecipeError, unknown_name
from limbeck.terms._numerics import check, precise
from limbeck.terms.noise import bounded

LOSSES = ("gce", "ce")


def partial_targets(teacher_logits: Tensor, k: int = 2, weights: Sequence[float] | None = None) -> Tensor:
    """The teacher's k largest outputs as a distribution: two-hot with ½ each, or k-hot with the given weights by rank.

    Args:
        teacher_logits: `[B, C]`; probabilities do as well, only their order counts. Of equal entries the first class is
            taken.
        k: how many classes, 1..C.
        weights: one a rank, largest first, not negative, summing to 1; None for 1/k each.

    Returns:
        `[B, C]`, float32 (float64 for float64), without gradient.
    """
    check(teacher_logits)
    shares = _shares(k, weights, teacher_logits.shape[1])
    targets = torch.zeros_like(precise(teacher_logits), requires_grad=False)
    for share, place in zip(shares, _largest(teacher_logits, k), strict=True):
        targets.scatter_(1, place, share)
    return targets


def partial_label(
    student_logits: Tensor,
    teacher_logits: Tensor,
    k: int = 2,
    weights: Sequence[float] | None = None,
    loss: str = "gce",
    q: float = 0.7,
) -> Tensor:
    """Learn that the truth is among the teacher's k likeliest classes: Σ_j w_j·loss(p_j).

    At two classes k = 2 names both and teaches nothing but ½: use k = 1 or `kl_divergence` there.

    Args:
        student_logits: `[B, C]`.
        teacher_logits: `[B, C]`.
        k: how many candidates, 1..C.
        weights: see `partial_targets`.
        loss: `gce`, (1-p^q)/q, as released; `ce`, -log p, as in the theory.
        q: of `gce`, in (0, 1].

    Returns:
        `[B]`, float32 (float64 for float64 logits).
    """
    check(student_logits, teacher_logits)
    if loss not in LOSSES:
        raise RecipeError(unknown_name("loss of partial labels", loss, LOSSES))
    shares = _shares(k, weights, student_logits.shape[1])
    student = precise(student_logits)
    candidates = torch.cat(_largest(teacher_logits, k), 1)
    logs = torch.log_softmax(student, 1).gather(1, candidates)
    losses = bounded(logs, q) if loss == "gce" else -logs
    return (losses * losses.new_tensor(shares)).sum(1)


def _shares(k: int, weights: Sequence[float] | None, classes: int) -> list[float]:
    if not 1 <= k <= classes:
        raise RecipeError(f"k: found {k!r}, expected 1 to {classes}, the number of classes")
    shares = [1.0 / k] * k if weights is None else [float(weight) for weight in weights]
    if len(shares) != k or min(shares) < 0.0 or abs(sum(shares) - 1.0) > 1e-6:
        raise RecipeError(f"weights: found {weights!r}, expected {k} numbers, none negative, that sum to 1")
    return shares


def _largest(logits: Tensor, k: int) -> list[Tensor]:
    """The places `[B, 1]` of the k largest entries, by rank; of equal ones the first class.

    Not `topk`, whose choice among equals is not defined: a student must not depend on that.
    """
    left = precise(logits).detach().clamp(min=torch.finfo(torch.float32).min)
    places = []
    for rank in range(k):
        places.append(left.argmax(1, keepdim=True))
        if rank + 1 < k:
            left.scatter_(1, places[-1], -torch.inf)
    return places
