"""What a pilot measures for its report, against independent arithmetic; and `limbeck report`, from folder to file."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from sklearn.decomposition import PCA
from torch import nn

import limbeck as lb
from limbeck.cli import main
from limbeck.data import Data
from limbeck.errors import ConfigError
from limbeck.pilots.arms import Arm
from limbeck.report.evidence import AUDIT, COST, EVIDENCE, gather, read_evidence, save_audits, with_evidence
from limbeck.report.evidence_corrections import TOP, as_pixels, facts, picture
from limbeck.report.evidence_features import SAMPLES, flattened, shown_samples

CONFIG = """\
name: tiny
data: {name: digits, groups: [aligned], inject: [{kind: shortcut, aligned: 0.9}, {kind: label_noise, rate: 0.2}]}
teachers: {big: {model: {name: mlp, hidden: [24]}, recipe: erm}}
student: {name: mlp, hidden: [8]}
recipes: [group_dro, {recipe: kd, teacher: big}]
training: {epochs: 2, batch_size: 256}
seeds: [4, 7]
output: out
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def coloured_images() -> Data:
    """240 pictures whose class is a shape and whose group is its colour, a fifth of the labels wrong."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 240)
    colour = np.where(rng.random(240) < 0.8, y, 1 - y)
    x = rng.integers(0, 40, (240, 3, 16, 16)).astype(np.uint8)
    for row in range(240):
        rows = slice(2, 8) if y[row] else slice(8, 14)
        x[row, 2 * colour[row], rows, 3:13] = 230
    wrong = rng.random(240) < 0.2
    split = np.repeat(["train", "validation", "test"], [120, 40, 80])
    return Data(
        x,
        np.where(wrong, 1 - y, y),
        attributes={"colour": np.array(["red", "blue"])[colour]},
        groups=["colour"],
        split=split,
        classes=["low", "high"],
        ids=np.arange(500, 740)[::-1].copy(),
        name="shapes",
    )


def small() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 6), nn.ReLU(), nn.Linear(6, 2))


def seeing() -> nn.Module:
    """A teacher that sees the shape: it contradicts the labels that are wrong."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.ReLU(), nn.Linear(32, 2))
    upper = torch.zeros(3, 16, 16)
    upper[:, 2:8, 3:13], upper[:, 8:14, 3:13] = 0.1, -0.1
    with torch.no_grad():
        for layer in (network[1], network[3]):
            nn.init.normal_(layer.weight, std=1e-3)
            nn.init.zeros_(layer.bias)
        network[1].weight[0], network[1].weight[1] = upper.flatten(), -upper.flatten()
        network[3].weight[1, 0] = network[3].weight[0, 1] = 1.0
    return network


@pytest.fixture(scope="module")
def data() -> Data:
    return coloured_images()


@pytest.fixture(scope="module")
def pilot(data: Data, tmp_path_factory: pytest.TempPathFactory) -> lb.PilotResult:
    folder = tmp_path_factory.mktemp("runs") / "shapes"
    return lb.pilot(
        data, seeing(), small, recipes=["kd"], seeds=2, training=lb.Training(epochs=2, batch_size=32), output=folder
    )


@pytest.fixture(scope="module")
def found(pilot: lb.PilotResult) -> dict[str, Any]:
    assert pilot.folder is not None
    return read_evidence(pilot.folder)


# ------------------------------------------------------------------------------------------------------- measured


def test_nothing_was_left_out(found: dict[str, Any]) -> None:
    assert found["notes"] == []
    assert found.keys() == {"format", "notes", "cost", "changes", "standings", "feature_space", "corrections"}


def test_cost_counts_what_is_there(found: dict[str, Any]) -> None:
    costs = found["cost"]["models"]
    assert costs.keys() == {"teacher-teacher", "erm", "kd"}
    assert costs["kd"]["parameters"] == 768 * 6 + 6 + 6 * 2 + 2
    assert costs["teacher-teacher"]["parameters"] == 768 * 32 + 32 + 32 * 2 + 2
    assert costs["kd"]["size"] == 4 * costs["kd"]["parameters"]
    assert [entry["batch"] for entry in costs["kd"]["latency"]] == [1, 64]
    assert all(entry["median"] > 0 for cost in costs.values() for entry in cost["latency"])
    # Two students of one structure were timed once, so that their report does not tell chance as a difference.
    assert costs["kd"] == costs["erm"]


