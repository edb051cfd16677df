"""What a page says beside the numbers of the result: cost, who is worse off, the front, corrections, features, audits.

All of it is measured once, when a pilot ends and its models, data and ledgers are at hand, and kept in the run folder:
`cost.json` holds what was timed, `evidence.json` the rest, the same for the same run. A page is then made of plain
files: nothing is measured again, in whatever language it is written.
"""

from __future__ import annotations

import copy
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.errors import ConfigError, LimbeckError
from limbeck.evaluation.changes import group_changes
from limbeck.evaluation.cost import measure_cost
from limbeck.evaluation.pareto import pareto_front

if TYPE_CHECKING:
    from limbeck.audits import Audit
    from limbeck.data import Data
    from limbeck.pilots import PilotResult
    from limbeck.pilots.arms import Arm

EVIDENCE, COST, AUDIT = "evidence.json", "cost.json", "audit.json"
FORMAT = 1
_SECONDS = 2.0
"""About how long a model is timed at each batch size: a large one gets fewer passes."""
_PASSES = (3, 30)

Plain = dict[str, Any]


def gather(
    outcome: PilotResult,
    data: Data,
    arms: Sequence[Arm],
    models: str | Path | None = None,
    *,
    again: bool = False,
) -> Path:
    """Measure what the page of a finished pilot needs, and write it to the run folder.

    What cannot be had (a model that cannot be rebuilt, a ledger that was not written) is left out with a note in the
    file: a pilot is not lost for the want of a chapter.

    Args:
        outcome: with its run folder, whose cells are complete.
        data: of the pilot.
        arms: of the pilot.
        models: the Python file of the user's own models.
        again: measure the cost of models that the file has already, too.

    Raises:
        ConfigError: where nothing was kept on disk.
    """
    from limbeck.checkpoint import write_json
    from limbeck.modes import one_thread
    from limbeck.report.evidence_corrections import corrections
    from limbeck.report.evidence_features import feature_space

    if outcome.folder is None:
        raise ConfigError("this pilot kept nothing on disk: give it a run folder (output=…)")
    folder, record = outcome.folder, outcome.record
    notes: list[str] = []
    found: Plain = {"format": FORMAT, "notes": notes}
    with one_thread():
        before = {} if again else _read(folder / COST)
        modules = _Modules(folder, record, data, arms, models, notes)
        answers = _Answers(folder, record, data)
        steps: dict[str, Callable[[], Plain | list[Plain] | None]] = {
            "cost": lambda: _costs(modules, data, before),
            "changes": answers.changes,
            "standings": answers.standings,
            "feature_space": lambda: feature_space(modules.one, folder, record, data, notes),
            "corrections": lambda: corrections(folder, record, data),
        }
        for name, step in steps.items():
            try:
                made = step()
            except (LimbeckError, OSError, RuntimeError) as error:
                notes.append(f"{name}: {error}")
                continue
            if made:
                found[name] = made
    notes[:] = dict.fromkeys(notes)
    if (cost := found.pop("cost", None)) is not None:
        write_json(folder / COST, {"format": FORMAT, **cost})
    write_json(folder / EVIDENCE, found)
    return folder / EVIDENCE


def read_evidence(folder: str | Path) -> Plain:
    """What `gather` wrote, with `cost`, and `audits` that were saved beside it; an empty dict where there is nothing.

    Raises:
        ConfigError: for a file that is not what was written.
    """
    found = _read(Path(folder) / EVIDENCE)
    cost, audits = _read(Path(folder) / COST), _read(Path(folder) / AUDIT).get("audits")
    return {**found, **({"cost": cost} if cost else {}), **({"audits": audits} if audits else {})}


def with_evidence(record: Mapping[str, Any], folder: str | Path | None) -> Plain:
    """A pilot's record as the writers of this room take it, with what its run folder holds beside it.

    An audit of other data than the pilot's is left out.
    """
    found = {} if folder is None else read_evidence(folder)
    fingerprint = record["data"].get("fingerprint")
    audits = {key: one for key, one in (found.pop("audits", None) or {}).items() if _same(one, fingerprint)}
    if audits:
        found["audits"] = audits
    return {**record, "evidence": found} if found else dict(record)


def save_audits(audits: Mapping[str | None, Audit], folder: str | Path) -> Path:
    """Keep audits in a run folder, by the teacher's key (`labels` for one without a teacher), for its report."""
    from limbeck.checkpoint import write_json

    path = Path(folder) / AUDIT
    plain = {key or "labels": found.to_dict() for key, found in audits.items()}
    kept = _read(path).get("audits") or {}
    # An audit of one teacher does not drop that of another, unless the data have changed since.
    fingerprints = {one["data"]["fingerprint"] for one in plain.values()}
    kept = {key: one for key, one in kept.items() if one["data"].get("fingerprint") in fingerprints}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(path, {"format": FORMAT, "created": created, "audits": {**kept, **plain}})
    return path


def _same(audit: Mapping[str, Any], fingerprint: object) -> bool:
    return fingerprint is not None and (audit.get("data") or {}).get("fingerprint") == fingerprint


def _read(path: Path) -> Plain:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not whole: remove it, and it will be made again ({error})") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ConfigError(f"{path} was not written by this version of limbeck: remove it, and it will be made again")
    return found


# Models ---------------------------------------------------------------------------------------------------------------


