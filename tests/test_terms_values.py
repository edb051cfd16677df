"""Every term against its own derivation in float64 numpy, in value and gradient, and against the published numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor

from limbeck import terms
from limbeck.terms import _numerics

Array = np.ndarray[Any, np.dtype[np.float64]]
SAMPLES, CLASSES = 24, 6


def batch(
    samples: int = SAMPLES, classes: int = CLASSES, seed: int = 0, spread: float = 3.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a student and of a teacher that is right on about half of the samples, float64; labels."""
    generator = torch.Generator().manual_seed(seed)
    student = spread * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    teacher = spread * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (samples,), generator=generator)
    half = torch.arange(samples) % 2 == 0
    labels = torch.where(half, teacher.argmax(1), labels)
    return student, teacher, labels


# The same losses, one sample at a time and in the words of the papers -------------------------------------------------


def kl(a: Array, b: Array) -> float:
    return float(rel_entr(a, b).sum())


def coins(a: float, b: float) -> float:
    return kl(np.array([a, 1 - a]), np.array([b, 1 - b]))


def ref_cross_entropy(s: Array, t: Array, y: int) -> float:
    return -float(log_softmax(s)[y])


def ref_kl(s: Array, t: Array, y: int, tau: float = 4.0) -> float:
    return tau**2 * kl(softmax(t / tau), softmax(s / tau))


def ref_confidence(s: Array, t: Array, y: int, tau: float = 4.0) -> float:
    return tau**2 * coins(softmax(t / tau).max(), softmax(s / tau)[y])


def ref_correlation(s: Array, t: Array, y: int, tau: float = 4.0) -> float:
    kept = t < t[y]
    return tau**2 * kl(softmax(t[kept] / tau), softmax(s[kept] / tau)) if kept.any() else 0.0


def ref_refined(
    s: Array, t: Array, y: int, tau: float = 4.0, own: float = 4.0, alpha: float = 1.0, beta: float = 8.0
) -> float:
    return alpha * ref_confidence(s, t, y, own) + beta * ref_correlation(s, t, y, tau)


def ref_tckd(s: Array, t: Array, y: int, tau: float = 4.0) -> float:
    return tau**2 * coins(softmax(t / tau)[y], softmax(s / tau)[y])


def ref_nckd(s: Array, t: Array, y: int, tau: float = 4.0) -> float:
    return tau**2 * kl(softmax(np.delete(t, y) / tau), softmax(np.delete(s, y) / tau))


def ref_smoothing(s: Array, t: Array, y: int, epsilon: float = 0.1) -> float:
    target = np.full(len(s), epsilon / len(s))
    target[y] += 1 - epsilon
    return -float(target @ log_softmax(s))


def ref_tf_kd(s: Array, t: Array, y: int, confidence: float = 0.99, tau: float = 20.0) -> float:
    virtual = np.full(len(s), (1 - confidence) / (len(s) - 1))
    virtual[y] = confidence
    return kl(softmax(virtual / tau), softmax(s))


def ref_gce(s: Array, t: Array, y: int, q: float = 0.7) -> float:
    return float((1 - softmax(s)[y] ** q) / q)


def ref_rectify(a: Array, y: int, variant: str) -> Array:
    a, w = a.copy(), int(a.argmax())
    if w == y:
        return a
    if variant == "swap":
        a[y], a[w] = a[w], a[y]
    elif variant == "two_class":
        total = a[y] + a[w]
        a[y], a[w] = (a[y] + 1) * total / (total + 1), a[w] * total / (total + 1)
    else:
        a = (a + np.eye(len(a))[y]) / 2
    return a


def ref_la(s: Array, t: Array, y: int, tau: float = 4.0) -> float:
    return ref_kl(s, ref_rectify(t, y, "swap"), y, tau)


def revised(t: Array, y: int, tau: float, eta: float) -> Array:
    p = softmax(t / tau)
    if p.argmax() == y:
        return p
    beta = eta / (p.max() - p[y] + 1)
    return beta * p + (1 - beta) * np.eye(len(p))[y]


