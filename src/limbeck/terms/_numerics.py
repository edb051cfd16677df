"""Checks, precision and the row-by-row machinery that the terms share.

Logits reach ±1e4, ties and empty class sets occur, and half precision must not overflow. Three rules keep every term
finite: a student's log-probabilities come from log-sum-exps and never from a probability, classes are taken out with
-inf and never with a large negative number, and no epsilon is added inside a logarithm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from typing import Any, NamedTuple, ParamSpec

import torch
from torch import Tensor

from limbeck.errors import DataError, RecipeError, TeacherError

Kernel = Callable[..., tuple[Tensor, Tensor | None]]
"""(student rows, *other rows, *constants, want_gradient) -> losses `[b]`, and their gradients `[b, C]` if wanted."""

Options = ParamSpec("Options")


class RowLoss(NamedTuple):
    """A term on some samples, before it is computed: what `by_row` takes beside the student's logits.

    `ready`, of rows and constants, is the same loss with everything done that does not depend on the student; worth it
    where rows are met more than once.
    """

    kernel: Kernel
    plain: Callable[..., Tensor]
    rows: tuple[Tensor, ...]
    constants: tuple[Any, ...] = ()
    ready: Callable[..., RowLoss] | None = None

    def part(self, part: slice) -> RowLoss:
        """The loss of some of the samples."""
        return self._replace(rows=tuple([row[part] for row in self.rows]))


LOWEST = -1e30
"""Stands for log 0 where a product with a probability of exactly 0 must stay 0 instead of becoming NaN."""

# Elements a chunk: its temporaries should stay in a core's cache; an accelerator rather wants few, large launches.
_CHUNK_CPU = 1 << 16
_CHUNK_ACCELERATOR = 1 << 24


def precise(values: Tensor) -> Tensor:
    """The values in the precision that losses are computed in: float64 stays, everything else becomes float32."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def fixed(values: Tensor, like: Tensor) -> Tensor:
    """A teacher's values: no gradient, in the precision of `like`."""
    return values.detach().to(like.dtype)


def check(student_logits: Tensor, teacher_logits: Tensor | None = None, labels: Tensor | None = None) -> None:
    """Refuse shapes that cannot belong together, before they broadcast into a wrong number.

    Raises:
        RecipeError: where the student's logits are not a floating `[B, C]` with at least two classes.
        TeacherError: where the teacher's are not of the same shape.
        DataError: where the labels are not one integer a sample.
    """
    shape = student_logits.shape
    if len(shape) != 2 or shape[1] < 2 or not student_logits.is_floating_point():
        raise RecipeError(
            f"student_logits: found {student_logits.dtype} of shape {list(shape)}, expected floating-point logits "
            "[B, C] with at least two classes (a single-output model needs the two logits 0 and z)"
        )
    if teacher_logits is not None and (teacher_logits.shape != shape or not teacher_logits.is_floating_point()):
        raise TeacherError(
            f"teacher_logits: found {teacher_logits.dtype} of shape {list(teacher_logits.shape)}, expected "
            f"floating-point logits of the student's shape {list(shape)}: map the teacher's classes to the student's "
            "first"
        )
    if labels is not None and (labels.shape != shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool):
        raise DataError(
            f"labels: found {labels.dtype} of shape {list(labels.shape)}, expected one class index a sample, "
            f"int64 of shape [{shape[0]}]"
        )


def positive(**values: float) -> None:
    """Refuse options that must be above zero.

    Raises:
        RecipeError: naming the option and what was found.
    """
    for name, value in values.items():
        if not value > 0:
            raise RecipeError(f"{name}: found {value!r}, expected a number above 0")


def column(labels: Tensor) -> Tensor:
    """Labels `[B]` as the index `[B, 1]` that gather and scatter take."""
    return labels.long().unsqueeze(1)


def row_term(describe: Callable[Options, RowLoss]) -> Callable[Options, Tensor]:
    """Make a term of a function that says which kernel computes it; its first argument is the student's logits.

    The function stays within reach (`row_loss_of`), so that an objective of several such terms can compute them as one
    (`together`), and describe many batches at once: it must look at one sample at a time, and at nothing of the
    student's but the shape.
    """
    return _term_of(describe, ahead=True)


def batch_row_term(describe: Callable[Options, RowLoss]) -> Callable[Options, Tensor]:
    """A `row_term` whose description depends on the whole batch, or on the student."""
    return _term_of(describe, ahead=False)


def _term_of(describe: Callable[Options, RowLoss], ahead: bool) -> Callable[Options, Tensor]:

    @wraps(describe)
    def term(*arguments: Options.args, **options: Options.kwargs) -> Tensor:
        student = arguments[0] if arguments else options["student_logits"]
        return by_row(student, describe(*arguments, **options))  # type: ignore[arg-type]

    term.__signature__ = signature(describe).replace(return_annotation="Tensor")  # type: ignore[attr-defined]
    has_row_loss(term, describe, ahead)
    return term


