"""The command line: its commands, its exit codes, and what it says when something is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import limbeck
from limbeck.cli import _with_seeds, main
from limbeck.config import config_from_dict, load_config
from limbeck.errors import RecipeError

CONFIG = """\
name: tiny
data: {name: digits, groups: [label]}
teachers: {big: {model: {name: mlp, hidden: [16]}, recipe: erm}}
student: {name: mlp, hidden: [8]}
recipes: [erm, {recipe: kd, teacher: big}]
training: {epochs: 1, batch_size: 512}
seeds: [4, 7]
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    return path


# Light and stable -----------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom limbeck.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'numpy', 'pydantic', 'yaml', 'rich', 'pyarrow', 'sklearn') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


def test_importing_the_library_imports_nothing_heavy() -> None:
    code = "import sys, limbeck; print([m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


FLAGS = {
    "pilot": {
        *("--output", "--models", "--resume", "--fresh", "--seeds", "--quiet", "--dry-run", "--open", "--debug"),
        *("--workers", "--backend", "--address", "--metrics", "--audit"),
    },
    "probe": {"--output", "--models", "--resume", "--fresh", "--seeds", "--workers", "--quiet", "--open", "--debug"},
    "cost": {"--models", "--json", "--debug"},
    "ledger": set(),
    "estimate": {"--models", "--json", "--debug"},
    "audit": {
        "--teacher",
        "--protect",
        "--models",
        "--seed",
        "--trial",
        "--no-trial",
        "--save",
        "--output",
        "--json",
        "--debug",
    },
    "report": {"--format", "--lang", "--output", "--models", "--refresh", "--open", "--debug"},
    "features": {"--model", "--weights", "--models", "--layer", "--batch-size", "--output", "--debug"},
    "evaluate": {"--models", "--part", "--json", "--debug"},
    "recipes": {"--json", "--debug"},
    "init": {"--output", "--label", "--force", "--debug"},
    "discover": {"--method", "--seed", "--output", "--json", "--debug"},
    "download": {"--folder", "--debug"},
    "version": {"--debug"},
}


def test_commands_and_flags_are_those_that_people_script_with() -> None:
    found = {
        name: {flag for p in command.params for flag in [*p.opts, *p.secondary_opts] if flag.startswith("--")}
        for name, command in main.commands.items()
    }
    assert found == FLAGS