def ref_lr(s: Array, t: Array, y: int, tau: float = 1.0, eta: float = 0.8) -> float:
    return tau**2 * kl(revised(t, y, tau, eta), softmax(s / tau))


def ref_partial(
    s: Array, t: Array, y: int, k: int = 2, weights: tuple[float, ...] | None = None, loss: str = "gce", q: float = 0.7
) -> float:
    order = sorted(range(len(t)), key=lambda i: (-t[i], i))[:k]
    p, weights = softmax(s), weights or (1 / k,) * k
    each = [(1 - p[i] ** q) / q if loss == "gce" else -math.log(p[i]) for i in order]
    return float(np.dot(weights, each))


def ref_nkd(s: Array, t: Array, y: int, tau: float = 1.0, gamma: float = 1.5) -> float:
    target = -softmax(t)[y] * log_softmax(s)[y]
    others = -softmax(np.delete(t, y) / tau) @ log_softmax(np.delete(s, y) / tau)
    return float(target + gamma * tau**2 * others)


def ref_ttm(s: Array, t: Array, y: int, gamma: float = 0.25) -> float:
    powers = softmax(t) ** gamma
    return kl(powers / powers.sum(), softmax(s))


def ref_wttm(s: Array, t: Array, y: int, gamma: float = 0.25) -> float:
    return float((softmax(t) ** gamma).sum()) * ref_ttm(s, t, y, gamma)


def with_labels(term: Callable[..., Tensor], **options: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda s, t, y: term(s, t, y, **options)


def without_labels(term: Callable[..., Tensor], **options: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda s, t, y: term(s, t, **options)


def without_teacher(term: Callable[..., Tensor], **options: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda s, t, y: term(s, y, **options)


WEIGHTS = (0.5, 0.3, 0.2)
CASES: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], Callable[..., float]]] = {
    "cross_entropy": (without_teacher(terms.cross_entropy), ref_cross_entropy),
    "kl_divergence": (without_labels(terms.kl_divergence), ref_kl),
    "kl_divergence τ1": (without_labels(terms.kl_divergence, temperature=1.0), partial(ref_kl, tau=1.0)),
    "sample_confidence": (with_labels(terms.sample_confidence), ref_confidence),
    "masked_correlation": (with_labels(terms.masked_correlation), ref_correlation),
    "refined_logits": (with_labels(terms.refined_logits), ref_refined),
    "refined_logits τ_sc": (
        with_labels(terms.refined_logits, temperature=2.0, confidence_temperature=1.0, alpha=0.5, beta=3.0),
        partial(ref_refined, tau=2.0, own=1.0, alpha=0.5, beta=3.0),
    ),
    "tckd": (with_labels(terms.tckd, temperature=2.0), partial(ref_tckd, tau=2.0)),
    "nckd": (with_labels(terms.nckd, temperature=2.0), partial(ref_nckd, tau=2.0)),
    "decoupled": (
        with_labels(terms.decoupled, alpha=2.0, beta=6.0),
        lambda s, t, y: 2.0 * ref_tckd(s, t, y) + 6.0 * ref_nckd(s, t, y),
    ),
    "label_smoothing": (without_teacher(terms.label_smoothing, epsilon=0.2), partial(ref_smoothing, epsilon=0.2)),
    "tf_kd": (without_teacher(terms.tf_kd), ref_tf_kd),
    "tf_kd τ1": (
        without_teacher(terms.tf_kd, confidence=0.9, temperature=1.0),
        partial(ref_tf_kd, confidence=0.9, tau=1.0),
    ),
    "gce": (without_teacher(terms.gce), ref_gce),
    "gce q1": (without_teacher(terms.gce, q=1.0), partial(ref_gce, q=1.0)),
    "la": (with_labels(terms.la), ref_la),
    "lr": (with_labels(terms.lr), ref_lr),
    "lr τ3": (with_labels(terms.lr, temperature=3.0, eta=0.5), partial(ref_lr, tau=3.0, eta=0.5)),
    "partial_label": (without_labels(terms.partial_label), ref_partial),
    "partial_label ce": (
        without_labels(terms.partial_label, k=3, weights=WEIGHTS, loss="ce"),
        partial(ref_partial, k=3, weights=WEIGHTS, loss="ce"),
    ),
    "nkd": (with_labels(terms.nkd), ref_nkd),
    "nkd τ2": (with_labels(terms.nkd, temperature=2.0, gamma=0.5), partial(ref_nkd, tau=2.0, gamma=0.5)),
    "ttm": (without_labels(terms.ttm), ref_ttm),
    "wttm": (without_labels(terms.wttm, gamma=0.5), partial(ref_wttm, gamma=0.5)),
}
BY_ROW = ("kl_divergence", "refined_logits", "refined_logits τ_sc", "decoupled", "la", "lr τ3", "tf_kd", "wttm")


