"""Matching what a network computes before its logits: features, feature maps, and the distances among samples.

Computed in float32 (float64 features stay float64); a teacher's features never receive a gradient. All are per sample
`[B]` but `rkd`, which compares distances within the batch and returns one number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import RecipeError, TeacherError
from limbeck.terms._numerics import fixed, precise

Maps = Tensor | Sequence[Tensor]
"""One feature map `[B, D, H, W]` (or vector `[B, D]`), or several, one a stage."""


def feature_mse(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean squared distance of a sample's features, ‖s - t‖²/dim: SimKD's and DeTT's only loss.

    There the student's features come out of the projector, the teacher's are the input of the head that was
    transplanted.
    Sources: Chen et al., SimKD, CVPR 2022, arXiv 2203.14001; Lee & Lee, DeTT, arXiv 2302.11187.

    Args:
        student_features: `[B, ...]`.
        teacher_features: of the same shape.

    Returns:
        `[B]`, averaged over everything but the batch.
    """
    if student_features.shape != teacher_features.shape or student_features.dim() < 2:
        raise TeacherError(
            f"features: the student's have shape {list(student_features.shape)}, the teacher's "
            f"{list(teacher_features.shape)}; expected two equal shapes [B, ...]: put a projector between them "
            "(head 'transplant')"
        )
    student = precise(student_features)
    return (student - fixed(teacher_features, student)).square().flatten(1).mean(1)


def at(student_maps: Maps, teacher_maps: Maps) -> Tensor:
    """Attention transfer: per stage the mean squared distance of the L2-normalised maps Σ_d F_d², summed over stages.

    Where the sizes differ, the larger map is average-pooled to the smaller first. Beside cross entropy with weight
    1000.
    Source: Zagoruyko & Komodakis, Paying More Attention to Attention, ICLR 2017, arXiv 1612.03928, equation 2, p
    2.

    Args:
        student_maps: `[B, D, H, W]`, or one such map a stage.
        teacher_maps: as many; the numbers of channels are free.

    Returns:
        `[B]`.
    """
    students, teachers = _stages(student_maps, teacher_maps)
    losses = []
    for student, teacher in zip(students, teachers, strict=True):
        if student.dim() != 4 or teacher.dim() != 4:
            raise RecipeError(
                f"at: found maps of shapes {list(student.shape)} and {list(teacher.shape)}, expected [B, D, H, W]: "
                "attention needs positions; for vectors use 'feature_mse' or 'fitnet'"
            )
        student = precise(student)
        student, teacher = _common_size(student, fixed(teacher, student))
        losses.append((_attention(student) - _attention(teacher)).square().mean(1))
    return torch.stack(losses).sum(0)


def _attention(maps: Tensor) -> Tensor:
    return F.normalize(maps.square().mean(1).flatten(1), dim=1)


def _common_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    if student.shape[2:] != size:
        student = F.adaptive_avg_pool2d(student, size)
    if teacher.shape[2:] != size:
        teacher = F.adaptive_avg_pool2d(teacher, size)
    return student, teacher


def _stages(student_maps: Maps, teacher_maps: Maps) -> tuple[list[Tensor], list[Tensor]]:
    students = [student_maps] if isinstance(student_maps, Tensor) else list(student_maps)
    teachers = [teacher_maps] if isinstance(teacher_maps, Tensor) else list(teacher_maps)
    if not students or len(students) != len(teachers):
        raise TeacherError(
            f"maps: found {len(students)} stages of the student and {len(teachers)} of the teacher, expected as many "
            "of both: name the layers that belong together"
        )
    return students, teachers


