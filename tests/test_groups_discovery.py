"""Rules that find groups in arrays, and their judgement: against SciPy, scikit-learn, statsmodels, planted truth."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import fisher_exact, multivariate_normal
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, mutual_info_score
from sklearn.tree import DecisionTreeClassifier
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep

from limbeck.data import Data
from limbeck.errors import ConfigError, DataError
from limbeck.groups import (
    METHODS,
    NOTHING_FOUND,
    Clusters,
    Disagreement,
    Errors,
    Mixture,
    RuleColumn,
    RuleColumns,
    Seen,
    Tree,
    as_method,
    error_set,
    judge_groups,
    merge_small,
    rule_columns,
    stability,
    within_class_adjusted_rand,
    within_class_information,
)
from limbeck.groups.quality import newcombe

CLASSES = ("label=cat", "label=dog")
partitions = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=60)


def one_hot(predicted: np.ndarray, classes: int = 2) -> np.ndarray:
    return np.eye(classes)[predicted] * 0.9 + 0.1 / classes


# How alike partitions are ---------------------------------------------------------------------------------------------


@given(partitions)
def test_within_one_class_the_measures_are_those_of_scikit_learn(pairs):
    found, true = np.array(pairs).T
    labels = np.zeros(len(found), int)
    told = within_class_information(found, true, labels)
    entropy = mutual_info_score(true, true)
    if entropy < 1e-9:
        assert np.isnan(told.share)
        return
    assert told.share == pytest.approx(mutual_info_score(found, true) / entropy)
    assert told.entropy == pytest.approx(entropy)
    if not np.isnan(told.adjusted):
        assert told.adjusted == pytest.approx(adjusted_mutual_info_score(found, true), abs=1e-9)
    rand = within_class_adjusted_rand(found, true, labels)
    if not np.isnan(rand):
        assert rand == pytest.approx(adjusted_rand_score(found, true))


def test_groups_that_only_tell_the_class_say_nothing_within_classes():
    """Right or wrong × class looks like class × attribute over all samples, for the class alone."""
    rng = np.random.default_rng(0)
    labels, attribute = rng.integers(0, 2, 4_000), rng.integers(0, 2, 4_000)
    true, found = 2 * labels + attribute, 2 * labels + rng.integers(0, 2, 4_000)
    assert adjusted_mutual_info_score(found, true) > 0.4
    assert within_class_information(found, true, labels).adjusted == pytest.approx(0, abs=0.01)
    assert within_class_information(true, true, labels).share == pytest.approx(1)
    assert within_class_information(true, true, labels).adjusted == pytest.approx(1)


def test_many_groups_raise_the_share_and_not_what_is_adjusted_for_chance():
    rng = np.random.default_rng(1)
    labels, true, found = rng.integers(0, 2, 300), rng.integers(0, 2, 300), rng.integers(0, 100, 300)
    told = within_class_information(found, true, labels)
    assert told.share > 0.3
    assert abs(told.adjusted) < 0.05


def test_samples_of_unknown_group_are_left_out():
    found, true, labels = np.array([0, 1, 0, 1, -1, 0]), np.array([0, 1, 0, 1, 0, -1]), np.zeros(6, int)
    assert within_class_information(found, true, labels).share == pytest.approx(1)
    assert np.isnan(within_class_information(found, np.full(6, -1), labels).share)


def test_stability_is_over_all_pairs_of_runs_whatever_their_numbers():
    labels = np.repeat([0, 1], 20)
    first = np.tile([0, 1], 20)
    assert stability([first, 1 - first, first + 5], labels).information == pytest.approx(1)
    told = stability([first, first, np.roll(np.repeat([0, 1], 10), 0).repeat(2)], labels)
    assert told.runs == 3
    assert told.least < 0.1 < told.information < 1
    # One run cuts nothing: they do not agree, though there is nothing to disagree on in the other.
    assert stability([first, np.zeros(40, int)], labels).information == 0
    assert np.isnan(stability([np.zeros(40, int), np.zeros(40, int)], labels).information)
    with pytest.raises(DataError, match="two or more"):
        stability([first], labels)


# Judging --------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 1), st.floats(0, 1))
def test_the_interval_of_a_gap_is_newcombes(n, m, p, q):
    a, b = round(p * n), round(q * m)
    low, high = newcombe(a, n, b, m)
    expected = confint_proportions_2indep(a, n, b, m, compare="diff", method="newcomb")
    assert (float(low), float(high)) == pytest.approx(expected, abs=1e-9)


def test_the_judgement_is_fishers_test_corrected_by_holm():
    rng = np.random.default_rng(2)
    groups = rng.integers(0, 5, 400)
    correct = rng.random(400) < np.where(groups == 3, 0.6, 0.85)
    quality = judge_groups(groups, correct, list("abcde"))
    p = []
    for g, part in enumerate(quality.slices):
        inside = groups == g
        table = [[correct[inside].sum(), (~correct[inside]).sum()], [correct[~inside].sum(), (~correct[~inside]).sum()]]
        p.append(fisher_exact(table, alternative="less").pvalue)
        assert part.p == pytest.approx(p[-1])
        assert part.gap == pytest.approx(correct[~inside].mean() - correct[inside].mean())
    adjusted = multipletests(p, method="holm")[1]
    assert [part.p_adjusted for part in quality.slices] == pytest.approx(adjusted)
    assert [part.name for part in quality.worse] == ["d"]
    assert quality.worst.holds
    assert "1 of 5 groups are worse out of sample; the worst: d" in quality.sentence


def test_where_nothing_is_worse_it_is_said_and_false_claims_are_rare():
    rng = np.random.default_rng(3)
    claims = 0
    for _ in range(300):
        quality = judge_groups(rng.integers(0, 8, 400), rng.random(400) < 0.8, [str(g) for g in range(8)])
        claims += bool(quality.worse)
        assert bool(quality.worse) != quality.sentence.startswith(NOTHING_FOUND)
    assert claims / 300 < 0.07


def test_small_groups_are_not_tested_and_unknown_ones_belong_to_the_rest():
    groups = np.array([0] * 9 + [1] * 20 + [-1] * 20)
    correct = np.array([False] * 9 + [True] * 40)
    quality = judge_groups(groups, correct, ["few", "many"])
    few, many = quality.slices
    assert np.isnan(few.p)
    assert not few.holds
    assert few.gap == 1
    assert many.rest == pytest.approx(20 / 29)
    assert quality.worst is None
    assert "not tested" in str(quality)
    assert quality.to_dict()["slices"][0]["p"] is None


def test_true_groups_and_other_runs_are_compared_within_classes():
    labels, attribute = np.repeat([0, 1], 50), np.tile([0, 1], 50)
    found = 2 * labels + attribute
    quality = judge_groups(found, np.ones(100, bool), list("abcd"), labels=labels, truth=attribute, runs=[found[::-1]])
    assert quality.information.share == pytest.approx(1)
    assert quality.stability.information == pytest.approx(1)
    for bad in ({"truth": attribute}, {"runs": [found]}):
        with pytest.raises(DataError, match="labels are needed"):
            judge_groups(found, np.ones(100, bool), list("abcd"), **bad)
    with pytest.raises(DataError, match="bool"):
        judge_groups(found, np.ones(100), list("abcd"))
    with pytest.raises(DataError, match="out of range"):
        judge_groups(found, np.ones(100, bool), ["a"])


# Error sets and disagreement ------------------------------------------------------------------------------------------


def test_the_error_set_is_what_the_model_gets_wrong_by_class():
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 0])
    assert error_set(labels, one_hot(predicted)).tolist() == [False, True, False, True]
    seen = Seen(labels=labels, biased=one_hot(predicted))
    rule = Errors().find(seen, CLASSES, 0)
    assert [rule.names[g] for g in rule.assign(seen)] == [
        "label=cat: right",
        "label=cat: wrong",
        "label=dog: right",
        "label=dog: wrong",
    ]
    two = Errors(within_class=False).find(seen, CLASSES, 0)
    assert two.assign(seen).tolist() == [0, 1, 0, 1]
    assert two.names == ("right", "wrong")


def test_disagreement_without_classes_needs_no_label():
    seen = Seen(
        labels=np.array([0, 1, 1]), biased=one_hot(np.array([0, 0, 1])), probabilities=one_hot(np.array([0, 1, 1]))
    )
    rule = Disagreement(within_class=False).find(seen, CLASSES, 0)
    assert rule.reads == ("biased", "probabilities")
    assert rule.assign(seen.without("labels")).tolist() == [0, 1, 0]
    within = Disagreement().find(seen, CLASSES, 0)
    assert within.assign(seen).tolist() == [0, 3, 2]
    with pytest.raises(DataError, match="without labels"):
        within.assign(seen.without("labels"))
    other = Seen(labels=np.zeros(3, int), biased=one_hot(np.zeros(3, int), 3), probabilities=one_hot(np.zeros(3, int)))
    with pytest.raises(DataError, match="3 and 2 classes"):
        Disagreement().find(other, CLASSES, 0)


def test_small_groups_join_the_largest_of_their_class_and_an_empty_error_set_is_no_group():
    labels = np.repeat([0, 1], 50)
    predicted = labels.copy()
    predicted[:3] = 1
    predicted[50:60] = 0
    seen = Seen(labels=labels, biased=one_hot(predicted))
    rule = Errors().find(seen, CLASSES, 0)
    merged = merge_small(rule, rule.assign(seen), 5)
    assert merged.names == ("label=cat: right", "label=dog: right", "label=dog: wrong")
    assert np.bincount(merged.assign(seen)).tolist() == [50, 40, 10]
    assert merged.texts[0] == "label=cat: the biased model is right; or label=cat: the biased model is wrong"
    assert merge_small(rule, rule.assign(seen), 1) is rule
    right = Seen(labels=labels, biased=one_hot(labels))
    assert merge_small(rule, rule.assign(right), 1).names == ("label=cat: right", "label=dog: right")


# The error tree -------------------------------------------------------------------------------------------------------


def planted(count: int = 2_000, seed: int = 0) -> tuple[Data, np.ndarray]:
    """A census in which the model is wrong on women over 40."""
    rng = np.random.default_rng(seed)
    sex, age = rng.choice(["Female", "Male"], count), rng.integers(18, 80, count)
    hours = rng.normal(40, 10, count).round()
    data = Data.from_table(
        {"age": age, "hours": hours, "sex": sex, "y": rng.choice(["no", "yes"], count)},
        label="y",
        attributes=["sex"],
        fractions=(0.6, 0.2, 0.2),
    )
    wrong = (sex == "Female") & (age > 40) & (rng.random(count) < 0.7) | (rng.random(count) < 0.05)
    return data, wrong


def seen_of(data: Data, wrong: np.ndarray) -> Seen:
    return Seen(labels=data.y, probabilities=one_hot(np.where(wrong, 1 - data.y, data.y)), columns=rule_columns(data))


def test_the_tree_finds_the_planted_rule_and_says_it_in_the_units_of_the_table():
    data, wrong = planted()
    rule = Tree(depth=2).find(seen_of(data, wrong), CLASSES, 0)
    worst = rule.leaves[0]
    assert set(worst.rule.split(" and ")) == {"sex = Female", "age > 40.5"}
    assert worst.errors / worst.samples > 0.6
    assert rule.reads == ("columns",)
    rows = rule.assign(seen_of(data, wrong)) == 0
    age = np.array([float(v) for v in data.x[:, data.feature_names.index("age")]])
    restored = age * data.encoder.columns[0].scale + data.encoder.columns[0].mean
    female = data.attributes["sex"].strings() == "Female"
    assert np.array_equal(rows, female & (restored > 40.5))


def test_leaves_are_judged_on_the_half_that_did_not_grow_them():
    data, wrong = planted(1_000)
    rule = Tree(depth=4).find(seen_of(data, wrong), CLASSES, 0)
    assert sum(leaf.samples for leaf in rule.leaves) == 500
    assert sum(leaf.errors for leaf in rule.leaves) == pytest.approx(wrong.sum() / 2, abs=1)
    rates = [leaf.errors / leaf.samples for leaf in rule.leaves]
    assert rates == sorted(rates, reverse=True)


def test_noise_alone_grows_no_group_where_a_plain_tree_finds_many():
    data, _ = planted(1_500)
    rng = np.random.default_rng(5)
    leaves = []
    for seed in range(10):
        wrong = rng.random(len(data)) < 0.2
        leaves.append(len(Tree().find(seen_of(data, wrong), CLASSES, seed).leaves))
        plain = DecisionTreeClassifier(max_depth=4, min_samples_leaf=20).fit(rule_columns(data).values, wrong)
        assert plain.get_n_leaves() > 6
    assert np.mean(leaves) < 2


def test_without_pruning_the_groups_are_the_leaves_of_scikit_learn():
    data, wrong = planted(800)
    columns = rule_columns(data)
    rule = Tree(label=False, prune=1.0, depth=3).find(seen_of(data, wrong), CLASSES, 4)
    order = np.lexsort((np.random.default_rng(4).random(len(wrong)), wrong))
    half = np.sort(order[::2])
    model = DecisionTreeClassifier(criterion="entropy", max_depth=3, min_samples_leaf=20, random_state=4)
    leaves = model.fit(columns.values[half], wrong[half]).apply(columns.values)
    found = rule.assign(Seen(columns=columns))
    assert adjusted_rand_score(leaves, found) == 1


def test_a_rule_may_name_the_class_and_then_reads_it():
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 2, 600)
    columns = RuleColumns((RuleColumn("x", None, "feature"),), rng.normal(size=(600, 1)).astype(np.float32))
    wrong = (labels == 1) & (columns.values[:, 0] > 0)
    seen = Seen(labels=labels, probabilities=one_hot(np.where(wrong, 1 - labels, labels)), columns=columns)
    rule = Tree(depth=2).find(seen, CLASSES, 0)
    assert rule.reads == ("columns", "labels")
    assert rule.leaves[0].rule.startswith(("label = dog and x >", "x >"))
    assert "label = dog" in rule.leaves[0].rule
    assert "labels" not in Tree(depth=2, label=False).find(seen, CLASSES, 0).reads
    other = RuleColumns((RuleColumn("z", None, "feature"),), columns.values)
    with pytest.raises(DataError, match="other columns"):
        rule.assign(Seen(labels=labels, columns=other))


def test_columns_for_rules_are_named_and_refused_in_words():
    data, _ = planted(100)
    assert {column.name for column in rule_columns(data).columns} == {"age", "hours", "sex"}
    assert {column.name for column in rule_columns(data, ["features"]).columns} >= {"age", "hours"}
    assert [column.other for column in rule_columns(data, ["sex"]).columns] == ["Male", "Female"]
    extra = data.replace(columns={"score": np.linspace(0, 1, 100), "note": np.array(["a"] * 100)})
    assert rule_columns(extra, ["score"]).values[-1, 0] == 1
    for wanted, message in ((["aeg"], "did you mean 'age'"), (["note"], "one number a sample"), ("age", "a list")):
        with pytest.raises(DataError, match=message):
            rule_columns(extra, wanted)
    pictures = Data(np.zeros((9, 1, 4, 4), np.uint8), np.arange(9) % 3, fractions=(0.4, 0.3, 0.3))
    with pytest.raises(DataError, match="clusters"):
        rule_columns(pictures)


# Clusters -------------------------------------------------------------------------------------------------------------


def blobs(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class 0 has two large clusters and a small one beside one of them; class 1 two, a rare and a frequent one."""
    rng = np.random.default_rng(seed)
    sizes, centres = [200, 200, 25, 300, 30], np.array([[0, 0], [10, 0], [6, 0], [0, 10], [6, 10]])
    points = np.concatenate([rng.normal(c, 0.5, (n, 2)) for n, c in zip(sizes, centres, strict=True)])
    return points, np.repeat([0, 0, 0, 1, 1], sizes), np.repeat(np.arange(5), sizes)


