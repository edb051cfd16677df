"""What a teacher says is kept once for all cells of a pilot, and the students are those that would have asked."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.errors import StoreError
from limbeck.pilots import run_pilot
from limbeck.pilots.sharing import SharedTeacher, Sharing
from limbeck.presets import PRESETS, as_recipe
from limbeck.teachers import ModuleTeacher, Store
from limbeck.training import Training
from test_pilots import changed, content

SHORT = {"epochs": 1, "batch_size": 64}
RECIPES: list[Any] = ["group_dro", "kd", "rld", "dett"]


class Counting(nn.Module):
    """A teacher that counts the samples it is asked about."""

    def __init__(self, data: lb.Data) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.flat, self.layer = nn.Flatten(), nn.Linear(int(data.x[0].size), data.num_classes)
        self.samples = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.samples += len(x)
        return self.layer(self.flat(x))  # type: ignore[no-any-return]


def kept(folder: Path) -> dict[str, str]:
    """What a pilot leaves, ledgers included, stores left out."""
    found = {name: text for name, text in content(folder).items() if not name.startswith("stores/")}
    ledgers = sorted((folder / "ledger").rglob("*.parquet"))
    return found | {str(path.relative_to(folder)): path.read_bytes().hex() for path in ledgers}


@pytest.fixture(scope="module", autouse=True)
def nothing_else_is_measured() -> Iterator[None]:
    """The report times teachers and students, which is no part of this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.report.evidence.gather", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> lb.PilotResult:
    config = changed(recipes=RECIPES, training=SHORT)
    return run_pilot(config, output=tmp_path_factory.mktemp("runs") / "straight")


