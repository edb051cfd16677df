"""Refined logit distillation and the decoupling it grew out of.

Both split a teacher's knowledge in two: how confident it is, and how it relates the other classes. Decoupled
distillation (DKD) asks both questions about the labelled class; refined distillation (RLD) takes the teacher's
confidence in *its own* first choice, assigns it to the labelled class, and keeps only the relations among classes that
the teacher ranks strictly below the label. So a wrong teacher never pulls against the label. Where the teacher is right
and has no tie, the two are the same.

Sources: Sun et al., Knowledge Distillation with Refined Logits, ICCV 2025, arXiv 2408.07703 (as released); Zhao et al.,
Decoupled Knowledge Distillation, CVPR 2022, arXiv 2203.08679. The factors τ² are included everywhere; cross entropy and
warm-up are not.

Per-sample losses `[B]`, computed in float32 (float64 logits stay float64); a teacher's logits never receive a gradient.

The confidence terms are divergences between two coins. With d = z_y/τ - lse(z_i/τ, i≠y) the student's coin falls σ(d),
and log p_y = log σ(d), log(1-p_y) = log σ(-d) are exact at any distance: the published log p = z_y/τ - lse(all),
log(1-p) = lse(others) - lse(all) without their cancellation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.terms._numerics import (
    LOWEST,
    RowLoss,
    check,
    column,
    positive,
    precise,
    relative,
    row_term,
    softmax_,
    spoken_,
)


@row_term
def sample_confidence(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float = 4.0
) -> RowLoss:
    """RLD's sample confidence: τ²·KL((P, 1-P) ‖ (p, 1-p)), P the teacher's largest probability, p the student's p_y.

    Source: arXiv 2408.07703, L_SC; with a teacher that is right it is DKD's TCKD. The gradient at z_y is τ(p - P).

    Args:
        student_logits: `[B, C]`.
        teacher_logits: `[B, C]`.
        labels: `[B]`.
        temperature: τ_sc above 0.

    Returns:
        `[B]`, in nats times τ².
    """
    return _refine(student_logits, teacher_logits, labels, True, temperature, temperature, 1.0, 0.0)


@row_term
def masked_correlation(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float = 4.0
) -> RowLoss:
    """RLD's masked correlation: τ²·KL over the classes that the teacher ranks strictly below the label, renormalised.

    The mask {i: z^T_i ≥ z^T_y} takes out the label and every tie with it. With fewer than two classes left, as always
    at two classes, loss and gradient are 0.
    Source: arXiv 2408.07703, L_MC; with a teacher that is right it is DKD's
    NCKD.

    Args:
        student_logits: `[B, C]`.
        teacher_logits: `[B, C]`.
        labels: `[B]`.
        temperature: τ above 0.

    Returns:
        `[B]`, in nats times τ².
    """
    return _refine(student_logits, teacher_logits, labels, True, temperature, temperature, 0.0, 1.0)


@row_term
def refined_logits(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    confidence_temperature: float | None = None,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> RowLoss:
    """Refined logit distillation: α·sample_confidence + β·masked_correlation.

    RLD in full adds cross entropy with weight 1, and lets this term grow over the first twelfth of training. At two
    classes only the confidence is left.
    Source: arXiv 2408.07703 (α 1, β 8, τ 4 of the documented example).

    Args:
        student_logits: `[B, C]`.
        teacher_logits: `[B, C]`.
        labels: `[B]`.
        temperature: τ of the relations, above 0.
        confidence_temperature: τ_sc of the confidence; None takes `temperature` (the released code's bare default is
            1).
        alpha: weight of the confidence.
        beta: weight of the relations.

    Returns:
        `[B]`, in nats times τ².
    """
    own = temperature if confidence_temperature is None else confidence_temperature
    return _refine(student_logits, teacher_logits, labels, True, temperature, own, alpha, beta)


@row_term
def tckd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float = 4.0) -> RowLoss:
    """Target-class distillation: τ²·KL((p^T_y, 1-p^T_y) ‖ (p^S_y, 1-p^S_y)).

    Source: arXiv 2203.08679, equation 6. Arguments and result as `sample_confidence`.
    """
    return _refine(student_logits, teacher_logits, labels, False, temperature, temperature, 1.0, 0.0)


@row_term
def nckd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float = 4.0) -> RowLoss:
    """Non-target-class distillation: τ²·KL over all classes but the label, renormalised; no gradient at two classes.

    Source: arXiv 2203.08679, equation 6. Arguments and result as `masked_correlation`.
    """
    return _refine(student_logits, teacher_logits, labels, False, temperature, temperature, 0.0, 1.0)


@row_term
def decoupled(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> RowLoss:
    """Decoupled distillation: α·TCKD + β·NCKD. DKD in full adds cross entropy and a warm-up of this term.

    At two classes only TCKD is left.
    Source: arXiv 2203.08679, equation 7 (β 2, 6 or 8 with the gap in capacity).

    Args:
        student_logits: `[B, C]`.
        teacher_logits: `[B, C]`.
        labels: `[B]`.
        temperature: τ above 0.
        alpha: weight of the target class.
        beta: weight of the others.

    Returns:
        `[B]`, in nats times τ².
    """
    return _refine(student_logits, teacher_logits, labels, False, temperature, temperature, alpha, beta)


def _refine(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    refined: bool,
    temperature: float,
    confidence_temperature: float,
    alpha: float,
    beta: float,
) -> RowLoss:
    check(student_logits, teacher_logits, labels)
    positive(temperature=temperature, confidence_temperature=confidence_temperature)
    constants = (refined, temperature, confidence_temperature, alpha, beta)
    return RowLoss(_kernel, _plain, (teacher_logits, column(labels)), constants, _ready)


# One chunk of rows: value and gradient -------------------------------------------------------------------------------


def _kernel(
    student: Tensor,
    teacher: Tensor,
    label: Tensor,
    refined: bool,
    temperature: float,
    confidence_temperature: float,
    alpha: float,
    beta: float,
    wanted: bool,
) -> tuple[Tensor, Tensor | None]:
    ready = _ready(teacher.to(student.dtype), label, refined, temperature, confidence_temperature, alpha, beta)
    return _ready_kernel(student, *ready.rows, *ready.constants, wanted)


def _ready(
    teacher: Tensor,
    label: Tensor,
    refined: bool,
    temperature: float,
    confidence_temperature: float,
    alpha: float,
    beta: float,
) -> RowLoss:
    """The teacher's side: how sure it is, then which classes are kept, whether any is, and its relations among them."""
    teacher, rows = precise(teacher), [label]
    if alpha:
        scaled = (teacher / confidence_temperature).clamp_(min=LOWEST)
        rows.append(_first_against_others(scaled) if refined else _against_others(scaled, label)[0])
    if beta:
        teacher = teacher.clamp(min=LOWEST)
        kept, some = _kept(teacher, label, refined)
        rows += [kept, some, *spoken_((teacher / temperature).add_(kept))]
    constants = (temperature, confidence_temperature, alpha, beta)
    return RowLoss(_ready_kernel, _ready_plain, tuple(rows), constants)


