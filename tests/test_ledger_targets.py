"""The effective target of a term is where its loss is smallest; that of a recipe, what cross entropy it amounts to."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.ledgers.targets import EDITS, TELLERS, Samples, mixed, rules_of, speakers
from limbeck.presets import PRESETS, as_recipe
from limbeck.recipe import Head, Recipe, Term
from limbeck.terms import CATALOGUE, rectify, standardise

CLASSES, SIZE = 6, 200
CERTAIN = 80.0
CASES: list[tuple[str, dict[str, Any]]] = [
    ("cross_entropy", {}),
    ("gce", {"q": 0.7}),
    ("rc", {}),
    ("nkd", {"temperature": 2.0}),
    ("label_smoothing", {"epsilon": 0.3}),
    ("tf_kd", {"temperature": 2.0}),
    ("kl_divergence", {"temperature": 4.0}),
    ("kl_divergence", {"temperature": 2.0, "standardise": True}),
    ("dist", {}),
    ("ttm", {"gamma": 0.3}),
    ("wttm", {"gamma": 0.3}),
    ("refined_logits", {"temperature": 4.0}),
    ("refined_logits", {"temperature": 3.0, "confidence_temperature": 1.0, "alpha": 2.0}),
    ("refined_logits", {"temperature": 2.0, "alpha": 9.0, "beta": 72.0, "standardise": True}),
    ("sample_confidence", {}),
    ("masked_correlation", {}),
    ("decoupled", {}),
    ("tckd", {}),
    ("nckd", {}),
    ("rectified_bias", {}),
    ("rectified_bias", {"variant": "swap", "space": "logit"}),
    ("rectified_bias", {"variant": "onehot_average"}),
    ("la", {}),
    ("lr", {"temperature": 1.0}),
    ("lr", {"temperature": 2.0, "eta": 0.5}),
    ("partial_label", {}),
    ("partial_label", {"k": 3, "weights": (0.5, 0.3, 0.2)}),
    ("partial_label", {"k": 3, "weights": (0.5, 0.3, 0.2), "loss": "ce"}),
]


def draw(seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Teacher logits `[SIZE, CLASSES]`, wrong on most samples, tied on the last, and labels."""
    generator = torch.Generator().manual_seed(seed)
    teacher = scale * torch.randn(SIZE, CLASSES, generator=generator)
    teacher[-1] = 0.0
    return teacher, torch.randint(CLASSES, (SIZE,), generator=generator)