@pytest.mark.parametrize("command", sorted(FLAGS))
def test_every_command_has_help(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")


def test_versions() -> None:
    assert run("--version").output == f"limbeck {limbeck.__version__}\n"
    lines = run("version").output.splitlines()
    assert lines[0] == f"limbeck {limbeck.__version__}"
    assert any(line.startswith("torch ") for line in lines)


# Errors ---------------------------------------------------------------------------------------------------------------


def test_a_users_error_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = run("pilot", tmp_path / "none.yaml")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == f"error: there is no file {tmp_path / 'none.yaml'}\n"


@pytest.mark.parametrize("arguments", [["--debug", "pilot", "none.yaml"], ["pilot", "none.yaml", "--debug"]])
def test_debug_shows_the_traceback(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, limbeck.LimbeckError)


def test_a_configuration_is_checked_before_torch_is_imported(config: Path) -> None:
    config.write_text(CONFIG.replace("epochs: 1", "epochs: -1").replace("student:", "studnet:"))
    code = (
        "import sys\nfrom limbeck.cli import main\n"
        f"try:\n    main(['pilot', {str(config)!r}])\n"
        "except SystemExit as stop:\n    print(stop.code, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "2 False"
    assert "tiny.yaml: 3 problems" in found.stderr
    assert "line 6: training.epochs: found -1" in found.stderr


def test_an_unknown_command_or_option_is_told() -> None:
    assert run("pilto").exit_code == 2
    assert run("pilot", "x.yaml", "--sedes", "3").exit_code == 2
    assert run("pilot", "x.yaml", "--seeds", "0").exit_code == 2


def test_a_defect_keeps_its_traceback(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.pilots.run_pilot", lambda *_, **__: 1 / 0)
    assert isinstance(run("pilot", config).exception, ZeroDivisionError)


def test_a_full_disk_is_the_users_error(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "runs/tiny")

    monkeypatch.setattr("limbeck.pilots.run_pilot", full)
    result = run("pilot", config)
    assert result.exit_code == 2
    assert "No space left on device: 'runs/tiny'" in result.stderr


# Pilot ----------------------------------------------------------------------------------------------------------------


@dataclass
class FakeResult:
    folder: Path
    report_path: Path | None
    verdict: str = "Distillation beat the plain student."

    def table(self) -> str:
        return "model  average"


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """What `run_pilot` is called with."""
    found: list[tuple[Any, dict[str, Any]]] = []

    def run_pilot(config: Any, **options: Any) -> FakeResult:
        found.append((config, options))
        return FakeResult(tmp_path, tmp_path / "report.html")

    monkeypatch.setattr("limbeck.pilots.run_pilot", run_pilot)
    return found


def test_pilot_passes_on_what_it_is_told(config: Path, calls: list[tuple[Any, dict[str, Any]]], tmp_path: Path) -> None:
    result = run("pilot", config, "-o", tmp_path / "out", "--models", tmp_path / "m.py", "--fresh", "--seeds", 1, "-q")
    assert result.exit_code == 0, result.output
    settings, options = calls[0]
    assert settings == load_config(config).model_copy(update={"seeds": (4,)})
    assert type(options.pop("progress")).__name__ == "Quiet"
    told = {"output": tmp_path / "out", "models": tmp_path / "m.py", "resume": False}
    assert options == {**told, "workers": None, "cluster": None}
    assert result.stdout.splitlines()[0] == "Distillation beat the plain student.", "the verdict comes first"
    assert result.stdout.splitlines()[-1] == f"report: {tmp_path / 'report.html'}", "the path of the report comes last"


def test_pilot_says_where_its_cells_run(config: Path, calls: list[tuple[Any, dict[str, Any]]]) -> None:
    for arguments, workers, cluster in (
        (["--workers", 3], 3, None),
        (["--backend", "ray"], None, "local"),
        (["--backend", "ray", "--address", "host:6379"], None, "host:6379"),
    ):
        assert run("pilot", config, *arguments).exit_code == 0
        assert (calls[-1][1]["workers"], calls[-1][1]["cluster"]) == (workers, cluster)
    refused = run("pilot", config, "--address", "host:6379")
    assert refused.exit_code == 2
    assert "add --backend ray" in refused.stderr


def test_pilot_without_options_resumes(config: Path, calls: list[tuple[Any, dict[str, Any]]]) -> None:
    assert run("pilot", config).exit_code == 0
    settings, options = calls[0]
    assert settings == load_config(config)
    assert options["resume"] is True
    assert options["output"] is options["models"] is None


def test_open_opens_the_report(
    config: Path, calls: list[tuple[Any, dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("click.launch", lambda url: opened.append(url))
    run("pilot", config)
    assert opened == []
    run("pilot", config, "--open")
    assert opened == [str(tmp_path / "report.html")]


@pytest.mark.parametrize(
    ("seeds", "wanted", "expected"),
    [
        ((4, 7), None, (4, 7)),
        ((4, 7), 1, (4,)),
        ((4, 7), 2, (4, 7)),
        ((4, 7), 4, (4, 7, 8, 9)),
        ((9, 2), 3, (9, 2, 10)),
    ],
)
def test_seeds_are_the_first_of_the_configuration(
    seeds: tuple[int, ...], wanted: int | None, expected: tuple[int, ...]
) -> None:
    plain = {"data": "digits", "student": "linear", "recipes": ["erm"], "seeds": list(seeds)}
    assert _with_seeds(config_from_dict(plain), wanted).seeds == expected


def test_an_interruption_says_how_to_go_on(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("limbeck.pilots.run_pilot", interrupted)
    result = run("pilot", config)
    assert result.exit_code == 130
    assert "stopped. What is finished is kept: the same command goes on from there." in result.stderr


def test_an_unknown_recipe_is_told_before_training(config: Path, tmp_path: Path) -> None:
    config.write_text(CONFIG.replace("recipe: kd", "recipe: kdd"))
    result = run("pilot", config, "-o", tmp_path / "out", "-q")
    assert result.exit_code == 2
    assert "unknown recipe 'kdd': did you mean 'kd'" in result.stderr
    assert not (tmp_path / "out").exists()


# The whole way --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the smallest of pilots."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.yaml").write_text(CONFIG)
    result = run("pilot", folder / "tiny.yaml", "--output", folder / "out", "--seeds", 1, "-q")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"report: {folder / 'out' / 'report.html'}"
    return folder / "out"


def test_a_pilot_runs_and_its_students_are_evaluated_as_the_run_did(finished: Path) -> None:
    result = run("evaluate", finished, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    record = json.loads((finished / "result.json").read_text())
    measured = {f"{row['key']}-seed4": row["runs"][0]["test"] for row in record["models"]}
    assert found.keys() == measured.keys() == {"teacher-big-seed4", "erm-seed4", "kd-seed4"}
    for name, expected in measured.items():
        assert found[name]["group_correct"] == expected["group_correct"]
        assert found[name]["group_total"] == expected["group_total"]


def test_one_student_of_a_run_is_evaluated_in_a_table(finished: Path) -> None:
    result = run("evaluate", finished / "models" / "kd-seed4.safetensors", "--part", "validation")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("kd-seed4\n")
    assert "worst group" in result.stdout


def test_one_broken_student_does_not_keep_the_others_from_being_judged(finished: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    shutil.copytree(finished, run_folder)
    (run_folder / "models" / "kd-seed4.safetensors").write_bytes(b"cut")
    result = run("evaluate", run_folder)
    assert result.exit_code == 2
    assert "erm-seed4\n" in result.stdout
    assert "kd-seed4.safetensors" in result.stderr


def test_a_student_of_other_classes_is_refused(finished: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=(60, 64)), y=np.arange(60) % 2)
    other = tmp_path / "other.yaml"
    other.write_text("data: {npz: a.npz}\nstudent: linear\nrecipes: [erm]\n")
    result = run("evaluate", finished / "models" / "erm-seed4.safetensors", other)
    assert result.exit_code == 2
    assert "the data have the classes 0, 1" in result.stderr


def test_what_is_no_run_is_told(tmp_path: Path, config: Path) -> None:
    assert "holds no students" in run("evaluate", tmp_path).stderr
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    assert "name a configuration as well" in run("evaluate", tmp_path / "x.safetensors").stderr
    assert "not a whole safetensors file" in run("evaluate", tmp_path / "x.safetensors", config).stderr


def test_a_run_on_a_table_judges_another_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def table(name: str, rows: int) -> Path:
        y, site, x = rng.integers(0, 2, rows), rng.choice(["a", "b"], rows), rng.normal(size=rows)
        lines = [f"{v + 2 * k:.4f},{s},{'ny'[k]}" for v, s, k in zip(x, site, y, strict=True)]
        (tmp_path / name).write_text("\n".join(["x,site,label", *lines]) + "\n")
        return tmp_path / name

    table("now.csv", 400)
    (tmp_path / "c.yaml").write_text(
        "data: {table: now.csv, label: label, groups: [label, site]}\nstudent: linear\nrecipes: [erm]\nseeds: [0]\n"
        "training: {epochs: 5, batch_size: 32, learning_rate: 0.1}\n"
    )
    assert run("pilot", tmp_path / "c.yaml", "-o", tmp_path / "out", "-q").exit_code == 0
    result = run("evaluate", tmp_path / "out", table("later.csv", 300), "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["erm-seed0"]
    assert sum(found["group_total"]) == 300
    # Two normals two deviations apart: the best possible accuracy is 84 %.
    assert 0.75 < sum(found["group_correct"]) / 300 < 0.93


# The others -----------------------------------------------------------------------------------------------------------


def test_recipes_are_listed() -> None:
    table = run("recipes").stdout
    plain = json.loads(run("recipes", "--json").stdout)
    names = [row["name"] for row in plain]
    assert {"erm", "kd", "group_dro", "groupdistil"} <= set(names)
    assert all(name in table for name in names)


def test_init_writes_what_pilot_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{k % 50},{'FM'[k % 2]},{'ny'[k // 2 % 2]}\n" for k in range(400))
    (tmp_path / "people.csv").write_text("age,sex,outcome\n" + rows)
    result = run("init", "people.csv")
    assert result.exit_code == 0, result.output
    assert "people.csv: 400 rows, 3 columns" in result.stdout
    assert "wrote people.yaml" in result.stdout
    assert load_config("people.yaml").data.groups == ("label", "sex")
    again = run("init", "people.csv", "--label", "sex")
    assert again.exit_code == 2
    assert "people.yaml exists" in again.stderr
    assert run("init", "people.csv", "--label", "sex", "--force").exit_code == 0
    assert load_config("people.yaml").data.said["label"] == "sex"


def test_init_of_nothing_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("init", "none.csv").exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_download_tells_what_it_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Path | None]] = []

    def fetch(name: str, folder: Path | None) -> list[Path]:
        calls.append((name, folder))
        return [tmp_path / "mnist" / "a.gz"]

    monkeypatch.setattr("limbeck.data.download.download", fetch)
    result = run("download", "mnist", "--folder", tmp_path)
    assert result.stdout == f"{tmp_path / 'mnist' / 'a.gz'}\n"
    assert calls == [("mnist", tmp_path)]


def test_a_set_that_cannot_be_downloaded_is_told() -> None:
    result = run("download", "mnits")
    assert result.exit_code == 2
    assert "did you mean 'mnist'" in result.stderr


def test_an_error_of_a_recipe_is_a_users_error(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise RecipeError("recipe 'x' cannot be: because")

    monkeypatch.setattr("limbeck.pilots.run_pilot", wrong)
    assert run("pilot", config).stderr == "error: recipe 'x' cannot be: because\n"
