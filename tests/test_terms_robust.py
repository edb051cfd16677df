"""What holds for any input: finite, no gradient to the teacher, nothing changed in place; the field's known defects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax
from torch import Tensor

from limbeck import terms
from limbeck.errors import DataError, RecipeError, TeacherError

Term = Callable[[Tensor, Tensor, Tensor], Tensor]


def call(name: str, **options: Any) -> Term:
    """A term of the catalogue on the fields that every batch here has."""
    function = terms.CATALOGUE[name].function
    needed = terms.needs(function)

    def run(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        fields = {
            "student_logits": student,
            "teacher_logits": teacher,
            "labels": labels,
            "progress": 0.3,
            "epoch": 3,
            "rows": torch.arange(len(labels)),
            "targets": 0.7 * F.one_hot(labels.long(), student.shape[1]) + 0.3 / student.shape[1],
        }
        built = function
        if isinstance(function, type):
            built = function(**({"samples": len(labels), "classes": student.shape[1]} if name == "elr" else {}))
        return built(**{field: fields[field] for field in needed}, **options)

    return run


LOGIT_TERMS: dict[str, Term] = {
    name: call(name)
    for name, info in terms.CATALOGUE.items()
    if not {"student_features", "student_maps"} & set(terms.needs(info.function))
} | {
    "kl_divergence τ1": call("kl_divergence", temperature=1.0),
    "refined_logits τ1": call("refined_logits", temperature=1.0),
    "refined_logits τ_sc": call("refined_logits", temperature=2.0, confidence_temperature=1.0),
    "decoupled τ1": call("decoupled", temperature=1.0),
    "rectified_bias swap": call("rectified_bias", variant="swap"),
    "rectified_bias one-hot": call("rectified_bias", variant="onehot_average", temperature=1.0),
    "rectified_bias logit": call("rectified_bias", space="logit"),
    "rectified_bias logit one-hot": call("rectified_bias", space="logit", variant="onehot_average"),
    "lr released": call("lr", loss="released"),
    "lr η1": call("lr", eta=1.0),
    "partial_label ce": call("partial_label", loss="ce"),
    "partial_label k1": call("partial_label", k=1),
    "wttm γ1": call("wttm", gamma=1.0),
    "standardised kl": lambda s, t, y: terms.kl_divergence(terms.standardise(s), terms.standardise(t), 2.0),
    "standardised rld": lambda s, t, y: terms.refined_logits(terms.standardise(s), terms.standardise(t), y, 2.0),
}
NEVER_NEGATIVE = [
    name for name in LOGIT_TERMS if name not in ("elr", "dist") and not name.startswith(("lr released", "nkd"))
]


@st.composite
def batches(draw: st.DrawFn, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Any batch: few values, so that ties are common; up to ±1e4; any labels, so masks run from one class to all."""
    samples, classes = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    largest = draw(st.sampled_from([0.0, 1e-3, 1.0, 20.0, 300.0, 1e4]))
    values = st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-1, 1, width=32))
    cells = st.lists(values, min_size=samples * classes, max_size=samples * classes)
    student, teacher = (
        (largest * torch.tensor(draw(cells), dtype=torch.float64)).reshape(samples, classes).to(dtype) for _ in range(2)
    )
    labels = torch.tensor(draw(st.lists(st.integers(0, classes - 1), min_size=samples, max_size=samples)))
    return student, teacher, labels


