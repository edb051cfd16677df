"""`Ledger`: what every training sample of a run was told, by which rule, and how much it counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from limbeck import __version__
from limbeck.checkpoint import write_atomically
from limbeck.errors import ConfigError, DataError, TeacherError, unknown_name
from limbeck.fitting import named_error_set
from limbeck.ledgers.columns import EPOCHS, RANKS, SCHEMA, named, shares, words, write_options, written
from limbeck.ledgers.heard import HeardTeacher
from limbeck.ledgers.targets import Samples, Speaker, mixed, rules_of, speakers
from limbeck.ledgers.weights import Weights, sample_weights, weight_rule
from limbeck.ledgers.wide import by_class, first_choice
from limbeck.predict import model_inputs, predict_logits
from limbeck.recipe import Recipe
from limbeck.teachers import Teacher, as_teacher, batch_axis
from limbeck.teachers.asking import Column, asked_columns

if TYPE_CHECKING:
    from limbeck.arbitration import Arbitration
    from limbeck.data import Data
    from limbeck.loop import Fitted

FORMAT = 1
_FEWEST = 256
_CHUNK = 1 << 17
"""Elements of the teacher's output that are worked on at once: what a chunk needs stays in a core's cache."""


@dataclass(frozen=True)
class Ledger:
    """The record of one run.

    Args:
        samples: one row a training sample, the columns of `limbeck.ledgers.SCHEMA`.
        epochs: one row an epoch and group, the columns of `limbeck.ledgers.EPOCHS`.
        meta: run, recipe, seed, data and teacher fingerprints, classes, groups, and notes on what is not in it.
    """

    samples: pa.Table
    epochs: pa.Table
    meta: dict[str, Any]

    @classmethod
    def of(
        cls,
        fitted: Fitted,
        data: Data,
        teacher: Any = None,
        *,
        run: str | None = None,
        logits: Any = None,
        arbitration: Arbitration | None = None,
        reviewed: Any = None,
        held_back: Any = None,
    ) -> Ledger:
        """The ledger of what `fit` returned, in one pass over the teacher's outputs.

        Args:
            fitted: the student.
            data: what it was trained on.
            teacher: what it learned from. One wrapped by `overhear` before training is not asked again, nor is a store.
            run: its name in the table; by default recipe and seed.
            logits: the teacher's logits of the training samples `[N, C]`, where they are at hand.
            arbitration: the `limbeck.arbitration.Arbitration` whose posterior the student was told, if there was one.
            reviewed: training samples that a person has looked at, as ids; by default the true entries of the data's
                column `reviewed`, if there is one.
            held_back: training samples whose correction was held back, as ids; those whose teacher a term leaves out,
                and those that arbitration held back, are added.

        Raises:
            DataError: for ids that are no training samples.
            TeacherError: for logits of another shape than samples by classes.
        """
        train, recipe = data.train, fitted.recipe
        notes: list[str] = []
        source = None if teacher is None else as_teacher(teacher)
        spoken = _spoken(fitted, train, source, logits, notes)
        arbitration = getattr(fitted, "arbitration", None) if arbitration is None else arbitration
        posterior, drawn, spared = _arbitrated(arbitration, recipe, train)
        found, silent = speakers(
            recipe, len(fitted.history), teacher=spoken is not None, posterior=posterior is not None
        )
        name = run or f"{recipe.name}-seed{fitted.seed}"
        groups = None if train.groups is None else train.groups.index
        weights, note = sample_weights(recipe, train.y, groups, fitted.history, _error_set(fitted, train), drawn)
        notes += [*silent, *([note] if note else [])]
        if fitted.training.views is not None:
            notes.append("targets are those of the samples as they are, without augmentation or mixing")
        flags = {"reviewed": _flags(train, reviewed, "reviewed"), "held_back": _flags(train, held_back, "held_back")}
        flags["held_back"] |= spared
        samples = _samples(name, train, spoken, posterior, found, weights, flags, len(fitted.history))
        meta: dict[str, Any] = {
            "format": FORMAT,
            "limbeck": __version__,
            "run": name,
            "recipe": recipe.to_dict(),
            "seed": fitted.seed,
            "epochs": len(fitted.history),
            "data": {"name": data.name, "fingerprint": data.fingerprint()},
            "teacher": None if source is None else source.fingerprint(),
            "classes": list(data.classes),
            "groups": [] if train.groups is None else list(train.groups.names),
            "terms": [{"term": speaker.term.name, "factor": speaker.factor} for speaker in found],
            "notes": notes,
        }
        return cls(samples, _epochs(name, fitted, meta["groups"]), json.loads(json.dumps(meta, default=str)))

    # On disk ------------------------------------------------------------------------------------------------------

    def write(self, folder: str | Path) -> Path:
        """Add this run to a ledger's folder, atomically: `samples/RUN.parquet` and `epochs/RUN.parquet`.

        A run of the same name is replaced; the files of other runs are not touched. Equal ledgers are equal bytes.

        Returns:
            The file of the samples.
        """
        root = Path(folder)
        note = {b"limbeck": json.dumps(self.meta, sort_keys=True).encode()}
        files = {kind: root / kind / f"{self.run}.parquet" for kind in ("epochs", "samples")}
        epochs = written(self.epochs.replace_schema_metadata(note))
        # The disk takes its time: the samples are encoded meanwhile. They come last, as a run is known by their file.
        with ThreadPoolExecutor(1) as flusher:
            flushed = flusher.submit(write_atomically, files["epochs"], epochs)
            samples = written(self.samples.replace_schema_metadata(note), **write_options())
            flushed.result()
        write_atomically(files["samples"], samples)
        return files["samples"]

    @classmethod
    def read(cls, path: str | Path, run: str | None = None) -> Ledger:
        """A ledger from the file of its samples, or from a ledger's (or run's) folder by the name of the run.

        Raises:
            ConfigError: where there is none, or the folder holds several and none is named.
        """
        file = ledger_file(path, run)
        try:
            samples = pq.read_table(file)
            meta = json.loads((samples.schema.metadata or {})[b"limbeck"])
            epochs = pq.read_table(file.parent.parent / "epochs" / file.name)
        except (pa.ArrowException, KeyError, ValueError, FileNotFoundError) as error:
            raise ConfigError(f"{file} is not a ledger of this library, or not a whole one: {error}") from error
        return cls(samples.replace_schema_metadata(), epochs.replace_schema_metadata(), meta)

    # What is in it ------------------------------------------------------------------------------------------------

    @property
    def run(self) -> str:
        """The name of the run."""
        return str(self.meta["run"])

    def __len__(self) -> int:
        return int(self.samples.num_rows)

    def to_arrow(self) -> pa.Table:
        """The samples."""
        return self.samples

    def to_pandas(self) -> Any:
        """The samples as a data frame (pandas is needed)."""
        return self.samples.to_pandas()

    def summary(self, by: str = "rule") -> list[dict[str, Any]]:
        """One row a rule (or label, or group): samples, how many have another likeliest class than the label, how far
        targets moved on average, mean weight.

        Raises:
            ConfigError: for another column.
        """
        if by not in ("rule", "label", "group"):
            raise ConfigError(unknown_name("column to summarise by", by, ("rule", "label", "group")))
        means = ("moved_from_label", "moved_from_teacher", "weight_mean")
        columns = {name: self.samples[name] for name in ("id", "held_back", *means)}
        columns |= {by: pc.cast(self.samples[by], pa.string()), "overturned": pa.array(self.overturned())}
        wanted = [("id", "count"), ("overturned", "sum"), ("held_back", "sum"), *((name, "mean") for name in means)]
        found = [
            {
                by: row[by] or "unknown",
                "samples": row["id_count"],
                "overturned": row["overturned_sum"],
                "held_back": row["held_back_sum"],
                **{name: row[f"{name}_mean"] for name in means},
            }
            for row in pa.table(columns).group_by(by).aggregate(wanted).to_pylist()
        ]
        return sorted(found, key=lambda row: -row["samples"])

    def overturned(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Where the likeliest class of the target is not the label, bool `[N]`; False where there is no target."""
        target, label = (pc.cast(self.samples[name], pa.string()) for name in ("target_1", "label"))
        return np.asarray(pc.fill_null(pc.not_equal(target, label), False))

    def top(
        self, n: int = 20, *, by: str = "label", group: str | None = None, rule: str | None = None
    ) -> list[dict[str, Any]]:
        """The samples whose targets moved farthest, from the `label` or from the `teacher`; of equal ones the first.

        Args:
            n: how many.
            by: farthest from what.
            group: only of this group.
            rule: only where this rule decided.

        Raises:
            ConfigError: for a name that does not occur, with the nearest one that does.
        """
        if by not in ("label", "teacher"):
            raise ConfigError(unknown_name("what it moved from", by, ("label", "teacher")))
        table = self.samples
        for column, wanted in (("group", group), ("rule", rule)):
            if wanted is not None:
                values = pc.cast(table[column], pa.string())
                mask = pc.fill_null(pc.equal(values, wanted), False)
                if not pc.any(mask).as_py():
                    raise ConfigError(unknown_name(column, wanted, _present(table[column])))
                table = table.filter(mask)
        moved = np.nan_to_num(np.asarray(table[f"moved_from_{by}"].to_numpy(), np.float64), nan=-1.0)
        return _plain(table.take(np.argsort(-moved, kind="stable")[:n]))

    def why(self, sample: int) -> dict[str, Any]:
        """All that is known of one training sample; `weight_rule` says why it weighs more, where an error set is why.

        Raises:
            ConfigError: where it is no training sample of this run.
        """
        place = np.flatnonzero(self.samples["id"].to_numpy() == sample)
        if not len(place):
            raise ConfigError(f"id {sample} is no training sample of {self.run}, which has {len(self):,}")
        row = _plain(self.samples.take(place[:1]))[0]
        return {**row, "weight_rule": weight_rule(self.meta["recipe"], self.meta["groups"], row)}

    def diff(self, other: Ledger, n: int = 20) -> dict[str, Any]:
        """What two runs told the same samples.

        Returns:
            `samples` in both; `likeliest`: how many were told another likeliest class; `overturned`: by whose target
            the label lost, only in this one, only in the other, in both; `moved`: the mean difference of the target's
            probability of the label; `rows`: the n samples of the largest such difference.
        """
        ours, theirs = self.samples["id"].to_numpy(), other.samples["id"].to_numpy()
        common, left, right = np.intersect1d(ours, theirs, return_indices=True)
        if not len(common):
            raise ConfigError(f"{self.run} and {other.run} have no training sample in common")
        a, b = self.samples.take(left), other.samples.take(right)
        first, second = (pc.cast(table["target_1"], pa.string()) for table in (a, b))
        differs = np.asarray(pc.fill_null(pc.not_equal(first, second), False))
        lost_a, lost_b = self.overturned()[left], other.overturned()[right]
        on_label = [1.0 - np.asarray(table["moved_from_label"].to_numpy(), np.float64) for table in (a, b)]
        change = on_label[1] - on_label[0]
        order = np.argsort(-np.abs(np.nan_to_num(change)), kind="stable")[:n]
        rows = [
            {
                "id": int(common[place]),
                "label": mine["label"],
                "group": mine["group"],
                "target_of_label": (float(on_label[0][place]), float(on_label[1][place])),
                "target_1": (mine["target_1"], yours["target_1"]),
                "rule": (mine["rule"], yours["rule"]),
            }
            for place, mine, yours in zip(order, _plain(a.take(order)), _plain(b.take(order)), strict=True)
        ]
        return {
            "runs": (self.run, other.run),
            "samples": len(common),
            "likeliest": int(differs.sum()),
            "overturned": {
                self.run: int((lost_a & ~lost_b).sum()),
                other.run: int((lost_b & ~lost_a).sum()),
                "both": int((lost_a & lost_b).sum()),
            },
            "moved": float(np.nanmean(change)) if np.isfinite(change).any() else None,
            "rows": rows,
        }