def reference(name: str, student: Tensor, teacher: Tensor, labels: Tensor) -> Array:
    term = CASES[name][1]
    rows = zip(student.double().numpy(), teacher.double().numpy(), labels.numpy(), strict=True)
    return np.array([term(s, t, int(y)) for s, t, y in rows])


@pytest.mark.parametrize("name", CASES)
def test_value_is_the_reference(name: str) -> None:
    student, teacher, labels = batch()
    found = CASES[name][0](student, teacher, labels)
    assert found.shape == (SAMPLES,)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), reference(name, student, teacher, labels), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_that_of_the_reference(name: str) -> None:
    """Central differences of the numpy derivation, not of the code under test."""
    student, teacher, labels = batch(samples=6)
    leaf = student.clone().requires_grad_()
    CASES[name][0](leaf, teacher, labels).sum().backward()
    numeric, step = np.zeros(student.shape), 1e-5
    for row, k in np.ndindex(*student.shape):
        up, down = student.clone(), student.clone()
        up[row, k] += step
        down[row, k] -= step
        high, low = (reference(name, moved, teacher, labels)[row] for moved in (up, down))
        numeric[row, k] = (high - low) / (2 * step)
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad.numpy(), numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name: str) -> None:
    student, teacher, labels = batch(samples=5)
    assert torch.autograd.gradcheck(lambda s: CASES[name][0](s, teacher, labels), student.requires_grad_())


@pytest.mark.parametrize("name", BY_ROW)
def test_can_be_differentiated_twice(name: str) -> None:
    """The gradient that can be differentiated again is the same gradient, and its own gradient is right."""
    student, teacher, labels = batch(samples=3, classes=4)
    student.requires_grad_()
    losses = CASES[name][0](student, teacher, labels)
    outer = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (once,) = torch.autograd.grad(losses, student, outer, retain_graph=True)
    (again,) = torch.autograd.grad(losses, student, outer, create_graph=True)
    torch.testing.assert_close(again, once)
    assert torch.autograd.gradgradcheck(lambda s: CASES[name][0](s, teacher, labels), student)


@pytest.mark.parametrize("name", CASES)
def test_single_precision_is_close(name: str) -> None:
    student, teacher, labels = batch()
    found = CASES[name][0](student.float(), teacher.float(), labels)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), reference(name, student, teacher, labels), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", BY_ROW)