@pytest.mark.parametrize("name", LOGIT_TERMS)
@settings(max_examples=30, deadline=None)
@given(values=batches())
def test_finite_and_the_student_alone_learns(name: str, values: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, labels = (entry.clone() for entry in values)
    student.requires_grad_()
    teacher.requires_grad_()
    losses = LOGIT_TERMS[name](student, teacher, labels)
    assert losses.shape == (() if name == "dist" else labels.shape)
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()
    if name in NEVER_NEGATIVE:
        # Of the divergences only CTKD's is not computed by a kernel that knows it cannot be negative.
        assert (losses >= (-1e-4 if name == "ctkd" else 0.0)).all()
    losses.sum().backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert teacher.grad is None
    for given_value, left in zip(values, (student, teacher, labels), strict=True):
        assert torch.equal(given_value, left)


@pytest.mark.parametrize("name", LOGIT_TERMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_half_precision_is_computed_in_single(name: str, dtype: torch.dtype, data: st.DataObject) -> None:
    student, teacher, labels = data.draw(batches(dtype))
    student.requires_grad_()
    torch.manual_seed(0)
    losses = LOGIT_TERMS[name](student, teacher, labels)
    torch.manual_seed(0)
    single = student.detach().float().requires_grad_()
    expected = LOGIT_TERMS[name](single, teacher.float(), labels)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()
    expected.sum().backward()
    assert student.grad is not None
    assert single.grad is not None
    assert student.grad.dtype == dtype
    torch.testing.assert_close(student.grad, single.grad.to(dtype), rtol=0.02, atol=1e-2)


@pytest.mark.parametrize("name", LOGIT_TERMS)
def test_nothing_changes_under_autocast(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(7, 5, generator=generator) for _ in range(2))
    labels = torch.randint(5, (7,), generator=generator)
    expected = LOGIT_TERMS[name](student, teacher, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(LOGIT_TERMS[name](student, teacher, labels), expected)


@pytest.mark.parametrize("name", LOGIT_TERMS)
def test_an_empty_batch_and_no_gradient_wanted(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 5, generator=generator) for _ in range(2))
    labels = torch.randint(5, (4,), generator=generator)
    with torch.no_grad():
        losses = LOGIT_TERMS[name](student.requires_grad_(), teacher, labels)
    assert not losses.requires_grad
    torch.testing.assert_close(losses, LOGIT_TERMS[name](student, teacher, labels).detach())
    if name != "dist" and not name.startswith("standardised"):
        assert LOGIT_TERMS[name](student[:0], teacher[:0], labels[:0]).shape == (0,)


@pytest.mark.parametrize("name", [name for name in LOGIT_TERMS if not name.startswith(("dist", "rectified", "lr rel"))])
def test_a_sample_does_not_see_its_neighbours(name: str) -> None:
    """Per sample means per sample: the loss of a row is the same alone as in a batch."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(6, 5, generator=generator) for _ in range(2))
    labels = torch.randint(5, (6,), generator=generator)
    together = LOGIT_TERMS[name](student, teacher, labels)
    alone = [LOGIT_TERMS[name](student[i : i + 1], teacher[i : i + 1], labels[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("name", LOGIT_TERMS)
def test_a_shift_of_the_logits_changes_nothing(name: str) -> None:
    """Softmax does not see a constant; only what edits raw logits may."""
    if name in ("rc", "lr released", "rectified_bias logit"):
        pytest.skip("edits or compares raw logits")
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(5, (6,), generator=generator)
    shifted = LOGIT_TERMS[name](student + 1000.0, teacher - 500.0, labels)
    torch.testing.assert_close(shifted, LOGIT_TERMS[name](student, teacher, labels))


@settings(max_examples=60, deadline=None)
@given(values=batches())
def test_masks_of_every_size(values: tuple[Tensor, Tensor, Tensor]) -> None:
    """Where every class is masked, and where only one is left, the correlation is 0 with zero gradient."""
    student, teacher, labels = values
    student = student.clone().requires_grad_()
    losses = terms.masked_correlation(student, teacher, labels)
    losses.sum().backward()
    kept = (teacher < teacher.gather(1, labels[:, None])).sum(1)
    assert student.grad is not None
    assert (losses[kept < 2] == 0).all()
    assert (student.grad[kept < 2].abs() <= 1e-6).all()
    assert (student.grad[kept == 0] == 0).all()


@settings(max_examples=40, deadline=None)
@given(values=batches(torch.float64))
def test_extreme_logits_keep_their_value(values: tuple[Tensor, Tensor, Tensor]) -> None:
    """Single precision agrees with double to the precision that logits of this size have."""
    student, teacher, labels = values
    student, teacher = student.float().double(), teacher.float().double()
    for term in (terms.refined_logits, terms.decoupled):
        exact = term(student, teacher, labels, temperature=1.0)
        found = term(student.float(), teacher.float(), labels, temperature=1.0).double()
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4 * (1 + student.abs().max().item()))


def test_confidence_far_out_is_the_distance() -> None:
    """log(1-p) at -1e4: a probability would have been 0 and its logarithm infinite."""
    student, teacher = torch.tensor([[1e4, -1e4, -1e4]]), torch.tensor([[-1e4, 1e4, -1e4]])
    losses = terms.sample_confidence(student, teacher, torch.tensor([1]), temperature=1.0)
    assert losses.item() == pytest.approx(2e4)


def test_a_teacher_may_lack_a_class() -> None:
    student = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]] * 3)
    for name in ("kl_divergence", "refined_logits", "decoupled", "la", "ttm", "ctkd", "partial_label", "lr"):
        losses = LOGIT_TERMS[name](student, teacher, torch.tensor([0, 2, 3]))
        losses.sum().backward()
        assert torch.isfinite(losses).all(), name
        assert student.grad is not None
        assert torch.isfinite(student.grad).all(), name
    known = [0, 1, 3]
    expected = 16 * rel_entr(softmax([0, 0.25, 0.5]), softmax(student.detach().double().numpy() / 4, axis=1)[:, known])
    np.testing.assert_allclose(terms.kl_divergence(student, teacher).detach(), expected.sum(1), rtol=1e-4)


# Defects of other frameworks, one test each ---------------------------------------------------------------------------


def random_batch(samples: int = 64, classes: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student = 3 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    teacher = 5 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(classes, (samples,), generator=generator)


def test_defect_kl_with_its_arguments_swapped() -> None:
    """KL(teacher ‖ student), never the reverse, and never negative."""
    student, teacher, _ = random_batch()
    forward = rel_entr(softmax(teacher.numpy() / 4, axis=1), softmax(student.numpy() / 4, axis=1)).sum(1)
    backward = rel_entr(softmax(student.numpy() / 4, axis=1), softmax(teacher.numpy() / 4, axis=1)).sum(1)
    found = terms.kl_divergence(student, teacher).numpy()
    np.testing.assert_allclose(found, 16 * forward)
    assert (np.abs(found - 16 * backward) > 1e-3).all()
    assert (found > 0).all()


def test_defect_kl_divided_by_the_number_of_classes() -> None:
    """Summed over classes: at 100 classes the mean over all elements would be 100 times too small."""
    student, teacher, _ = random_batch()
    torch_sum = torch.nn.functional.kl_div(
        torch.log_softmax(student / 4, 1), torch.softmax(teacher / 4, 1), reduction="batchmean"
    )
    assert terms.kl_divergence(student, teacher).mean().item() == pytest.approx(16 * torch_sum.item())


def test_defect_temperature_squared_forgotten() -> None:
    """With τ² the gradient's scale stays as τ grows: τ(p^S - p^T) tends to the difference of centred logits over C."""
    student, teacher, _ = random_batch(classes=10)
    student.requires_grad_()
    terms.kl_divergence(student, teacher, temperature=1e5).sum().backward()
    gap = student - teacher
    assert student.grad is not None
    np.testing.assert_allclose(student.grad, (gap - gap.mean(1, keepdim=True)).detach() / 10, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", [name for name, info in terms.CATALOGUE.items() if info.minimum_classes == 3])
def test_defect_silent_zero_gradient_at_two_classes(name: str) -> None:
    """Declared, not silent: a term that teaches nothing at two classes says so in the catalogue."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(8, 2, generator=generator).requires_grad_() for _ in range(2))
    LOGIT_TERMS[name](student, teacher, torch.randint(2, (8,), generator=generator)).sum().backward()
    assert student.grad is not None
    assert (student.grad == 0).all()
    assert name in ("masked_correlation", "nckd")


@pytest.mark.parametrize("name", [name for name in LOGIT_TERMS if name in terms.CATALOGUE])
def test_every_other_term_has_a_gradient_at_its_fewest_classes(name: str) -> None:
    classes = terms.CATALOGUE[name].minimum_classes
    generator = torch.Generator().manual_seed(1)
    student, teacher = (2 * torch.randn(16, classes, generator=generator) for _ in range(2))
    student.requires_grad_()
    LOGIT_TERMS[name](student, teacher, torch.randint(classes, (16,), generator=generator)).sum().backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 1e-4


@pytest.mark.parametrize(
    ("whole", "left"),
    [("refined_logits", "sample_confidence"), ("decoupled", "tckd")],
)
def test_what_is_left_at_two_classes(whole: str, left: str) -> None:
    student, teacher, labels = random_batch(classes=2)
    torch.testing.assert_close(
        LOGIT_TERMS[whole](student, teacher, labels), LOGIT_TERMS[left](student, teacher, labels)
    )
    assert terms.CATALOGUE[whole].note_two_classes


def test_standardisation_has_no_gradient_at_two_classes() -> None:
    student, teacher, _ = random_batch(classes=2)
    student = student[(student[:, 0] - student[:, 1]).abs() > 1.0].requires_grad_()
    teacher = teacher[: len(student)]
    terms.kl_divergence(terms.standardise(student), terms.standardise(teacher), 2.0).sum().backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6


def test_defect_logs_of_probabilities_and_large_negative_fills() -> None:
    """A published mask fills with -1e9, which half precision cannot hold; a published confidence logs an underflow."""
    student = torch.tensor([[60000.0, -60000.0, 0.0]], dtype=torch.float16, requires_grad=True)
    teacher = torch.tensor([[-60000.0, 60000.0, 0.0]], dtype=torch.float16)
    losses = terms.refined_logits(student, teacher, torch.tensor([1]), temperature=1.0)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_defect_a_second_call_depends_on_the_first() -> None:
    student, teacher, labels = random_batch(classes=5)
    for name, term in LOGIT_TERMS.items():
        assert torch.equal(term(student, teacher, labels), term(student, teacher, labels)), name


def test_defect_teacher_and_student_disagree_on_the_labels() -> None:
    student, teacher, labels = random_batch(samples=4, classes=3)
    for name in ("kl_divergence", "refined_logits", "la", "nkd", "ttm", "dist", "ctkd", "partial_label"):
        with pytest.raises(TeacherError, match=r"\[4, 2\].*\[4, 3\]"):
            LOGIT_TERMS[name](student, teacher[:, :2], labels)
        with pytest.raises(TeacherError):  # would broadcast
            LOGIT_TERMS[name](student, teacher[:1], labels)


def test_ties_in_the_teachers_top_two_are_settled_by_class() -> None:
    teacher = torch.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert terms.partial_targets(teacher).tolist() == [[0, 0.5, 0.5, 0], [0.5, 0.5, 0, 0]]


# Bad input is refused with a reason -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda s, t, y: terms.cross_entropy(s[:, :1], y), RecipeError, "two classes"),
        (lambda s, t, y: terms.cross_entropy(s[:, 0], y), RecipeError, r"\[B, C\]"),
        (lambda s, t, y: terms.cross_entropy(s.long(), y), RecipeError, "int64"),
        (lambda s, t, y: terms.cross_entropy(s, y[:, None]), DataError, "one class index"),
        (lambda s, t, y: terms.cross_entropy(s, y.float()), DataError, "float32"),
        (lambda s, t, y: terms.kl_divergence(s, t.long()), TeacherError, "int64"),
        (lambda s, t, y: terms.kl_divergence(s, t, 0.0), RecipeError, "temperature"),
        (lambda s, t, y: terms.kl_divergence(s, t, float("nan")), RecipeError, "temperature"),
        (lambda s, t, y: terms.refined_logits(s, t, y, confidence_temperature=-1.0), RecipeError, "confidence_temp"),
        (lambda s, t, y: terms.rectify(s, y, "two_clas"), RecipeError, "did you mean 'two_class'"),
        (lambda s, t, y: terms.rectified_bias(s, t, y, 1.5), RecipeError, "progress"),
        (lambda s, t, y: terms.rectified_bias(s, t, y, 0.5, space="probs"), RecipeError, "did you mean 'prob'"),
        (lambda s, t, y: terms.rectified_bias(s, t, y, 0.5, balance=2.0), RecipeError, "balance"),
        (lambda s, t, y: terms.lr(s, t, y, eta=1.2), RecipeError, "eta"),
        (lambda s, t, y: terms.lr(s, t, y, loss="mse"), RecipeError, "released"),
        (lambda s, t, y: terms.lr(s, t, y, temperature=2.0, loss="released"), RecipeError, "no temperature"),
        (lambda s, t, y: terms.partial_targets(t, k=9), RecipeError, "1 to 5"),
        (lambda s, t, y: terms.partial_targets(t, weights=[0.5, 0.4]), RecipeError, "sum to 1"),
        (lambda s, t, y: terms.partial_label(s, t, loss="gc"), RecipeError, "did you mean 'gce'"),
        (lambda s, t, y: terms.gce(s, y, q=0.0), RecipeError, "cross entropy is the limit"),
        (lambda s, t, y: terms.label_smoothing(s, y, epsilon=2.0), RecipeError, "epsilon"),
        (lambda s, t, y: terms.tf_kd(s, y, confidence=0.1), RecipeError, "confidence"),
        (lambda s, t, y: terms.ttm(s, t, gamma=0.0), RecipeError, "gamma"),
        (lambda s, t, y: terms.ELR(4, 5, momentum=1.0), RecipeError, "momentum"),
        (lambda s, t, y: terms.CTKD(span=-1.0), RecipeError, "span"),
    ],
)
def test_bad_input_is_refused(run: Term, error: type[Exception], message: str) -> None:
    student, teacher = torch.zeros(4, 5), torch.zeros(4, 5)
    with pytest.raises(error, match=message):
        run(student, teacher, torch.zeros(4, dtype=torch.int64))
