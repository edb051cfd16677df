"""`Distiller` is a scikit-learn classifier by scikit-learn's own checks, and a student like any other."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_iris, make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

import limbeck as lb
from limbeck.errors import DataError, RecipeError, TeacherError
from limbeck.estimator import Distiller


@parametrize_with_checks([Distiller(random_state=0, epochs=30)])
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    torch.set_num_threads(1)
    check(estimator)


@pytest.fixture(scope="module")
def table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three named classes, every sixth label wrong, and two groups."""
    X, y = make_classification(300, 6, n_informative=4, n_classes=3, class_sep=1.5, random_state=0)
    y = np.where(np.arange(300) % 6 == 0, (y + 1) % 3, y)
    return X, np.array(["ant", "bee", "cat"])[y], np.where(X[:, 0] > 1, "high", "low")


def distiller(recipe: Any = "kd", **settings: Any) -> Distiller:
    return Distiller(recipe, **{"epochs": 5, "random_state": 0, **settings})


@pytest.mark.parametrize("kind", [str, int, bool, float, object])
def test_labels_of_any_type_come_back_as_they_went_in(kind: Any, table: Any) -> None:
    X, y, _ = table
    codes = np.unique(y, return_inverse=True)[1]
    labels = {
        str: y,
        int: codes * 10 - 5,
        bool: codes > 0,
        float: codes.astype(float),
        object: y.astype(object),
    }[kind]
    model = distiller("erm", epochs=20).fit(X, labels)
    assert model.classes_.tolist() == sorted(set(labels.tolist()))
    assert model.predict(X).dtype == labels.dtype
    assert set(model.predict(X)) <= set(labels)
    shares = model.predict_proba(X)
    assert shares.shape == (len(X), len(model.classes_))
    np.testing.assert_allclose(shares.sum(1), 1)
    assert model.score(X, labels) > 0.7
    assert (model.predict(X) == model.classes_[shares.argmax(1)]).all()


def test_a_fitted_classifier_its_probabilities_and_a_module_teach_the_same(table: Any) -> None:
    X, y, _ = table
    X = X.astype(np.float32)
    classifier = LogisticRegression().fit(X, y)
    module = nn.Linear(X.shape[1], 3)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(classifier.coef_))
        module.bias.copy_(torch.from_numpy(classifier.intercept_))
    shares = classifier.predict_proba(X)
    expected = distiller().fit(X, y, teacher=classifier).predict_proba(X)
    alone = distiller("erm").fit(X, y).predict_proba(X)
    assert np.abs(expected - alone).max() > 0.05
    for teacher in (shares, torch.from_numpy(shares), module):
        found = distiller().fit(X, y, teacher=teacher).predict_proba(X)
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_it_is_the_student_that_fit_gives(table: Any) -> None:
    X, y, _ = table
    torch.manual_seed(0)
    student, teacher = nn.Linear(6, 3), nn.Linear(6, 3)
    model = distiller(student=student, validation_fraction=0.0).fit(X, y, teacher=teacher)
    again = np.r_[0:300, 0]
    data = lb.Data(X[again].astype(np.float32), y[again], split=np.r_[np.zeros(300, int), 1], fractions=None, name="X")
    settings = {"epochs": 5, "batch_size": 32, "learning_rate": 1e-2, "selection": "last"}
    fitted = lb.fit(student, data, teacher=teacher, recipe="kd", seed=0, **settings)
    assert torch.equal(model.model_.weight, fitted.model.weight)


def test_a_teacher_sees_the_rows_as_they_were_given(table: Any) -> None:
    pandas = pytest.importorskip("pandas")
    X, y, _ = table
    frame = pandas.DataFrame(X, columns=list("abcdef"))
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(frame, y)
    model = distiller().fit(frame, y, teacher=pipeline)
    assert model.feature_names_in_.tolist() == list("abcdef")
    said = model.ledger_.to_pandas()
    shares = pipeline.predict_proba(frame)[said.id]
    np.testing.assert_allclose(said.teacher_1_probability, shares.max(1), rtol=1e-3)