def test_who_is_worse_off_is_what_the_pilot_itself_says(pilot: lb.PilotResult, found: dict[str, Any]) -> None:
    assert found["changes"].keys() == {"erm", "kd"}
    for ours, theirs in zip(found["changes"]["kd"], pilot.group_changes("kd"), strict=True):
        assert (ours["group"], ours["samples"]) == (theirs["group"], theirs["samples"])
        assert ours["against"].keys() == {"teacher-teacher", "erm"}
        for key, change in ours["against"].items():
            assert change == {name: value for name, value in theirs["against"][key].items() if name != "sentence"}
    # The plain student would take the place of the chosen one's teacher.
    assert found["changes"]["erm"][0]["against"].keys() == {"teacher-teacher"}


def test_standings_are_those_of_the_pilot(pilot: lb.PilotResult, found: dict[str, Any]) -> None:
    assert found["standings"] == json.loads(json.dumps([one.to_dict() for one in pilot.pareto()]))


def test_what_does_not_tell_the_time_is_the_same_again(pilot: lb.PilotResult, data: Data, tmp_path: Path) -> None:
    assert pilot.folder is not None
    folder = tmp_path / "run"
    shutil.copytree(pilot.folder, folder)
    before = (folder / EVIDENCE).read_bytes()
    (folder / EVIDENCE).unlink()
    (folder / COST).unlink()
    arms = [
        Arm("teacher-teacher", "t", "teacher", source=seeing()),
        *(Arm(k, k, "student", small) for k in ("erm", "kd")),
    ]
    gather(lb.PilotResult(pilot.record, folder), data, arms)
    assert (folder / EVIDENCE).read_bytes() == before
    assert (folder / COST).is_file()


def test_features_are_principal_components_of_what_enters_the_last_layer(
    pilot: lb.PilotResult, data: Data, found: dict[str, Any]
) -> None:
    from limbeck.models import load_weights

    assert pilot.folder is not None
    space = found["feature_space"]
    module = small()
    load_weights(module, pilot.folder / "models" / "kd-seed0.safetensors")
    rows = np.array([int(np.flatnonzero(data.test.ids == one)[0]) for one in space["id"]])
    x = torch.as_tensor(np.asarray(data.test.x)[rows]).float() / 255
    with torch.no_grad():
        hidden = module[2](module[1](module[0](x))).double().numpy()
    pca = PCA(2).fit(hidden)
    expected = pca.transform(hidden)
    seen = space["models"]["kd"]
    for drawn, component in zip((seen["x"], seen["y"]), expected.T, strict=True):
        assert abs(np.corrcoef(drawn, component)[0, 1]) == pytest.approx(1, abs=1e-3)
    assert seen["share"] == pytest.approx(pca.explained_variance_ratio_.sum(), abs=1e-3)
    assert seen["features"] == 6
    table = pq.read_table(pilot.folder / "predictions.parquet")
    by_id = dict(zip(table["id"].to_pylist(), table["kd-seed0"].to_pylist(), strict=True))
    assert seen["predicted"] == [by_id[one] for one in space["id"]]
    assert set(space["models"]) == {"teacher-teacher", "kd", "erm"}
    assert space["total"] == len(data.test)