@pytest.fixture
def no_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell asks for itself."""
    monkeypatch.setattr(Sharing, "write", lambda *_: [])


def test_a_finished_teacher_is_asked_once_for_the_whole_pilot(tmp_path: Path) -> None:
    data = lb.load("digits", groups=["label"])
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    asked = {}
    for name, recipes, seeds, output in (
        ("few", ["kd"], [0], tmp_path / "few"),
        ("many", ["kd", "rld", "nkd"], [0, 1, 2], tmp_path / "many"),
        ("nowhere", ["kd", "rld"], [0, 1], None),
    ):
        teacher = Counting(data)
        lb.pilot(data, teacher, small, recipes=recipes, seeds=seeds, training=Training(epochs=1), output=output)
        asked[name] = teacher.samples
    # Checks ask about a few dozen samples; asking the teacher again would be another 1,078 for each student.
    assert all(len(data) <= samples < len(data) + 500 for samples in asked.values()), asked
    stores = tmp_path / "many" / "stores"
    assert len(list(stores.iterdir())) == 3, "training, validation and test samples"


def test_without_stores_each_student_asks_again(no_stores: None) -> None:
    data = lb.load("digits")
    teacher = Counting(data)
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    lb.pilot(data, teacher, small, recipes=["kd", "rld"], seeds=[0, 1], training=Training(epochs=1))
    assert teacher.samples > 4 * len(data.train)


def test_the_students_are_those_that_would_have_asked(
    straight: lb.PilotResult, tmp_path: Path, no_stores: None
) -> None:
    asking = run_pilot(changed(recipes=RECIPES, training=SHORT), output=tmp_path / "asking")
    assert straight.folder is not None
    assert asking.folder is not None
    assert list((straight.folder / "stores").iterdir())
    assert not (asking.folder / "stores").exists()
    assert kept(straight.folder) == kept(asking.folder)


def test_augmented_views_are_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = changed(
        data={"name": "digits", "options": {"images": True}},
        recipes=["kd", "rld"],
        training={**SHORT, "epochs": 2, "augment": [{"name": "crop", "padding": 1}], "views": 2},
        seeds=[0],
    )
    sharing = run_pilot(config, output=tmp_path / "sharing")
    monkeypatch.setattr(Sharing, "write", lambda *_: [])
    asking = run_pilot(config, output=tmp_path / "asking")
    assert sharing.folder is not None
    assert asking.folder is not None
    views = [Store.open(path).views for path in (sharing.folder / "stores").iterdir()]
    assert sorted(views) == [1, 2], "as they are, for the ledger, and as the students see them"
    assert kept(sharing.folder) == kept(asking.folder)


def test_several_teachers_at_once_are_each_read_from_their_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = {name: {"model": {"name": "mlp", "hidden": [size]}} for name, size in (("a", 8), ("b", 12), ("c", 16))}
    recipes = [{"recipe": "agre_kd", "teacher": list(teachers)}, {"recipe": "kd", "teacher": "b"}]
    config = changed(teachers=teachers, recipes=recipes, training=SHORT, seeds=[0])
    sharing = run_pilot(config, output=tmp_path / "sharing")
    monkeypatch.setattr(Sharing, "write", lambda *_: [])
    asking = run_pilot(config, output=tmp_path / "asking")
    assert sharing.folder is not None
    assert asking.folder is not None
    assert len(list((sharing.folder / "stores").iterdir())) == 3
    assert kept(sharing.folder) == kept(asking.folder)


def test_a_crash_while_a_store_is_written_leaves_nothing_that_looks_whole(
    straight: lb.PilotResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(recipes=RECIPES, training=SHORT)

    class Power(BaseException):
        """Is gone."""

    def cut(*_: Any) -> None:
        raise Power

    with monkeypatch.context() as patch:
        patch.setattr("limbeck.teachers.store.finish", cut)
        with pytest.raises(Power):
            run_pilot(config, output=tmp_path / "run")
    left = [path.name for path in (tmp_path / "run" / "stores").iterdir()]
    assert [name for name in left if name.endswith(".partial")] == left
    assert not (tmp_path / "run" / "cells" / "teacher-big-seed0.json").exists(), "the teacher's cell is not complete"
    again = run_pilot(config, output=tmp_path / "run")
    assert straight.folder is not None
    assert again.folder is not None
    assert kept(again.folder) == kept(straight.folder)
    stores = {path.relative_to(again.folder): path.read_bytes() for path in again.folder.glob("stores/*/*")}
    assert stores == {p.relative_to(straight.folder): p.read_bytes() for p in straight.folder.glob("stores/*/*")}


def test_where_there_is_no_store_the_teacher_is_asked(straight: lb.PilotResult, tmp_path: Path) -> None:
    assert straight.folder is not None
    folder = tmp_path / "run"
    shutil.copytree(straight.folder, folder)
    shutil.rmtree(folder / "stores")
    for key in ("kd-seed0", "dett-seed1"):
        (folder / "cells" / f"{key}.json").unlink()
        (folder / "models" / f"{key}.safetensors").unlink()
    run_pilot(changed(recipes=RECIPES, training=SHORT), output=folder)
    assert kept(folder) == kept(straight.folder)


def test_a_damaged_store_is_told_with_the_way_out(straight: lb.PilotResult, tmp_path: Path) -> None:
    assert straight.folder is not None
    folder = tmp_path / "run"
    shutil.copytree(straight.folder, folder)
    (folder / "cells" / "kd-seed0.json").unlink()
    for path in (folder / "stores").glob("*/outputs.safetensors"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StoreError, match=r"delete .*stores.*the teacher is asked again"):
        run_pilot(changed(recipes=RECIPES, training=SHORT), output=folder)


def test_a_full_disk_costs_time_and_not_the_pilot(
    straight: lb.PilotResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StoreError("the store takes 9 GB; 1 MB are free")

    monkeypatch.setattr(Store, "write", full)
    result = run_pilot(changed(recipes=RECIPES, training=SHORT), output=tmp_path / "run")
    assert any("what it says is not kept" in note and "1 MB are free" in note for note in result.record["warnings"])
    assert result.verdict == straight.verdict


def test_a_teacher_that_is_a_table_needs_no_store(tmp_path: Path) -> None:
    data = lb.load("digits")
    table = {"id": data.ids} | {str(name): (data.y == k) * 0.8 + 0.02 for k, name in enumerate(data.classes)}
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    lb.pilot(
        data, {"file": table}, small, recipes=["kd"], seeds=[0], training=Training(epochs=1), output=tmp_path / "run"
    )
    assert not (tmp_path / "run" / "stores").exists()


def test_what_a_store_lacks_is_asked_of_the_teacher(tmp_path: Path) -> None:
    data = lb.load("digits")
    teacher = ModuleTeacher(Counting(data))
    store = Store.write(tmp_path / "store", teacher, data.train, progress=False)
    shared = SharedTeacher(teacher, [store], data)
    counting: Any = teacher.module
    counting.samples = 0
    ids = data.train.ids[[5, 3]]
    stored = shared.outputs(None, ids, ("logits",))["logits"]
    assert counting.samples == 0
    rows = [int((data.ids == number).argmax()) for number in ids]
    with torch.no_grad():
        own = counting(torch.from_numpy(data.x[rows]).float())
    torch.testing.assert_close(stored, own)
    mixed = [int(data.test.ids[0]), int(ids[0])]
    found = shared.outputs(None, mixed, ("logits", "features"))
    assert found["features"].shape == (2, 64)
    torch.testing.assert_close(found["logits"][1], own[0])
    assert shared.fingerprint() == teacher.fingerprint()
    assert shared.module is counting
    with pytest.raises(AttributeError):
        _ = shared.nothing_of_the_kind


def test_whether_to_compile_is_decided_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[Any] = []

    def choose(wanted: Any, *_: Any) -> dict[str, Any]:
        timed.append(wanted)
        return {"student": False, "student_note": f"number {len(timed)}"}

    monkeypatch.setattr("limbeck.pilots.choices.choose_compile", choose)
    config = changed(recipes=["group_dro", "kd", "rld"], training={**SHORT, "compile": "auto"}, seeds=[0])
    first = run_pilot(config, output=tmp_path / "run")
    assert timed == ["auto", "auto"], "the teacher's network and the student's, not each cell's"
    told = {run["compile"]["student_note"] for row in first.record["models"] for run in row["runs"]}
    assert told == {"number 1", "number 2"}
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["compile"]["student"]["student_note"] == "number 2"
    assert set(run["teachers"]["teacher-big"]) >= {"fold", "teacher"}
    more = config.model_copy(update={"seeds": (0, 1)})
    run_pilot(more, output=tmp_path / "run")
    assert len(timed) == 2


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_recipe_is_copied_and_sent_as_it_is(name: str) -> None:
    recipe = as_recipe(name)
    for other in (copy.deepcopy(recipe), pickle.loads(pickle.dumps(recipe))):
        assert other == recipe
        assert other.to_dict() == recipe.to_dict()
        assert all(type(term.options) is type(recipe.terms[0].options) for term in other.terms), "read-only still"
