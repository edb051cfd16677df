"""Pilots of several data sets and students at once: each is a pilot of its own, with its folder, verdict and report.

What two students are compared on is the same test samples, so comparisons stay within a data set. The teachers of a
data set are trained once, by its first student's pilot, and all pilots have one forecast, one progress and the same
processes.
"""

from __future__ import annotations

import json
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck import __version__
from limbeck.checkpoint import write_atomically, write_json
from limbeck.errors import ConfigError, LimbeckError, unknown_name
from limbeck.evaluation.compare import Difference, compare, decide
from limbeck.evaluation.pareto import Standing
from limbeck.modes import one_thread
from limbeck.pilots.arms import Arm, plan
from limbeck.pilots.estimate import Forecast, estimate, shown_bytes, shown_time
from limbeck.pilots.progress import Quiet, Watcher
from limbeck.pilots.result import PLAIN, PilotResult
from limbeck.pilots.run import Asked, Part, own_stores, run_parts
from limbeck.pilots.schedule import Crew
from limbeck.pilots.search import Search
from limbeck.pilots.sharing import STORES
from limbeck.place import Place
from limbeck.plain import dump_plain
from limbeck.selection import SelectionRule

if TYPE_CHECKING:
    from limbeck.config import MatrixConfig
    from limbeck.data import Data

OUTCOMES = ("better", "worse", "not distinguishable", "not measured")
"""What distillation was against the plain student."""


# What comes of it -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MatrixResult(PilotResult):
    """The results of several pilots, and what they come to.

    Args:
        record: the overview as plain data; `pilots` has one row a pilot, `comparisons` the students of each data set.
        folder: that of all, or None where nothing was kept.
        pilots: the result of each, by data set and student.
    """

    pilots: Mapping[Place, PilotResult] = field(default_factory=dict)

    def pilot(self, data: str | None = None, student: str | None = None) -> PilotResult:
        """The result of one pilot.

        Args:
            data: its data set; not needed where there is only one.
            student: its student, likewise.

        Raises:
            ConfigError: for a name that there is not, or where several pilots are meant.
        """
        for kind, asked, known in zip(("data set", "student"), (data, student), _names(self.pilots), strict=True):
            if asked is not None and asked not in known:
                raise ConfigError(unknown_name(kind, asked, known))
        found = [p for p in self.pilots if data in (None, p.data) and student in (None, p.student)]
        if len(found) > 1:
            raise ConfigError(f"several pilots are meant: {'; '.join(map(str, found))}: name data set and student")
        return self.pilots[found[0]]

    def best(self, rule: str | None = None) -> dict[str, Any]:
        """Of one pilot, see `pilot`: what is best differs from data set to data set."""
        raise ConfigError("each data set and student has its own best: result.pilot(data, student).best()")

    def pareto(self) -> tuple[Standing, ...]:
        """Of one pilot, see `pilot`."""
        raise ConfigError("each data set and student has its own front: result.pilot(data, student).pareto()")

    def group_changes(self, key: str | None = None) -> list[dict[str, Any]]:
        """Of one pilot, see `pilot`."""
        raise ConfigError("each data set and student has its own groups: result.pilot(data, student).group_changes()")

    def table(self) -> str:
        """One row a pilot, then how students of different size compare, then the verdict of each."""
        return overview_text(self.record)

    def report(self, path: str | Path, *, language: str = "en") -> Path:
        """Write the overview as one HTML file, and beside it, in the folders of the pilots, the page of each.

        Raises:
            ConfigError: for an unknown language.
        """
        from limbeck.pilots.overview import overview_html

        target = Path(path)
        links: dict[Place, str] = {}
        for place, result in self.pilots.items():
            page = target.parent / place.path / target.name
            result.report(page, language=language)
            links[place] = page.relative_to(target.parent).as_posix()
        write_atomically(target, overview_html(self.record, self.pilots, links, language).encode())
        return target

    def to_arrow(self) -> Any:
        """One row a data set, student, model, seed, part and group, as a `pyarrow.Table`."""
        import pyarrow as pa

        tables = []
        for place, result in self.pilots.items():
            table = result.to_arrow()
            for position, name in enumerate(("data", "student")):
                column = pa.array([place[position]] * len(table), pa.string())
                table = table.add_column(position, name, column)
            tables.append(table)
        return pa.concat_tables(tables, promote_options="permissive")