def test_corrections_are_those_of_the_ledgers(pilot: lb.PilotResult, data: Data, found: dict[str, Any]) -> None:
    assert pilot.folder is not None
    told = found["corrections"]
    tables = [pq.read_table(pilot.folder / "ledger" / "samples" / f"kd-seed{seed}.parquet") for seed in (0, 1)]
    rows = [table.to_pylist() for table in tables]
    overturned = [sum(row["target_1"] != row["label"] for row in one) for one in rows]
    assert told["models"]["kd"]["overturned"] == np.mean(overturned) > 0
    moved = np.mean([row["moved_from_label"] for one in rows for row in one])
    assert told["models"]["kd"]["moved_from_label"] == pytest.approx(moved, rel=1e-5)
    assert told["models"]["erm"]["overturned"] == 0
    for part in told["by"]["group"]:
        inside = [[row for row in one if row["group"] == part["name"]] for one in rows]
        assert part["samples"] == len(inside[0])
        assert part["overturned"] == np.mean([sum(r["target_1"] != r["label"] for r in one) for one in inside])
    for by in ("label", "group", "rule"):
        assert sum(part["samples"] for part in told["by"][by]) == len(data.train)
    farthest = sorted(rows[0], key=lambda row: -row["moved_from_label"])[:TOP]
    assert [row["moved_from_label"] for row in told["top"]] == [row["moved_from_label"] for row in farthest]
    assert told["chosen"] == "kd"


def test_the_most_changed_samples_have_their_own_picture(data: Data, found: dict[str, Any]) -> None:
    for row in found["corrections"]["top"]:
        place = int(np.flatnonzero(data.train.ids == row["id"])[0])
        kind, _, text = row["picture"].partition(";base64,")
        assert kind == "data:image/png"
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))
        assert np.array_equal(shown, np.asarray(data.train.x)[place].transpose(1, 2, 0))
        assert row["facts"] == [["colour", row["group"].removeprefix("colour=")]]


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_page_shows_them(pilot: lb.PilotResult, language: str, tmp_path: Path) -> None:
    text = pilot.report(tmp_path / "a.html", language=language).read_text(encoding="utf-8")
    assert text.count('<img src="data:image/png') == TOP
    for key in ("cost", "corrections", "feature-space", "worse-off"):
        assert f'<section id="{key}"' in text


def test_what_was_timed_once_is_kept_until_asked_for_again(pilot: lb.PilotResult, data: Data, tmp_path: Path) -> None:
    assert pilot.folder is not None
    folder = tmp_path / "run"
    shutil.copytree(pilot.folder, folder)
    other = lb.PilotResult(pilot.record, folder)
    before = read_evidence(folder)
    changed = json.loads((folder / COST).read_text())
    changed["models"]["kd"]["latency"][0]["median"] = 123.0
    (folder / COST).write_text(json.dumps(changed))
    gather(other, data, [])
    kept = read_evidence(folder)
    assert kept["cost"] == changed
    # Without the arms nobody knows how to rebuild a pilot of modules: that is said, and what needs none is there.
    assert any(note.startswith("kd: ") for note in kept["notes"])
    assert kept["changes"] == before["changes"]
    assert kept["corrections"] == before["corrections"]


def test_what_cannot_be_had_is_a_note_and_not_the_end(pilot: lb.PilotResult, data: Data, tmp_path: Path) -> None:
    assert pilot.folder is not None
    folder = tmp_path / "run"
    shutil.copytree(pilot.folder, folder)
    for path in (folder / "models").iterdir():
        path.write_bytes(b"cut")
    shutil.rmtree(folder / "ledger")
    (folder / COST).unlink()
    gather(lb.PilotResult(pilot.record, folder), data, [], again=True)
    left = read_evidence(folder)
    assert left.keys() == {"format", "notes", "changes", "standings"}
    assert any("kd" in note for note in left["notes"])
    assert lb.PilotResult(pilot.record, folder).report(tmp_path / "a.html").is_file()


def test_a_pilot_that_kept_nothing_has_a_report_all_the_same(pilot: lb.PilotResult, data: Data, tmp_path: Path) -> None:
    loose = lb.PilotResult(pilot.record)
    assert "evidence" not in with_evidence(loose.record, None)
    assert loose.report(tmp_path / "a.html").is_file()
    with pytest.raises(ConfigError, match="kept nothing on disk"):
        gather(loose, data, [])


def test_a_damaged_file_is_named(pilot: lb.PilotResult, tmp_path: Path) -> None:
    (tmp_path / EVIDENCE).write_text("{")
    with pytest.raises(ConfigError, match=r"evidence\.json is not whole: remove it"):
        with_evidence(pilot.record, tmp_path)
    (tmp_path / EVIDENCE).write_text('{"format": 99}')
    with pytest.raises(ConfigError, match="not written by this version"):
        read_evidence(tmp_path)