class _Modules:
    """The modules of a pilot, one a row of the result, each read when it is asked for.

    Args:
        folder, record, data, arms, models: of the pilot.
        notes: told of rows that have none.
    """

    def __init__(
        self,
        folder: Path,
        record: Mapping[str, Any],
        data: Data,
        arms: Sequence[Arm],
        models: str | Path | None,
        notes: list[str],
    ) -> None:
        from limbeck.models import load_user_file

        self._folder, self._data, self._notes = folder, data, notes
        self._arms = {arm.key: arm for arm in arms}
        self._rows = {row["key"]: row for row in record["models"]}
        self.keys = tuple(self._rows)
        self._user = None if models is None else load_user_file(models)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for key in self.keys:
            if (module := self.one(key)) is not None:
                yield key, module

    def one(self, key: str) -> Any:
        """The module of a row's first seed in evaluation mode; None, with a note, where there is none."""
        try:
            return self._module(key)
        except (LimbeckError, OSError, RuntimeError) as error:
            self._notes.append(f"{key}: {error}")
            return None

    def _module(self, key: str) -> Any:
        from torch import nn

        from limbeck.models import load_model, load_weights

        arm, runs = self._arms.get(key), self._rows[key]["runs"]
        if arm is not None and arm.source is not None:
            return self._finished(key, arm.source)
        path = self._folder / "models" / f"{key}-seed{runs[0]['seed']}.safetensors"
        try:
            return load_model(path, inputs_shape=self._data.sample_shape, user=self._user).model
        except ConfigError:
            # A pilot of modules has no configuration that says how to rebuild them; the modules are at hand.
            if arm is None or arm.model is None:
                raise
        module = copy.deepcopy(arm.model) if isinstance(arm.model, nn.Module) else arm.model()
        load_weights(module, path)
        return module.eval()

    def _finished(self, key: str, source: Any) -> Any:
        from limbeck.teachers import as_teacher

        module = getattr(as_teacher(source), "module", None)
        if module is None:
            self._notes.append(f"{key}: it is not a module, so its cost and its features are not known")
        return module


# Cost -----------------------------------------------------------------------------------------------------------------


def _costs(modules: _Modules, data: Data, before: Mapping[str, Any]) -> Plain | None:
    """The cost of each model. Models of the same structure are timed once: what differs would be chance."""
    kept = before.get("models") or {}
    if all(key in kept for key in modules.keys):
        return dict(before)
    found: dict[str, Plain] = {}
    timed: dict[str, Plain] = {}
    for key, module in modules:
        like = _structure(module)
        if like not in timed:
            timed[like] = kept[key] if key in kept else _measured(module, data.test)
        found[key] = timed[like]
    machine = before.get("machine") if kept else None
    own = {"system": platform.platform(terse=True), "processor": platform.machine(), "threads": 1}
    return {"machine": machine or own, "models": found} if found else None


def _measured(module: Any, test: Data) -> Plain:
    first = measure_cost(module, test, passes=1, energy=False)
    slowest = max(entry.median for entry in first.latency) / 1000
    passes = int(np.clip(_SECONDS / max(slowest, 1e-6), *_PASSES))
    return measure_cost(module, test, passes=passes).to_dict()


def _structure(module: Any) -> str:
    """What two models of the same cost have in common."""
    shapes = [(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in module.state_dict().items()]
    return json.dumps([str(module), shapes])


# Who is worse off, and which recipes nothing beats --------------------------------------------------------------------


class _Answers:
    """Whether each seed of each model is right on each test sample, and what follows from it.

    Args:
        folder, record, data: of the pilot.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any], data: Data) -> None:
        self._folder, self._test, self._chosen = folder, data.test, record.get("chosen")
        self._rows = {row["key"]: row for row in record["models"]}
        groups = data.test.groups
        self._groups = None if groups is None else groups.index
        self._names = None if groups is None else groups.names

    @cached_property
    def _right(self) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
        return {
            key: np.stack([predictions(self._folder, key, run["seed"]) == self._test.y for run in row["runs"]])
            for key, row in self._rows.items()
        }

    @property
    def _small(self) -> list[str]:
        return [key for key, row in self._rows.items() if row["role"] != "teacher"]

    def changes(self) -> Plain:
        """Every small model against its teacher and the plain student, group by group.

        One without a teacher stands against the teacher of the chosen student, whose place it would take.
        """
        if self._groups is None or self._names is None:
            return {}
        teachers = [key for key, row in self._rows.items() if row["role"] == "teacher"]
        taught = self._rows.get(self._chosen or "", {}).get("teacher") or next(iter(teachers), None)
        found = {}
        for key in self._small:
            others = dict.fromkeys([self._rows[key].get("teacher") or taught, "erm"])
            against = {other: self._right[other] for other in others if other in self._right and other != key}
            rows = group_changes(self._right[key], against, self._groups, self._names)
            for row in rows:
                for change in row["against"].values():
                    del change["sentence"]
            found[key] = rows
        return found

    def standings(self) -> list[Plain]:
        """Average against worst group of every small model."""
        right = {key: self._right[key] for key in self._small}
        return [standing.to_dict() for standing in pareto_front(right, self._groups, self._names)] if right else []


def predictions(folder: Path, key: str, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Predicted classes of the test samples `[N]`, as the cell kept them."""
    path = folder / "predictions" / f"{key}-seed{seed}.npy"
    return np.asarray(np.load(path, allow_pickle=False), np.int64)
