"""Known faults: shortcuts, label noise, rare groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics.pairwise import cosine_similarity

from limbeck.data import Data, inject, load
from limbeck.errors import DataError

N = 20_000


@pytest.fixture(scope="module")
def data() -> Data:
    rng = np.random.default_rng(0)
    return Data(
        np.zeros((N, 2)),
        rng.integers(0, 5, N),
        attributes={"site": rng.choice(["a", "b"], N, p=[0.9, 0.1])},
        groups="site",
        ids=rng.permutation(5 * N)[:N],
    )


def images(n: int = 6000, dtype: type = np.uint8) -> Data:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (n, 1, 4, 6)).astype(np.uint8)
    return Data(x if dtype is np.uint8 else x / 255, np.arange(n) % 10)


# -- label noise -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.8, 1.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_noise_matrices_are_the_stated_ones(classes, rate):
    for pattern in ["symmetric", "pair", "asymmetric"]:
        matrix = inject.noise_matrix(pattern, classes, rate)
        expected = np.zeros((classes, classes))
        for y in range(classes):
            for k in range(classes):
                following = (y + 1) % classes == k
                if y != k:
                    expected[y, k] = {
                        "symmetric": rate / (classes - 1),
                        "pair": rate * following,
                        "asymmetric": rate / classes + following * rate / classes,
                    }[pattern]
            expected[y, y] = 1 - rate
        np.testing.assert_allclose(matrix, expected, atol=1e-12)


def test_superclass_noise_stays_inside_the_cluster():
    matrix = inject.noise_matrix("superclass", 5, 0.6, clusters=[0, 1, 0, 0, 2])
    expected = np.eye(5)
    for y in (0, 2, 3):
        expected[y] = [0.3, 0, 0.3, 0.3, 0]
        expected[y, y] = 0.4
    np.testing.assert_allclose(matrix, expected, atol=1e-12)


@pytest.mark.parametrize("pattern", ["symmetric", "pair", "asymmetric"])
def test_noise_is_drawn_as_the_matrix_says(data, pattern):
    noisy = inject.label_noise(data, pattern, rate=0.4, seed=3)
    matrix = inject.noise_matrix(pattern, 5, 0.4)
    touched = data.split != 2
    for y in range(5):
        found = np.bincount(noisy.y[touched & (data.y == y)], minlength=5)
        expected = matrix[y] * found.sum()
        possible = expected > 0
        assert not found[~possible].any()
        assert stats.chisquare(found[possible], expected[possible]).pvalue > 1e-3


def test_test_labels_stay_and_the_truth_is_kept(data):
    noisy = inject.label_noise(data, rate=0.5, seed=1)
    assert np.array_equal(noisy.test.y, data.test.y)
    assert np.array_equal(noisy.columns["true_label"], data.y)
    assert (noisy.validation.y != data.validation.y).mean() == pytest.approx(0.5, abs=0.03)
    only = inject.label_noise(data, rate=0.5, seed=1, splits=["train"])
    assert np.array_equal(only.validation.y, data.validation.y)
    assert np.array_equal(only.train.y, noisy.train.y)
    twice = inject.label_noise(noisy, "pair", rate=0.5, seed=2)
    assert np.array_equal(twice.columns["true_label"], data.y)
    assert [record["kind"] for record in twice.injections] == ["label_noise", "label_noise"]
    record = noisy.injections[0]
    assert record["changed"] == (noisy.y != data.y).sum()
    assert (record["pattern"], record["rate"], record["seed"]) == ("symmetric", 0.5, 1)
    assert data.injections == []
    with pytest.raises(DataError, match="nothing is injected into test labels"):
        inject.label_noise(data, rate=0.5, splits=["train", "test"])


def test_noise_belongs_to_the_sample_and_not_to_its_company(data):
    noisy = inject.label_noise(data, "asymmetric", rate=0.3, seed=5)
    rows = np.random.default_rng(2).permutation(N)[:5000]
    alone = inject.label_noise(data.subset(rows), "asymmetric", rate=0.3, seed=5)
    assert np.array_equal(alone.y, noisy.y[rows])
    assert noisy.fingerprint() == inject.label_noise(data, "asymmetric", rate=0.3, seed=5).fingerprint()
    other = inject.label_noise(data, "asymmetric", rate=0.3, seed=6)
    flipped, again = noisy.y != data.y, other.y != data.y
    touched = data.split != 2
    assert abs(np.corrcoef(flipped[touched], again[touched])[0, 1]) < 0.03


def test_noise_by_group(data):
    noisy = inject.label_noise(data, rate=0.1, group={"site=b": 0.6}, seed=0)
    wrong = noisy.y != data.y
    touched = data.split != 2
    for code, rate in enumerate([0.1, 0.6]):
        inside = touched & (data.groups.index == code)
        assert stats.binomtest(int(wrong[inside].sum()), int(inside.sum()), rate).pvalue > 1e-3


def test_groups_over_the_label_follow_the_given_label(data):
    noisy = inject.label_noise(data.with_groups(["label", "site"]), rate=0.5)
    place = [
        noisy.groups.names.index(f"label={y}, site={s}") for y, s in zip(noisy.y, noisy.attributes["site"].strings())
    ]
    assert np.array_equal(noisy.groups.index, place)


def test_superclasses_find_blocks_of_similar_classes():
    rng = np.random.default_rng(0)
    directions = np.repeat(np.eye(3, 8), 2, axis=0) + 0.1 * rng.normal(size=(6, 8))
    labels = np.repeat(np.arange(6), 50)
    features = directions[labels] + 0.05 * rng.normal(size=(300, 8))
    assert inject.superclasses(features, labels, 6).tolist() == [0, 0, 1, 1, 2, 2]


def test_superclasses_of_digits_follow_their_definition():
    digits = load("digits")
    x, y = digits.x[:400], digits.y[:400]
    cosine = cosine_similarity(x.astype(np.float64))
    distance = np.array([[1 - cosine[np.ix_(y == a, y == b)].mean() for b in range(10)] for a in range(10)])
    clusters = [{k} for k in range(10)]
    heights = []
    while len(clusters) > 1:
        gaps = {
            (i, j): max(distance[a, b] for a in clusters[i] for b in clusters[j])
            for i in range(len(clusters))
            for j in range(i)
        }
        (i, j), height = min(gaps.items(), key=lambda pair: pair[1])
        heights.append((height, [set(c) for c in clusters]))
        clusters[j] |= clusters.pop(i)
    cut = 0.8 * heights[-1][0]
    expected = next(state for height, state in heights if height > cut)
    found = inject.superclasses(x, y, 10)
    assert {frozenset(np.flatnonzero(found == c).tolist()) for c in set(found)} == {frozenset(c) for c in expected}
    noisy = inject.label_noise(digits, "superclass", rate=1.0, features=digits.x, seed=0)
    clusters_of = noisy.injections[0]["clusters"]
    changed = np.flatnonzero(noisy.y != digits.y)
    assert len(changed) > 100
    assert all(clusters_of[noisy.y[r]] == clusters_of[digits.y[r]] for r in changed)


# -- shortcuts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda d: inject.coloured(d, aligned=0.9), lambda d: inject.shortcut(d, aligned=0.9)])
def test_shortcuts_agree_in_training_and_are_random_in_test(make):
    plain = images()
    data = make(plain)
    code = data.attributes[next(iter(data.attributes))].codes
    agrees = code == data.y
    assert np.array_equal(agrees, data.attributes["aligned"].codes == 1)
    learned = data.split != 2
    assert stats.binomtest(int(agrees[learned].sum()), int(learned.sum()), 0.9).pvalue > 1e-3
    others = (code - data.y)[learned & ~agrees] % 10
    assert stats.chisquare(np.bincount(others, minlength=10)[1:]).pvalue > 1e-3
    assert stats.chisquare(np.bincount(code[~learned], minlength=10)).pvalue > 1e-3
    assert abs(np.corrcoef(code[~learned], data.y[~learned])[0, 1]) < 0.1
    assert np.array_equal(data.y, plain.y)
    assert np.array_equal(data.columns["true_label"], plain.y)
    assert data.injections[0]["aligned_samples"] == agrees[learned].sum()
    assert make(plain).fingerprint() == data.fingerprint()
    assert plain.attributes == {}


def test_colours_are_the_stated_ones():
    plain = images()
    data = inject.coloured(plain, aligned=0.95, severity=4, seed=2)
    code = data.attributes["colour"].codes
    shades = np.array(inject.PALETTE)[code] / 255
    full = plain.x[:, 0] == 255
    for channel in range(3):
        seen = np.array([data.x[i, channel][full[i]][0] if full[i].any() else -1 for i in range(len(data))])
        gap = (seen / 255 - shades[:, channel])[(seen >= 0) & (shades[:, channel] > 0.05) & (shades[:, channel] < 0.95)]
        assert np.std(gap) == pytest.approx(0.005, rel=0.1)
        assert abs(gap.mean()) < 0.001
    assert data.x.dtype == np.uint8
    assert (data.x[np.broadcast_to(plain.x == 0, data.x.shape)] == 0).all(), "the background stays black"
    exact = inject.coloured(plain, noise=0.0)
    code = exact.attributes["colour"].codes
    expected = np.rint(plain.x * (np.array(inject.PALETTE)[code] / 255).astype(np.float32)[:, :, None, None])
    assert np.array_equal(exact.x, expected.astype(np.uint8))
    train = exact.x[exact.split == 0] / 255
    np.testing.assert_allclose(exact.normalise[0], train.mean(axis=(0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(exact.normalise[1], train.std(axis=(0, 2, 3)), atol=1e-5)


def test_each_channel_has_noise_of_its_own():
    white = Data(np.ones((20_000, 1, 1, 1)), np.arange(20_000) % 10)
    data = inject.coloured(white, noise=0.03)
    orange = data.attributes["colour"].values.index("orange")
    shades = data.x[data.attributes["colour"].codes == orange, :, 0, 0]
    correlation = np.corrcoef(shades[:, 1], shades[:, 2])[0, 1]
    assert abs(correlation) < 0.1
    assert stats.kstest((shades[:, 1] - 145 / 255) / 0.03, "norm").pvalue > 1e-3


def test_colours_of_float_images_and_of_a_subset():
    plain = images(dtype=np.float32)
    data = inject.coloured(plain)
    assert data.x.dtype == np.float32
    assert data.normalise is None
    np.testing.assert_allclose(data.x, inject.coloured(images()).x / 255, atol=0.51 / 255)
    part = inject.coloured(plain.subset(np.arange(0, 6000, 7)))
    np.testing.assert_array_equal(part.x, data.x[::7])


def test_colour_follows_the_true_label_whatever_comes_first():
    plain = images()
    first = inject.label_noise(inject.coloured(plain, seed=1), rate=0.4, seed=2)
    second = inject.coloured(inject.label_noise(plain, rate=0.4, seed=2), seed=1)
    assert np.array_equal(first.x, second.x)
    assert np.array_equal(first.y, second.y)
    seen = inject.observed_alignment(first)
    assert np.array_equal(seen.attributes["aligned"].codes == 1, first.attributes["colour"].codes == first.y)
    assert not np.array_equal(seen.attributes["aligned"].codes, first.attributes["aligned"].codes)


def test_background_patches():
    plain = images()
    full = inject.background_patch(plain, strength=0.9)
    assert full.classes == ("0+1", "2+3", "4+5", "6+7", "8+9")
    assert np.array_equal(full.y, plain.y // 2)
    shade = np.array(inject.PALETTE)[full.attributes["colour"].codes]
    black = plain.x[:, 0] == 0
    rows = np.flatnonzero(black.any(axis=(1, 2)))
    for row in rows[:50]:
        assert (np.abs(full.x[row][:, black[row]].T.astype(int) - shade[row]) <= 1).all()
    assert (full.x[np.broadcast_to(plain.x == 255, full.x.shape)] == 255).all(), "the digit stays white"
    patch = inject.background_patch(plain, strength=0.9, patch=2, merge=1)
    assert patch.num_classes == 10
    assert np.array_equal(patch.x[:, :, 2:, :], np.repeat(plain.x, 3, axis=1)[:, :, 2:, :])
    corner = patch.x[:, :, :2, :2]
    assert np.array_equal(corner[:, :, 0, 0], np.array(inject.PALETTE)[patch.attributes["colour"].codes])
    assert (corner == corner[:, :, :1, :1]).all()


@pytest.mark.parametrize("as_images", [False, True])
def test_a_shortcut_in_digits(as_images):
    plain = load("digits", images=as_images)
    data = inject.shortcut(plain, aligned=0.95, seed=4)
    code = data.attributes["shortcut"].codes
    if as_images:
        assert data.sample_shape == (1, 10, 8)
        assert np.array_equal(data.x[:, :, 2:], plain.x)
        strip = data.x[:, 0, :2].reshape(len(data), 16)
    else:
        assert data.sample_shape == (74,)
        assert np.array_equal(data.x[:, :64], plain.x)
        strip = data.x[:, 64:]
    assert np.array_equal(strip.argmax(1), code)
    assert np.array_equal(strip.sum(1), np.ones(len(data)))
    assert data.attributes["shortcut"].values == plain.classes


def test_a_shortcut_names_its_features():
    plain = Data(np.zeros((9, 2)), ["no", "yes", "no"] * 3, feature_names=["a", "b"])
    assert inject.shortcut(plain).feature_names == ("a", "b", "shortcut=no", "shortcut=yes")


# -- rare groups -------------------------------------------------------------------------------------------------


def test_a_group_is_made_rarer_and_the_others_stay(data):
    before = {s: data.groups.counts(data.split == c).tolist() for c, s in enumerate(["train", "validation", "test"])}
    rare = inject.subsample_group(data, "site=b", keep=0.25)
    after = {s: rare.groups.counts(rare.split == c).tolist() for c, s in enumerate(["train", "validation", "test"])}
    assert after["test"] == before["test"]
    for split in ("train", "validation"):
        assert after[split] == [before[split][0], round(0.25 * before[split][1])]
    assert rare.parent_rows is None
    assert rare.injections[0]["removed"] == len(data) - len(rare)
    fewer = inject.subsample_group(data, "site=b", keep=0.1)
    assert set(fewer.ids) < set(rare.ids), "a smaller share is a part of a larger one"
    counted = inject.subsample_group(data, 1, keep=7, splits=["train"])
    assert counted.groups.counts(counted.split == 0)[1] == 7


@given(st.integers(0, 3), st.sampled_from(["coloured", "label_noise", "shortcut", "background_patch"]))
def test_the_same_seed_gives_the_same_bytes(seed, kind):
    plain = images(60)
    make = getattr(inject, kind)
    options = {"rate": 0.3} if kind == "label_noise" else {}
    one, two, three = (make(plain, seed=s, **options) for s in (seed, seed, seed + 1))
    assert one.fingerprint() == two.fingerprint()
    assert one.fingerprint() != three.fingerprint()
    assert one.injections == two.injections