# ------------------------------------------------------------------------------------------------- samples and rows


def test_a_few_samples_of_every_group_are_shown() -> None:
    kinds = np.repeat([0, 1, 2, 3], [5_000, 3_000, 40, 3])
    rows = shown_samples(kinds)
    counts = np.bincount(kinds[rows], minlength=4)
    assert counts.tolist() == [219, 218, 40, 3]
    assert counts.sum() == SAMPLES
    assert np.array_equal(rows, np.unique(rows))
    assert np.array_equal(shown_samples(kinds), rows)
    assert shown_samples(np.array([-1, 0, 1])).tolist() == [0, 1, 2]
    assert len(shown_samples(np.arange(600))) >= SAMPLES  # more groups than places: one of each


def test_features_without_variance_are_one_point() -> None:
    place, share = flattened(np.ones((5, 3)))
    assert np.array_equal(place, np.zeros((5, 2)))
    assert share == 1.0
    place, share = flattened(np.arange(6.0).reshape(6, 1))
    assert np.array_equal(place[:, 1], np.zeros(6))
    assert share == pytest.approx(1)


def test_facts_are_the_values_of_the_table() -> None:
    table = pa.table(
        {
            "age": [20.0, 30.0, None, 50.0, 41.5, 33.0],
            "gain": [0.0, 0.0, 99_999.0, 41_310.0, 7.0, 0.0],
            "job": ["clerk", "smith", "smith", None, "clerk", "smith"],
            "sex": ["f", "m", "f", "m", "f", "m"],
            "label": ["yes", "no", "yes", "no", "yes", "no"],
        }
    )
    data = Data.from_table(table, label="label", attributes=["sex"], split="train", fractions=None)
    for row in range(6):
        wanted = [["sex", table["sex"][row].as_py()], ["gain", f"{table['gain'][row].as_py():,.10g}"]]
        if (age := table["age"][row].as_py()) is not None:
            wanted.append(["age", f"{age:g}"])
        if (job := table["job"][row].as_py()) is not None:
            wanted.append(["job", job])
        assert sorted(facts(data, row)) == sorted(wanted)


def test_pictures_of_any_kind() -> None:
    photograph = np.random.default_rng(0).integers(0, 255, (2, 3, 300, 200)).astype(np.uint8)
    data = Data(photograph, [0, 1], split="train", fractions=None)
    shown = picture(data, 0)
    assert shown is not None
    assert shown.startswith("data:image/jpeg;base64,")
    assert len(shown) < 12_000
    assert Image.open(io.BytesIO(base64.b64decode(shown.split(",")[1]))).size == (75, 112)
    assert picture(Data(np.zeros((2, 4), np.float32), [0, 1], split="train", fractions=None), 0) is None
    assert as_pixels(np.linspace(-1, 1, 8).reshape(1, 2, 4))[0, 0].tolist() == [0, 0, 0]
    assert as_pixels(np.zeros((5, 2, 2))).shape == (2, 2, 3)


# ------------------------------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose audit was kept in its folder before it began."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "tiny.yaml").write_text(CONFIG)
    saved = run("audit", folder / "tiny.yaml", "--save", "-o", folder / "out", "--json")
    assert saved.exit_code == 0, saved.output
    assert json.loads(saved.stdout).keys() == json.loads((folder / "out" / AUDIT).read_text())["audits"].keys()
    result = run("pilot", folder / "tiny.yaml", "-o", folder / "out", "-q")
    assert result.exit_code == 0, result.output
    return folder / "out"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def test_the_pilots_report_shows_the_advice_and_whether_it_was_right(finished: Path) -> None:
    text = (finished / "report.html").read_text(encoding="utf-8")
    assert '<section id="advice"' in text
    assert "The advice was " in text
    assert "Audit of the teacher “big (teacher)”" in text


