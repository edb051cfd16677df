"""The run folder: one pilot's, complete or saying that it is not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck import __version__
from limbeck.checkpoint import write_atomically, write_json
from limbeck.errors import ConfigError
from limbeck.pilots.arms import Arm, identity
from limbeck.pilots.cells import CellResult
from limbeck.pilots.choices import Choices
from limbeck.pilots.result import PilotResult, history_rows
from limbeck.pilots.search import Search
from limbeck.plain import dump_plain
from limbeck.selection import SelectionRule

if TYPE_CHECKING:
    from limbeck.data import Data


def open_folder(
    folder: Path,
    name: str,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    data: Data,
    rule: SelectionRule,
    configuration: Mapping[str, Any] | None,
    choices: Choices,
    resume: bool,
    search: Search | None = None,
) -> None:
    """Begin a run folder, or make sure that it is of this very pilot; without `resume` it is emptied first."""
    if not resume and (folder / "run.json").is_file():
        shutil.rmtree(folder)
    plan = {
        "name": name,
        "data": data.fingerprint(),
        "selection": rule.name,
        "seeds": list(seeds),
        "arms": {arm.key: identity(arm) for arm in arms},
        "search": None if search is None else search.to_dict(),
    }
    plan = json.loads(json.dumps(plan, default=str))
    path = folder / "run.json"
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["plan"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is not a run of this library: choose another output folder") from error
        different = sorted(key for key in plan if key != "seeds" and plan[key] != found.get(key))
        if different:
            raise ConfigError(
                f"{folder} holds another pilot (different: {', '.join(different)}): choose another output "
                "folder, or start "
                "afresh (--fresh)"
            )
    elif folder.exists() and any(path.name != "audit.json" and not _half_written(path) for path in folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and holds no run: choose another output folder")
    write_json(path, {"status": "running", "plan": plan, **choices.to_dict(), "limbeck": __version__})
    if configuration is not None:
        write_atomically(folder / "config.yaml", dump_plain(dict(configuration)).encode())


def write_results(
    outcome: PilotResult,
    data: Data,
    results: Mapping[str, Sequence[CellResult]],
    configuration: Mapping[str, Any] | None,
) -> None:
    """The run folder's tables and page; `run.json` says `complete` only after all else is there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = outcome.folder
    assert folder is not None
    write_json(folder / "result.json", outcome.record)
    pq.write_table(outcome.to_arrow(), folder / "metrics.parquet")
    history = history_rows(outcome.record)
    if history:
        pq.write_table(pa.Table.from_pylist(history), folder / "history.parquet")
    columns: dict[str, Any] = {"id": data.test.ids, "label": data.test.y}
    if data.test.groups is not None:
        columns["group"] = data.test.groups.index
    for key, cells in results.items():
        for cell in cells:
            columns[f"{key}-seed{cell.record['seed']}"] = cell.predictions.astype(np.int32)
    pq.write_table(pa.table(columns), folder / "predictions.parquet")
    outcome.report(folder / "report.html")
    _tidy_up(folder)
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    write_json(folder / "run.json", run | {"status": "complete", "verdict": outcome.verdict})


def _half_written(path: Path) -> bool:
    """Whether it is what a process that was killed while it wrote a file atomically left."""
    return re.fullmatch(r"\..+\.[a-z0-9_]{8}", path.name) is not None and path.is_file()


def _tidy_up(folder: Path) -> None:
    """Remove what processes left that were killed; at the end of a pilot, when none writes any more."""
    for path in folder.rglob(".*"):
        if _half_written(path):
            path.unlink(missing_ok=True)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