@pytest.mark.parametrize("samples", [1, 4, 5, 11])
def test_chunks_do_not_show(name: str, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Working through a batch in pieces, the last one shorter, is the same as doing it at once."""
    student, teacher, labels = batch(samples=samples)
    results = []
    for chunk in (1 << 16, 4 * CLASSES):
        monkeypatch.setattr(_numerics, "_CHUNK_CPU", chunk)
        leaf = student.clone().requires_grad_()
        losses = CASES[name][0](leaf, teacher, labels)
        (losses * torch.arange(1.0, samples + 1)).sum().backward()
        assert leaf.grad is not None
        results.append((losses.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


# Published numbers and identities -------------------------------------------------------------------------------------

PUBLISHED_TEACHER = torch.tensor([[2.0, 3.5, 1.0, 0.0, -1.0]])
PUBLISHED_STUDENT = torch.tensor([[1.0, 1.5, 0.5, -0.5, -0.5]])


@pytest.mark.parametrize(("label", "confidence", "correlation"), [(0, 0.4977, 0.0986), (1, 0.2477, 0.1317)])
def test_rld_check_values(label: int, confidence: float, correlation: float) -> None:
    arguments = (PUBLISHED_STUDENT, PUBLISHED_TEACHER, torch.tensor([label]))
    assert terms.sample_confidence(*arguments).item() == pytest.approx(confidence, abs=5e-5)
    assert terms.masked_correlation(*arguments).item() == pytest.approx(correlation, abs=5e-5)
    both = terms.refined_logits(*arguments, alpha=1.0, beta=8.0).item()
    assert both == pytest.approx(confidence + 8 * correlation, abs=5e-4)


@pytest.mark.parametrize(
    ("values", "label", "expected"),
    [
        ((0.0, 0.2, 0.3, 0.02, 0.48), 0, (0.3243, 0.2, 0.3, 0.02, 0.1557)),
        ((0.45, 0.10, 0.15, 0.25, 0.05), 1, (0.1597, 0.3903, 0.15, 0.25, 0.05)),
    ],
)
def test_rectification_check_values(values: tuple[float, ...], label: int, expected: tuple[float, ...]) -> None:
    found = terms.rectify(torch.tensor([values]), torch.tensor([label]))
    np.testing.assert_allclose(found[0].numpy(), expected, atol=5e-5)


def test_rld_is_dkd_where_the_teacher_is_right() -> None:
    student, teacher, _ = batch(classes=9)
    labels = teacher.argmax(1)
    for refined, decoupled in (
        (terms.sample_confidence, terms.tckd),
        (terms.masked_correlation, terms.nckd),
        (terms.refined_logits, terms.decoupled),
    ):
        torch.testing.assert_close(refined(student, teacher, labels), decoupled(student, teacher, labels))


def test_kd_is_its_decoupling() -> None:
    """KL = TCKD + (1 - p_y)·NCKD: the identity that DKD starts from."""
    student, teacher, labels = batch()
    other = 1 - torch.softmax(teacher / 4.0, 1).gather(1, labels[:, None])[:, 0]
    whole = terms.tckd(student, teacher, labels) + other * terms.nckd(student, teacher, labels)
    torch.testing.assert_close(terms.kl_divergence(student, teacher), whole)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_confidence_pulls_at_the_label_by_tau_p_minus_P(temperature: float) -> None:  # noqa: N802
    student, teacher, labels = batch()
    student.requires_grad_()
    terms.sample_confidence(student, teacher, labels, temperature).sum().backward()
    p = torch.softmax(student / temperature, 1).gather(1, labels[:, None])[:, 0]
    largest = torch.softmax(teacher / temperature, 1).amax(1)
    assert student.grad is not None
    pull = student.grad.gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(pull, (temperature * (p - largest)).detach())


def test_masked_classes_get_no_gradient_from_the_correlation() -> None:
    student, teacher, labels = batch()
    student.requires_grad_()
    terms.masked_correlation(student, teacher, labels).sum().backward()
    assert student.grad is not None
    masked = teacher >= teacher.gather(1, labels[:, None])
    assert (student.grad[masked] == 0).all()
    assert (student.grad[~masked] != 0).any()


@pytest.mark.parametrize("space", ["prob", "logit"])
@pytest.mark.parametrize("variant", ["two_class", "swap", "onehot_average"])
@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_btkd_mean_is_the_published_sum(variant: str, space: str, progress: float) -> None:
    student, teacher, labels = batch()
    tau = 4.0
    right, wrong = [], []
    for s, t, y in zip(student.numpy(), teacher.numpy(), labels.numpy(), strict=True):
        if t.argmax() == y:
            right.append(kl(softmax(t / tau), softmax(s / tau)))
        elif space == "prob":
            wrong.append(kl(ref_rectify(softmax(t / tau), y, variant), softmax(s / tau)))
        else:
            wrong.append(kl(softmax(ref_rectify(t, y, variant) / tau), softmax(s / tau)))
    b = math.cos(math.pi / 2 * progress) ** 2
    assert right
    assert wrong
    found = terms.rectified_bias(student, teacher, labels, progress, tau, variant, space)
    assert found.mean().item() == pytest.approx(tau**2 * (b * np.mean(right) + (1 - b) * np.mean(wrong)))
    alone = terms.rectified_bias(student, teacher, labels, progress, tau, variant, space, eliminate_only=True)
    assert alone.mean().item() == pytest.approx(tau**2 * b * np.mean(right), abs=1e-12)
    steady = terms.rectified_bias(student, teacher, labels, progress, tau, variant, space, balance=0.25)
    assert steady.mean().item() == pytest.approx(tau**2 * (0.25 * np.mean(right) + 0.75 * np.mean(wrong)))


@pytest.mark.parametrize("share_right", [0, 1])
def test_btkd_with_an_empty_subset(share_right: int) -> None:
    student, teacher, _ = batch()
    labels = teacher.argmax(1) if share_right else teacher.argmin(1)
    student.requires_grad_()
    found = terms.rectified_bias(student, teacher, labels, 0.5)
    expected = terms.kl_divergence(student, teacher) if share_right else None
    if expected is not None:
        torch.testing.assert_close(found, 0.5 * expected)
    found.mean().backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("space", ["prob", "logit"])
def test_btkd_gradcheck(space: str) -> None:
    student, teacher, labels = batch(samples=6)
    assert torch.autograd.gradcheck(
        lambda s: terms.rectified_bias(s, teacher, labels, 0.4, space=space), student.requires_grad_()
    )


@pytest.mark.parametrize("variant", ["two_class", "swap", "onehot_average"])
def test_rectify_leaves_right_rows_and_matches_the_formula(variant: str) -> None:
    _, teacher, labels = batch()
    p = torch.softmax(teacher, 1)
    found = terms.rectify(p, labels, variant)
    right = p.argmax(1) == labels
    assert torch.equal(found[right], p[right])
    expected = np.array([ref_rectify(a, int(y), variant) for a, y in zip(p.numpy(), labels.numpy(), strict=True)])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(found.sum(1).numpy(), 1.0)
    first = p.argmax(1, keepdim=True)
    assert (found.gather(1, labels[:, None]) > found.gather(1, first))[~right].all()
    if variant != "two_class":
        assert (found.argmax(1) == labels).all()


def test_refined_targets_carry_no_gradient() -> None:
    student, teacher, labels = batch()
    teacher.requires_grad_()
    for variant in ("two_class", "swap", "onehot_average"):
        assert not terms.rectify(teacher, labels, variant).requires_grad
    assert not terms.partial_targets(teacher).requires_grad
    assert not terms.kl_divergence(student, teacher).requires_grad


def test_two_class_can_leave_a_third_class_ahead() -> None:
    """The published edit settles the label against the teacher's choice, not against everybody."""
    found = terms.rectify(torch.tensor([[0.0, 0.34, 0.33, 0.33]]), torch.tensor([0]))[0]
    assert found[0] > found[1]
    assert found.argmax() == 2


def test_lr_as_released_is_the_published_sum() -> None:
    student, teacher, labels = batch()
    right: list[tuple[float, float]] = []
    wrong = []
    for s, t, y in zip(student.numpy(), teacher.numpy(), labels.numpy(), strict=True):
        if t.argmax() == y:
            right.append((ref_cross_entropy(s, t, y), float(((s - t) ** 2).mean())))
        else:
            wrong.append(float(((softmax(s) - revised(t, y, 1.0, 0.8)) ** 2).mean()))
    expected = np.mean([a for a, _ in right]) + 4 * np.mean([b for _, b in right]) + np.mean(wrong)
    found = terms.lr(student, teacher, labels, loss="released")
    assert found.mean().item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(
        lambda s: terms.lr(s, teacher[:5], labels[:5], loss="released"), student[:5].clone().requires_grad_()
    )


def test_rc_pulls_toward_its_own_raised_label() -> None:
    student, _, labels = batch()
    target = student.clone()
    for row, y in enumerate(labels):
        target[row, y] += student[row].max()
    expected = [ref_kl(s, t, 0) for s, t in zip(student.numpy(), target.numpy(), strict=True)]
    np.testing.assert_allclose(terms.rc(student, labels).numpy(), expected, rtol=1e-10)
    leaf = student.clone().requires_grad_()
    terms.rc(leaf, labels).sum().backward()
    fixed = 4.0 * (torch.softmax(student / 4.0, 1) - torch.softmax(target / 4.0, 1))
    torch.testing.assert_close(leaf.grad, fixed)


def test_standardise_is_the_z_score() -> None:
    student, _, _ = batch()
    z = student.numpy()
    expected = (z - z.mean(1, keepdims=True)) / (z.std(1, ddof=1, keepdims=True) + 1e-7)
    np.testing.assert_allclose(terms.standardise(student).numpy(), expected, rtol=1e-12)
    assert torch.autograd.gradcheck(terms.standardise, student[:4].clone().requires_grad_())


def test_dist_is_two_pearson_correlations() -> None:
    student, teacher, _ = batch()
    a, b = softmax(student.numpy() / 2.0, axis=1), softmax(teacher.numpy() / 2.0, axis=1)
    rows = np.mean([1 - np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)])
    columns = np.mean([1 - np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)])
    found = terms.dist(student, teacher, temperature=2.0, beta=3.0, gamma=0.5)
    assert found.item() == pytest.approx(4.0 * (3.0 * rows + 0.5 * columns), rel=1e-5)
    assert found.dim() == 0
    leaf = student[:5].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: terms.dist(s, teacher[:5]), leaf)