def losses_at(term: Term, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    fields = {"student_logits": student, "teacher_logits": teacher.double(), "labels": labels, "progress": 0.4}
    if term.standardise:
        # What the student's z-scores would have to be, in the units of the teacher's.
        own = teacher.double()
        fields["student_logits"] = student / (own.std(1, keepdim=True) + 1e-7)
        fields["teacher_logits"] = standardise(own)
    names = inspect.signature(term.function).parameters
    return term.function(**{name: value for name, value in fields.items() if name in names}, **term.options)


@pytest.mark.parametrize(("name", "settings"), CASES, ids=[f"{name}-{index}" for index, (name, _) in enumerate(CASES)])
def test_a_student_that_answers_the_target_feels_no_pull(name: str, settings: dict[str, Any]) -> None:
    teacher, labels = draw()
    term = Term.named(name, **settings)
    found, notes = speakers(Recipe([term]), 1, teacher=True)
    assert not notes
    target = mixed(found, Samples(labels, CLASSES, teacher)).target.double()
    torch.testing.assert_close(target.sum(1), torch.ones(SIZE).double(), atol=1e-5, rtol=0)
    assert (target >= 0).all()
    certain = target.amax(1) > 1 - 1e-12
    student = target.clamp(min=1e-35).log()
    # A certain target is approached and never met; among the classes without a share, the teacher's relations hold.
    sure = teacher.double().scatter_add(1, target.argmax(1, keepdim=True), torch.full((SIZE, 1), CERTAIN).double())
    student = torch.where(certain.unsqueeze(1), sure, student).requires_grad_()
    pulls = torch.autograd.grad(losses_at(term, student, teacher, labels).sum(), student)[0]
    even = torch.zeros(SIZE, CLASSES).double().requires_grad_()
    unlearned = torch.autograd.grad(losses_at(term, even + teacher.double().flip(1) * 0.5, teacher, labels).sum(), even)
    assert unlearned[0].abs().max() > 1e-2  # elsewhere it does feel one
    assert pulls.abs().max() < 1e-4 * max(1.0, float(unlearned[0].abs().max()))


def test_every_term_of_the_catalogue_has_a_target_or_says_why_not() -> None:
    silent = {"elr", "fitnet", "at", "rkd", "crd"}
    asked = {"soft_cross_entropy", "expected_refined_logits"}
    assert asked <= set(TELLERS)
    assert set(CATALOGUE) == set(TELLERS) | silent
    for name in silent:
        found, notes = speakers(Recipe([Term.named(name), "cross_entropy"]), 1, teacher=True)
        assert [speaker.term.name for speaker in found] == ["cross_entropy"]
        assert notes[0].startswith(f"{name}: ")


def test_the_posterior_of_arbitration_is_the_target_of_the_soft_terms() -> None:
    teacher, labels = draw(1)
    posterior = torch.softmax(torch.randn(SIZE, CLASSES), 1)
    recipe = Recipe(["soft_cross_entropy"])
    assert not speakers(recipe, 1, teacher=True)[0]
    found, _ = speakers(recipe, 1, teacher=True, posterior=True)
    told = mixed(found, Samples(labels, CLASSES, teacher, posterior=3 * posterior))
    torch.testing.assert_close(told.target, posterior, atol=1e-6, rtol=0)
    # With a one-hot posterior the expectation is the refined loss with that label, whatever the given one is.
    other = (labels + 1) % CLASSES
    onehot = torch.nn.functional.one_hot(other, CLASSES).float()
    found, _ = speakers(Recipe(["expected_refined_logits"]), 1, teacher=True, posterior=True)
    told = mixed(found, Samples(labels, CLASSES, teacher, posterior=onehot))
    refined, _ = speakers(Recipe(["refined_logits"]), 1, teacher=True)
    torch.testing.assert_close(told.target, mixed(refined, Samples(other, CLASSES, teacher)).target)


def test_terms_at_temperature_one_are_the_cross_entropy_to_their_target_at_every_student() -> None:
    teacher, labels = draw()
    terms = [
        Term.named("cross_entropy", weight=0.3),
        Term.named("label_smoothing", weight=0.2, epsilon=0.4),
        Term.named("kl_divergence", weight=0.7, temperature=1.0),
        Term.named("lr", weight=1.1, temperature=1.0),
        Term.named("partial_label", weight=0.4, loss="ce"),
    ]
    found, _ = speakers(Recipe(terms), 1, teacher=True)
    target = mixed(found, Samples(labels, CLASSES, teacher)).target.double()
    student = torch.randn(SIZE, CLASSES, dtype=torch.float64, requires_grad=True)
    total = sum((term.weight * losses_at(term, student, teacher, labels)).sum() for term in terms)
    pull = torch.autograd.grad(total, student)[0]
    expected = sum(term.weight for term in terms) * (student.softmax(1) - target)
    torch.testing.assert_close(pull, expected.detach(), atol=1e-5, rtol=1e-5)


def test_where_the_teacher_is_right_the_refined_target_is_the_teacher_and_else_the_label_never_loses() -> None:
    teacher, labels = draw(3)
    found, _ = speakers(Recipe(["refined_logits"]), 1, teacher=True)
    told = mixed(found, Samples(labels, CLASSES, teacher))
    right = teacher.argmax(1) == labels
    right[-1] = False  # the tied sample: everything is masked
    assert 0 < right.sum() < SIZE
    torch.testing.assert_close(told.target[right], teacher[right].softmax(1), atol=1e-5, rtol=0)
    assert told.masked is not None
    expected = (teacher >= teacher.gather(1, labels.unsqueeze(1))).sum(1) - 1
    assert told.masked.tolist() == expected.tolist()
    names = rules_of(found)
    assert {names[code] for code in told.rule[right].tolist()} == {"refined_logits: followed"}
    wrong = teacher.argmax(1) != labels
    assert {names[code] for code in told.rule[wrong].tolist()} == {"refined_logits: refined"}


def test_masked_classes_get_the_share_of_an_average_class_that_is_kept() -> None:
    """The loss leaves it open; on average over the kept ones as the temperature sees them."""
    teacher, labels = draw(3)
    temperature = 3.0
    found, _ = speakers(Recipe([Term.named("refined_logits", temperature=temperature)]), 1, teacher=True)
    target = mixed(found, Samples(labels, CLASSES, teacher)).target.double()
    seen = target ** (1 / temperature)
    kept = teacher < teacher.gather(1, labels.unsqueeze(1))
    masked = ~kept
    masked.scatter_(1, labels.unsqueeze(1), False)
    rows = masked.any(1) & kept.any(1)
    assert rows.sum() > 20
    average = (seen * kept).sum(1) / kept.sum(1).clamp(min=1)
    expected = average.unsqueeze(1).expand_as(seen)
    where = masked & rows.unsqueeze(1)
    torch.testing.assert_close(seen[where], expected[where], atol=1e-5, rtol=1e-4)


def test_the_rectified_targets_follow_the_published_edit() -> None:
    teacher, labels = draw(4)
    found, _ = speakers(Recipe([Term.named("rectified_bias", temperature=1.0)]), 1, teacher=True)
    target = mixed(found, Samples(labels, CLASSES, teacher, share_right=0.2)).target
    torch.testing.assert_close(target, rectify(teacher.softmax(1), labels), atol=1e-6, rtol=0)


def test_a_mixture_counts_terms_by_their_factors_and_a_warm_up_by_its_mean() -> None:
    teacher, labels = draw(5)
    onehot = torch.nn.functional.one_hot(labels, CLASSES).float()
    found, _ = speakers(as_recipe({"recipe": "kd", "alpha": 0.9}), 10, teacher=True)
    target = mixed(found, Samples(labels, CLASSES, teacher)).target
    torch.testing.assert_close(target, 0.9 * teacher.softmax(1) + 0.1 * onehot, atol=1e-6, rtol=0)
    warm = Recipe(["cross_entropy", Term.named("kl_divergence", warmup=0.5)])
    found, _ = speakers(warm, 10, teacher=True)
    mean = (0.2 + 0.4 + 0.6 + 0.8 + 6.0) / 10
    assert found[1].factor == pytest.approx(mean)


def test_right_and_wrong_samples_of_the_teacher_count_as_btkd_weighs_them() -> None:
    teacher, labels = draw(6)
    onehot = torch.nn.functional.one_hot(labels, CLASSES).float()
    wrong = teacher.argmax(1) != labels
    share = float((~wrong).float().mean())
    epochs = 8
    found, _ = speakers(as_recipe({"recipe": "btkd", "temperature": 1.0}), epochs, teacher=True)
    told = mixed(found, Samples(labels, CLASSES, teacher, share_right=share, epochs=epochs))
    balance = sum(torch.cos(torch.tensor(torch.pi / 2 * epoch / epochs)) ** 2 for epoch in range(epochs)) / epochs
    say = torch.where(wrong, (1 - balance) / (1 - share), balance / share).unsqueeze(1) * 0.5
    expected = (0.5 * onehot + say * rectify(teacher.softmax(1), labels)) / (0.5 + say)
    torch.testing.assert_close(told.target, expected, atol=1e-5, rtol=0)


def test_what_a_term_leaves_out_is_withheld_and_the_label_is_left() -> None:
    teacher, labels = draw(7)
    found, _ = speakers(as_recipe("btkd_elimination"), 5, teacher=True)
    told = mixed(found, Samples(labels, CLASSES, teacher, share_right=0.2, epochs=5))
    wrong = teacher.argmax(1) != labels
    assert told.withheld.tolist() == wrong.tolist()
    onehot = torch.nn.functional.one_hot(labels, CLASSES).float()
    torch.testing.assert_close(told.target[wrong], onehot[wrong])
    names = rules_of(found)
    assert {names[code] for code in told.rule[wrong].tolist()} == {"rectified_bias: left out"}
    alone, _ = speakers(Recipe([Term.named("rectified_bias", eliminate_only=True)]), 5, teacher=True)
    assert mixed(alone, Samples(labels, CLASSES, teacher, epochs=5)).target[wrong].isnan().all()


def test_features_are_a_target_only_through_the_teachers_last_layer() -> None:
    teacher, labels = draw(8)
    alone, notes = speakers(Recipe(["feature_mse"]), 1, teacher=True)
    assert not alone
    assert "feature_mse" in notes[0]
    through, _ = speakers(Recipe(["feature_mse"], head=Head()), 1, teacher=True)
    target = mixed(through, Samples(labels, CLASSES, teacher)).target
    torch.testing.assert_close(target, teacher.softmax(1), atol=1e-6, rtol=0)


def test_a_term_of_your_own_says_its_target_by_an_attribute() -> None:
    def halfway(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, share: float = 0.5) -> Tensor:
        return student_logits.sum(1) * 0

    teacher, labels = draw(9)
    found, notes = speakers(Recipe([halfway]), 1, teacher=True)
    assert not found
    assert notes == ["halfway: says nothing about classes, or not by a known rule; it is in no target"]

    def target(teacher_logits: Tensor, labels: Tensor, share: float) -> Tensor:
        onehot = torch.nn.functional.one_hot(labels, teacher_logits.shape[1])
        return (1 - share) * onehot + share * teacher_logits.softmax(1)

    halfway.target = target  # type: ignore[attr-defined]
    found, _ = speakers(Recipe([Term(halfway, options={"share": 0.25})]), 1, teacher=True)
    told = mixed(found, Samples(labels, CLASSES, teacher))
    torch.testing.assert_close(told.target, target(teacher, labels, 0.25))


def test_extreme_teachers_give_distributions() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    teacher = torch.zeros(4, CLASSES)
    teacher[0, 1], teacher[1, 1], teacher[2, 2] = 1e4, 1e4, -1e4
    for name in PRESETS:
        found, _ = speakers(as_recipe(name), 3, teacher=True)
        if not found:
            continue
        told = mixed(found, Samples(labels, CLASSES, teacher, share_right=0.5, epochs=3))
        torch.testing.assert_close(told.target.sum(1), torch.ones(4), atol=1e-4, rtol=0)
        assert all(name.partition(": ")[2] in EDITS for name in rules_of(found)[:-1])
