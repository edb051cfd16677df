"""What a pilot that is killed while it writes leaves, and that the next one neither stumbles over it nor keeps it.

Kills at random moments are in `benchmarks/crashes.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.errors import ConfigError
from limbeck.pilots import run_pilot
from test_pilots import changed, content

LEFT = (".run.json.k3_x9abc", "cells/.erm-seed0.json.00aa__zz", "models/.kd-seed0.safetensors.abcdefgh")


def write(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    return path


def test_a_kill_while_the_first_file_is_written_does_not_lock_the_folder(tmp_path: Path) -> None:
    left = write(tmp_path / "run", LEFT[0])
    run_pilot(changed(seeds=[0], training={"epochs": 1}), output=tmp_path / "run")
    assert not left.exists()


def test_half_written_files_and_forgotten_checkpoints_are_gone_in_the_end(tmp_path: Path) -> None:
    config = changed(seeds=[0], training={"epochs": 1})
    first = run_pilot(config, output=tmp_path / "run")
    before = sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file())
    for name in (*LEFT, "checkpoints/gone-seed7/student.safetensors"):
        write(tmp_path / "run", name)
    assert run_pilot(config, output=tmp_path / "run").verdict == first.verdict
    assert sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file()) == before
    assert content(tmp_path / "run")


def test_a_file_of_somebody_else_still_locks_the_folder_and_stays(tmp_path: Path) -> None:
    for name in (".thesis", ".gitignore", "thesis.abcdefgh", ".thesis.docx.backup-1"):
        theirs = write(tmp_path / name, name)
        with pytest.raises(ConfigError, match="not empty and holds no run"):
            run_pilot(changed(seeds=[0]), output=tmp_path / name)
        assert theirs.read_bytes() == b"half"