def _ready_kernel(student: Tensor, label: Tensor, *others: Any) -> tuple[Tensor, Tensor | None]:
    *rows, temperature, confidence_temperature, alpha, beta, wanted = others
    losses = student.new_zeros(student.shape[0])
    gradient = None
    if alpha:
        value, gradient = _confidence_kernel(student, label, rows.pop(0), confidence_temperature, wanted)
        scale = alpha * confidence_temperature**2
        losses.add_(value, alpha=scale)
        gradient = None if gradient is None else gradient.mul_(scale)
    if beta:
        kept, some, log_teacher, p_teacher = rows
        value, slope = _relations_kernel(student, kept, some, log_teacher, p_teacher, temperature, wanted)
        scale = beta * temperature**2
        losses.add_(value, alpha=scale)
        if slope is not None:
            gradient = slope.mul_(scale) if gradient is None else gradient.add_(slope, alpha=scale)
    if wanted and gradient is None:
        gradient = torch.zeros_like(student)
    return losses, gradient


def _against_others(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """d = z_y - lse(others) `[b, 1]`; and exp(z - max) of the others with its sum, the label's entry being 0.

    Overwrites `logits`.
    """
    own = logits.gather(1, label)
    logits.scatter_(1, label, -torch.inf)
    top = logits.amax(1, keepdim=True).clamp_(min=LOWEST)
    others = logits.sub_(top).exp_()
    total = others.sum(1, keepdim=True)
    return own.sub_(top).sub_(total.log()), others, total


def _first_against_others(logits: Tensor) -> Tensor:
    """D = max z - lse(all but one maximum) `[b, 1]`. Overwrites `logits`.

    Finding the maximum's place takes ten times longer than finding its value, so everything below it is summed and any
    further ties are counted.
    """
    logits.sub_(logits.amax(1, keepdim=True))
    below = torch.lt(logits, 0.0, out=torch.empty_like(logits))
    ties = (logits.shape[1] - 1) - below.sum(1, keepdim=True)
    others = logits.exp_().mul_(below).sum(1, keepdim=True).add_(ties)
    # An odds ratio beyond the float range is a certainty to within rounding.
    return others.clamp_(min=torch.finfo(logits.dtype).tiny).log_().neg_()


def _coin_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL of two coins that fall σ(teacher) and σ(student)."""
    heads = torch.sigmoid(teacher) * (F.logsigmoid(teacher) - F.logsigmoid(student))
    return heads + torch.sigmoid(-teacher) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))


def _confidence_kernel(
    student: Tensor, label: Tensor, wished: Tensor, temperature: float, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    d, others, total = _against_others(student / temperature, label)
    losses = _coin_divergence(wished, d).squeeze(1).clamp_(min=0)
    if not wanted:
        return losses, None
    slope = torch.sigmoid(d).sub_(torch.sigmoid(wished)).div_(temperature)
    return losses, others.mul_(-slope / total).scatter_(1, label, slope)


def _kept(teacher: Tensor, label: Tensor, refined: bool) -> tuple[Tensor, Tensor]:
    """What to add to logits so that only the kept classes remain, 0 for them and -inf for the rest; and whether any is.

    Where none is kept, all are: the row has to be taken out afterwards, by a factor `[b, 1]` of 1 or 0. The mask is
    written as 1 - 1/kept because that is an order of magnitude faster than selecting by booleans.
    """
    kept = torch.empty_like(teacher)
    if refined:
        torch.lt(teacher, teacher.gather(1, label), out=kept)
    else:
        kept.fill_(1.0).scatter_(1, label, 0.0)
    some = kept.amax(1, keepdim=True)
    return kept.add_(1.0 - some).reciprocal_().neg_().add_(1.0), some


def _relations_kernel(
    student: Tensor,
    kept: Tensor,
    some: Tensor,
    log_teacher: Tensor,
    p_teacher: Tensor,
    temperature: float,
    wanted: bool,
) -> tuple[Tensor, Tensor | None]:
    log_student, p_student = softmax_((student / temperature).add_(kept))
    losses = relative(log_student.clamp_(min=LOWEST), log_teacher, p_teacher)
    gradient = p_student.sub_(p_teacher).mul_(some / temperature) if wanted else None
    return losses.mul_(some.squeeze(1)), gradient


# The same in differentiable operations -------------------------------------------------------------------------------


def _plain(student: Tensor, teacher: Tensor, label: Tensor, *constants: Any) -> Tensor:
    ready = _ready(teacher.to(student.dtype), label, *constants)
    return _ready_plain(student, *ready.rows, *ready.constants)


def _ready_plain(student: Tensor, label: Tensor, *others: Any) -> Tensor:
    *rows, temperature, confidence_temperature, alpha, beta = others
    losses = student.new_zeros(student.shape[0])
    if alpha:
        scaled = student / confidence_temperature
        d = scaled.gather(1, label) - scaled.scatter(1, label, -torch.inf).logsumexp(1, keepdim=True)
        losses = losses + alpha * confidence_temperature**2 * _coin_divergence(rows.pop(0), d).squeeze(1)
    if beta:
        kept, some, log_teacher, p_teacher = rows
        log_student = torch.log_softmax(student / temperature + kept, 1).clamp(min=LOWEST)
        relations = (p_teacher * (log_teacher - log_student)).sum(1) * some.squeeze(1)
        losses = losses + beta * temperature**2 * relations
    return losses