def test_partial_targets_are_two_hot() -> None:
    found = terms.partial_targets(torch.tensor([[0.1, 3.0, 2.0], [5.0, 5.0, 5.0], [1.0, 0.0, 1.0]]))
    assert found.tolist() == [[0.0, 0.5, 0.5], [0.5, 0.5, 0.0], [0.5, 0.0, 0.5]]
    by_rank = terms.partial_targets(torch.tensor([[0.1, 3.0, 2.0]]), k=3, weights=[0.7, 0.2, 0.1])
    np.testing.assert_allclose(by_rank.numpy(), [[0.1, 0.7, 0.2]], rtol=1e-6)


def test_partial_label_does_not_ask_for_the_label() -> None:
    assert terms.needs(terms.partial_label) == ("student_logits", "teacher_logits")


def test_ttm_is_one_minus_the_student_temperature() -> None:
    """With γ = 1/τ the target is KD's; only the student has no temperature."""
    student, teacher, _ = batch()
    torch.testing.assert_close(
        terms.ttm(student, teacher, 0.25), terms.kl_divergence(4.0 * student, teacher, 4.0) / 16.0
    )


@pytest.mark.parametrize("classes", [2, 6, 10, 15, 16])
@pytest.mark.parametrize("samples", [3, 2000])
def test_cross_entropy_is_torchs_in_value_and_gradient_whichever_way_it_is_computed(classes: int, samples: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = 30 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    outer = torch.rand(samples, generator=generator, dtype=torch.float64)
    found = []
    for loss in (terms.cross_entropy, lambda z, y: torch.nn.functional.cross_entropy(z, y, reduction="none")):
        leaf = logits.clone().requires_grad_()
        values = loss(leaf, labels)
        (first,) = torch.autograd.grad((outer * values).sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), leaf)
        found.append((values, first, second))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        terms.cross_entropy(logits.float(), labels),
        torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none"),
        rtol=1e-5,
        atol=1e-5,
    )