def has_row_loss(term: Callable[..., Tensor], describe: Callable[..., RowLoss], ahead: bool = True) -> None:
    """Let a term be computed together with others: `describe` takes what the term takes."""
    term.row_loss, term.ahead = describe, ahead  # type: ignore[attr-defined]


def described_ahead(term: Callable[..., Any]) -> bool:
    """Whether a term can be described for many batches at once."""
    return bool(getattr(term, "ahead", False))


def row_loss_of(term: Callable[..., Any]) -> Callable[..., RowLoss] | None:
    """What `has_row_loss` said of a term."""
    found: Callable[..., RowLoss] | None = getattr(term, "row_loss", None)
    return found


def together(parts: Sequence[tuple[RowLoss, float]], ahead: bool = False) -> RowLoss:
    """The sum of several terms, each times its factor, as one: a batch then goes through autograd once.

    Args:
        parts: terms and factors.
        ahead: do now what does not depend on the student.
    """
    if ahead:
        parts = [(loss.ready(*loss.rows, *loss.constants) if loss.ready else loss, factor) for loss, factor in parts]
    if len(parts) == 1 and parts[0][1] == 1.0:
        return parts[0][0]
    layout = tuple((part.kernel, part.plain, len(part.rows), part.constants, factor) for part, factor in parts)
    return RowLoss(_sum_kernel, _sum_plain, tuple(row for part, _ in parts for row in part.rows), (layout,))


def _sum_kernel(student: Tensor, *others: Any) -> tuple[Tensor, Tensor | None]:
    *rows, layout, wanted = others
    losses: Tensor | None = None
    gradient: Tensor | None = None
    start = 0
    for kernel, _, count, constants, factor in layout:
        value, slope = kernel(student, *rows[start : start + count], *constants, wanted)
        start += count
        if losses is None:
            losses = value if factor == 1.0 else value.mul_(factor)
            gradient = slope if slope is None or factor == 1.0 else slope.mul_(factor)
        else:
            losses.add_(value, alpha=factor)
            if gradient is not None:
                gradient.add_(slope, alpha=factor)
    assert losses is not None
    return losses, gradient


def _sum_plain(student: Tensor, *others: Any) -> Tensor:
    *rows, layout = others
    losses, start = student.new_zeros(len(student)), 0
    for _, plain, count, constants, factor in layout:
        losses = losses + factor * plain(student, *rows[start : start + count], *constants)
        start += count
    return losses


def weighed(loss: RowLoss, weights: Tensor) -> RowLoss:
    """The losses times one weight a sample `[B]`, without gradient."""
    return RowLoss(_weighed_kernel, _weighed_plain, (weights, *loss.rows), (loss.kernel, loss.plain, loss.constants))


def _weighed_kernel(student: Tensor, weights: Tensor, *others: Any) -> tuple[Tensor, Tensor | None]:
    *rows, kernel, _, constants, wanted = others
    losses, gradient = kernel(student, *rows, *constants, wanted)
    return losses.mul_(weights), None if gradient is None else gradient.mul_(weights.unsqueeze(1))


def _weighed_plain(student: Tensor, weights: Tensor, *others: Any) -> Tensor:
    *rows, _, plain, constants = others
    losses: Tensor = plain(student, *rows, *constants)
    return weights * losses


def by_row(student: Tensor, loss: RowLoss) -> Tensor:
    """Per-sample losses whose gradient a kernel computes together with the value.

    Works through the batch in chunks of rows, so that beside the gradient itself no `[B, C]` intermediate is ever held,
    and what a chunk needs stays in the cache. Differentiating twice goes through `plain`.

    Args:
        student: `[B, C]`, any floating type; the only input that receives a gradient.
        loss: the kernel (see `Kernel`; it may overwrite nothing that it is given), the same losses in differentiable
            operations (`plain(student, *rows, *constants)`), further tensors with one row a sample, which are
            detached, and what else both take.

    Returns:
        Losses `[B]`, float32 (float64 for a float64 student).
    """
    wanted = torch.is_grad_enabled() and student.requires_grad
    rows = (row.detach() if row.requires_grad else row for row in loss.rows)
    result: Tensor = _ByRow.apply(student, loss.kernel, loss.plain, loss.constants, wanted, *rows)  # type: ignore[no-untyped-call]
    return result


