"""Arbitration of small data, the student that learns from it, and the recipe that chooses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import limbeck as lb
from limbeck.arbitration import Judge, arbitrate, expected_groups, model
from limbeck.arbitration.judge import CrossFit, likelihood_of
from limbeck.arbitration.strata import Strata, _threshold, sides_by_loss
from limbeck.choosing import MERGED, Panel, choose, shares
from limbeck.data import inject
from limbeck.errors import ConfigError, DataError, LimbeckError, RecipeError, TeacherError
from limbeck.presets import as_recipe
from limbeck.recipe import Recipe
from limbeck.selection import RULES
from limbeck.teachers import TableTeacher, as_teacher, collect

LINEAR = Judge(network=lambda: nn.Linear(6, 3), epochs=12, learning_rate=0.05)
SHORT: dict[str, Any] = {"epochs": 3, "learning_rate": 0.05, "batch_size": 64}


def make(noise: float, n: int = 1_500, seed: int = 0, aligned: float = 0.9) -> lb.Data:
    """Three Gaussian classes, the side of a shortcut that agrees with most of a class, and noise in the labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    side = np.where(rng.random(n) < aligned, y, (y + rng.integers(1, 3, n)) % 3)
    x = np.concatenate([2.5 * np.eye(3)[y], 1.5 * np.eye(3)[side]], axis=1) + rng.normal(size=(n, 6))
    data = lb.Data(
        x.astype(np.float32),
        np.array(["cat", "dog", "elk"])[y],
        attributes={"side": np.array(["a", "b", "c"])[side]},
        groups=["label", "side"],
        fractions=(0.6, 0.2, 0.2),
        seed=seed,
        name="made",
    )
    return inject.label_noise(data, rate=noise, seed=seed) if noise else data


def student() -> nn.Module:
    return nn.Linear(6, 3)


@pytest.fixture(scope="module")
def noisy() -> lb.Data:
    return make(0.3)


@pytest.fixture(scope="module")
def found(noisy: lb.Data) -> lb.Arbitration:
    return arbitrate(noisy, judge=LINEAR, rounds=4)


# What is found --------------------------------------------------------------------------------------------------------


def test_the_noise_is_found_and_most_wrong_labels_are_corrected(noisy: lb.Data, found: lb.Arbitration) -> None:
    train = noisy.train
    truth = train.columns["true_label"]
    wrong = train.y != truth
    assert found.noise_rate == pytest.approx(wrong.mean(), abs=0.05)
    assert (found.posterior.argmax(axis=1) == truth).mean() > 0.9 > 0.75 > (~wrong).mean()
    assert found.noise_gain[0] > 2 * found.noise_gain[1]
    np.testing.assert_array_equal(found.ids, train.ids)
    np.testing.assert_allclose(found.posterior.sum(axis=1), 1)
    assert found.attribute == ("side",)
    assert found.prior.shape == (3, 3)
    assert found.weights.sum() == pytest.approx(len(truth))
    # Posteriors mean what they say, more or less: the samples left open are wrong far more often.
    mistaken = found.posterior.argmax(axis=1) != truth
    assert abs((1 - found.posterior.max(axis=1)).mean() - mistaken.mean()) < 0.06
    assert mistaken[found.uncertain].mean() > 3 * mistaken[~found.uncertain].mean()
    assert 0 < found.spread.max() < 0.5


def test_clean_labels_stay_as_they_are() -> None:
    clean = make(0.0)
    found = arbitrate(clean, judge=LINEAR, rounds=3, repeats=1)
    assert found.noise_rate == 0
    assert not found.corrected.any()
    assert not found.uncertain.any()
    np.testing.assert_array_equal(found.noise, np.eye(3))
    assert found.identifiable == ("all labels are right" in found.reason)
    targets, mass = found.student_targets(gamma=1.0)
    np.testing.assert_array_equal(targets, np.eye(3)[clean.train.y])
    cells = np.bincount(3 * clean.train.attributes["side"].codes + clean.train.y, mass, minlength=9)
    assert cells.max() / cells.min() < 1.2


def test_validation_labels_are_judged_too_and_may_be_cleaner(noisy: lb.Data, found: lb.Arbitration) -> None:
    assert found.validation is not None
    truth = noisy.validation.columns["true_label"]
    assert (found.validation.posterior.argmax(axis=1) == truth).mean() > (noisy.validation.y == truth).mean() + 0.1
    assert found.validation.noise_share >= 0.75
    half = inject.label_noise(make(0.0), rate=0.3, splits=("train",))
    judged = arbitrate(half, judge=LINEAR, rounds=3, repeats=1).validation
    assert judged is not None
    assert judged.noise_share <= 0.25


def test_same_seed_same_bytes_and_inputs_stay_as_they_were(noisy: lb.Data) -> None:
    before = noisy.fingerprint()
    state = torch.random.get_rng_state()
    one, two, other = (arbitrate(noisy, judge=LINEAR, rounds=1, repeats=1, seed=seed) for seed in (3, 3, 4))
    assert one.fingerprint() == two.fingerprint()
    np.testing.assert_array_equal(one.log_evidence, two.log_evidence)
    assert (one.log_evidence != other.log_evidence).any()
    np.testing.assert_array_equal(one.spread, two.spread)
    assert torch.equal(state, torch.random.get_rng_state())
    noisy._fingerprint = ""
    assert noisy.fingerprint() == before


