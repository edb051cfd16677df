"""The model of arbitration: closed forms, limits that are other methods, and what failed on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from sklearn.linear_model import LogisticRegression

from limbeck.arbitration import model
from limbeck.arbitration.expected import ExpectedGroups, expected_minimum, expected_rule
from limbeck.data.inject import noise_matrix
from limbeck.errors import DataError, RecipeError
from limbeck.selection import RULES
from limbeck.terms import (
    cross_entropy,
    expected_refined_logits,
    kl_divergence,
    partial_label,
    partial_targets,
    refined_logits,
    soft_cross_entropy,
)
from limbeck.testing import check_term


def draw(n: int = 4_000, classes: int = 4, rate: float = 0.3, aligned: float = 0.9, sharp: float = 2.0, seed: int = 0):
    """Truth, attribute, given label, and the exact log evidence log p(x|y) of Gaussian inputs."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    stratum = np.where(rng.random(n) < aligned, truth, (truth + rng.integers(1, classes, n)) % classes)
    noise = noise_matrix("symmetric", classes, rate)
    label = (rng.random(n)[:, None] >= np.cumsum(noise, axis=1)[truth][:, :-1]).sum(axis=1)
    x = np.eye(classes)[truth] * sharp + rng.normal(size=(n, classes))
    evidence = x * sharp
    return truth, stratum, label, evidence, noise, x


# Closed forms ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.floats(0.1, 3.0))
def test_posterior_is_bayes_rule(seed: int, classes: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    evidence, label = rng.normal(size=(5, classes)), rng.integers(0, classes, 5)
    prior, noise = rng.dirichlet(np.ones(classes), 5), rng.dirichlet(np.ones(classes), classes)
    found = model.posterior(evidence, prior, noise, label, scale)
    for i in range(5):
        joint = [np.exp(scale * evidence[i, k]) * prior[i, k] * noise[k, label[i]] for k in range(classes)]
        np.testing.assert_allclose(found[i], np.array(joint) / sum(joint), rtol=1e-9)


def test_unmixing_undoes_mixing() -> None:
    noise = noise_matrix("asymmetric", 5, 0.3)
    truth = np.random.default_rng(0).dirichlet(np.full(5, 3.0), 3)
    np.testing.assert_allclose(model.unmix(truth @ noise, noise, steps=5_000), truth, atol=1e-3)


def test_balanced_weights_give_every_cell_the_same_mass_at_gamma_one_and_nothing_changes_at_zero() -> None:
    rng = np.random.default_rng(1)
    target, stratum = rng.dirichlet(np.ones(3), 200), rng.integers(0, 2, 200)
    counts = model.soft_counts(target, stratum, 2, pseudo=0.0)
    for gamma in (0.0, 0.5, 1.0):
        weights = model.balanced_weights(target, counts, stratum, gamma)
        assert weights.sum() == pytest.approx(200)
        cells = model.soft_counts(weights, stratum, 2, pseudo=0.0)
        np.testing.assert_allclose(cells / cells.sum(), counts ** (1 - gamma) / (counts ** (1 - gamma)).sum())


def test_the_noise_matrix_is_recovered_and_strata_are_shrunk_to_it() -> None:
    rng = np.random.default_rng(0)
    truth, stratum, _, evidence, _, _ = draw(20_000, sharp=3.0)
    true_noise = noise_matrix("asymmetric", 4, 0.3)
    label = (rng.random(len(truth))[:, None] >= np.cumsum(true_noise, axis=1)[truth][:, :-1]).sum(axis=1)
    q = model.softmax(evidence)
    noise, _ = model.expected_noise(q, label, model.symmetric(4, 0.7), steps=60)
    np.testing.assert_allclose(noise, true_noise, atol=0.015)
    for shrinkage, near in ((1e9, 1e-6), (0.0, None)):
        shared, own = model.expected_noise(
            q, label, model.symmetric(4, 0.7), stratum=stratum, strata=4, shrinkage=shrinkage
        )
        assert own is not None
        gap = np.abs(own - shared).max()
        assert gap < near if near is not None else gap > 1e-3


@pytest.mark.parametrize("aligned", [0.25, 0.9])
def test_tied_strata_have_the_pooled_matrix_at_rates_of_their_own(aligned: float) -> None:
    """Also where classes are tied to strata, so that the rates of a class and of its stratum are easily confused."""
    rng = np.random.default_rng(0)
    truth, stratum, _, evidence, _, _ = draw(40_000, aligned=aligned, sharp=3.0)
    true_noise, factors = noise_matrix("asymmetric", 4, 0.2), np.array([0.0, 0.5, 1.0, 2.0])
    rates = factors[:, None] * (1 - np.diagonal(true_noise))
    matrices = model.mixed(true_noise, rates)
    cumulated = np.cumsum(matrices, axis=2)[stratum, truth]
    label = (rng.random(len(truth))[:, None] >= cumulated[:, :-1]).sum(axis=1)
    prior = model.normalised(model.soft_counts(np.eye(4)[truth], stratum, 4))[stratum]
    q = model.softmax(evidence + np.log(prior))
    shared, own = model.expected_noise(
        q, label, model.symmetric(4, 0.7), stratum=stratum, strata=4, tied=True, steps=80
    )
    assert own is not None
    best = model.log_likelihood(q, model.columns(matrices, label, stratum)).sum()
    assert model.log_likelihood(q, model.columns(own, label, stratum)).sum() > best - 3
    np.testing.assert_allclose(own, matrices, atol=0.03 if aligned < 0.5 else 0.15)
    shares = np.bincount(stratum) / len(stratum)
    np.testing.assert_allclose(model.noise_rate(model.with_rate(own, 0.1, shares), shares), 0.1)
    wrong = (label != truth).mean()
    assert 1 - shared.diagonal() @ np.bincount(truth) / len(truth) == pytest.approx(wrong, abs=0.01)


def test_mixed_matrices_have_the_rates_asked_for_and_go_where_the_pattern_goes() -> None:
    pattern = noise_matrix("asymmetric", 3, 0.3)
    rates = np.array([[0.0, 0.2, 0.5], [0.1, 1.4, 0.0]])
    found = model.mixed(pattern, rates)
    np.testing.assert_allclose(1 - np.diagonal(found, axis1=1, axis2=2), np.minimum(rates, 0.999))
    np.testing.assert_allclose(found.sum(axis=2), 1)
    off = pattern * (1 - np.eye(3))
    np.testing.assert_allclose(found[0, 2, :2], 0.5 * off[2, :2] / off[2].sum())


def test_the_scale_of_the_evidence_is_found() -> None:
    truth, stratum, label, evidence, _, _ = draw(20_000, sharp=1.5)
    prior = model.normalised(model.soft_counts(np.eye(4)[truth], stratum, 4))[stratum]
    for overconfident in (1.0, 2.0):
        found = model.fit(overconfident * evidence, prior, label, model.symmetric(4, 0.7))
        assert found.scale == 1 / overconfident
        assert found.likelihood == pytest.approx(found.log_likelihood.mean())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.floats(0.0, 0.9))
