"""Terms on features and feature maps, and the terms that remember: against numpy, and over several steps."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor, nn

from limbeck.errors import RecipeError, TeacherError
from limbeck.terms import CRD, CTKD, ELR, FitNet, at, feature_mse, kl_divergence, rkd


def maps(samples: int, width: int, height: int, breadth: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, width, height, breadth, generator=generator, dtype=torch.float64)


def vectors(samples: int, width: int, seed: int) -> Tensor:
    return maps(samples, width, 1, 1, seed).flatten(1)


# Features -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3, 1, 1), (4, 3, 2, 5)])
def test_feature_mse(shape: tuple[int, int, int, int]) -> None:
    student, teacher = maps(*shape, seed=0), maps(*shape, seed=1)
    expected = ((student.numpy() - teacher.numpy()) ** 2).reshape(4, -1).mean(1)
    np.testing.assert_allclose(feature_mse(student, teacher).numpy(), expected)
    assert torch.autograd.gradcheck(lambda s: feature_mse(s, teacher), student.requires_grad_())


def test_feature_mse_refuses_to_broadcast() -> None:
    with pytest.raises(TeacherError, match="projector"):
        feature_mse(torch.zeros(4, 3), torch.zeros(4, 1))
    with pytest.raises(TeacherError):
        feature_mse(torch.zeros(4), torch.zeros(4))


def attention(stage: np.ndarray) -> np.ndarray:
    found = (stage**2).mean(1).reshape(len(stage), -1)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def pooled(stage: np.ndarray, factor: int) -> np.ndarray:
    n, d, h, w = stage.shape
    return stage.reshape(n, d, h // factor, factor, w // factor, factor).mean((3, 5))


def test_attention_transfer_over_stages() -> None:
    students = [maps(3, 4, 8, 8, 0), maps(3, 6, 4, 4, 1)]
    teachers = [maps(3, 5, 4, 4, 2), maps(3, 7, 8, 8, 3)]
    first = (attention(pooled(students[0].numpy(), 2)) - attention(teachers[0].numpy())) ** 2
    second = (attention(students[1].numpy()) - attention(pooled(teachers[1].numpy(), 2))) ** 2
    np.testing.assert_allclose(at(students, teachers).numpy(), first.mean(1) + second.mean(1))
    np.testing.assert_allclose(at(students[0], teachers[0]).numpy(), first.mean(1))
    leaf = students[1].requires_grad_()
    assert torch.autograd.gradcheck(lambda s: at([students[0], s], teachers), leaf)


def test_attention_transfer_survives_dead_and_huge_maps() -> None:
    student = torch.stack([torch.zeros(4, 3, 3), torch.full((4, 3, 3), 1e4)]).requires_grad_()
    losses = at(student, torch.stack([torch.full((2, 3, 3), -1e4), torch.zeros(2, 3, 3)]))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_attention_transfer_refuses_vectors_and_unequal_stages() -> None:
    with pytest.raises(RecipeError, match="positions"):
        at(torch.zeros(2, 5), torch.zeros(2, 5))
    with pytest.raises(TeacherError, match="2 stages"):
        at([torch.zeros(2, 5, 3, 3)] * 2, torch.zeros(2, 5, 3, 3))


def huber(a: np.ndarray, b: np.ndarray) -> float:
    gap = np.abs(a - b)
    return float(np.where(gap < 1, gap**2 / 2, gap - 0.5).mean())


def relations(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n = len(features)
    distances = np.array([[np.linalg.norm(a - b) for b in features] for a in features])
    angles = np.zeros((n, n, n))
    for i, j, k in np.ndindex(n, n, n):
        u, v = features[j] - features[i], features[k] - features[i]
        if np.linalg.norm(u) > 0 and np.linalg.norm(v) > 0:
            angles[i, j, k] = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
    return distances / distances[distances > 0].mean(), angles


def test_rkd_is_distances_and_angles() -> None:
    student, teacher = vectors(5, 3, 0), vectors(5, 7, 1)
    (d_s, a_s), (d_t, a_t) = relations(student.numpy()), relations(teacher.numpy())
    assert rkd(student, teacher).item() == pytest.approx(25 * huber(d_s, d_t) + 50 * huber(a_s, a_t))
    assert rkd(student, teacher, angle_weight=0.0).item() == pytest.approx(25 * huber(d_s, d_t))
    assert torch.autograd.gradcheck(lambda s: rkd(s, teacher), student.requires_grad_())


def test_rkd_of_one_sample_and_of_equal_samples() -> None:
    for student in (torch.ones(1, 3), torch.ones(4, 3), torch.tensor([[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 2)):
        leaf = student.clone().requires_grad_()
        loss = rkd(leaf, vectors(len(student), 3, 0).float())
        loss.backward()
        assert torch.isfinite(loss)
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
    assert rkd(torch.ones(1, 3), torch.zeros(1, 2)).item() == 0.0


# FitNet ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((4, 8, 8), (6, 8, 8)),
        ((4, 8, 8), (6, 4, 4)),
        ((4, 4, 4), (6, 8, 8)),
        ((4, 9, 9), (6, 3, 3)),
        ((4, 3, 3), (6, 9, 9)),
        ((4, 8, 6), (6, 4, 3)),
        ((5,), (7,)),
        ((4, 1, 1), (6, 1, 1)),
    ],
)
@pytest.mark.parametrize("samples", [1, 3])
def test_fitnet_fits_any_pair_of_shapes(student: tuple[int, ...], teacher: tuple[int, ...], samples: int) -> None:
    torch.manual_seed(0)
    term = FitNet([student], [teacher])
    leaf = torch.randn(samples, *student, requires_grad=True)
    fixed = torch.randn(samples, *teacher, requires_grad=True)
    losses = term(leaf, fixed)
    losses.mean().backward()
    assert losses.shape == (samples,)
    assert torch.isfinite(losses).all()
    assert leaf.grad is not None
    assert fixed.grad is None
    assert all(entry.grad is not None for entry in term.parameters())


def test_fitnet_is_the_distance_after_its_regressor() -> None:
    torch.manual_seed(0)
    term = FitNet([(2, 4, 4), (3, 4, 4), (5, 2, 2)], [(2, 4, 4), (6, 4, 4), (5, 2, 2)]).double()
    students = [maps(3, 2, 4, 4, 0), maps(3, 3, 4, 4, 1), maps(3, 5, 2, 2, 2)]
    teachers = [maps(3, 2, 4, 4, 3), maps(3, 6, 4, 4, 4), maps(3, 5, 2, 2, 5)]
    assert term.stage == 1
    x = torch.nn.functional.conv2d(students[1], term.regressor.weight, term.regressor.bias).detach().numpy()
    x = (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)
    expected = ((np.maximum(x, 0) - teachers[1].numpy()) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(term(students, teachers).detach().numpy(), expected, rtol=1e-8)
    assert torch.autograd.gradcheck(lambda s: term([s, s, s], teachers), students[1].requires_grad_())


def test_fitnet_learns_a_map_it_can_express() -> None:
    torch.manual_seed(0)
    term = FitNet((3, 2, 2), (4, 2, 2))
    student, teacher = torch.randn(64, 3, 2, 2), None
    with torch.no_grad():
        teacher = torch.relu(nn.BatchNorm2d(4)(nn.Conv2d(3, 4, 1)(student)))
    optimiser = torch.optim.Adam(term.parameters(), lr=0.05)
    first = term(student, teacher).mean().item()
    for _ in range(100):
        optimiser.zero_grad()
        term(student, teacher).mean().backward()
        optimiser.step()
    assert term(student, teacher).mean().item() < 0.02 * first


def test_fitnet_refuses_what_does_not_pair() -> None:
    with pytest.raises(TeacherError, match="as many of both"):
        FitNet([(2, 4, 4)] * 2, [(2, 4, 4)])
    with pytest.raises(RecipeError, match=r"\(D, H, W\)"):
        FitNet([(2, 4, 4)], [(2,)])
    with pytest.raises(RecipeError, match="stage"):
        FitNet([(2, 4, 4)], [(2, 4, 4)], stage=3)
    with pytest.raises(RecipeError, match="at least one"):
        FitNet([], [])


# CTKD -----------------------------------------------------------------------------------------------------------------


def test_ctkd_is_kd_at_its_own_temperature() -> None:
    student, teacher = 3 * vectors(6, 5, 0), 3 * vectors(6, 5, 1)
    term = CTKD().double()
    temperature = 1 + 20 / (1 + math.exp(-1))
    assert term.temperature.item() == pytest.approx(temperature)
    torch.testing.assert_close(term(student, teacher, 0), kl_divergence(student, teacher, temperature))
    assert torch.autograd.gradcheck(lambda s: term(s, teacher[:3], 3), student[:3].clone().requires_grad_())


@pytest.mark.parametrize(("epoch", "factor"), [(0, -0.02447), (4, -0.5), (9, -1.0), (50, -1.0)])
def test_ctkd_reverses_the_gradient_of_its_temperature(epoch: int, factor: float) -> None:
    student, teacher = 3 * vectors(6, 5, 0), 3 * vectors(6, 5, 1)
    term = CTKD().double()
    term(student, teacher, epoch).sum().backward()
    step = 1e-6
    values = []
    for theta in (1 + step, 1 - step):
        moved = CTKD().double()
        with torch.no_grad():
            moved.theta.fill_(theta)
        values.append(moved(student, teacher, epoch).sum().item())
    assert term.factor(epoch) == pytest.approx(factor, abs=1e-4)
    assert term.theta.grad is not None
    assert term.theta.grad.item() == pytest.approx(term.factor(epoch) * (values[0] - values[1]) / (2 * step), rel=1e-5)


def test_ctkd_makes_the_task_harder() -> None:
    student, teacher = 3 * vectors(6, 5, 0), 3 * vectors(6, 5, 1)
    term = CTKD().double()
    before = term(student, teacher, 20).mean().item()
    optimiser = torch.optim.SGD(term.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        term(student, teacher, 20).mean().backward()
        optimiser.step()
    assert term(student, teacher, 20).mean().item() > before


# ELR ------------------------------------------------------------------------------------------------------------------


def test_elr_remembers_each_sample() -> None:
    term = ELR(samples=5, classes=3, strength=3.0, momentum=0.7)
    memory = np.zeros((5, 3))
    for step, rows in enumerate(([0, 2], [2, 4], [0, 2])):
        logits = 2 * vectors(2, 3, step)
        p = np.clip(softmax(logits.numpy(), axis=1), 1e-4, 1 - 1e-4)
        memory[rows] = 0.7 * memory[rows] + 0.3 * p / p.sum(1, keepdims=True)
        expected = 3.0 * np.log(1 - (memory[rows] * p).sum(1))
        found = term(logits, torch.tensor(rows))
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(term.targets.numpy(), memory, rtol=1e-5)


def test_elr_does_not_learn_while_evaluating() -> None:
    term = ELR(samples=4, classes=3)
    term(vectors(4, 3, 0), torch.arange(4))
    term.double().eval()
    before = term.targets.clone()
    logits = vectors(4, 3, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: term(s, torch.arange(4)), logits)
    assert torch.equal(term.targets, before)


def test_elr_stays_finite_when_the_student_is_certain() -> None:
    term = ELR(samples=2, classes=3)
    logits = torch.tensor([[1e4, -1e4, 0.0], [0.0, 1e4, 1e4]], requires_grad=True)
    for _ in range(200):
        losses = term(logits, torch.arange(2))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert (losses >= 3 * math.log(1e-4) - 1e-3).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


# CRD ------------------------------------------------------------------------------------------------------------------


def crd_reference(term: CRD, student: Tensor, teacher: Tensor, rows: list[int]) -> list[float]:
    """All training samples serve as negatives (fewer than `negatives` exist), each in its own words."""
    labels, tau = term.labels_all.numpy(), term.temperature
    n = len(labels)

    def embedded(layer: nn.Linear, features: Tensor) -> np.ndarray:
        found = features.numpy() @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    losses = np.zeros(len(rows))
    sides = (
        (embedded(term.embed_student, student), term.memory_teacher.numpy()),
        (embedded(term.embed_teacher, teacher), term.memory_student.numpy()),
    )
    for anchors, memory in sides:
        scores = np.exp(anchors @ memory.T / tau)
        pairs = np.concatenate([scores[np.arange(len(rows)), rows][:, None], scores], 1)
        z = pairs.mean() * n
        for i, row in enumerate(rows):
            m_pn = 1.0  # m/n with m = n
            positive = scores[i, row] / z
            losses[i] -= math.log(positive / (positive + m_pn))
            negatives = scores[i, labels != labels[row]] / z
            losses[i] -= n / len(negatives) * np.log(m_pn / (negatives + m_pn)).sum()
    return losses.tolist()


def build_crd(samples: int = 12) -> CRD:
    torch.manual_seed(0)
    return CRD(student_width=3, teacher_width=5, labels_all=torch.arange(samples) % 3, width=4).double()


def test_crd_is_noise_contrastive_estimation() -> None:
    term = build_crd()
    rows = [1, 4, 7, 9]
    student, teacher = vectors(4, 3, 0), vectors(4, 5, 1)
    expected = crd_reference(term, student, teacher, rows)
    np.testing.assert_allclose(term(student, teacher, torch.tensor(rows)).detach().numpy(), expected, rtol=1e-8)


def test_crd_gradients_reach_student_and_embeddings_only() -> None:
    term = build_crd()
    term(vectors(4, 3, 0), vectors(4, 5, 1), torch.arange(4))
    term.eval()
    rows = torch.arange(4, 8)
    teacher = vectors(4, 5, 3).requires_grad_()
    student = vectors(4, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: term(s, teacher.detach(), rows), student)
    term(student, teacher, rows).sum().backward()
    assert teacher.grad is None
    assert all(entry.grad is not None and entry.grad.abs().sum() > 0 for entry in term.parameters())


def test_crd_moves_its_memory_half_way_in_training_only() -> None:
    term = build_crd()
    before = copy.deepcopy(term.state_dict())
    rows = torch.tensor([2, 5])
    student = vectors(2, 3, 0)
    term.eval()
    term(student, vectors(2, 5, 1), rows)
    assert all(torch.equal(value, before[name]) or value.isnan().all() for name, value in term.state_dict().items())
    term.train()
    term(student, vectors(2, 5, 1), rows)
    own = torch.nn.functional.normalize(term.embed_student(student), dim=1)
    moved = torch.nn.functional.normalize((own + before["memory_student"][rows]) / 2, dim=1)
    torch.testing.assert_close(term.memory_student[rows], moved)
    kept = torch.ones(12, dtype=torch.bool)
    kept[rows] = False
    assert torch.equal(term.memory_student[kept], before["memory_student"][kept])


def test_crd_keeps_its_first_normaliser_and_resumes() -> None:
    term = build_crd()
    term(vectors(4, 3, 0), vectors(4, 5, 1), torch.arange(4))
    first = term.normalisers.clone()
    assert torch.isfinite(first).all()
    twin = build_crd()
    twin.load_state_dict(term.state_dict())
    inputs = (vectors(4, 3, 2), vectors(4, 5, 3), torch.arange(4, 8))
    torch.testing.assert_close(twin(*inputs), term(*inputs), rtol=0, atol=0)
    assert torch.equal(term.normalisers, first)


def test_crd_draws_negatives_where_there_are_too_many() -> None:
    torch.manual_seed(0)
    term = CRD(3, 5, torch.arange(100) % 4, width=8, negatives=20)
    losses = term(vectors(6, 3, 0), vectors(6, 5, 1), torch.arange(6))
    assert losses.shape == (6,)
    assert torch.isfinite(losses).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert term(vectors(6, 3, 0), vectors(6, 5, 1), torch.arange(6)).dtype == torch.float32


def test_crd_with_one_class_only() -> None:
    term = CRD(3, 5, torch.zeros(6, dtype=torch.int64), width=4)
    losses = term(vectors(2, 3, 0).float(), vectors(2, 5, 1).float(), torch.tensor([0, 3]))
    assert torch.isfinite(losses).all()


def test_state_survives_a_state_dict() -> None:
    """Everything that a resumed run needs is a parameter or a buffer."""
    elr = ELR(samples=5, classes=3)
    elr(vectors(5, 3, 0), torch.arange(5))
    again = ELR(samples=5, classes=3)
    again.load_state_dict(elr.state_dict())
    logits = vectors(5, 3, 1)
    assert torch.equal(again(logits, torch.arange(5)), elr(logits, torch.arange(5)))