@pytest.mark.parametrize("kind", ["gmm", "kmeans"])
def test_clusters_within_a_class_are_found(kind):
    points, labels, true = blobs()
    rule = Clusters(kind=kind).find(Seen(labels=labels, embeddings=points), CLASSES, 0)
    found = rule.assign(Seen(labels=labels, embeddings=points))
    told = within_class_information(found, true, labels)
    assert told.share > 0.95
    assert told.adjusted > 0.7
    assert max(rule.clusters[1].silhouettes, key=rule.clusters[1].silhouettes.get) == 2
    # A new point belongs to the cluster it lies in.
    new = rule.assign(Seen(labels=np.array([1, 1]), embeddings=np.array([[0.1, 10.1], [6.1, 9.9]])))
    assert new.tolist() == [np.bincount(found[true == 3]).argmax(), np.bincount(found[true == 4]).argmax()]


def test_a_piece_stands_alone_only_where_its_loss_is_not_lower():
    points, labels, true = blobs()
    confident = np.where(true == 2, 0.99, 0.6)
    probabilities = np.stack([np.where(labels == 0, confident, 1 - confident), 1 - confident], axis=1)
    probabilities[:, 1] = 1 - probabilities[:, 0]
    easy = Seen(labels=labels, embeddings=points, probabilities=probabilities)
    hard = Seen(
        labels=labels,
        embeddings=points,
        probabilities=one_hot(np.where(true == 2, 1, labels)),
    )
    options = Clusters(most=2, overcluster=2)
    counts = [options.find(seen, CLASSES, 0).clusters[0].count for seen in (easy, hard)]
    groups = options.find(hard, CLASSES, 0).assign(hard)
    assert counts[1] >= 3
    # The hard piece is a group of its own, the easy one stays where it was.
    assert set(groups[true == 2]).isdisjoint(groups[true == 1])
    found = options.find(easy, CLASSES, 0).assign(easy)
    assert set(found[true == 2]) <= set(found[true == 1])


