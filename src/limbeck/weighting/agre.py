"""Several teachers: those that pull the student where a biased model would pull it are heard less.

Kenfack, Aïvodji and Ebrahimi Kahou, "Adaptive group robust ensemble knowledge distillation" (AGRE-KD),
arXiv 2411.14984.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import RecipeError

_EPSILON = 1e-4


class Agre(nn.Module):
    """W_t(x) = 1 - cos(grad l_t(x), grad l_biased(x)) per sample and teacher; loss = mean_i sum_t W_t l_t / sum_t W_t.

    l_t is the divergence of the student from teacher t, l_biased that from a biased reference, a model trained without
    debiasing [text]. The directions are taken in the student's logits [choice], where the gradient of tau^2 KL has
    the closed form tau (p_S - p_t) and no backward pass is needed; the source takes them in the student's parameters.
    W carries no gradient.

    The losses come one row a teacher, `[T, B]`: the recipe's terms, evaluated with each teacher in turn
    (`per_teacher` in the catalogue). So any distillation term can stand in for the KL, and a cross entropy in it, the
    same in all rows, keeps its weight: with KD at alpha = 1, tau = 4 this is the published loss.

    Where every teacher pulls exactly with the biased model all W vanish; there the teachers weigh alike [choice].
    With two classes all directions are parallel, in logits as in parameters, so W is 0 or 2: a teacher is heard on
    the samples where it contradicts the biased model's pull, if any teacher does, and otherwise all are.

    Args:
        temperature: tau of the gradients.
        biased: the place of the biased model among the teachers; it is then only a reference and never learned from.
            None (default): it is not one of them, and comes as the batch field `biased_logits`.
        normalise: divide by the sum of the weights (default). Without, a sample on which all teachers are aligned
            with the biased model has no loss.
    """

    def __init__(self, temperature: float = 4.0, biased: int | None = None, normalise: bool = True) -> None:
        super().__init__()
        self.temperature, self.biased, self.normalise = temperature, biased, normalise

    def forward(
        self, losses: Tensor, student_logits: Tensor, teachers_logits: Tensor, biased_logits: Tensor | None = None
    ) -> Tensor:
        """The scalar loss from `losses` `[T, B]` and the logits: student and biased `[B, C]`, teachers `[T, B, C]`."""
        if losses.dim() != 2 or losses.shape != teachers_logits.shape[:2]:
            raise RecipeError(
                f"agre weighs teachers: it needs one loss per teacher and sample, {list(teachers_logits.shape[:2])}, "
                f"and got shape {list(losses.shape)}"
            )
        weights = self.weights(student_logits, teachers_logits, biased_logits)
        return (weights * losses.float()).sum(dim=0).mean()

    @torch.no_grad()
    def weights(self, student_logits: Tensor, teachers_logits: Tensor, biased_logits: Tensor | None = None) -> Tensor:
        """The weights `[T, B]`; where `normalise`, they sum to 1 over the teachers.

        Raises:
            RecipeError: without a biased model, or with its place out of range.
        """
        count = len(teachers_logits)
        audible = torch.ones(count, 1, device=student_logits.device)
        if self.biased is not None:
            if not 0 <= self.biased < count or count < 2:
                raise RecipeError(
                    f"agre: biased={self.biased} is not the place of one of {count} teachers, two or more"
                )
            biased_logits = teachers_logits[self.biased]
            audible[self.biased] = 0.0
        if biased_logits is None:
            raise RecipeError(
                "agre needs a biased model: give biased_logits, or its place among the teachers (biased=0)"
            )
        student = self._soft(student_logits)
        pull = student - self._soft(biased_logits)
        aligned = F.cosine_similarity(student - self._soft(teachers_logits), pull.expand_as(teachers_logits), dim=-1)
        weights = (1 - aligned).clamp(min=0) * audible
        if not self.normalise:
            return weights
        total = weights.sum(dim=0)
        return torch.where(total > _EPSILON, weights / total.clamp(min=_EPSILON), audible / audible.sum())

    def _soft(self, logits: Tensor) -> Tensor:
        return (logits.float() / self.temperature).softmax(dim=-1)