def with_gradient(student: Tensor, loss: RowLoss, wanted: bool = True) -> tuple[Tensor, Tensor | None]:
    """Losses `[B]` and their gradients by the student's logits `[B, C]`; run it where autograd does not record."""
    kernel, _, rows, constants, _ = loss
    samples, classes = student.shape
    step = max(1, (_CHUNK_CPU if student.device.type == "cpu" else _CHUNK_ACCELERATOR) // classes)
    if samples <= step:
        return kernel(precise(student), *rows, *constants, wanted)
    losses = student.new_empty(samples, dtype=torch.float64 if student.dtype == torch.float64 else torch.float32)
    gradient = torch.empty_like(student) if wanted else None
    for start in range(0, samples, step):
        part = slice(start, start + step)
        value, slope = kernel(precise(student[part]), *(row[part] for row in rows), *constants, wanted)
        losses[part] = value
        if gradient is not None and slope is not None:
            gradient[part] = slope
    return losses, gradient


class _ByRow(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        kernel: Kernel,
        plain: Callable[..., Tensor],
        constants: tuple[Any, ...],
        wanted: bool,
        *rows: Tensor,
    ) -> Tensor:
        losses, gradient = with_gradient(student, RowLoss(kernel, plain, rows, constants), wanted)
        ctx.plain, ctx.constants = plain, constants
        ctx.save_for_backward(student, gradient, *rows)
        return losses

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        student, gradient, *rows = ctx.saved_tensors
        nothing = (None,) * (4 + len(rows))
        if torch.is_grad_enabled():  # somebody will differentiate this gradient again
            losses = ctx.plain(precise(student), *rows, *ctx.constants)
            return (*torch.autograd.grad(losses, student, outer[0], create_graph=True), *nothing)
        return ((gradient * outer[0].unsqueeze(1)).to(student.dtype), *nothing)


def divergence(
    teacher: Tensor,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    factor: float = 1.0,
) -> RowLoss:
    """factor·KL(softmax(teacher/τ_T) ‖ softmax(student/τ_S)) per sample `[B]`.

    The teacher's logits may hold -inf: a class that it gives no probability.
    """
    constants = (student_temperature, teacher_temperature, factor)
    return RowLoss(_divergence_kernel, _divergence, (teacher,), constants, _ready_divergence)


def _ready_divergence(
    teacher: Tensor, student_temperature: float, teacher_temperature: float, factor: float
) -> RowLoss:
    rows = spoken_(precise(teacher) / teacher_temperature)
    return RowLoss(_ready_kernel, _ready_plain, rows, (student_temperature, factor))


def _divergence_kernel(
    student: Tensor,
    teacher: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    factor: float,
    wanted: bool,
) -> tuple[Tensor, Tensor | None]:
    spoken = spoken_(teacher.to(student.dtype) / teacher_temperature)
    return _ready_kernel(student, *spoken, student_temperature, factor, wanted)


def _ready_kernel(
    student: Tensor, log_teacher: Tensor, p_teacher: Tensor, temperature: float, factor: float, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    log_student, p_student = softmax_(student / temperature)
    losses = relative(log_student, log_teacher, p_teacher).mul_(factor)
    return losses, p_student.sub_(p_teacher).mul_(factor / temperature) if wanted else None


def _ready_plain(student: Tensor, log_teacher: Tensor, p_teacher: Tensor, temperature: float, factor: float) -> Tensor:
    log_student = torch.log_softmax(student / temperature, 1)
    return factor * (p_teacher * (log_teacher - log_student)).sum(1)


def relative(log_student: Tensor, log_teacher: Tensor, p_teacher: Tensor) -> Tensor:
    """KL `[b]` of two tables of log-probabilities without -inf. Overwrites the student's."""
    # Rounding alone could bring it below 0.
    return torch.sub(log_teacher, log_student, out=log_student).mul_(p_teacher).sum(1).clamp_(min=0)


def short_rows(classes: int) -> bool:
    """Whether rows are so short that torch's softmax goes class by class, and operations on whole tables are faster."""
    return 6 <= classes < 16


def softmax_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """log p and p `[b, C]` of logits. May overwrite them."""
    if not short_rows(logits.shape[1]):
        logs = torch.log_softmax(logits, 1)
        return logs, logs.exp()
    logits.sub_(logits.amax(1, keepdim=True))
    p = logits.exp()
    total = p.sum(1, keepdim=True)
    return logits.sub_(total.log()), p.div_(total)


def spoken_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """log p, `LOWEST` where there is no probability, and p `[b, C]` of a teacher's logits. May overwrite them."""
    if short_rows(logits.shape[1]):
        logits.sub_(logits.amax(1, keepdim=True))
        logs = logits.sub_(logits.exp().sum(1, keepdim=True).log_())
    else:
        logs = torch.log_softmax(logits, 1)
    logs.clamp_(min=LOWEST)
    return logs, logs.exp()


def _divergence(
    student: Tensor, teacher: Tensor, student_temperature: float, teacher_temperature: float, factor: float
) -> Tensor:
    log_teacher = torch.log_softmax(teacher.to(student.dtype) / teacher_temperature, 1).clamp(min=LOWEST)
    log_student = torch.log_softmax(student / student_temperature, 1)
    return factor * (log_teacher.exp() * (log_teacher - log_student)).sum(1)