def test_a_class_of_too_few_samples_is_one_cluster():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [100, 6])
    rule = Clusters().find(Seen(labels=labels, embeddings=rng.normal(size=(106, 4))), CLASSES, 0)
    assert rule.clusters[1].count == 1
    assert rule.names[-1] == "label=dog: cluster 0"


def test_clusters_refuse_other_embeddings_and_odd_options():
    points, labels, _ = blobs()
    rule = Clusters(most=2, overcluster=1).find(Seen(labels=labels, embeddings=points), CLASSES, 0)
    with pytest.raises(DataError, match="3 numbers a sample"):
        rule.assign(Seen(labels=labels, embeddings=np.zeros((len(labels), 3))))
    with pytest.raises(ConfigError, match="did you mean 'kmeans'"):
        Clusters(kind="kmean")
    with pytest.raises(ConfigError, match="most must be at least 2"):
        Clusters(most=1)


# The mixture ----------------------------------------------------------------------------------------------------------


def confused(count: int = 1_200, seed: int = 0) -> tuple[Seen, np.ndarray]:
    """Dogs in one corner are called cats."""
    rng = np.random.default_rng(seed)
    labels, corner = rng.integers(0, 2, count), rng.random(count) < 0.15
    points = np.stack([labels * 6.0, corner * 6.0, np.zeros(count)], axis=1) + rng.normal(size=(count, 3))
    predicted = np.where((labels == 1) & corner, 0, labels)
    return Seen(labels=labels, probabilities=one_hot(predicted), embeddings=points), (labels == 1) & corner