def _names(places: Mapping[Place, Any]) -> tuple[list[str], list[str]]:
    """The data sets and the students, each once."""
    listed = (dict.fromkeys(place[position] for place in places) for position in (0, 1))
    data, students = ([name for name in names if name is not None] for names in listed)
    return data, students


def read_result(folder: str | Path) -> PilotResult:
    """The result of a run folder, of one pilot or of several.

    Raises:
        ConfigError: where the folder holds none.
    """
    root = Path(folder)
    try:
        record = json.loads((root / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{root} holds no result of a pilot: {error}") from error
    if not isinstance(record, dict) or "verdict" not in record:
        raise ConfigError(f"{root / 'result.json'} is no result of a pilot")
    if "pilots" not in record:
        return PilotResult(record, root)
    places = [Place(row["data"], row["student"]) for row in record["pilots"]]
    return MatrixResult(record, root, {place: read_result(root / place.path) for place in places})


def pilot_folders(folder: str | Path) -> list[Path]:
    """The folders of the pilots in a run folder of several; none where it is of one, or of none."""
    root = Path(folder)
    try:
        plan = json.loads((root / "run.json").read_text(encoding="utf-8"))["plan"]
        return [root / Place(*place).path for place in plan.get("pilots", ())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def write_overview(folder: str | Path, *, language: str = "en", kind: str = "html") -> Path:
    """Write the overview of a finished run folder of several pilots again; pages of the pilots are not touched.

    Args:
        folder: the run folder.
        language: a code of `limbeck.report.languages()`.
        kind: html, md or json; a text for terminals stands for md, and pdf is the html, which prints.

    Raises:
        ConfigError: where there is none, or for an unknown language.
    """
    from limbeck.pilots.overview import overview_html

    root = Path(folder)
    found = read_result(root)
    if not isinstance(found, MatrixResult):
        raise ConfigError(f"{root} holds one pilot: it needs no overview")
    name = "report" if language == "en" else f"report.{language}"
    if kind == "json":
        return root / "result.json"
    if kind == "md":
        path = root / f"{name}.md"
        write_atomically(path, f"# {found.verdict}\n\n```\n{found.table()}\n```\n".encode())
        return path
    links = {place: (place.path / f"{name}.{kind}").as_posix() for place in found.pilots}
    path = root / f"{name}.html"
    write_atomically(path, overview_html(found.record, found.pilots, links, language).encode())
    return path


# Running --------------------------------------------------------------------------------------------------------------


def run_matrix(
    config: MatrixConfig,
    *,
    output: str | Path | None = None,
    models: str | Path | None = None,
    resume: bool = True,
    progress: Watcher | None = None,
    workers: int | None = 1,
    cluster: str | None = None,
) -> MatrixResult:
    """Run the pilots of several data sets and students; arguments as `run_pilot`."""
    root = Path(output) if output is not None else config.output_folder
    asked = {}
    for place, own, data, arms in _planned(config, models):
        plain = own.to_dict()
        asked[place] = Asked(data, arms, own.selection, root / place.path, own.name, plain, models, place)
    search = None if config.search is None else config.search.built()
    crew = Crew(workers, cluster)
    plain = config.to_dict()
    return _run(config.name, asked, config.seeds, search, root, resume, progress, crew, plain)


def run_matrix_arms(
    data: Data | Mapping[str, Data],
    teacher: Any,
    student: Any,
    arms_of: Callable[[Data, Any, Any], list[Arm]],
    seeds: Sequence[int],
    *,
    selection: str | SelectionRule | None,
    folder: Path | None,
    name: str,
    progress: Watcher | None,
    search: Search | None,
) -> MatrixResult:
    """The pilots of data sets and students given by name; see `pilot`."""
    several = isinstance(data, Mapping)
    datasets, students = _by_name(data), _by_name(student)
    for kind, given in (("data sets", datasets), ("students", students)):
        if not given:
            raise LimbeckError(f"pilot(data, teacher, student): no {kind} are given: name at least one")
    sources = teacher if several else {None: teacher}
    if sources is not None and not isinstance(sources, Mapping):
        raise LimbeckError(
            "pilot: with several data sets, teachers are given by the name of the data set: "
            f"{{{', '.join(f'{key!r}: …' for key in datasets)}}}"
        )
    for key in sources or {}:
        if key not in datasets:
            raise LimbeckError(f"pilot, teacher: {unknown_name('data set', str(key), list(map(str, datasets)))}")
    asked = {}
    for data_name, own in datasets.items():
        for student_name, model in students.items():
            place = Place(data_name, student_name)
            made = arms_of(own, (sources or {}).get(data_name), model)
            home = None if folder is None else folder / place.path
            asked[place] = Asked(own, made, selection, home, "-".join([name, *place.parts]), place=place)
    return _run(name, asked, seeds, search, folder, True, progress, Crew(), None)


def _by_name(given: Any) -> dict[str | None, Any]:
    return dict(given) if isinstance(given, Mapping) else {None: given}


def estimate_matrix(config: MatrixConfig, models: str | Path | None = None) -> MatrixForecast:
    """Forecast the pilots of several data sets and students; see `estimate`."""
    search = None if config.search is None else config.search.built()
    found: dict[Place, Forecast] = {}
    for place, _, data, arms in _planned(config, models):
        forecast = estimate(data, arms, len(config.seeds), search)
        first = next((other for other in found if other.data == place.data), None)
        found[place] = forecast if first is None else forecast.without_teachers([arm.role for arm in arms])
    return MatrixForecast(found)


@dataclass(frozen=True)
class MatrixForecast:
    """What several pilots cost; those of a data set have their teachers in common.

    Args:
        pilots: the forecast of each, teachers in the first of a data set only.
    """

    pilots: Mapping[Place, Forecast]

    @property
    def seconds(self) -> float:
        """All of them, on one thread."""
        return sum(forecast.seconds for forecast in self.pilots.values())

    @property
    def memory_bytes(self) -> int:
        """All data, and the largest arm beside them."""
        data = {place.data: forecast.data_bytes for place, forecast in self.pilots.items()}
        return sum(data.values()) + max(f.memory_bytes - f.data_bytes for f in self.pilots.values())

    @property
    def disk_bytes(self) -> int:
        """What teachers say, as it is kept."""
        return sum(forecast.disk_bytes for forecast in self.pilots.values())

    def __str__(self) -> str:
        parts, homes = [], {place.data: place for place in reversed(list(self.pilots))}
        for place, forecast in self.pilots.items():
            home = homes[place.data]
            parts.append(f"{place}{'' if home == place else f' (with the teachers of {home})'}\n{forecast}")
        total = (
            f"{len(self.pilots)} pilots: about {shown_time(self.seconds)} on one thread, "
            f"{shown_bytes(self.memory_bytes)} of memory, {shown_bytes(self.disk_bytes)} on disk for what teachers say"
        )
        return "\n\n".join([*parts, total])

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        rows = [{"data": p.data, "student": p.student, **forecast.to_dict()} for p, forecast in self.pilots.items()]
        return {
            "seconds": self.seconds,
            "memory_bytes": self.memory_bytes,
            "disk_bytes": self.disk_bytes,
            "pilots": rows,
        }


def _planned(config: MatrixConfig, models: str | Path | None) -> Iterator[tuple[Place, Any, Data, list[Arm]]]:
    """Configuration, data and arms of each pilot; the data of a data set are loaded once."""
    loaded: dict[str | None, Data] = {}
    for place, own in config.pilots().items():
        try:
            data, arms = plan(own, models, loaded.get(place.data))
        except LimbeckError as error:
            raise type(error)(f"{place}: {error}") from error
        loaded[place.data] = data
        yield place, own, data, arms


def _run(
    name: str,
    asked: Mapping[Place, Asked],
    seeds: Sequence[int],
    search: Search | None,
    root: Path | None,
    resume: bool,
    progress: Watcher | None,
    crew: Crew,
    configuration: Mapping[str, Any] | None,
) -> MatrixResult:
    started = time.perf_counter()
    with one_thread(), crew, own_stores(root) as scratch:
        parts = {place: _checked(place, one, seeds, search) for place, one in asked.items()}
        families: dict[str | None, list[Part]] = {}
        for place, part in parts.items():
            families.setdefault(place.data, []).append(part)
        if root is not None:
            _open_root(root, name, list(parts), resume, configuration)
        for family in families.values():
            # The teachers stay where they are when a student is added before the others.
            family.sort(key=lambda part: not _begun(part))
            home = family[0]
            stores = scratch if home.asked.folder is None else home.asked.folder / STORES
            for part in family:
                part.open(resume, stores, None if part is home else home)
        results = run_parts(name, list(families.values()), progress or Quiet(), crew)
    pilots = {place: results[part] for place, part in parts.items()}
    record = _record(name, parts, pilots, seeds, time.perf_counter() - started)
    if configuration is not None:
        record |= {"command": "limbeck pilot config.yaml", "configuration": dict(configuration)}
    outcome = MatrixResult(record, root, pilots)
    if root is not None:
        _write(outcome)
    return outcome


def _begun(part: Part) -> bool:
    folder = part.asked.folder
    return folder is not None and (folder / "run.json").is_file()


def _checked(place: Place, asked: Asked, seeds: Sequence[int], search: Search | None) -> Part:
    try:
        return Part(asked, seeds, search)
    except LimbeckError as error:
        raise type(error)(f"{place}: {error}") from error


def _open_root(
    root: Path, name: str, places: Sequence[Place], resume: bool, configuration: Mapping[str, Any] | None
) -> None:
    """Begin the folder of all, or make sure that it is one; without `resume` it is emptied first."""
    path = root / "run.json"
    if path.is_file():
        try:
            several = "pilots" in json.loads(path.read_text(encoding="utf-8"))["plan"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is not a run of this library: choose another output folder") from error
        if not resume:
            shutil.rmtree(root)
        elif not several:
            raise ConfigError(
                f"{root} holds a pilot of one data set and student: choose another output folder, or start afresh "
                "(--fresh)"
            )
    elif root.exists() and any(root.iterdir()):
        raise ConfigError(f"{root} is not empty and holds no run: choose another output folder")
    plan = {"name": name, "pilots": [list(place) for place in places]}
    write_json(path, {"status": "running", "plan": plan, "limbeck": __version__})
    if configuration is not None:
        write_atomically(root / "config.yaml", dump_plain(dict(configuration)).encode())


def _write(outcome: MatrixResult) -> None:
    """The overview; `run.json` says `complete` only after all else is there."""
    import pyarrow.parquet as pq

    from limbeck.pilots.overview import overview_html

    root = outcome.folder
    assert root is not None
    write_json(root / "result.json", outcome.record)
    pq.write_table(outcome.to_arrow(), root / "metrics.parquet")
    links = {place: (place.path / "report.html").as_posix() for place in outcome.pilots}
    write_atomically(root / "report.html", overview_html(outcome.record, outcome.pilots, links, "en").encode())
    run = json.loads((root / "run.json").read_text(encoding="utf-8"))
    write_json(root / "run.json", run | {"status": "complete", "verdict": outcome.verdict})


# The overview ---------------------------------------------------------------------------------------------------------


def _record(
    name: str,
    parts: Mapping[Place, Part],
    pilots: Mapping[Place, PilotResult],
    seeds: Sequence[int],
    seconds: float,
) -> dict[str, Any]:
    rows = [_row(place, result) for place, result in pilots.items()]
    first = next(iter(pilots.values())).record
    return {
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": first["versions"],
        "machine": {"system": platform.platform(terse=True), "processor": platform.machine()},
        "seconds": seconds,
        "seeds": list(seeds),
        "pilots": rows,
        "comparisons": _between_students(parts, pilots),
        "verdict": overall(rows),
        "warnings": [f"{place}: {text}" for place, result in pilots.items() for text in result.record["warnings"]],
    }


def _row(place: Place, result: PilotResult) -> dict[str, Any]:
    """What the overview says of a pilot."""
    record = result.record
    metric = "worst_group" if record["data"]["groups"] else "average"
    models = {row["key"]: row for row in record["models"]}
    shown = models[record["chosen"]] if record["chosen"] is not None else result.best()
    against = next(
        (
            one
            for one in record["comparisons"]
            if (one["model"], one["against"], one["metric"]) == (record["chosen"], PLAIN, metric)
        ),
        None,
    )
    return {
        "data": place.data,
        "student": place.student,
        "folder": place.path.as_posix(),
        "metric": metric,
        "chosen": record["chosen"],
        "label": shown["label"],
        "parameters": shown["parameters"],
        "average": _mean(shown, "average"),
        "worst_group": _mean(shown, "worst_group"),
        "plain": {name: _mean(models[PLAIN], name) for name in ("average", "worst_group")},
        "outcome": None if against is None else against["verdict"],
        "verdict": result.verdict,
    }


def _mean(row: Mapping[str, Any], metric: str) -> float | None:
    values = [run["test"][metric] for run in row["runs"] if run["test"][metric] is not None]
    return statistics.fmean(values) if values else None


def overall(rows: Sequence[Mapping[str, Any]]) -> str:
    """How often distillation beat the plain student, did worse, or could not be told from it, and where."""
    names = {
        outcome: [str(Place(row["data"], row["student"])) for row in rows if row["outcome"] == outcome]
        for outcome in (*OUTCOMES, None)
    }
    words = {
        "better": "beat the plain student",
        "worse": "did worse than the plain student",
        "not distinguishable": "could not be told from the plain student",
        "not measured": "could not be compared with the plain student",
        None: "was not tried",
    }
    said = [f"{words[outcome]} in {len(where)} ({'; '.join(where)})" for outcome, where in names.items() if where]
    return f"Of {len(rows)} pilot{'s' * (len(rows) != 1)}, distillation {_joined(said)}."


def _joined(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def _between_students(parts: Mapping[Place, Part], pilots: Mapping[Place, PilotResult]) -> list[dict[str, Any]]:
    """In each data set, the best of each student (chosen on validation) against that of the largest student.

    On the same test samples; p is corrected (Holm) over the students of a data set.
    """
    found: list[dict[str, Any]] = []
    for name in dict.fromkeys(place.data for place in pilots):
        best = {place: result.best() for place, result in pilots.items() if place.data == name}
        largest = max(best, key=lambda place: best[place]["parameters"])
        others = [place for place in best if place != largest]
        test = parts[largest].data.test
        groups = None if test.groups is None else test.groups.index
        names = None if test.groups is None else test.groups.names
        right = {
            place: np.stack([cell.predictions == test.y for cell in parts[place].results[row["key"]]])
            for place, row in best.items()
        }
        results = [
            compare(
                right[place],
                right[largest],
                groups,
                group_names=names,
                names=(str(place.student), str(largest.student)),
            )
            for place in others
        ]
        kinds: list[list[Difference]] = [[result.average for result in results]]
        if groups is not None:
            kinds.append([result.worst_group for result in results])
        for kind in kinds:
            for place, difference in zip(others, decide(kind), strict=True):
                told = {"data": name, "student": place.student, "against_student": largest.student}
                told |= {"label": best[place]["label"], "against_label": best[largest]["label"]}
                told |= {"parameters": best[place]["parameters"], "against_parameters": best[largest]["parameters"]}
                found.append(told | difference.to_dict())
    return found


def overview_text(record: Mapping[str, Any], width: int = 110) -> str:
    """The overview for a terminal."""
    import io

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = [name for name in ("data", "student") if any(row[name] is not None for row in record["pilots"])]
    for title in columns:
        table.add_column(title, overflow="fold")
    table.add_column("parameters", justify="right")
    table.add_column("chosen on validation", overflow="fold")
    for title in ("average %", "worst group %", "plain, worst group %"):
        table.add_column(title, justify="right")
    table.add_column("against the plain student", overflow="fold")
    for row in record["pilots"]:
        table.add_row(
            *(row[name] for name in columns),
            f"{row['parameters']:,}",
            row["label"],
            *(_percent(value) for value in (row["average"], row["worst_group"], row["plain"]["worst_group"])),
            row["outcome"] or "no recipe with a teacher",
        )
    buffer = io.StringIO()
    Console(file=buffer, width=width).print(table)
    lines = [line.rstrip() for line in buffer.getvalue().rstrip("\n").splitlines()]
    if record["comparisons"]:
        lines += ["", *map(between_students, record["comparisons"])]
    lines += ["", *(f"{Place(row['data'], row['student'])}: {row['verdict']}" for row in record["pilots"])]
    return "\n".join(lines)


def between_students(row: Mapping[str, Any]) -> str:
    """One comparison of two students of a data set, in a sentence."""
    share = row["parameters"] / row["against_parameters"]
    where = "in the worst group" if row["metric"] == "worst_group" else "on average"
    place = f"{row['data']}: " if row["data"] is not None else ""
    if row["verdict"] == "not measured":
        return f"{place}{row['student']} could not be compared with {row['against_student']} {where}."
    low, high = 100 * row["low"], 100 * row["high"]
    sizes = f"{100 * share:.3g}% of the parameters of {row['against_student']} ({row['against_label']})"
    values = f"{100 * row['value']:.1f}% against {100 * row['reference']:.1f}%"
    interval = f"{100 * row['level']:.0f}% interval {low:+.1f} to {high:+.1f}"
    return (
        f"{place}{row['student']} ({row['label']}) has {sizes} and {where} {values} "
        f"({100 * row['difference']:+.1f} points, {interval}): {row['verdict']}."
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
