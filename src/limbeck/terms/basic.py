"""Learning from the label, from a teacher's softened output, or from a smoothed label.

Per-sample losses `[B]`, computed in float32 (float64 logits stay float64); a teacher's logits never receive a gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.terms._numerics import (
    RowLoss,
    by_row,
    check,
    column,
    divergence,
    fixed,
    has_row_loss,
    positive,
    precise,
    row_term,
    short_rows,
    softmax_,
)


def cross_entropy(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with the given label, -log p_y.

    Args:
        student_logits: `[B, C]`.
        labels: `[B]`, class indices.

    Returns:
        `[B]`, in nats.
    """
    check(student_logits, labels=labels)
    if short_rows(student_logits.shape[1]) and student_logits.numel() >= _MANY:
        return by_row(student_logits, _label_rows(student_logits, labels))
    return F.cross_entropy(precise(student_logits), labels.long(), reduction="none")


def _label_rows(student_logits: Tensor, labels: Tensor) -> RowLoss:
    check(student_logits, labels=labels)
    return RowLoss(_kernel, _plain, (column(labels),))


has_row_loss(cross_entropy, _label_rows)

_MANY = 1 << 13
"""Logits from which whole-table operations pay for the call of a kernel."""


def _kernel(student: Tensor, label: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    logs, p = softmax_(student.clone())
    losses = logs.gather(1, label).neg_()
    return losses.squeeze(1), p.scatter_add_(1, label, torch.full_like(losses, -1.0)) if wanted else None


def _plain(student: Tensor, label: Tensor) -> Tensor:
    return -torch.log_softmax(student, 1).gather(1, label).squeeze(1)


@row_term
def kl_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> RowLoss:
    """Knowledge distillation: τ²·KL(p^T ‖ p^S), p = softmax(z/τ). **The factor τ² is included**, cross entropy is not.

    KD in full is `alpha * kl_divergence(...) + (1 - alpha) * cross_entropy(...)`, alpha .9. Summed over classes, not
    averaged.
    Source: Hinton et al., Distilling the Knowledge in a Neural Network, arXiv 1503.02531, section 2.

    Args:
        student_logits: `[B, C]`.
        teacher_logits: `[B, C]`; -inf is allowed and means a class without probability.
        temperature: τ above 0.

    Returns:
        `[B]`, in nats times τ²; the gradient is τ(p^S - p^T).
    """
    check(student_logits, teacher_logits)
    positive(temperature=temperature)
    return divergence(teacher_logits, temperature, temperature, temperature**2)


def standardise(logits: Tensor, epsilon: float = 1e-7) -> Tensor:
    """Logit standardisation (LSKD): each sample's z-scores (z - mean)/(std + ε), the std with C-1 in the denominator.

    A transform of student and teacher logits before any term that compares the two (then τ 2 and weight 9); cross
    entropy keeps the raw logits. Two classes leave ±0.7071 whatever the logits were, so **there is no gradient below
    three classes**.
    Source: Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024, arXiv 2403.01427,
    algorithm 1 (as released).

    Args:
        logits: `[B, C]`.
        epsilon: keeps a constant row finite.

    Returns:
        `[B, C]`, float32 (float64 for float64).
    """
    check(logits)
    logits = precise(logits)
    spread, mean = torch.std_mean(logits, dim=1, keepdim=True)
    return (logits - mean) / (spread + epsilon)


def label_smoothing(student_logits: Tensor, labels: Tensor, epsilon: float = 0.1) -> Tensor:
    """Cross entropy to (1-ε)·onehot(y) + ε/C.

    Source: Szegedy et al., Rethinking the Inception Architecture, CVPR 2016, section 7.

    Args:
        student_logits: `[B, C]`.
        labels: `[B]`.
        epsilon: share of the target spread over all classes, in 0..1.

    Returns:
        `[B]`, in nats.
    """
    check(student_logits, labels=labels)
    if not 0.0 <= epsilon <= 1.0:
        raise RecipeError(f"epsilon: found {epsilon!r}, expected a share in 0..1")
    return F.cross_entropy(precise(student_logits), labels.long(), reduction="none", label_smoothing=epsilon)


@row_term
def tf_kd(student_logits: Tensor, labels: Tensor, confidence: float = 0.99, temperature: float = 20.0) -> RowLoss:
    """Teacher-free distillation by a hand-made teacher: KL(softmax(u/τ) ‖ p^S), u = confidence on the label.

    The released code softens the made-up *probabilities* u by a softmax and leaves the student at temperature 1; so
    does this. It sums over classes where the release averages and multiplies by about C. In full: `(1-α)·cross_entropy
    + α·tf_kd`, α .1. The self-training variant is distillation from a student of the same kind (a second round of a
    recipe).
    Source: Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization, CVPR 2020,
    Tf-KD_reg.

    Args:
        student_logits: `[B, C]`.
        labels: `[B]`.
        confidence: what the virtual teacher gives the label, in 1/C..1.
        temperature: τ of the virtual teacher.

    Returns:
        `[B]`, in nats.
    """
    check(student_logits, labels=labels)
    positive(temperature=temperature)
    classes = student_logits.shape[1]
    if not 1.0 / classes <= confidence <= 1.0:
        raise RecipeError(f"confidence: found {confidence!r}, expected a probability from 1/C = {1 / classes:.3g} to 1")
    logits = precise(student_logits)
    virtual = torch.full_like(logits, (1.0 - confidence) / (classes - 1), requires_grad=False)
    virtual.scatter_(1, column(labels), confidence)
    return divergence(fixed(virtual, logits), 1.0, temperature)