def test_the_mixture_finds_the_confused_corner_and_tells_it_without_the_prediction():
    seen, true = confused()
    rule = Mixture(components=6, slices=3, dimensions=3).find(seen, CLASSES, 0)
    assert rule.names[0] == "slice 1: label=dog, too often predicted cat"
    for look in (seen, seen.without("probabilities")):
        found = rule.assign(look) < len(rule.slices)
        assert (found & true).sum() / true.sum() > 0.95
        assert (found & true).sum() / found.sum() > 0.9
    assert rule.sees_errors


def test_a_model_without_errors_has_no_slice():
    seen, _ = confused()
    right = Seen(labels=seen.labels, probabilities=np.eye(2)[seen.labels], embeddings=seen.embeddings)
    rule = Mixture(components=6).find(right, CLASSES, 0)
    assert rule.slices == ()
    assert rule.names == ("label=cat: rest", "label=dog: rest")


def test_the_joint_density_is_equation_4():
    seen, _ = confused(200)
    rule = Mixture(components=4, dimensions=2).find(seen, CLASSES, 0)
    p, points = rule.parameters, rule.projection(seen.embeddings)
    joint = p.log_joint(points, np.eye(2)[seen.labels], seen.probabilities, 2.0, 3.0)
    for i in (0, 17, 199):
        for k in range(4):
            expected = (
                np.log(p.weights[k])
                + multivariate_normal(p.means[k], np.diag(p.variances[k])).logpdf(points[i])
                + 2.0 * np.log(max(p.label[k, seen.labels[i]], 1e-12))
                + 3.0 * np.log(max(seen.probabilities[i] @ p.prediction[k], 1e-12))
            )
            assert joint[i, k] == pytest.approx(expected, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_more_iterations_never_lower_the_likelihood(seed):
    seen, _ = confused(150, seed)
    labels, points = np.eye(2)[seen.labels], seen.embeddings
    # A soft prediction is put into the mass function as it is, which is no likelihood: that part is left out.
    reached = []
    for iterations in (1, 3, 8, 20):
        fitted = Mixture(components=5, prediction_weight=0, iterations=iterations)
        joint = fitted.fit(points, labels, seen.probabilities, 0).log_joint(points, labels, None, 1.0, 0.0)
        reached.append(np.logaddexp.reduce(joint, axis=1).mean())
    # The floor on variances costs a little.
    assert (np.diff(reached) > -2e-3).all()
    assert reached[-1] > reached[0]


# Methods and what is seen ---------------------------------------------------------------------------------------------


def test_methods_have_names_and_refuse_what_they_do_not_know():
    assert set(METHODS) == {"errors", "tree", "clusters", "mixture", "disagreement"}
    assert as_method("tree", {"depth": 2, "columns": ["age"]}) == Tree(depth=2, columns=("age",))
    own = Tree()
    assert as_method(own) is own
    for method, options, message in (
        ("tre", {}, "did you mean 'tree'"),
        ("tree", {"dept": 2}, "did you mean 'depth'"),
        ("tree", {"depth": "2"}, "expected a whole number"),
        ("tree", {"label": 1}, "true or false"),
        ("tree", {"prune": "x"}, "a number"),
        ("tree", {"columns": "age"}, "a list of names"),
        ("clusters", {"kind": 3}, "a text"),
        ("tree", {"depth": 0}, "at least 1"),
        ("mixture", {"slices": 0}, "at least 1"),
        (own, {"depth": 2}, "made already"),
    ):
        with pytest.raises(ConfigError, match=message):
            as_method(method, options)


def test_what_is_seen_is_checked():
    with pytest.raises(DataError, match="different lengths"):
        Seen(labels=np.zeros(3), probabilities=np.zeros((2, 2)))
    with pytest.raises(DataError, match="not finite at rows 1"):
        Seen(embeddings=np.array([[0.0], [np.nan]]))
    with pytest.raises(DataError, match="expected the probabilities"):
        Seen(probabilities=np.zeros(3))
    assert len(Seen(labels=np.arange(4)).take([1, 2])) == 2


def test_the_room_needs_no_torch():
    code = "import limbeck.groups, sys; assert 'torch' not in sys.modules and 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