@pytest.mark.parametrize("kind", ["html", "md", "json"])
@pytest.mark.parametrize("language", ["en", "ja"])
def test_every_format_in_every_language(copied: Path, kind: str, language: str) -> None:
    result = run("report", copied, "--format", kind, "--lang", language)
    assert result.exit_code == 0, result.output
    name = f"report.{kind}" if language == "en" or kind == "json" else f"report.ja.{kind}"
    assert result.stdout.strip() == str(copied / name)
    text = (copied / name).read_text(encoding="utf-8")
    if kind == "json":
        assert json.loads(text)["evidence"].keys() >= {"cost", "corrections", "audits"}
    else:
        assert ("監査の助言" if language == "ja" else "The audit's advice") in text.replace("&#39;", "'")


def test_the_ending_of_the_file_says_the_format(copied: Path, tmp_path: Path) -> None:
    result = run("report", copied, "-o", tmp_path / "a.md")
    assert result.exit_code == 0
    assert (tmp_path / "a.md").read_text(encoding="utf-8").startswith("# ")


def test_an_older_run_is_measured_once(copied: Path) -> None:
    (copied / EVIDENCE).unlink()
    first = run("report", copied)
    assert first.exit_code == 0, first.output
    assert "measuring cost" in first.stderr
    assert '<section id="cost"' in (copied / "report.html").read_text(encoding="utf-8")
    assert "measuring" not in run("report", copied).stderr
    assert "measuring" in run("report", copied, "--refresh").stderr


def test_a_folder_without_configuration_has_a_report_without_cost(copied: Path) -> None:
    for name in (EVIDENCE, COST, "config.yaml"):
        (copied / name).unlink()
    result = run("report", copied)
    assert result.exit_code == 0
    assert "no config.yaml" in result.stderr
    assert '<section id="cost"' not in (copied / "report.html").read_text(encoding="utf-8")


def test_where_an_audit_is_kept_is_asked_before_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    result = run("audit", tmp_path / "tiny.yaml", "-o", tmp_path / "other")
    assert result.exit_code == 2
    assert "add --save" in result.stderr
    assert "training" not in result.stderr


def test_what_is_wrong_is_told(copied: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ((copied, "--lang", "jp"), "unknown report language 'jp': did you mean 'ja'?"),
        ((copied, "-o", "a.txt"), "unknown report format '.txt'"),
        ((tmp_path,), "holds no pilot: expected result.json"),
    ):
        result = run("report", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
    (copied / "result.json").unlink()
    assert "not finished: run the same command again" in run("report", copied).stderr


@pytest.mark.slow
def test_a_pilot_with_audit_has_its_advice_too(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(CONFIG.replace("[4, 7]", "[4]"))
    result = run("pilot", config, "-o", tmp_path / "out", "-q", "--audit")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / AUDIT).is_file()
    assert '<section id="advice"' in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_an_audit_of_other_data_is_not_shown(finished: Path, copied: Path) -> None:
    record = json.loads((copied / "result.json").read_text())
    assert "audits" in with_evidence(record, copied)["evidence"]
    other = json.loads((copied / AUDIT).read_text())
    other["audits"]["big"]["data"]["fingerprint"] = "another"
    (copied / AUDIT).write_text(json.dumps(other))
    assert "audits" not in with_evidence(record, copied)["evidence"]


def test_audits_of_several_teachers_stand_beside_each_other(tmp_path: Path) -> None:
    class Audit:
        def __init__(self, fingerprint: str) -> None:
            self.fingerprint = fingerprint

        def to_dict(self) -> dict[str, Any]:
            return {"data": {"fingerprint": self.fingerprint}}

    save_audits({"a": Audit("x")}, tmp_path)  # type: ignore[dict-item]
    save_audits({"b": Audit("x")}, tmp_path)  # type: ignore[dict-item]
    assert read_evidence(tmp_path)["audits"].keys() == {"a", "b"}
    save_audits({None: Audit("y")}, tmp_path)  # type: ignore[dict-item]
    assert read_evidence(tmp_path)["audits"].keys() == {"labels"}


def test_help_stays_light() -> None:
    code = (
        "import sys\nfrom limbeck.cli import main\n"
        "try:\n    main(['report', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'numpy', 'altair') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"