# Finding ledgers ------------------------------------------------------------------------------------------------------


def ledger_folder(path: str | Path) -> Path:
    """The folder of the ledgers: the one given, or `ledger` in a run folder."""
    folder = Path(path)
    return folder / "ledger" if (folder / "ledger").is_dir() else folder


def runs_in(path: str | Path) -> list[str]:
    """The names of the runs whose ledgers a folder holds."""
    return sorted(file.stem for file in (ledger_folder(path) / "samples").glob("*.parquet"))


def ledger_file(path: str | Path, run: str | None = None) -> Path:
    """The file of a run's samples, from itself or from a folder and the name of the run.

    Raises:
        ConfigError: where there is none, or the folder holds several and none is named.
    """
    given = Path(path)
    if given.is_file():
        return given
    names = runs_in(given)
    if not names:
        raise ConfigError(f"{given} holds no ledger: expected a run folder with ledger/samples/*.parquet")
    if run is None and len(names) > 1:
        raise ConfigError(f"{given} holds the ledgers of {len(names)} runs: name one of {', '.join(names)}")
    if run is not None and run not in names:
        raise ConfigError(unknown_name("run", run, names))
    return ledger_folder(given) / "samples" / f"{run or names[0]}.parquet"


# Making the tables ----------------------------------------------------------------------------------------------------