def test_a_matrix_of_another_rate_is_a_matrix_of_that_rate(seed: int, classes: int, rate: float) -> None:
    noise = np.random.default_rng(seed).dirichlet(np.full(classes, 0.7), classes) * 0.2 + np.eye(classes) * 0.8
    found = model.with_rate(noise, rate)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found >= 0).all()
    if rate <= 0.3:  # above, a row may be cut
        share = model.noise_rate(noise[None][0])
        rows = 1 - np.diag(noise)
        if rows.max() / max(rows.mean(), 1e-9) * rate < 0.99 and share > 1e-3:
            assert model.noise_rate(found) == pytest.approx(rate)


def test_candidates_are_the_fewest_classes_that_hold_the_mass() -> None:
    target = np.array([[0.5, 0.3, 0.2], [0.95, 0.03, 0.02], [0.34, 0.33, 0.33]])
    assert model.candidates(target, 0.8).tolist() == [[True, True, False], [True, False, False], [True, True, True]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_what_is_held_back_stays_within_the_cap(seed: int, cap: float) -> None:
    rng = np.random.default_rng(seed)
    target, label = rng.dirichlet(np.full(3, 0.5), 40), rng.integers(0, 3, 40)
    protected = rng.random(40) < 0.6
    found, held = model.hold_back(target, label, protected, cap)
    moved = 1 - found[np.arange(40), label]
    assert moved[protected].sum() <= cap * protected.sum() + 1e-9
    np.testing.assert_array_equal(found[~protected], target[~protected])
    assert not held[~protected].any()
    assert (target[held].argmax(axis=1) != label[held]).all()
    if cap == 0:
        np.testing.assert_array_equal(found[protected], np.eye(3)[label[protected]])


# Limits ---------------------------------------------------------------------------------------------------------------


def logits(seed: int, n: int = 6, classes: int = 5) -> torch.Tensor:
    return torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def test_an_uninformative_label_leaves_the_teacher_which_is_distillation() -> None:
    teacher, student = logits(1), logits(2).requires_grad_()
    label = np.arange(6) % 5
    target = model.posterior(torch.log_softmax(teacher, 1).numpy(), np.full((6, 5), 0.2), np.full((5, 5), 0.2), label)
    np.testing.assert_allclose(target, torch.softmax(teacher, 1).numpy(), rtol=1e-12)
    ours = torch.autograd.grad(soft_cross_entropy(student, torch.from_numpy(target)).sum(), student)[0]
    theirs = torch.autograd.grad(kl_divergence(student, teacher, temperature=1.0).sum(), student)[0]
    torch.testing.assert_close(ours, theirs)


def test_a_label_without_noise_is_the_label_which_is_what_rld_and_btkd_trust() -> None:
    teacher, student = logits(1), logits(2)
    label = np.arange(6) % 5
    target = model.posterior(20 * teacher.numpy(), np.full((6, 5), 0.2), np.eye(5), label)
    np.testing.assert_array_equal(target, np.eye(5)[label])
    y, soft = torch.from_numpy(label), torch.from_numpy(target)
    torch.testing.assert_close(soft_cross_entropy(student, soft), cross_entropy(student, y))
    torch.testing.assert_close(expected_refined_logits(student, teacher, soft), refined_logits(student, teacher, y))


def test_even_odds_for_the_judges_top_two_are_partial_labels() -> None:
    teacher, student = logits(3), logits(4)
    with np.errstate(divide="ignore"):
        evidence = np.log(partial_targets(teacher).numpy())
    target = model.posterior(evidence, np.full((6, 5), 0.2), np.full((5, 5), 0.2), np.zeros(6, np.int64))
    np.testing.assert_allclose(target, partial_targets(teacher).numpy())
    ours = soft_cross_entropy(student, torch.from_numpy(target))
    torch.testing.assert_close(ours, partial_label(student, teacher, loss="ce"))


def test_the_refined_loss_is_an_expectation_over_the_likely_classes() -> None:
    teacher, student = logits(5), logits(6)
    target = torch.softmax(logits(7), 1)
    every = torch.stack([refined_logits(student, teacher, torch.full((6,), k)) * target[:, k] for k in range(5)]).sum(0)
    torch.testing.assert_close(expected_refined_logits(student, teacher, target, likely=5), every)
    top = target.topk(2, dim=1)
    two = sum(
        top.values[:, j] * refined_logits(student, teacher, top.indices[:, j]) for j in range(2)
    ) / top.values.sum(1)
    torch.testing.assert_close(expected_refined_logits(student, teacher, target, likely=2), two)


@pytest.mark.parametrize("term", [soft_cross_entropy, expected_refined_logits])
def test_the_terms_keep_the_rules(term) -> None:
    check_term(term)


def test_terms_refuse_what_is_no_distribution() -> None:
    with pytest.raises(DataError, match="one distribution a sample"):
        soft_cross_entropy(logits(0), torch.zeros(6, dtype=torch.long))
    with pytest.raises(RecipeError, match="1 to 5"):
        expected_refined_logits(logits(0), logits(1), torch.softmax(logits(2), 1), likely=6)


# What failed on the way -----------------------------------------------------------------------------------------------


def start(stratum: np.ndarray, label: np.ndarray, classes: int = 4) -> np.ndarray:
    """p(k|s) `[S, C]`: the label shares of each stratum, unmixed by a rough noise."""
    shares = model.normalised(model.soft_counts(np.eye(classes)[label], stratum, classes, pseudo=1e-12))
    return model.normalised(model.unmix(shares, model.symmetric(classes, 0.7)) + 0.002)


def test_a_teacher_that_learned_the_shortcut_corrects_a_clean_minority() -> None:
    """The shortcut would be counted twice: as the judge's evidence and as the prior."""
    truth, stratum, label, evidence, _, _ = draw(20_000, rate=0.0, aligned=0.95, sharp=1.5)
    prior = model.normalised(model.soft_counts(np.eye(4)[truth], stratum, 4))[stratum]
    biased = evidence + np.log(prior)
    minority = stratum != truth
    noise = model.symmetric(4, 0.95)
    wrong = [
        (model.posterior(e, prior, noise, label).argmax(axis=1) != label)[minority].mean() for e in (evidence, biased)
    ]
    assert wrong[1] > 2 * wrong[0] > 0


def test_in_sample_outputs_hide_the_noise() -> None:
    """A teacher knows the labels that it was trained on by heart; a judge must not have seen the sample."""
    truth, stratum, label, evidence, _, _ = draw(8_000, rate=0.3)
    prior = start(stratum, label)[stratum]
    memorised = evidence + 6 * np.eye(4)[label]
    rates = []
    for judged in (evidence, memorised):
        found = model.fit(judged, prior, label, model.symmetric(4, 0.7))
        rates.append(1 - found.posterior[np.arange(len(label)), label].mean())
    assert rates[0] == pytest.approx((truth != label).mean(), abs=0.03)
    assert rates[1] < rates[0] / 2


def test_anchor_points_of_a_judge_of_even_cells_give_no_noise_matrix() -> None:
    """Cells of given labels are evened out: the rare ones are full of wrong labels, and the judge learns them."""
    _, stratum, label, _, true_noise, x = draw(6_000, rate=0.3, aligned=0.97)
    counts = model.soft_counts(np.eye(4)[label], stratum, 4)
    weights = model.balanced_weights(np.eye(4)[label], counts, stratum, 1.0).sum(axis=1)
    judge = LogisticRegression(max_iter=500).fit(x, label, sample_weight=weights)
    says = judge.predict_proba(x)
    anchors = np.stack([says[says[:, k].argmax()] for k in range(4)])
    logs = np.log(says)  # trained on even cells, so no prior has to be taken out
    ours = model.fit(logs, start(stratum, label)[stratum], label, model.symmetric(4, 0.7)).noise
    errors = [np.abs(found - true_noise).sum(axis=1).mean() / 2 for found in (anchors, ours)]
    assert errors[1] < errors[0] / 2


def test_even_cells_of_given_labels_amplify_their_noise() -> None:
    truth, stratum, label, _, _, _ = draw(20_000, rate=0.2, aligned=0.98)
    counts = model.soft_counts(np.eye(4)[label], stratum, 4)
    wrong = []
    for gamma in (0.0, 0.5, 1.0):
        mass = model.balanced_weights(np.eye(4)[label], counts, stratum, gamma).sum(axis=1)
        wrong.append(mass[truth != label].sum() / mass.sum())
    assert wrong[0] == pytest.approx(0.2, abs=0.02)
    assert wrong[0] < wrong[1] < wrong[2]
    assert wrong[2] > 0.5


def test_two_classes_explain_noise_by_a_judge_less_sure() -> None:
    """The profile of the noise rate is flat where no input is surely of a class, and steep where some are."""
    widths = []
    for sharp in (0.6, 3.0):
        _, stratum, label, evidence, _, _ = draw(3_000, classes=2, rate=0.2, aligned=0.7, sharp=sharp)
        prior = start(stratum, label, 2)
        found = model.fit(evidence, prior[stratum], label, model.symmetric(2, 0.7))
        rates = np.arange(0, 0.45, 0.05).tolist()
        profile = model.rate_profile(evidence, stratum, 2, label, found, rates, prior=prior)
        below = (profile.max() - profile) * 3_000
        widths.append(sum(below < 1.92))
    assert widths[0] >= 4
    assert widths[1] <= 2


def test_that_all_labels_are_right_is_a_hypothesis_like_any_other() -> None:
    truth, stratum, label, evidence, _, _ = draw(4_000, rate=0.0, sharp=1.0)
    prior = model.normalised(model.soft_counts(np.eye(4)[truth], stratum, 4))[stratum]
    right = model.without_noise(evidence, prior, label)
    noisy = model.fit(evidence, prior, label, model.symmetric(4, 0.7))
    assert (right.likelihood - noisy.likelihood) * 4_000 > -2
    np.testing.assert_array_equal(right.posterior, np.eye(4)[label])
    _, stratum, label, evidence, _, _ = draw(4_000, rate=0.2, sharp=2.0)
    prior = start(stratum, label)[stratum]
    noisy = model.fit(evidence, prior, label, model.symmetric(4, 0.7))
    assert (noisy.likelihood - model.without_noise(evidence, prior, label).likelihood) * 4_000 > 100


# Expected accuracies --------------------------------------------------------------------------------------------------


def test_the_expected_minimum_is_that_of_independent_betas() -> None:
    assert expected_minimum([7.0], [10.0]) == pytest.approx(7.5 / 11, abs=1e-5)
    right, total = np.array([7.0, 30.5, 5.0]), np.array([10.0, 40.0, 5.0])
    drawn = beta.rvs(right + 0.5, total - right + 0.5, size=(200_000, 3), random_state=0).min(axis=1)
    assert expected_minimum(right, total) == pytest.approx(drawn.mean(), abs=2e-3)
    assert np.isnan(expected_minimum([], []))


def test_expected_accuracies_are_accuracies_where_the_truth_is_known() -> None:
    rng = np.random.default_rng(0)
    truth, side, said = (rng.integers(0, k, 300) for k in (3, 2, 3))
    group = 2 * np.arange(3)[None] + side[:, None]
    groups = ExpectedGroups(tuple("abcdef"), group, (np.eye(3)[truth],))
    accuracy, total, worth = groups.table(said)
    index = 2 * truth + side
    np.testing.assert_array_equal(total, np.bincount(index, minlength=6))
    np.testing.assert_array_equal(worth, total)
    right = np.bincount(index[said == truth], minlength=6)
    np.testing.assert_allclose(accuracy, right / total)
    assert groups.average(said) == pytest.approx((said == truth).mean())
    assert groups.worst(said) == pytest.approx(expected_minimum(right, total))
    by_class = [(said == truth)[truth == k].mean() for k in range(3)]
    np.testing.assert_allclose(groups.by_class().table(said)[0], by_class)
    rule = expected_rule(RULES["worst_group"], groups)
    shown = torch.nn.functional.one_hot(torch.from_numpy(said), 3).float()
    assert rule.score_logits is not None
    assert rule.score_logits(shown) == pytest.approx(groups.worst(said))
    assert expected_rule(RULES["last"], groups) is RULES["last"]


def test_noise_is_taken_out_of_group_accuracies_in_two_ways() -> None:
    """A rare group of given labels is mostly members of the large one."""
    rng = np.random.default_rng(0)
    count, noise, shares = 60_000, noise_matrix("symmetric", 3, 0.3), np.array([0.9, 0.05, 0.05])
    truth = rng.choice(3, count, p=shares)
    said = np.where(rng.random(count) < np.array([0.9, 0.3, 0.6])[truth], truth, (truth + 1) % 3)
    label = (rng.random(count)[:, None] >= np.cumsum(noise, axis=1)[truth][:, :-1]).sum(axis=1)
    everyone = np.repeat(np.arange(3)[None], count, axis=0)
    seen = 3 * np.eye(3)[truth] + rng.normal(size=(count, 3))
    log_evidence = -((seen[:, None] - 3 * np.eye(3)) ** 2).sum(axis=2) / 2
    judged = model.posterior(log_evidence, np.repeat(shares[None], count, axis=0), noise, label)
    estimates = (np.eye(3)[label], judged, np.linalg.inv(noise)[label])
    groups = ExpectedGroups(tuple("abc"), everyone, estimates)
    tables = [groups.table(said, estimate) for estimate in range(3)]
    given, steady, unbiased = (np.abs(accuracy - [0.9, 0.3, 0.6]).max() for accuracy, *_ in tables)
    assert max(3 * steady, unbiased) < 0.1 < given
    for _, total, _ in tables[1:]:
        np.testing.assert_allclose(total / count, shares, atol=0.01)
    # How many samples without noise would tell as much: nearly all, and less than half.
    assert (tables[1][2] > 0.9 * tables[1][1]).all()
    assert tables[2][2][1] < 0.5 * tables[2][1][1]
    each = [ExpectedGroups(groups.names, everyone, (one,)) for one in estimates]
    assert groups.worst(said) == pytest.approx(np.mean([one.worst(said) for one in each]))
    assert groups.average(said) == pytest.approx(np.mean([one.average(said) for one in each]))


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="at least one"):
        model.fit(np.zeros((2, 2)), np.full((2, 2), 0.5), np.zeros(2, np.int64), np.eye(2), scales=())
