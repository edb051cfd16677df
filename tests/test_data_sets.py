"""The known data sets: those that come with Limbeck, and the real ones of LIMBECK_DATA."""

from __future__ import annotations

import gzip
import importlib.util
import io
import struct
import zipfile
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from limbeck.data import SETS, inject, load
from limbeck.errors import DataError

ROOT = Path(__file__).parents[1]


def tool():
    spec = importlib.util.spec_from_file_location("make_adult", ROOT / "tools" / "make_adult.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- with Limbeck ------------------------------------------------------------------------------------------------


def test_adult_is_the_official_set():
    data = load("adult", groups=["sex", "race"])
    assert len(data) == 48_842
    assert data.sizes["test"] == 16_281
    assert abs(data.sizes["validation"] - 32_561 / 4) <= 10
    assert data.classes == ("<=50K", ">50K")
    assert data.label_name == "income"
    assert data.test.y.sum() == 3846
    assert data.num_groups == 10
    counts = data.groups.counts()
    assert counts[data.groups.names.index("sex=Female, race=Other")] == 155
    assert counts.sum() == 48_842
    assert "workclass is missing" in data.feature_names
    assert data.columns["fnlwgt"][0] == 77_516
    data.check(groups_required=True)
    assert load("adult", groups=["label", "sex"]).groups.names[3] == "income >50K, sex=Male"
    assert load("adult", seed=1).fingerprint() != load("adult").fingerprint()


def test_a_linear_model_of_adult_is_as_good_as_it_should_be():
    data = load("adult")
    rows = np.random.default_rng(0).permutation(len(data.train))[:6000]
    model = LogisticRegression(max_iter=300).fit(data.train.x[rows], data.train.y[rows])
    assert 0.84 < model.score(data.test.x, data.test.y) < 0.87


def test_the_bundled_file_is_small_and_attributed():
    folder = resources.files("limbeck.data") / "bundled"
    assert len((folder / "adult.parquet").read_bytes()) < 1_000_000
    text = (folder / "adult.LICENSE.txt").read_text(encoding="utf-8")
    assert "CC BY 4.0" in text
    assert "Becker" in text
    assert "Kohavi" in text


def test_the_bundled_file_is_rebuilt_from_the_raw_one(limbeck_data):
    make = tool()
    built = make.clean(make.read_csv(limbeck_data / "adult.csv.gz")).to_pandas()
    bundled = pd.read_parquet(io.BytesIO((resources.files("limbeck.data") / "bundled" / "adult.parquet").read_bytes()))
    pd.testing.assert_frame_equal(built.astype(object), bundled.astype(object))
    raw = pd.read_csv(limbeck_data / "adult.csv.gz", na_values="?")
    assert raw.isna().sum().to_dict() == bundled.isna().sum().to_dict()
    assert raw.isna().sum().sum() > 6000


def test_the_official_archive_of_adult_gives_the_same_rows(limbeck_data, tmp_path):
    make = tool()
    raw = pd.read_csv(limbeck_data / "adult.csv.gz")
    with zipfile.ZipFile(tmp_path / "adult.zip", "w") as archive:
        for member, split, stop in [("adult.data", "train", ""), ("adult.test", "test", ".")]:
            rows = raw[raw["split"] == split].drop(columns="split").astype(str)
            rows["income"] += stop
            lines = [", ".join(row) for row in rows.itertuples(index=False)]
            head = ["|1x3 Cross validator"] if split == "test" else []
            archive.writestr(member, "\n".join([*head, *lines, ""]))
    official = make.clean(make.read_official(tmp_path / "adult.zip"))
    assert (
        official.to_pandas()
        .astype(object)
        .equals(make.clean(make.read_csv(limbeck_data / "adult.csv.gz")).to_pandas().astype(object))
    )


def test_digits_are_scikit_learns():
    bunch = load_digits()
    data = load("digits")
    assert np.array_equal(data.x * 16, bunch.data)
    assert np.array_equal(data.y, bunch.target)
    assert load("digits", images=True).sample_shape == (1, 8, 8)
    assert load("digits", validation=0.5, test=0.4).sizes["test"] == pytest.approx(0.4 * 1797, abs=10)


def test_every_set_says_what_it_needs(tmp_path):
    for name, known in SETS.items():
        assert known.about
        if known.files:
            with pytest.raises(DataError) as caught:
                load(name, folder=tmp_path)
            assert known.files in str(caught.value)
            assert "LIMBECK_DATA" in str(caught.value)


@pytest.mark.parametrize("options", [{"validation": 1.0}, {"validation": "a"}, {"test": -0.1}])
def test_shares_are_checked(options):
    with pytest.raises(DataError, match="expected a share from 0 to below 1"):
        load("digits", **options)


def test_fashion_mnist_from_official_files(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "fashion-mnist").mkdir()
    made = {}
    for prefix, count in [("train", 80), ("t10k", 20)]:
        made[prefix] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, array in [("images-idx3", made[prefix]), ("labels-idx1", labels)]:
            head = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            path = tmp_path / "fashion-mnist" / f"{prefix}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(head + array.tobytes()))
    data = load("fashion-mnist", folder=tmp_path)
    assert data.classes[0] == "T-shirt/top"
    assert data.sizes == {"train": 60, "validation": 20, "test": 20}
    assert np.array_equal(data.x[:80, 0], made["train"])
    fewer = load("fashion-mnist", folder=tmp_path, samples=40, test_samples=10)
    assert len(fewer) == 50
    assert np.bincount(fewer.y).tolist() == [5] * 10
    assert np.array_equal(fewer.x, data.x[fewer.ids]), "ids are those of the whole set"
    with pytest.raises(DataError, match="from 1 to 80"):
        load("fashion-mnist", folder=tmp_path, samples=81)


# -- from LIMBECK_DATA -------------------------------------------------------------------------------------------


@pytest.mark.data
def test_acs_employment_with_a_deployed_models_probabilities(limbeck_data):
    data = load("acs-employment", groups=["label", "disability"], folder=limbeck_data)
    assert len(data) == 207_546
    assert list(data.attributes) == ["disability", "sex", "race", "age", "year"]
    assert data.groups.names[3] == "employed=yes, disability=yes"
    probability, prediction = data.columns["predicted_probability"], data.columns["prediction"]
    raw = pd.read_parquet(limbeck_data / "acs_employment_ma.parquet")
    assert np.array_equal(data.ids, raw["id"])
    assert np.array_equal(data.attributes["disability"].codes == 1, raw["DIS"] == 1)
    assert np.array_equal(data.attributes["sex"].strings() == "female", raw["SEX"] == 2)
    assert np.array_equal(data.attributes["age"].strings() == "16-24", raw["AGEP"].between(16, 24))
    assert np.array_equal(data.attributes["race"].strings() == "Asian", raw["RAC1P"] == 6)
    assert not any(name.startswith(("year", "id", "pred")) for name in data.feature_names)
    correct = prediction == data.y
    worst = data.groups.index == 3
    assert correct.mean() > 0.78
    assert correct[worst].mean() < 0.4, "the deployed model fails employed people with a disability"
    assert np.array_equal(data.test.columns["predicted_probability"], probability[data.split == 2])


@pytest.mark.data
def test_acs_employment_by_year(limbeck_data):
    data = load("acs-employment", folder=limbeck_data, train_years=[2015], test_years=[2016], samples=20_000)
    assert len(data) == 20_000
    assert set(data.test.attributes["year"].strings()) == {"2016"}
    assert set(data.train.attributes["year"].strings()) == {"2015"}
    for options in [{"train_years": [2015]}, {"train_years": [2015], "test_years": [2015]}]:
        with pytest.raises(DataError, match="train_years"):
            load("acs-employment", folder=limbeck_data, **options)
    with pytest.raises(DataError, match="2014 was asked for"):
        load("acs-employment", folder=limbeck_data, train_years=[2014], test_years=[2016])


@pytest.mark.data
def test_mnist_and_its_coloured_form(limbeck_data):
    plain = load("mnist", folder=limbeck_data)
    assert plain.sizes["test"] == 10_000
    assert plain.x[:, 0].mean() / 255 == pytest.approx(0.1309, abs=1e-3)
    assert plain.train.x.mean() / 255 == pytest.approx(plain.normalise[0][0], abs=1e-3)
    data = load("coloured-mnist", folder=limbeck_data, aligned=0.98, samples=6000, test_samples=1000, seed=3)
    assert data.sample_shape == (3, 28, 28)
    assert data.num_groups == 20
    assert data.groups.columns == ("label", "aligned")
    for split in (data.train, data.validation):
        assert (split.attributes["aligned"].codes == 1).mean() == pytest.approx(0.98, abs=0.01)
    counts = [data.groups.counts(data.split == code) for code in (0, 1)]
    assert np.abs(counts[1] - (counts[0] + counts[1]) / 4).max() <= 1, "validation has its share of every group"
    assert (data.test.attributes["aligned"].codes == 1).mean() == pytest.approx(0.1, abs=0.03)
    grey = plain.x[data.ids].astype(int)
    lit = grey[:, 0] > 0
    assert (data.x.max(axis=1)[~lit] == 0).all()
    whole = inject.coloured(load("mnist", folder=limbeck_data, samples=300, validation=0), aligned=0.98, seed=3)
    shared, left, right = np.intersect1d(whole.ids, data.ids, return_indices=True)
    assert len(shared) > 10
    assert np.array_equal(whole.x[left], data.x[right]), "the colour of a sample is its own"
    assert load("coloured-mnist", groups="colour", folder=limbeck_data, samples=500, test_samples=200).num_groups == 10


@pytest.mark.data
def test_cifar10_and_the_labels_people_gave(limbeck_data):
    raw = np.load(limbeck_data / "cifar10_jpeg.npz")
    data = load("cifar10", folder=limbeck_data, samples=400, test_samples=100)
    assert data.name == "cifar10-jpeg"
    assert data.normalise[0] == (0.485, 0.456, 0.406)
    header, body = raw["header"].tobytes(), raw["train_bytes"].tobytes()
    ends = np.cumsum(raw["train_len"], dtype=np.int64)
    for row in (0, 17):
        k = data.ids[row]
        image = Image.open(io.BytesIO(header + body[ends[k] - int(raw["train_len"][k]) : ends[k]]))
        assert np.array_equal(data.x[row], np.asarray(image).transpose(2, 0, 1))
        assert data.y[row] == raw["y_train"][k]
    for labels, rate in [("worse", 0.402), ("aggregate", 0.0903), ("random1", 0.1723)]:
        human = load("cifar10n", folder=limbeck_data, labels=labels, samples=2000, test_samples=50)
        learned = human.split != 2
        assert (human.y != human.columns["true_label"])[learned].mean() == pytest.approx(rate, abs=0.035)
        assert np.array_equal(human.test.y, human.test.columns["true_label"])
        assert np.array_equal(human.columns[f"label_{labels}"][learned], human.y[learned])
        assert (human.columns["label_random2"][~learned] == -1).all()
    with pytest.raises(DataError, match="unknown set of labels 'worst'"):
        load("cifar10n", folder=limbeck_data, labels="worst")


@pytest.mark.data
def test_the_official_file_of_human_labels_gives_the_same_data(limbeck_data, tmp_path):
    names = {"clean": "clean_label", "aggre": "aggre_label", "worse": "worse_label"}
    names |= {f"random{k}": f"random_label{k}" for k in (1, 2, 3)}
    raw = np.load(limbeck_data / "cifar_n_labels.npz")
    (tmp_path / "cifar10n").mkdir()
    published = {name: raw[f"c10_{key}"].astype(np.int64) for key, name in names.items()}
    np.save(tmp_path / "cifar10n" / "CIFAR-10_human.npy", published, allow_pickle=True)
    (tmp_path / "cifar10_jpeg.npz").symlink_to((limbeck_data / "cifar10_jpeg.npz").resolve())
    official = load("cifar10n", folder=tmp_path, labels="random3", samples=300, test_samples=20)
    assert (
        official.fingerprint()
        == load("cifar10n", folder=limbeck_data, labels="random3", samples=300, test_samples=20).fingerprint()
    )
    np.save(tmp_path / "cifar10n" / "CIFAR-10_human.npy", {"clean_label": raw["c10_clean"]}, allow_pickle=True)
    with pytest.raises(DataError, match=r"unknown array 'aggre_label'.*clean_label"):
        load("cifar10n", folder=tmp_path)


def test_the_pictures_of_pacs_are_read(tmp_path):
    def picture(shade: int) -> dict[str, object]:
        file = io.BytesIO()
        Image.new("RGB", (20, 16), (shade, 0, 255 - shade)).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": f"{shade}.png"}

    rows = [(domain, label) for domain in ("photo", "sketch") for label in range(7) for _ in range(4)]
    table = pa.table(
        {
            "image": [picture(4 * place) for place in range(len(rows))],
            "domain": [domain for domain, _ in rows],
            "label": [label for _, label in rows],
        }
    )
    (tmp_path / "pacs").mkdir()
    pq.write_table(table, tmp_path / "pacs" / "pacs.parquet")
    data = load("pacs", ["label", "domain"], folder=tmp_path, size=8, leave_out="sketch")
    assert data.sample_shape == (3, 8, 8)
    assert data.num_groups == 14
    assert data.classes[:2] == ("dog", "elephant")
    assert set(data.test.attributes["domain"].strings()) == {"sketch"}
    assert data.columns["file"][3] == "12.png"
    assert (data.x[3] == np.array([12, 0, 243], np.uint8)[:, None, None]).all()
    with pytest.raises(DataError, match="give size=64"):
        load("pacs", folder=tmp_path)


@pytest.mark.data
def test_bar_pacs_gas_drift_and_usps(limbeck_data):
    bar = load("bar", folder=limbeck_data)
    assert bar.sizes["test"] == 654
    assert set(bar.train.attributes["aligned"].strings()) == {"yes"}
    pacs = load("pacs", groups=["label", "domain"], folder=limbeck_data)
    assert pacs.num_groups == 28
    pacs.check(groups_required=True)
    sketch = load("pacs", folder=limbeck_data, leave_out="sketch")
    assert set(sketch.test.attributes["domain"].strings()) == {"sketch"}
    gas = load("gas-drift", folder=limbeck_data, leave_out=6)
    assert gas.sizes["test"] == 2300
    assert gas.x.shape == (6697, 128)
    assert np.abs(gas.train.x.mean(axis=0)).max() < 1e-3
    assert gas.encoder.columns[0].name == "sensor 1 feature 1"
    raw = np.load(limbeck_data / "gas_drift_8batches.npz")
    assert [gas.classes[k] for k in gas.y[:50]] == raw["gases"][raw["y"][:50]].tolist()
    usps = load("usps", folder=limbeck_data)
    assert usps.sizes["test"] == 2007
    assert usps.sample_shape == (1, 16, 16)
    for name in ("pacs", "gas-drift"):
        with pytest.raises(DataError, match="leave out"):
            load(name, folder=limbeck_data, leave_out="nothing")


@pytest.mark.data
def test_a_linear_model_shows_what_makes_bar_and_pacs_hard(limbeck_data):
    bar = load("bar", folder=limbeck_data)
    model = LogisticRegression(max_iter=60, C=0.01).fit(bar.train.x, bar.train.y)
    assert model.score(bar.validation.x, bar.validation.y) > 0.95
    assert 0.6 < model.score(bar.test.x, bar.test.y) < 0.8