def test_a_teacher_may_know_fewer_classes_and_none_that_y_lacks(table: Any) -> None:
    X, y, _ = table
    known = y != "cat"
    some = LogisticRegression().fit(X[known], y[known])
    model = distiller().fit(X, y, teacher=some)
    assert model.predict_proba(X).shape == (300, 3)
    all_three = LogisticRegression().fit(X, y)
    with pytest.raises(TeacherError, match="knows the class 'cat', which y does not have"):
        distiller().fit(X[known], y[known], teacher=all_three)
    with pytest.raises(TeacherError, match=r"expected \[300, 3\]"):
        distiller().fit(X, y, teacher=np.ones((300, 2)) / 2)


def test_groups_reach_the_recipe_and_the_ledger(table: Any) -> None:
    X, y, groups = table
    model = distiller({"recipe": "group_dro", "step": 0.5}, validation_fraction=0.2).fit(X, y, groups=groups)
    q = [record["group_weights"] for record in model.history_]
    assert np.ptp(q[-1]) > 0
    said = model.ledger_.to_pandas()
    assert (said.group == [f"group={name}" for name in groups[said.id]]).all()
    assert (said.label.astype(int) == np.unique(y, return_inverse=True)[1][said.id]).all()
    assert {record["validation_worst_group"] is None for record in model.history_} == {False}
    some = groups.astype(object)
    some[:5] = None
    unknown = distiller("erm").fit(X, y, groups=some).ledger_.to_pandas()
    assert unknown[unknown.group.isna()].id.tolist() == [row for row in range(5) if row in set(unknown.id)]
    with pytest.raises(RecipeError, match="no groups are declared"):
        distiller("group_dro").fit(X, y)
    with pytest.raises(DataError, match="groups has 3 values for 300 samples"):
        distiller("erm").fit(X, y, groups=[1, 2, 3])


def test_it_is_copied_pickled_and_searched_like_any_estimator(table: Any) -> None:
    X, y, _ = table
    own = lb.Recipe(["cross_entropy", {"term": "label_smoothing", "epsilon": 0.2}], name="own")
    model = clone(distiller(own, student="linear", training={"weight_decay": 0.1}))
    assert model.recipe is own
    assert model.training == {"weight_decay": 0.1}
    model.fit(X, y)
    named = distiller("label_smoothing").fit(X, y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(named)).predict_proba(X), named.predict_proba(X))
    assert cross_val_score(make_pipeline(StandardScaler(), distiller("erm", epochs=10)), X, y, cv=3).min() > 0.5
    search = GridSearchCV(distiller(epochs=2), {"recipe": ["erm", {"recipe": "gce", "q": 0.5}]}, cv=2).fit(X, y)
    assert set(search.best_params_) == {"recipe"}


def test_the_same_state_gives_the_same_student_and_another_one_another(table: Any) -> None:
    X, y, _ = table
    one, same, other = (distiller("erm", random_state=seed).fit(X, y).predict_proba(X) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3
    drawn = [distiller("erm", random_state=np.random.RandomState(3)).fit(X, y).predict_proba(X) for _ in range(2)]
    np.testing.assert_array_equal(*drawn)


def test_input_that_cannot_be_used_is_refused_clearly(table: Any) -> None:
    X, y, _ = table
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        distiller("erm").fit(sparse.csr_matrix(X), y)
    with pytest.raises(DataError, match="y has one class only"):
        distiller("erm").fit(X, np.full(300, "ant"))
    with pytest.raises(RecipeError, match="none is given: pass teacher="):
        distiller("kd").fit(X, y)
    with pytest.raises(RecipeError, match="did you mean"):
        distiller("groupdistill").fit(X, y)
    with pytest.raises(DataError, match="validation_fraction"):
        distiller("erm", validation_fraction=1.5).fit(X, y)


def test_few_samples_are_all_trained_on() -> None:
    X, y = load_iris(return_X_y=True)
    few = np.r_[0:3, 50:53, 100:103]
    model = distiller("erm", epochs=40).fit(X[few], y[few])
    assert len(model.ledger_) == 9
    assert model.selected_epoch_ == 40
    assert model.score(X[few], y[few]) == 1.0