class FitNet(nn.Module):
    """Hints: mean squared distance of a regressor of the student's middle map to the teacher's, ‖r(F_S) - F_T‖²/dim.

    Beside cross entropy with weight 100. The regressor is the usual one: a 3×3 convolution with stride 2 where the
    student's map is twice as large, a 4×4 transposed one where it is half as large, 1×1 where they are equal, each with
    batch normalisation and ReLU. At any other ratio the larger map is average-pooled to the smaller and 1×1 does the
    rest; vectors get a linear layer.
    Source: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, arXiv
    1412.6550, equation 3.

    Args:
        student_map_shapes: `(D, H, W)` or `(D,)` of each of the student's maps, or of the only one.
        teacher_map_shapes: the same for the teacher.
        stage: which map is the hint, from 0; None for the middle one.
    """

    def __init__(
        self,
        student_map_shapes: Sequence[int] | Sequence[Sequence[int]],
        teacher_map_shapes: Sequence[int] | Sequence[Sequence[int]],
        stage: int | None = None,
    ) -> None:
        super().__init__()
        students, teachers = _shapes(student_map_shapes), _shapes(teacher_map_shapes)
        if len(students) != len(teachers):
            raise TeacherError(
                f"maps: found {len(students)} stages of the student and {len(teachers)} of the teacher, expected as "
                "many of both"
            )
        self.stage = len(students) // 2 if stage is None else stage
        if not 0 <= self.stage < len(students):
            raise RecipeError(f"stage: found {stage!r}, expected 0 to {len(students) - 1}")
        student, teacher = students[self.stage], teachers[self.stage]
        if len(student) != len(teacher) or len(student) not in (1, 3):
            raise RecipeError(
                f"fitnet: found maps of shapes {list(student)} and {list(teacher)} at stage {self.stage}, expected "
                "(D, H, W) for both, or (D,) for both"
            )
        width = teacher[0]
        if len(student) == 1:
            self.regressor: nn.Module = nn.Linear(student[0], width)
            self.norm: nn.BatchNorm1d | nn.BatchNorm2d = nn.BatchNorm1d(width)
        else:
            self.regressor = _convolution(student, teacher)
            self.norm = nn.BatchNorm2d(width)

    def forward(self, student_maps: Maps, teacher_maps: Maps) -> Tensor:
        """The distance `[B]` at the hint; the maps as they were described to the constructor, with a batch in front."""
        students, teachers = _stages(student_maps, teacher_maps)
        regressed = precise(self.regressor(students[self.stage].to(self.norm.weight.dtype)))
        teacher = teachers[self.stage]
        if regressed.dim() == 4:
            regressed, teacher = _common_size(regressed, fixed(teacher, regressed))
        return feature_mse(torch.relu(self._normalise(regressed)), teacher)

    def _normalise(self, values: Tensor) -> Tensor:
        # One value a channel has no variance: such a batch is normalised by the running statistics.
        if self.training and values.numel() == values.shape[1]:
            norm = self.norm
            return F.batch_norm(
                values, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
            )
        normalised: Tensor = self.norm(values)
        return normalised


def _shapes(shapes: Sequence[int] | Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    if shapes and all(isinstance(entry, int) for entry in shapes):
        return [tuple(int(entry) for entry in shapes)]  # type: ignore[arg-type]
    found = [tuple(int(size) for size in shape) for shape in shapes]  # type: ignore[union-attr]
    if not found:
        raise RecipeError("fitnet: found no maps, expected the shape of at least one")
    return found


def _convolution(student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Module:
    (width_in, *size), (width, *wanted) = student, teacher
    if size == [2 * side for side in wanted]:
        return nn.Conv2d(width_in, width, 3, stride=2, padding=1)
    if [2 * side for side in size] == wanted:
        return nn.ConvTranspose2d(width_in, width, 4, stride=2, padding=1)
    return nn.Conv2d(width_in, width, 1)


def rkd(
    student_features: Tensor,
    teacher_features: Tensor,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
) -> Tensor:
    """Relational distillation: Huber losses of pairwise distances (over their mean) and of the angles of triples.

    **One number for the batch.** The angles need memory for B³ numbers. A batch of one has no relations: 0. Source:
    Park et al., Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068, as in RepDistiller (δ 1, all pairs and
    triples averaged, distances to oneself among them).

    Args:
        student_features: `[B, ...]`, flattened per sample.
        teacher_features: `[B, ...]`; the widths may differ.
        distance_weight: of the distances.
        angle_weight: of the angles.

    Returns:
        A scalar.
    """
    if student_features.shape[0] != teacher_features.shape[0]:
        raise TeacherError(
            f"features: found {student_features.shape[0]} samples of the student and {teacher_features.shape[0]} of "
            "the teacher, expected the same batch"
        )
    student = precise(student_features).flatten(1)
    teacher = fixed(teacher_features, student).flatten(1)
    # Lower precision would turn near neighbours into equal points.
    with torch.autocast(student.device.type, enabled=False):
        distances, angles = _relations(student, angle_weight != 0)
        with torch.no_grad():
            wanted_distances, wanted_angles = _relations(teacher, angle_weight != 0)
        loss = distance_weight * F.smooth_l1_loss(distances, wanted_distances)
        if angles is not None and wanted_angles is not None:
            loss = loss + angle_weight * F.smooth_l1_loss(angles, wanted_angles)
    return loss


def _relations(features: Tensor, with_angles: bool) -> tuple[Tensor, Tensor | None]:
    """Pairwise distances over their mean `[B, B]`; cosines at i between the directions to j and k `[B, B, B]`."""
    differences = features.unsqueeze(0) - features.unsqueeze(1)
    distances = torch.linalg.vector_norm(differences, dim=2)
    apart = distances > 0
    mean = distances.sum() / apart.sum().clamp(min=1)
    relative = distances / torch.where(mean > 0, mean, 1.0)
    if not with_angles:
        return relative, None
    directions = differences / torch.where(apart, distances, 1.0).unsqueeze(2)
    return relative, directions @ directions.transpose(1, 2)