Spoken = Callable[[slice], Tensor]
"""From rows of the training samples to the teacher's logits of them `[B, C]`."""


def _spoken(fitted: Fitted, train: Data, source: Teacher | None, logits: Any, notes: list[str]) -> Spoken | None:
    """What the teacher said that the student itself learned from; asked for chunk by chunk where it was not kept."""
    if logits is not None:
        given = torch.as_tensor(logits)
        if tuple(given.shape) != (len(train), train.num_classes):
            raise TeacherError(
                f"logits have shape {list(given.shape)}, expected {[len(train), train.num_classes]}: one row a "
                "training sample, in the order of data.train"
            )
        return given.__getitem__
    rounds = [name for name in fitted.earlier if name.startswith("round ")]
    if rounds:
        last = max(rounds, key=lambda name: int(name.removeprefix("round ")))
        notes.append(f"the teacher is the student of {last}")
        return torch.from_numpy(predict_logits(fitted.earlier[last], train)).__getitem__
    if source is None:
        return None
    supplies = source.supplies
    kind = next((name for name in ("logits", "teachers_logits") if name in supplies), None)
    if kind is None:
        notes.append("the teacher gives no logits, so what it said of the classes is not in it")
        return None
    heard = source.logits_of(train) if isinstance(source, HeardTeacher) else None
    whole: Column = heard if heard is not None else asked_columns(source, train, (kind,), dict, (kind,))[kind]
    axis = batch_axis(kind)
    if kind == "logits" and isinstance(whole, Tensor):
        return whole.__getitem__
    if kind == "logits":
        return lambda rows: whole.index_select(axis, _places(rows, len(train)))
    biased = fitted.recipe.weighting.options.get("biased")
    count = len(source.outputs(model_inputs(train, [0]), torch.from_numpy(train.ids[:1]), (kind,))[kind])
    learned = [place for place in range(count) if place != biased]
    notes.append(f"{len(learned)} teachers are learned from: what they said is the mean of their probabilities")

    def mean(rows: slice) -> Tensor:
        said = whole.index_select(axis, _places(rows, len(train)))[learned]
        return said.softmax(-1).mean(0).clamp(min=torch.finfo(torch.float32).tiny).log()

    return mean