def test_a_judge_never_sees_the_sample_that_it_judges(noisy: lb.Data) -> None:
    """Other labels of a whole fold change what is said of the other one, and nothing of what is said of itself."""
    court = CrossFit(noisy.with_groups(None), Judge(network=student, epochs=1), 2, 0)
    likely = model.columns(model.symmetric(3, 0.7), noisy.train.y)
    fold = court.parts(0)[0][0]
    changed = likely.copy()
    changed[fold] = [0.1, 0.1, 0.8]
    first, _ = court.evidence(np.zeros_like(likely), likely, "one")
    second, _ = court.evidence(np.zeros_like(likely), changed, "one")
    others = np.setdiff1d(np.arange(len(likely)), fold)
    np.testing.assert_array_equal(first[fold], second[fold])
    assert (first[others] != second[others]).any(axis=1).all()


def test_labels_do_not_come_back_to_the_judges_of_their_own_samples() -> None:
    """Labels by dice are no likelier than by dice, however often judges and posterior take turns."""
    data = make(0.0, n=1_200)
    dice = data.replace(y=np.array(data.classes)[np.random.default_rng(1).integers(0, 3, len(data))])
    found = arbitrate(dice, judge=LINEAR, rounds=6, tolerance=0.0, repeats=1)
    assert len(found.history) >= 4
    for record in found.history:
        assert record["likelihood"] < -np.log(3) + 0.01, record


def test_the_loss_of_a_judge_is_the_likelihood_of_the_model() -> None:
    rng = np.random.default_rng(0)
    logits, prior = rng.normal(size=(40, 4)), model.normalised(rng.random((40, 4)))
    given, noise = rng.integers(0, 4, 40), model.symmetric(4, 0.6)
    said = likelihood_of(torch.from_numpy(np.log(prior)), torch.from_numpy(np.log(model.columns(noise, given))))
    loss = said(torch.from_numpy(logits), torch.arange(40)).sum()
    q, likely = model.softmax(logits + np.log(prior)), model.columns(noise, given)
    assert -float(loss) == pytest.approx(model.log_likelihood(q, likely).sum(), rel=1e-12)


# A teacher as a witness -----------------------------------------------------------------------------------------------


def spoken(data: lb.Data, probabilities: Any) -> TableTeacher:
    return TableTeacher({"id": data.ids, "probabilities": probabilities}, "probabilities", classes=data.classes)


def test_a_teacher_that_knows_is_heard(noisy: lb.Data) -> None:
    other = lb.fit(student, make(0.0, seed=5), recipe="erm", epochs=10, learning_rate=0.05, batch_size=64)
    truth = noisy.train.columns["true_label"]
    rare = noisy.train.attributes["side"].codes != truth
    blind = Judge("features", network=lambda: nn.Linear(3, 3), epochs=5, learning_rate=0.01)
    quick: dict[str, Any] = {"judge": blind, "features": noisy.x[:, 3:], "rounds": 2, "repeats": 1}
    alone, together = arbitrate(noisy, **quick), arbitrate(noisy, other, **quick)
    assert alone.teacher == "no teacher"
    assert together.teacher == "heard"
    assert together.trust > 0.3
    right = [(found.posterior.argmax(axis=1) == truth)[rare].mean() for found in (alone, together)]
    assert right[1] > 0.6 > 0.45 > right[0]
    assert arbitrate(noisy, other, witness="never", **quick).fingerprint() == alone.fingerprint()


