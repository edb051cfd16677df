"""Repairing a teacher's wrong outputs with the label before they are passed on.

All of these trust the label: where the teacher's first choice is another class, two entries of its output are edited
(BTKD, swap, revision), or the student is asked to move toward the label from where it stands (class augmentation). A
correct repair of a teacher's mistake and the undoing of its correct objection to a wrong label are the same edit here.

Per-sample losses `[B]`, computed in float32 (float64 logits stay float64); a teacher's logits never receive a gradient.
"Wrong" means argmax ≠ label; of several equal maxima the first counts.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import RecipeError, unknown_name
from limbeck.terms._numerics import (
    RowLoss,
    batch_row_term,
    by_row,
    check,
    column,
    divergence,
    fixed,
    positive,
    precise,
    row_term,
    weighed,
)

VARIANTS = ("two_class", "swap", "onehot_average")
SPACES = ("prob", "logit")
REVISIONS = ("kl", "released")

# The published two-class edit divides by s + 1, which logits (not probabilities) can bring to 0.
_SMALLEST_DENOMINATOR = 1e-6


def rectify(values: Tensor, labels: Tensor, variant: str = "two_class") -> Tensor:
    """Repair the rows whose largest entry is not the label's; the other rows come back unchanged.

    With w the largest entry of a wrong row and s = a_y + a_w:

    * `two_class`: a_y' = (a_y+1)·s/(s+1), a_w' = a_w·s/(s+1). The sum is kept. Of probabilities the label then beats w
      unless a_w = 1, but a third class close behind w may still lead. Where logits bring s + 1 within 1e-6 of 0, 1e-6
      is taken for it.
    * `swap`: exchange a_y and a_w.
    * `onehot_average`: (a + onehot(y))/2.

    Source: arXiv 2412.09874 (AAAI 2025), bias rectification, as released.

    Args:
        values: `[B, C]`, probabilities or logits.
        labels: `[B]`.
        variant: one of the above.

    Returns:
        `[B, C]`, a new tensor without gradient, float32 (float64 for float64).
    """
    check(values, labels=labels)
    if variant not in VARIANTS:
        raise RecipeError(unknown_name("variant of rectification", variant, VARIANTS))
    values = precise(values).detach()
    label = column(labels)
    first = values.argmax(1, keepdim=True)
    wrong = first != label
    if variant == "onehot_average":
        repaired = values / 2
        repaired.scatter_add_(1, label, torch.full_like(label, 0.5, dtype=values.dtype))
        return torch.where(wrong, repaired, values)
    own, top = values.gather(1, label), values.gather(1, first)
    if variant == "swap":
        new_own, new_top = top, own
    else:
        total = own + top
        denominator = total + 1.0
        denominator = torch.where(denominator.abs() < _SMALLEST_DENOMINATOR, _SMALLEST_DENOMINATOR, denominator)
        share = total / denominator
        new_own, new_top = (own + 1.0) * share, top * share
    # A right row's two places are one: it gets its own value back, whichever is written last.
    repaired = values.scatter(1, first, torch.where(wrong, new_top, top))
    return repaired.scatter_(1, label, torch.where(wrong, new_own, own))


@batch_row_term
def rectified_bias(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    progress: float,
    temperature: float = 4.0,
    variant: str = "two_class",
    space: str = "prob",
    eliminate_only: bool = False,
    balance: float | None = None,
) -> RowLoss:
    """BTKD: what the teacher got right first, its repaired mistakes last.

    b·τ²·KL(p^T ‖ p^S)·|B|/|R| on the samples R that the teacher has right, (1-b)·τ²·KL(p̂^T ‖ p^S)·|B|/|W| on the wrong
    ones W, so that the mean over the batch is b·mean_R + (1-b)·mean_W. b = cos²(π/2·progress) falls from 1 to 0. BTKD
    in full is `λ·cross_entropy + (1-λ)·rectified_bias`, λ .5. As its weights refer to the batch, a batch without R or W
    loses that part.
    Source: arXiv 2412.09874 (AAAI 2025), as released.

    Args:
        student_logits: `[B, C]`.
        teacher_logits: `[B, C]`.
        labels: `[B]`.
        progress: e/E, the share of training behind us, in 0..1.
        temperature: τ above 0.
        variant: see `rectify`.
        space: `prob` repairs softmax(z^T/τ), `logit` repairs z^T (as the released scripts do; there the label need not
            win).
        eliminate_only: drop the part of W (the ablation "bias elimination").
        balance: a fixed b in 0..1 in place of the schedule.

    Returns:
        `[B]`, in nats times τ².
    """
    check(student_logits, teacher_logits, labels)
    positive(temperature=temperature)
    if space not in SPACES:
        raise RecipeError(unknown_name("space of rectification", space, SPACES))
    if not 0.0 <= progress <= 1.0:
        raise RecipeError(f"progress: found {progress!r}, expected the share of training behind us, 0..1")
    if balance is not None and not 0.0 <= balance <= 1.0:
        raise RecipeError(f"balance: found {balance!r}, expected None or a share in 0..1")
    b = math.cos(math.pi / 2 * progress) ** 2 if balance is None else balance
    teacher = precise(teacher_logits).detach()
    right = teacher.argmax(1) == labels
    if space == "prob":
        # Its logarithm serves as logits; log 0 = -inf is a class without probability.
        target, target_temperature = rectify(torch.softmax(teacher / temperature, 1), labels, variant).log_(), 1.0
    else:
        target, target_temperature = rectify(teacher, labels, variant), temperature
    share = (0.0 if eliminate_only else 1.0 - b) * temperature**2
    count_right = right.sum()
    count_wrong = right.numel() - count_right
    weight_right = b * temperature**2 * right.numel() / count_right.clamp(min=1).to(target.dtype)
    weight_wrong = share * right.numel() / count_wrong.clamp(min=1).to(target.dtype)
    weights = torch.where(right, weight_right, weight_wrong)
    return weighed(divergence(target, temperature, target_temperature), weights)


@row_term
def la(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float = 4.0) -> RowLoss:
    """Swap (LA): τ²·KL to the teacher with its first choice and the label exchanged where it is wrong.

    Used alone, without cross entropy.
    Source: Wen et al., Preparing Lessons, arXiv 1911.07471, as released with arXiv
    2408.07703.

    Args:
        student_logits: `[B, C]`.
        teacher_logits: `[B, C]`.
        labels: `[B]`.
        temperature: τ above 0.

    Returns:
        `[B]`, in nats times τ².
    """
    check(student_logits, teacher_logits, labels)
    positive(temperature=temperature)
    target = rectify(teacher_logits, labels, "swap")
    return divergence(target, temperature, temperature, temperature**2)


def lr(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    eta: float = 0.8,
    loss: str = "kl",
) -> Tensor:
    """Revision (LR): where the teacher is wrong, the target is q = β·p^T + (1-β)·onehot(y), β = η/(p_max - p_y + 1).

    * `kl` (here): τ²·KL to q, and to p^T where the teacher is right; goes beside cross entropy. η ≤ 1 makes the label
      win.
    * `released` (with arXiv 2408.07703; used alone): right samples R cross entropy + 4·MSE of the logits, wrong ones W
      the MSE of the probabilities to q, each averaged over its own subset; as per-sample losses weighted |B|/|R| and
      |B|/|W|, so that their mean is the published sum. Its temperature is 1.

    Source: Lan et al., Improve Knowledge Distillation via Label Revision and Data Selection, arXiv 2404.03693.

    Args:
        student_logits: `[B, C]`.
        teacher_logits: `[B, C]`.
        labels: `[B]`.
        temperature: τ of `kl`.
        eta: η in 0..1.
        loss: one of the above.

    Returns:
        `[B]`.
    """
    check(student_logits, teacher_logits, labels)
    positive(temperature=temperature)
    if not 0.0 <= eta <= 1.0:
        raise RecipeError(f"eta: found {eta!r}, expected a share in 0..1")
    if loss not in REVISIONS:
        raise RecipeError(unknown_name("loss of revision", loss, REVISIONS))
    if loss == "released" and temperature != 1.0:
        raise RecipeError(
            f"temperature: found {temperature!r}, expected 1 with loss 'released', which has no temperature"
        )
    student, label = precise(student_logits), column(labels)
    teacher = fixed(teacher_logits, student)
    p = torch.softmax(teacher / temperature, 1)
    wrong = teacher.argmax(1, keepdim=True) != label
    beta = eta / (p.amax(1, keepdim=True) - p.gather(1, label) + 1.0)
    revised = (p * beta).scatter_add_(1, label, 1.0 - beta)
    if loss == "kl":
        target = torch.where(wrong, revised, p).log_()
        return by_row(student, divergence(target, temperature, factor=temperature**2))
    at_right = F.cross_entropy(student, labels.long(), reduction="none") + 4.0 * (student - teacher).square().mean(1)
    at_wrong = (torch.softmax(student, 1) - revised).square().mean(1)
    wrong = wrong.squeeze(1)
    count_wrong = wrong.sum()
    count_right = wrong.numel() - count_wrong
    share = wrong.numel() / torch.where(wrong, count_wrong, count_right).to(student.dtype)
    return share * torch.where(wrong, at_wrong, at_right)


@batch_row_term
def rc(student_logits: Tensor, labels: Tensor, temperature: float = 4.0) -> RowLoss:
    """Class augmentation (RC): τ²·KL to the student's own output with its largest logit added to the label's.

    Goes with weight .1 beside cross entropy and KD. The target carries no gradient.
    Source: the baseline RC of arXiv
    2408.07703, as released with it.

    Args:
        student_logits: `[B, C]`.
        labels: `[B]`.
        temperature: τ above 0.

    Returns:
        `[B]`, in nats times τ².
    """
    check(student_logits, labels=labels)
    positive(temperature=temperature)
    own = precise(student_logits).detach()
    target = own.scatter_add(1, column(labels), own.amax(1, keepdim=True))
    return divergence(target, temperature, temperature, temperature**2)
