"""Contrastive distillation: a sample's student and teacher embeddings against those of all other samples."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import TeacherError
from limbeck.terms._numerics import positive


class CRD(nn.Module):
    """Contrastive representation distillation: is this pair of embeddings from the same sample, or from two classes?

    Student and teacher features pass a linear layer each to unit vectors. Each is scored, exp(⟨u, v⟩/τ)/Z, against the
    *other* network's memory of the same training sample (one positive) and of samples of other classes (m negatives),
    and the loss is -log h⁺ - Σ log(1 - h⁻), h = s/(s + m/n): noise-contrastive estimation, for both sides. The memories
    hold one embedding a training sample, moved half-way at each visit in training mode. Beside cross entropy with
    weight .8.

    As released but for two things: the batch shares one draw of negatives from the memory (all of it if `negatives` ≥
    n) instead of one draw a sample, with the sum over those of other classes scaled to m; and h is computed as a
    sigmoid, without its 1e-7.
    Source: Tian et al., Contrastive Representation Distillation, ICLR 2020, arXiv
    1910.10699, equations 11 and 17 to 19.

    Args:
        student_width: D_S.
        teacher_width: D_T.
        labels_all: `[n]`, the class of each training sample.
        width: of the embeddings.
        negatives: m.
        temperature: τ above 0.
        momentum: share of the old embedding that stays in the memory.
    """

    memory_student: Tensor
    memory_teacher: Tensor
    normalisers: Tensor
    labels_all: Tensor

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        labels_all: Tensor,
        width: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        positive(width=width, negatives=negatives, temperature=temperature)
        self.embed_student = nn.Linear(student_width, width)
        self.embed_teacher = nn.Linear(teacher_width, width)
        self.temperature, self.momentum = temperature, momentum
        samples = labels_all.numel()
        self.negatives = min(negatives, samples)
        bound = 1.0 / math.sqrt(width / 3)
        self.register_buffer("memory_student", torch.empty(samples, width).uniform_(-bound, bound))
        self.register_buffer("memory_teacher", torch.empty(samples, width).uniform_(-bound, bound))
        # log Z of both sides, set by the first batch and then kept; NaN until then.
        self.register_buffer("normalisers", torch.full((2,), torch.nan))
        self.register_buffer("labels_all", labels_all.detach().clone(), persistent=False)

    def forward(self, student_features: Tensor, teacher_features: Tensor, rows: Tensor) -> Tensor:
        """The loss `[B]` for features `[B, D_S]` and `[B, D_T]` of the training samples `rows` `[B]`."""
        if student_features.shape[0] != teacher_features.shape[0]:
            raise TeacherError(
                f"features: found {student_features.shape[0]} samples of the student and {teacher_features.shape[0]} "
                "of the teacher, expected the same batch"
            )
        # Scores are divided by a small temperature, so lower precision would drown them.
        with torch.autocast(student_features.device.type, enabled=False):
            student = _embed(self.embed_student, student_features)
            teacher = _embed(self.embed_teacher, teacher_features.detach())
            drawn = self._draw(rows)
            negative = self.labels_all[rows].unsqueeze(1) != self.labels_all[drawn].unsqueeze(0)
            losses = self._side(student, self.memory_teacher, rows, drawn, negative, 0)
            losses = losses + self._side(teacher, self.memory_student, rows, drawn, negative, 1)
            if self.training:
                self._remember(self.memory_student, rows, student)
                self._remember(self.memory_teacher, rows, teacher)
        return losses

    def _draw(self, rows: Tensor) -> Tensor:
        samples = self.labels_all.numel()
        if self.negatives == samples:
            return torch.arange(samples, device=rows.device)
        return torch.randint(samples, (self.negatives,), device=rows.device)

    def _side(
        self, anchors: Tensor, memory: Tensor, rows: Tensor, drawn: Tensor, negative: Tensor, side: int
    ) -> Tensor:
        samples = memory.shape[0]
        same = (anchors * memory[rows]).sum(1) / self.temperature
        others = anchors @ memory[drawn].T / self.temperature
        with torch.no_grad():
            pairs = torch.cat((same.unsqueeze(1), others), 1)
            first = (pairs.logsumexp((0, 1)) - math.log(pairs.numel()) + math.log(samples)).to(self.normalisers.dtype)
            known = self.normalisers[side].clone()
            log_z = torch.where(known.isnan(), first, known)
            if self.training:
                self.normalisers[side] = log_z
        offset = log_z + math.log(self.negatives / samples)
        refused = F.softplus(others - offset) * negative
        scale = self.negatives / negative.sum(1).clamp(min=1)
        return F.softplus(offset - same) + scale * refused.sum(1)

    def _remember(self, memory: Tensor, rows: Tensor, embeddings: Tensor) -> None:
        with torch.no_grad():
            moved = torch.lerp(embeddings.to(memory.dtype), memory[rows], self.momentum)
            memory.index_copy_(0, rows, F.normalize(moved, dim=1))


def _embed(layer: nn.Linear, features: Tensor) -> Tensor:
    return F.normalize(layer(features.flatten(1).to(layer.weight.dtype)), dim=1)