def test_judges_learn_what_the_teacher_does_not_say(noisy: lb.Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a teacher says is in the loss of the judges that come after it was found to be worth something."""
    other = lb.fit(student, make(0.0, seed=5), recipe="erm", epochs=10, learning_rate=0.05, batch_size=64)
    seen: list[bool] = []
    evidence = CrossFit.evidence

    def spied(court: CrossFit, offsets: Any, *more: Any) -> Any:
        side = noisy.train.attributes["side"].codes
        seen.append(all(np.ptp(offsets[side == code], axis=0).max() < 1e-9 for code in range(3)))
        return evidence(court, offsets, *more)

    monkeypatch.setattr(CrossFit, "evidence", spied)
    quick: dict[str, Any] = {"judge": Judge(network=student, epochs=2), "rounds": 1, "repeats": 1}
    arbitrate(noisy, **quick)
    assert all(seen), "without a teacher only the stratum tells"
    seen.clear()
    arbitrate(noisy, other, **quick)
    assert seen[0]
    assert not seen[-1]


def test_a_teacher_that_repeats_the_attribute_says_nothing(noisy: lb.Data, found: lb.Arbitration) -> None:
    repeating = np.full((len(noisy), 3), 0.02) + 0.94 * np.eye(3)[noisy.attributes["side"].codes]
    heard = arbitrate(noisy, spoken(noisy, repeating), judge=LINEAR, rounds=4)
    assert np.abs(heard.posterior - found.posterior).mean() < 0.01


@pytest.mark.parametrize(("witness", "heard"), [("auto", False), ("always", True)])
def test_a_teacher_that_has_learned_the_labels_by_heart_is_not_heard(noisy: lb.Data, witness: str, heard: bool) -> None:
    honest = lb.fit(student, make(0.0, seed=5), recipe="erm", epochs=10, learning_rate=0.05, batch_size=64)
    said = torch.softmax(collect(as_teacher(honest), noisy)["logits"], 1).double().numpy()
    training = noisy.split == 0
    said[training] = 0.98 * np.eye(3)[noisy.y[training]] + 0.02 / 3
    found = arbitrate(noisy, spoken(noisy, said), judge=LINEAR, rounds=2, repeats=1, witness=witness)
    assert ("by heart" in found.teacher) is not heard
    # Heard, it makes every label look right; not heard, the noise is found as without it.
    assert found.noise_rate < 0.02 if heard else abs(found.noise_rate - 0.3) < 0.06


def test_protected_classes_are_corrected_no_further_than_allowed(noisy: lb.Data) -> None:
    free, held = (
        arbitrate(noisy, judge=LINEAR, rounds=3, repeats=1, protect=protect)
        for protect in (None, {"elk": 0.02, "label=cat, side=b": 0.0})
    )
    elk, cell = noisy.train.y == 2, noisy.train.groups.index == noisy.train.groups.names.index("label=cat, side=b")
    assert free.corrected[elk].mean() > 0.1
    moved = 1 - held.targets[np.arange(len(elk)), held.given]
    assert moved[elk].mean() <= 0.02
    assert moved[cell].max() == 0
    assert held.held_back.sum() > 0
    assert set(held.to_dict()["held_back_ids"]) <= set(held.ids[elk | cell].tolist())
    np.testing.assert_array_equal(held.targets[~(elk | cell)], held.posterior[~(elk | cell)])


def test_a_matrix_of_each_group_where_one_group_is_mislabelled() -> None:
    data = make(0.0, n=3_000)
    by_side = data.with_groups("side")
    one = inject.label_noise(by_side, rate=0.0, group={"side=b": 0.4}, seed=1).with_groups(["label", "side"])
    found = arbitrate(one, judge=LINEAR, rounds=3, repeats=1, noise="per_group")
    assert found.noise_by_stratum is not None
    rates = found.noise_rates
    assert rates["side=b"] == pytest.approx(0.4, abs=0.06)
    assert max(rates["side=a"], rates["side=c"]) < 0.03


def one_side_mislabelled(rate: float = 0.4) -> lb.Data:
    by_side = make(0.0, n=3_000).with_groups("side")
    return inject.label_noise(by_side, rate=0.0, group={"side=b": rate}, seed=1).with_groups(["label", "side"])


def test_a_rate_of_each_group_is_found_where_they_differ_and_only_there(noisy: lb.Data, found: lb.Arbitration) -> None:
    data = one_side_mislabelled()
    apart = arbitrate(data, judge=LINEAR, rounds=3, repeats=1)
    assert apart.noise_by_stratum is not None
    assert apart.noise_rates == pytest.approx({"side=a": 0, "side=b": 0.4, "side=c": 0}, abs=0.05)
    assert f"side=b {apart.noise_rates['side=b']:.1%}" in repr(apart)
    right = (apart.posterior.argmax(axis=1) == data.train.columns["true_label"]).mean()
    assert right > 0.95 > (data.train.y == data.train.columns["true_label"]).mean()
    # Noise that is the same everywhere, and none, need no rates of their own.
    assert found.noise_by_stratum is None
    assert not found.noise_rates
    assert found.history[-1]["hypothesis"] == "a rate for each value of the attribute"
    assert arbitrate(make(0.0), judge=LINEAR, rounds=2, repeats=1).noise_by_stratum is None


@pytest.mark.parametrize(("count", "rate", "is_found"), [(1_800, 0.4, True), (200, 0.15, False)])
def test_a_teacher_that_has_learned_by_heart_shows_where_one_group_is_mislabelled(
    count: int, rate: float, is_found: bool
) -> None:
    """Whether or not the noise is surely found; one that knows the classes is heard either way."""
    data = one_side_mislabelled(rate)
    data = data.subset(np.concatenate([np.flatnonzero(data.split == 0)[:count], np.flatnonzero(data.split > 0)]))
    honest = lb.fit(student, make(0.0, seed=5), recipe="erm", epochs=10, learning_rate=0.05, batch_size=64)
    said = torch.softmax(collect(as_teacher(honest), data)["logits"], 1).double().numpy()
    quick: dict[str, Any] = {"judge": LINEAR, "rounds": 2, "repeats": 1}
    assert arbitrate(data, spoken(data, said), **quick).teacher == "heard"
    training = data.split == 0
    said[training] = 0.98 * np.eye(3)[data.y[training]] + 0.02 / 3
    found = arbitrate(data, spoken(data, said), **quick)
    assert "by heart" in found.teacher
    assert found.noise_rates == (
        pytest.approx({"side=a": 0, "side=b": rate, "side=c": 0}, abs=0.05) if is_found else {}
    )


def test_validation_labels_are_read_through_the_rates_of_their_own_group() -> None:
    data = one_side_mislabelled()
    apart = arbitrate(data, judge=LINEAR, rounds=3, repeats=1)
    true = data.validation.columns["true_label"]
    groups = expected_groups(apart, data)
    accuracy, _, worth = groups.table(true)
    assert accuracy[worth > 30].min() > 0.9
    mislabelled = (true == 1) & (data.validation.attributes["side"].codes == 1)
    assert (data.validation.y == true)[mislabelled].mean() < 0.7


def test_little_noise_is_only_believed_where_it_is_surely_there(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(0.03, n=3_000)
    found = arbitrate(data, judge=LINEAR, rounds=2, repeats=1)
    gain, error = found.noise_gain
    assert gain > 3 * error
    assert found.noise_rate == pytest.approx(0.03, abs=0.012)
    monkeypatch.setattr("limbeck.arbitration.fitting.CHANCE", 1.1 * gain / error)
    doubted = arbitrate(data, judge=LINEAR, rounds=2, repeats=1)
    assert doubted.noise_rate == 0
    assert not doubted.corrected.any()
    monkeypatch.setattr("limbeck.arbitration.fitting.LITTLE", 0.01)
    assert arbitrate(data, judge=LINEAR, rounds=2, repeats=1).noise_rate == found.noise_rate


def test_where_no_attribute_is_known_what_is_learned_first_says_which_cells_to_even_out(noisy: lb.Data) -> None:
    data = noisy.with_groups("label")
    found, without = (
        arbitrate(data, judge=LINEAR, rounds=1, repeats=1, shortcut=shortcut) for shortcut in ("auto", "declared")
    )
    assert found.attribute_found
    assert found.attribute == ()
    assert found.strata == ("cat", "dog", "elk")
    assert "what is learned first" in repr(found)
    # Who is wrong is another question.
    np.testing.assert_array_equal(found.posterior, without.posterior)
    np.testing.assert_array_equal(found.noise, without.noise)
    cells = model.soft_counts(found.balanced(1.0), found.stratum, 3, pseudo=0.0)
    np.testing.assert_allclose(cells, cells.mean(), rtol=0.1)
    groups = expected_groups(found, data)
    assert groups.names[:2] == ("cat, attribute against", "cat, attribute for")
    judged = found.validation
    assert judged is not None
    speaks_for = groups.group[np.arange(len(judged.given)), judged.stratum] % 2
    assert speaks_for.all()  # for the class that it names
    assert expected_groups(without, data).names == data.groups.names
    per_group = arbitrate(data, judge=LINEAR, rounds=1, repeats=1, noise="per_group")
    assert per_group.to_dict()["noise_by_stratum"] is None  # nothing is known to have a matrix of its own
    assert not arbitrate(noisy, judge=LINEAR, rounds=1, repeats=1).attribute_found
    # Beside a declared attribute it takes the place in the weights alone: who is wrong is judged with what is known.
    both = arbitrate(noisy, judge=LINEAR, rounds=1, repeats=1, shortcut="found")
    assert both.attribute_found
    declared = arbitrate(noisy, judge=LINEAR, rounds=1, repeats=1)
    np.testing.assert_array_equal(both.posterior, declared.posterior)
    assert not np.array_equal(both.counts, declared.counts)


def noisy_over_a_threshold(n: int) -> tuple[lb.Data, lb.Data]:
    """Without noise, and with 40 % of wrong labels where the last feature is over .8."""
    data = make(0.0, n=n).with_groups("label")
    y, high = data.y.copy(), data.x[:, 5] > 0.8
    rng = np.random.default_rng(3)
    wrong = high & (rng.random(len(y)) < 0.4)
    y[wrong] = (y[wrong] + rng.integers(1, 3, wrong.sum())) % 3
    return data, data.replace(y=np.array(data.classes)[y], classes=data.classes, feature_names=list("abcdef"))


def test_noise_in_a_group_that_nobody_declared_is_found_by_a_threshold(noisy: lb.Data) -> None:
    data, given = noisy_over_a_threshold(3_000)
    found = arbitrate(given, judge=LINEAR, rounds=3, repeats=1)
    (low_name, low), (high_name, rate) = found.noise_rates.items()
    assert low_name.startswith("f <= ")
    assert high_name.startswith("f > ")
    assert float(high_name.split()[-1]) == pytest.approx(0.8, abs=0.15)
    assert low < 0.03
    assert rate == pytest.approx(0.4, abs=0.06)
    assert (found.posterior.argmax(axis=1) == data.train.y).mean() > 0.95
    assert found.attribute_found
    assert found.strata == ("cat", "dog", "elk")  # of the weights; the noise has strata of its own
    assert list(found.to_dict()["noise_by_stratum"]) == [low_name, high_name]
    accuracy, _, worth = expected_groups(found, given).table(data.validation.y)
    assert accuracy[worth > 30].min() > 0.75
    # Noise that is the same everywhere has no threshold, and none is looked for where an attribute is declared.
    assert not arbitrate(noisy.with_groups("label"), judge=LINEAR, rounds=2, repeats=1).noise_rates
    assert found.noise_strata != arbitrate(noisy, judge=LINEAR, rounds=1, repeats=1).noise_strata


def test_the_likeliest_threshold_is_kept_whichever_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    _, given = noisy_over_a_threshold(2_000)

    def sides(values: Any, *_: Any) -> list[Strata]:
        cuts = (0.2, 0.8, 1.4)
        return [Strata((), ("low", f"over {cut}"), (values[:, 5] > cut).astype(np.int64)) for cut in cuts]

    monkeypatch.setattr("limbeck.arbitration.fitting.sides_by_loss", sides)
    found = arbitrate(given, judge=LINEAR, rounds=2, repeats=1)
    assert found.noise_strata == ("low", "over 0.8")


def test_thresholds_are_looked_for_among_some_samples_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values, training = rng.random((3_000, 2)), rng.random(3_000) < 0.7
    losses = np.where(values[training, 1] > 0.6, 0.7, 0.1) + 0.1 * rng.random(training.sum())
    monkeypatch.setattr("limbeck.arbitration.strata.SEARCHED", 500)
    (sides, *_) = sides_by_loss(values, training, losses, ["a", "b"])
    assert sides.names[1].startswith("b > ")
    assert float(sides.names[1].split()[-1]) == pytest.approx(0.6, abs=0.03)


def test_thresholds_tell_where_no_label_is_sure() -> None:
    """What is hard but for some easy samples is none."""
    rng = np.random.default_rng(0)
    values, training = rng.random((400, 5)), np.arange(400) < 300
    values[:, 3] = 1 - values[:, 1]  # parts the samples as another one does
    values[:, 4] = 1.0
    noisy, hard = values[:300, 1] > 0.7, values[:300, 2] > 0.5
    losses = np.where(noisy, 0.7, 0.1) + np.where(hard & (rng.random(300) < 0.45), 3.0, 0.0)
    sides = sides_by_loss(values, training, losses, None)
    assert 1 <= len(sides) <= 3
    assert sides[0].names[1].startswith("feature 1 > 0.")
    assert (sides[0].index[:300] == noisy).mean() > 0.97
    np.testing.assert_array_equal(sides[0].index, values[:, 1] > float(sides[0].names[1].split()[-1]))
    assert {one.names[0].split()[1] for one in sides} <= {"0", "1", "2"}
    assert sides_by_loss(values, training, np.ones(300), None) == []
    assert sides_by_loss(values[:90], training[:90], losses[:90], None) == []  # too few on either side
    assert sides_by_loss(values.reshape(400, 5, 1), training, losses, None) == []  # a pixel is no attribute


@given(st.integers(0, 10_000))
@settings(max_examples=25)
def test_a_threshold_is_the_best_of_those_there_are(seed: int) -> None:
    rng = np.random.default_rng(seed)
    feature, losses = rng.integers(0, 6, 200).astype(float), np.sort(rng.random(200))

    def quartile(side: Any) -> Any:
        return np.quantile(losses[side], 0.25, method="inverted_cdf")

    gap, threshold = _threshold(feature, losses)
    cuts = [cut for cut in np.arange(5) + 0.5 if 50 <= (feature > cut).sum() <= 150]
    sides = [(feature > cut, (feature > cut).mean()) for cut in cuts]
    expected = [share * (1 - share) * (quartile(side) - quartile(~side)) ** 2 for side, share in sides]
    assert gap == pytest.approx(max(expected, default=0.0))
    if gap:
        side = sides[int(np.argmax(expected))][0]
        easy = losses < (quartile(side) + quartile(~side)) / 2
        apart = [share * (1 - share) * (easy[side].mean() - easy[~side].mean()) ** 2 for side, share in sides]
        assert threshold == cuts[int(np.argmax(apart))]


def test_what_is_learned_first_is_the_shortcut_and_never_ones_own_label(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(0.0, n=2_000, aligned=0.95)
    weak = data.replace(x=data.x * np.array([0.4, 0.4, 0.4, 2, 2, 2], np.float32), groups=None, attributes=None)
    first, _ = CrossFit(weak, Judge(), 2, 0).first_learned()
    side = data.train.attributes["side"].codes
    apart = side != data.train.y
    assert (first == side)[apart].mean() > 0.5 > 1.5 * (first == data.train.y)[apart].mean()
    row = 7
    y = weak.y.copy()
    place = np.flatnonzero(weak.split == 0)[row]
    y[place] = (y[place] + 1) % 3
    other = weak.replace(y=np.array(weak.classes)[y], classes=weak.classes)
    assert CrossFit(other, Judge(), 2, 0).first_learned()[0][row] == first[row]
    # A judge of one layer would stay as it began: then it is not asked.
    np.testing.assert_array_equal(CrossFit(weak, Judge(), 2, 0, linear=True).first_learned()[0], first)
    seen: list[int] = []
    trained = CrossFit._trained
    monkeypatch.setattr(
        CrossFit,
        "_trained",
        lambda self, data, *rest, **more: seen.append(len(data.train)) or trained(self, data, *rest, **more),
    )
    monkeypatch.setattr("limbeck.arbitration.judge.FIRST_STEPS", 2)
    few, beside = CrossFit(weak, Judge(), 2, 0).first_learned()
    assert seen == [2 * 128, 2 * 128]  # no more than the steps need
    assert len(few) == len(weak.train)
    assert beside is not None
    assert len(beside) == len(weak.validation)


def test_what_is_learned_first_takes_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shortcut of ten values: after twenty steps not all of them are told apart."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 2_000)
    side = np.where(rng.random(2_000) < 0.95, y, (y + rng.integers(1, 10, 2_000)) % 10)
    x = np.concatenate([0.5 * (np.eye(10)[y] + rng.normal(size=(2_000, 10))), np.eye(10)[side]], axis=1)
    data = lb.Data(x.astype(np.float32), y, fractions=(0.8, 0.2, 0.0))
    apart = (side != y)[data.split == 0]
    lengths: list[int] = []
    after = CrossFit._after

    def spied(court: CrossFit, steps: int) -> Any:
        lengths.append(steps)
        return after(court, steps)

    monkeypatch.setattr(CrossFit, "_after", spied)
    court = CrossFit(data, Judge(), 2, 0)
    few, many = court.first_learned()[0], court.first_learned(0.8)[0]
    assert lengths == [20, 20, 40]
    taken_for_exceptions = [(first != data.train.y)[~apart].mean() for first in (few, many)]
    assert taken_for_exceptions[0] > 0.2 > 0.1 > taken_for_exceptions[1]
    assert (many != data.train.y)[apart].mean() > 0.8
    lengths.clear()
    court.first_learned(1.1)
    assert lengths == [20, 40, 80, 160], "no more steps than a judge makes"
    for share, expected in ((0.5, few), (0.85, many)):
        monkeypatch.setattr("limbeck.arbitration.fitting.LEARNED", share)
        found = arbitrate(data, rounds=1, repeats=1)
        assert found.attribute_found
        np.testing.assert_array_equal(found.stratum, expected)


def test_how_long_it_takes_is_judged_without_an_attribute_that_the_network_does_not_see(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 1_000)
    side = np.where(rng.random(1_000) < 0.95, y, (y + 1) % 10)
    x = (np.eye(10)[y] + rng.normal(size=(1_000, 10))).astype(np.float32)
    data = lb.Data(x, y, attributes={"side": side.astype(str)}, groups=["label", "side"], fractions=(0.8, 0.2, 0.0))
    lengths: list[int] = []
    after = CrossFit._after
    monkeypatch.setattr(CrossFit, "_after", lambda court, steps: lengths.append(steps) or after(court, steps))
    assert arbitrate(data, shortcut="found", rounds=1, repeats=1).attribute_found
    assert lengths == [20]


def test_two_classes_are_said_to_be_weakly_identified() -> None:
    data = make(0.0, n=6_000)
    rows = np.flatnonzero(data.y < 2)
    pair = lb.Data(
        data.x[rows],
        data.y[rows],
        attributes={"side": data.attributes["side"].strings()[rows]},
        groups=["label", "side"],
        split=data.split[rows],
        fractions=None,
    )
    judge = Judge(network=lambda: nn.Linear(6, 2), epochs=12, learning_rate=0.05)
    noisy = inject.label_noise(pair, rate=0.35)
    found = arbitrate(noisy, judge=judge, rounds=4, repeats=1)
    # Even so, it is found: judges that learn from posteriors find a third of it here.
    assert found.noise_rate == pytest.approx((noisy.train.y != noisy.train.columns["true_label"]).mean(), abs=0.05)
    assert not found.identifiable
    assert "two classes" in found.reason
    assert "two classes" in repr(found)


def test_features_teacher_features_and_no_attribute(noisy: lb.Data) -> None:
    teacher = lb.fit(student, noisy, recipe="erm", **SHORT)
    for basis in ({"judge": Judge("features", epochs=2), "features": noisy.x[:, :3]}, {"judge": Judge("teacher")}):
        found = arbitrate(noisy, teacher, rounds=1, repeats=1, **basis)
        assert found.basis == basis["judge"].basis
        assert found.posterior.shape == (len(noisy.train), 3)
    unknown = arbitrate(noisy.with_groups(None), judge=LINEAR, rounds=1, repeats=1, shortcut="declared")
    assert unknown.attribute == ()
    assert unknown.prior.shape == (1, 3)
    discovered = arbitrate(noisy, attribute=noisy.attributes["side"].codes, judge=LINEAR, rounds=1, repeats=1)
    assert discovered.prior.shape == (3, 3)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"attribute": "sides"}, DataError, "did you mean 'side'"),
        ({"attribute": "label"}, DataError, "known without it"),
        ({"attribute": np.zeros(3, np.int64)}, DataError, "one whole number a sample"),
        ({"judge": "teacher"}, TeacherError, "no teacher is given"),
        ({"judge": "features"}, ConfigError, "pass features"),
        ({"judge": "row"}, ConfigError, "did you mean 'raw'"),
        ({"features": np.zeros((3, 2))}, ConfigError, "expected \\[N, D\\]"),
        ({"noise": "pergroup"}, ConfigError, "did you mean 'per_group'"),
        ({"witness": "alway"}, ConfigError, "did you mean 'always'"),
        ({"witness": "always"}, TeacherError, "none is given"),
        ({"shortcut": "find"}, ConfigError, "did you mean 'found'"),
        ({"shortcut": "found", "attribute": "side"}, ConfigError, "leave out one"),
        ({"gamma": 2.0}, ConfigError, "gamma"),
        ({"folds": 1}, ConfigError, "folds"),
        ({"rounds": 0}, ConfigError, "a round"),
        ({"protect": ["elf"]}, DataError, "did you mean 'elk'"),
        ({"protect": {"elk": 2}}, DataError, "expected 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(
    noisy: lb.Data, settings: dict[str, Any], error: type[LimbeckError], message: str
) -> None:
    with pytest.raises(error, match=message):
        arbitrate(noisy, **settings)


def test_the_record_is_plain_data(found: lb.Arbitration) -> None:
    import json

    told = json.loads(json.dumps(found.to_dict()))
    assert told["samples"] == len(found.ids)
    assert [record["hypothesis"] for record in told["history"]][:2] == ["labels are right", "90% of labels are right"]
    assert told["teacher"] == "no teacher"
    assert len(told["uncertain_ids"]) == found.uncertain.sum() == told["uncertain"]
    assert "wrong labels" in repr(found)


def test_expected_groups_of_declared_groups_and_of_a_flag_that_rests_on_the_label(
    noisy: lb.Data, found: lb.Arbitration
) -> None:
    said = noisy.validation.columns["true_label"]
    declared = expected_groups(found, noisy)
    assert declared.names == noisy.groups.names
    truth = noisy.validation.replace(y=np.array(noisy.classes)[said], classes=noisy.classes)
    _, total, _ = declared.table(said)
    assert np.abs(total - truth.groups.counts()).max() < 0.08 * len(said)
    judged = found.validation
    assert judged is not None
    np.testing.assert_array_equal(declared.memberships[0], judged.posterior)
    np.testing.assert_allclose(declared.memberships[1], np.linalg.inv(judged.noise)[judged.given])
    sided = expected_groups(found, noisy.with_groups("side"))
    assert sided.names == ("side=a", "side=b", "side=c")
    np.testing.assert_allclose(sided.table(said)[1], np.bincount(noisy.validation.attributes["side"].codes))
    flag = np.where(noisy.attributes["side"].codes == noisy.y, "own", "other")
    flagged = noisy.replace(attributes={"flag": flag}, groups=["label", "flag"])
    sides = expected_groups(found, flagged)
    assert sides.names[:2] == ("cat, attribute against", "cat, attribute for")
    assert sides.table(said)[1].sum() == pytest.approx(total.sum())
    assert sides.average(said) == pytest.approx(declared.average(said)) == pytest.approx(1.0, abs=0.1)
    with pytest.raises(DataError, match="run arbitrate on these data"):
        expected_groups(found, make(0.3, n=1_800, seed=1))


# The student ----------------------------------------------------------------------------------------------------------


def test_the_student_learns_the_posterior_in_the_one_loop(noisy: lb.Data, found: lb.Arbitration) -> None:
    fitted = lb.fit(student, noisy, recipe="arbitration", arbitration=found, **SHORT)
    again = lb.fit(student, noisy, recipe="arbitration", arbitration=found, **SHORT)
    assert all(torch.equal(a, b) for a, b in zip(fitted.model.parameters(), again.model.parameters(), strict=True))
    assert fitted.selection == "worst_group, expected without label noise"
    assert fitted.details["arbitration"]["noise_rate"] == found.noise_rate
    assert fitted.arbitration is found
    truth = noisy.test.columns["true_label"]
    plain = lb.fit(student, noisy, recipe="erm", **SHORT)
    right = [(lb.predict_logits(f, noisy.test).argmax(axis=1) == truth).mean() for f in (fitted, plain)]
    assert right[0] > max(0.8, right[1] - 0.15)


@pytest.mark.slow
def test_the_recipe_arbitrates_where_nobody_has(noisy: lb.Data) -> None:
    recipe = {"recipe": "arbitration", "gamma": 1.0, "attribute": "side"}
    built = as_recipe(recipe)
    quick = built.replace(arbitrate={"attribute": "side", "rounds": 1, "gamma": 1.0})
    fitted = lb.fit(student, noisy, recipe=quick, epochs=1)
    assert fitted.details["arbitration"]["attribute"] == ["side"]
    assert Recipe.from_dict(built.to_dict()) == built


def test_relations_and_distillation_beside_the_posterior(noisy: lb.Data, found: lb.Arbitration) -> None:
    teacher = lb.fit(student, noisy, recipe="erm", **SHORT)
    for options in ({"relations": 1.0}, {"distil": 0.5}):
        recipe = {"recipe": "arbitration", **options}
        fitted = lb.fit(student, noisy, teacher=teacher, recipe=recipe, arbitration=found, **SHORT)
        assert np.isfinite(fitted.history[-1]["loss"])
        with pytest.raises(RecipeError, match="none is given"):
            lb.fit(student, noisy, recipe=recipe, arbitration=found, **SHORT)


def test_resuming_gives_the_same_bytes(noisy: lb.Data, found: lb.Arbitration, tmp_path: Any) -> None:
    class Stop:
        def on_start(self, run: Any) -> None: ...
        def on_epoch(self, run: Any) -> None:
            if len(run.history) == 2:
                raise KeyboardInterrupt

        def on_end(self, run: Any) -> None: ...

    settings = {"recipe": "arbitration", "arbitration": found, **SHORT}
    straight = lb.fit(student, noisy, **settings)
    with pytest.raises(KeyboardInterrupt):
        lb.fit(student, noisy, callbacks=[Stop()], checkpoint=tmp_path, **settings)
    resumed = lb.fit(student, noisy, checkpoint=tmp_path, resume=True, **settings)
    for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_parts_that_do_not_fit_are_refused(noisy: lb.Data, found: lb.Arbitration) -> None:
    with pytest.raises(RecipeError, match="arbitrate"):
        lb.fit(student, noisy, recipe={"name": "mine", "terms": ["soft_cross_entropy"]})
    with pytest.raises(RecipeError, match="nothing uses it"):
        Recipe(["cross_entropy"], arbitrate={})
    for wrong, said in (
        ({"noise": "pergroup"}, "did you mean 'per_group'"),
        ({"witness": "alway"}, "did you mean 'always'"),
        ({"shortcut": "find"}, "did you mean 'found'"),
        ({"shortcut": "found", "attribute": "side"}, "leave out one"),
    ):
        with pytest.raises(RecipeError, match=said):
            Recipe(["soft_cross_entropy"], arbitrate=wrong, sampling="posterior")
    with pytest.raises(RecipeError, match="name of their own"):
        Recipe(["cross_entropy"], arbitrate={}, choose={"candidates": ["erm", "erm"]})
    with pytest.raises(DataError, match="run arbitrate on these data"):
        lb.fit(student, make(0.3, n=1_800, seed=1), recipe="arbitration", arbitration=found, **SHORT)
    with pytest.raises(DataError, match="2 of 3 training samples were not arbitrated"):
        found.select([found.ids[0], -1, 10**9])


# The recipe that chooses ----------------------------------------------------------------------------------------------


def choosing(*candidates: Any, margin: float = 0.03) -> Recipe:
    quick = {"attribute": "side", "rounds": 1}
    return Recipe(["cross_entropy"], arbitrate=quick, choose={"candidates": candidates, "margin": margin}, name="mine")


def test_the_say_of_a_candidate_falls_with_its_distance_from_the_best() -> None:
    e = np.exp(-1)
    assert shares([0.5, None, 0.47, 0.5], 0.03) == pytest.approx([1 / (2 + e), 0, e / (2 + e), 1 / (2 + e)])
    assert shares([0.9, 0.9 - 0.0901], 0.03) == [1, 0]
    assert shares([None, 0.4, 0.4], 0.0) == [0, 1, 0]
    assert shares([None, None], 0.0) == shares([None, None], 0.03) == [0, 0]


def test_a_panel_says_the_mean_of_its_members_probabilities() -> None:
    members = [nn.Linear(4, 3), nn.Linear(4, 3)]
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    expected = sum(w * m(x).softmax(1) for w, m in zip((0.25, 0.75), members, strict=True))
    found = Panel(members, [0.25, 0.75])(x)
    torch.testing.assert_close(found.softmax(1), expected)
    torch.testing.assert_close(found.logsumexp(1), torch.zeros(5), atol=1e-6, rtol=0)


def test_candidates_near_the_top_become_one_student(noisy: lb.Data, found: lb.Arbitration) -> None:
    recipe = choosing("erm", "gce", "arbitration", margin=0.5)
    model = student()
    before = [part.clone() for part in model.parameters()]
    first, again = (lb.fit(model, noisy, recipe=recipe, arbitration=found, **SHORT) for _ in range(2))
    for one, two, old in zip(first.model.parameters(), again.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)
        assert not torch.equal(one, old)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), before, strict=True))
    assert isinstance(first.model, nn.Linear)
    chosen = first.details["chosen"]
    assert chosen["recipe"] == first.recipe.name == MERGED
    rows = chosen["candidates"]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert "3 of 3 candidates became one student" in chosen["why"]
    assert first.selection == "worst_group, expected without label noise"
    # It says what its members say together.
    alone = [lb.fit(model, noisy, recipe=row["recipe"], arbitration=found, **SHORT).model for row in rows]
    x = torch.from_numpy(noisy.test.x)
    together = Panel(alone, [row["share"] for row in rows])(x).argmax(1)
    assert (first.model(x).argmax(1) == together).float().mean() > 0.9


def test_a_merged_student_that_forgets_is_not_kept(noisy: lb.Data, found: lb.Arbitration) -> None:
    def fit(start: Any, data: lb.Data, *, recipe: Any, **more: Any) -> lb.Fitted:
        fitted = lb.fit(start, data, recipe=recipe, **more)
        if recipe.name == MERGED:
            for part in fitted.model.parameters():
                part.data.zero_()
        return fitted

    again = {"recipe": "erm", "name": "erm again"}
    recipe, training = choosing("erm", again), lb.Training(**SHORT)
    fitted = choose(
        fit, student, noisy, None, recipe, found, None, RULES["worst_group"], seed=0, training=training, resume=False
    )
    chosen = fitted.details["chosen"]
    assert chosen["recipe"] == "erm"
    assert chosen["merged"]["score"] < chosen["candidates"][0]["score"] - 0.03
    assert "one student of" in chosen["why"]
    assert lb.predict_logits(fitted, noisy.test).std() > 0


def test_a_useless_teacher_is_not_used_and_a_good_one_may_be(noisy: lb.Data, found: lb.Arbitration) -> None:
    """'No teacher' is one of the outcomes."""
    wrong = np.eye(3)[(noisy.y + 1) % 3] * 4
    right = np.eye(3)[noisy.columns["true_label"]] * 4
    chosen = {}
    for name, logits in (("useless", wrong), ("good", right)):
        teacher = TableTeacher({"id": noisy.ids, "logits": logits}, "logits", classes=noisy.classes)
        alone = {"recipe": "kd", "alpha": 1.0, "name": "teacher alone"}
        recipe = choosing("gce", alone, "dett")
        fitted = lb.fit(student, noisy, teacher=teacher, recipe=recipe, arbitration=found, **SHORT)
        chosen[name] = fitted.details["chosen"]
    assert chosen["useless"]["recipe"] == "gce"
    assert chosen["useless"]["merged"] is None
    assert "no other comes near" in chosen["useless"]["why"]
    useless, good = ({row["recipe"]: row for row in chosen[name]["candidates"]}["teacher alone"] for name in chosen)
    assert useless["share"] == 0 < good["share"]
    assert good["score"] > useless["score"] + 0.1
    left_out = chosen["good"]["candidates"][2]
    assert left_out["score"] is None
    assert left_out["share"] == 0
    assert "features" in left_out["left_out"]
    assert "expected worst-group accuracy" in chosen["good"]["why"]
    assert "times as often" in chosen["good"]["validation_labels"]


def test_auto_without_a_teacher_leaves_out_what_needs_one(noisy: lb.Data, found: lb.Arbitration) -> None:
    stages: list[str] = []

    class Listen:
        def on_start(self, run: Any) -> None:
            stages.append(run.stage)

        def on_epoch(self, run: Any) -> None: ...
        def on_end(self, run: Any) -> None: ...

    fitted = lb.fit(student, noisy, recipe="auto", arbitration=found, callbacks=[Listen()], **SHORT)
    table = {row["recipe"]: row for row in fitted.details["chosen"]["candidates"]}
    assert table["plain"]["score"] is not None
    assert table["arbitration"]["score"] is not None
    assert "learns from a teacher" in table["kd"]["left_out"]
    assert fitted.details["chosen"]["recipe"] in (*table, MERGED)
    assert "plain: student" in stages
    assert any("auto" in warning for warning in fitted.warnings)
    assert fitted.recipe.name == fitted.details["chosen"]["recipe"]


@pytest.mark.slow
def test_auto_is_plain_data_and_runs_in_a_pilot(noisy: lb.Data, tmp_path: Any) -> None:
    recipe = choosing("erm", "arbitration")
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    auto = as_recipe("auto")
    assert Recipe.from_dict(auto.to_dict()) == auto
    assert auto.takes_teacher
    assert not auto.needs_teacher
    training = lb.Training(epochs=1, learning_rate=0.05)
    result = lb.pilot(noisy, None, student, recipes=[recipe], seeds=1, training=training, output=tmp_path / "run")
    run = next(row for row in result.record["models"] if row["label"].startswith("mine"))["runs"][0]
    assert run["details"]["chosen"]["recipe"] in ("erm", "arbitration", MERGED)
    assert not any("no ledger" in warning for warning in run["warnings"])


def test_a_recipe_without_a_usable_candidate_says_why(noisy: lb.Data, found: lb.Arbitration) -> None:
    with pytest.raises(RecipeError, match="none of its candidates"):
        lb.fit(student, noisy, recipe=choosing("kd"), arbitration=found, **SHORT)