def _places(rows: slice, count: int) -> Tensor:
    return torch.arange(rows.start, min(rows.stop, count))


def _arbitrated(
    arbitration: Arbitration | None, recipe: Recipe, train: Data
) -> tuple[Tensor | None, Any, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Targets `[N, C]`, how often each sample is drawn `[N]`, and which were held back, bool `[N]`."""
    nothing = np.zeros(len(train), bool)
    if arbitration is None or recipe.arbitrate is None:
        return None, None, nothing
    place = arbitration.select(train.ids)
    targets, drawn = arbitration.student_targets(recipe.arbitrate.gamma)
    spared = arbitration.held_back[place] if len(arbitration.held_back) else nothing
    told = torch.from_numpy(np.ascontiguousarray(targets[place], np.float32))
    return told, drawn[place] if recipe.sampling == "posterior" else None, spared


def _error_set(fitted: Fitted, train: Data) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    named = named_error_set(fitted.recipe, train)
    if named is not None:
        return named.numpy()
    biased = fitted.earlier.get("identify")
    if biased is None:
        return None
    if "wrong" in biased.details:
        return np.asarray(biased.details["wrong"])
    found: np.ndarray[Any, np.dtype[np.bool_]] = predict_logits(biased, train).argmax(1) != train.y
    return found


def _flags(train: Data, ids: Any, column: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if ids is None:
        known = train.columns.get(column)
        if known is None:
            return np.zeros(len(train), bool)
        if known.dtype.kind == "U":  # as a table of text has it
            return np.isin(np.char.lower(known), ("true", "yes", "1"))
        return np.asarray(known == 1)
    wanted = np.unique(np.asarray(ids, np.int64))
    absent = wanted[~np.isin(wanted, train.ids)]
    if len(absent):
        raise DataError(f"{column}: id {int(absent[0])} is no training sample of {train.name!r}: give training ids")
    return np.isin(train.ids, wanted)


def _samples(
    run: str,
    train: Data,
    spoken: Spoken | None,
    posterior: Tensor | None,
    found: Sequence[Speaker],
    weights: Weights | None,
    flags: Mapping[str, np.ndarray[Any, np.dtype[np.bool_]]],
    epochs: int,
) -> pa.Table:
    count, classes = len(train), train.num_classes
    columns = _Columns(count, classes, spoken is not None, bool(found))
    labels = torch.from_numpy(np.ascontiguousarray(train.y))
    step = max(_FEWEST, _CHUNK // classes)
    share_right = _share_right(spoken, labels, found, step)
    with torch.no_grad():
        for start in range(0, count, step):
            rows = slice(start, start + step)
            teacher = None if spoken is None else by_class(spoken(rows).float())
            judged = None if posterior is None else by_class(posterior[rows])
            samples = Samples(labels[rows], classes, teacher, None, share_right, epochs, judged)
            columns.fill(rows, samples, found)
    kinds = {field.name: field.type for field in SCHEMA}
    # A rule only counts where it occurs.
    rules, used = rules_of(found), np.flatnonzero(np.bincount(columns.rule))
    codes = np.zeros(len(rules), np.int16)
    codes[used] = np.arange(len(used))
    heard = columns.withheld | flags["held_back"]
    if weights is not None:
        heard = heard | (weights.mean == 0)
    classes_of = words(train.classes)
    values: dict[str, pa.Array] = {
        "run": named(np.zeros(count, np.int8), words([run]), count, kinds["run"]),
        "id": pa.array(train.ids),
        "label": named(train.y, classes_of, count, kinds["label"]),
        "group": named(
            None if train.groups is None else train.groups.index,
            words(() if train.groups is None else train.groups.names),
            count,
            kinds["group"],
        ),
        "rule": named(codes[columns.rule], words([rules[code] for code in used]), count, kinds["rule"]),
        "masked": pa.nulls(count, pa.int32()) if columns.masked is None else pa.array(columns.masked, pa.int32()),
        "teacher_label_probability": shares(columns.on_label, count),
        "moved_from_label": shares(columns.from_label, count),
        "moved_from_teacher": shares(columns.from_teacher, count),
        "held_back": pa.array(heard),
        "reviewed": pa.array(flags["reviewed"]),
    }
    for who, ranks in (("teacher", columns.teacher), ("target", columns.target)):
        for rank in range(RANKS):
            codes_of, probabilities = (None, None) if ranks is None or rank >= classes else ranks[rank]
            values[f"{who}_{rank + 1}"] = named(codes_of, classes_of, count, kinds[f"{who}_{rank + 1}"])
            values[f"{who}_{rank + 1}_probability"] = shares(probabilities, count)
    for when in ("first", "last", "mean"):
        values[f"weight_{when}"] = shares(None if weights is None else getattr(weights, when), count)
    return pa.table([values[field.name] for field in SCHEMA], schema=SCHEMA)


_Ranks = list[tuple[np.ndarray[Any, np.dtype[np.int32]], np.ndarray[Any, np.dtype[np.float32]]]]


class _Columns:
    """The values of all samples, filled chunk by chunk."""

    def __init__(self, count: int, classes: int, teacher: bool, told: bool) -> None:
        self.teacher = _ranks(count, classes) if teacher else None
        self.target = _ranks(count, classes) if told else None
        self.on_label = np.empty(count, np.float32) if teacher else None
        self.from_label = np.empty(count, np.float32) if told else None
        self.from_teacher = np.empty(count, np.float32) if told and teacher else None
        self.rule = np.empty(count, np.int32)
        self.withheld = np.zeros(count, bool)
        self.masked: np.ndarray[Any, np.dtype[np.int32]] | None = None
        self._count = count

    def fill(self, rows: slice, samples: Samples, found: Sequence[Speaker]) -> None:
        """The values of some samples."""
        told = mixed(found, samples)
        self.rule[rows] = told.rule.numpy()
        self.withheld[rows] = told.withheld.numpy()
        if told.masked is not None:
            if self.masked is None:
                self.masked = np.zeros(self._count, np.int32)
            self.masked[rows] = told.masked.numpy()
        label = samples.labels.unsqueeze(1)
        teacher = None if samples.teacher is None else samples.probabilities
        if teacher is not None and self.teacher is not None and self.on_label is not None:
            self.on_label[rows] = teacher.gather(1, label).squeeze(1).numpy()
            if self.from_teacher is not None:
                self.from_teacher[rows] = (told.target - teacher).abs_().sum(1).div_(2).numpy()
            _largest(teacher.clone(), self.teacher, rows)
        if self.target is not None and self.from_label is not None:
            self.from_label[rows] = (1.0 - told.target.gather(1, label).squeeze(1)).clamp_(min=0).numpy()
            _largest(told.target, self.target, rows)


def _ranks(count: int, classes: int) -> _Ranks:
    return [(np.empty(count, np.int32), np.empty(count, np.float32)) for _ in range(min(RANKS, classes))]


def _largest(probabilities: Tensor, ranks: _Ranks, rows: slice) -> None:
    """The likeliest classes by rank, of equal ones the first. Overwrites `probabilities`."""
    nothing = probabilities[:, 0].isnan().numpy()
    for codes, shares_of in ranks:
        largest, place = first_choice(probabilities)
        shares_of[rows] = largest.squeeze(1).numpy()
        codes[rows] = place.squeeze(1).numpy()
        codes[rows][nothing] = -1
        probabilities.scatter_(1, place, -1.0)
    for _, shares_of in ranks:
        shares_of[rows][nothing] = np.nan


def _share_right(spoken: Spoken | None, labels: Tensor, found: Sequence[Speaker], step: int) -> float:
    """The share of samples that the teacher has right; only asked where a term counts right and wrong ones apart."""
    if spoken is None or not any(speaker.term.name == "rectified_bias" for speaker in found):
        return 1.0
    right = 0
    for start in range(0, len(labels), step):
        rows = slice(start, start + step)
        right += int((first_choice(by_class(spoken(rows).float()))[1].squeeze(1) == labels[rows]).sum())
    return right / len(labels)


def _epochs(run: str, fitted: Fitted, groups: Sequence[str]) -> pa.Table:
    nothing: list[float | None] = [None] * len(groups)
    epochs, of_group, losses, q = [], [], [], []
    for record in fitted.history:
        epochs += [record["epoch"]] * (1 + len(groups))
        of_group += [-1, *range(len(groups))]
        losses += [record["loss"], *(record.get("group_losses") or nothing)]
        q += [None, *(record.get("group_weights") or nothing)]
    count, kinds = len(epochs), {field.name: field.type for field in EPOCHS}
    columns = {
        "run": named(np.zeros(count, np.int8), words([run]), count, kinds["run"]),
        "epoch": pa.array(epochs, kinds["epoch"]),
        "group": named(np.array(of_group, np.int32), words(groups), count, kinds["group"]),
        "loss": pa.array(losses, kinds["loss"]),
        "q": pa.array(q, kinds["q"]),
    }
    return pa.table(columns, schema=EPOCHS)


def _present(column: Any) -> list[str]:
    return [value for value in pc.unique(pc.cast(column, pa.string())).to_pylist() if value is not None]


def _plain(table: pa.Table) -> list[dict[str, Any]]:
    return table.to_pylist()  # type: ignore[no-any-return]
