"""`evaluate`: a model's accuracy and calibration, one row a group, with intervals and the worst group named."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import DataError, require, unknown_name
from limbeck.evaluation.calibration import (
    Binning,
    Kind,
    group_calibration_error,
    group_means,
    score_samples,
)
from limbeck.evaluation.counts import UNKNOWN_GROUP, GroupCounts, checked_index, same_length
from limbeck.evaluation.intervals import interval as proportion_interval
from limbeck.evaluation.intervals import worst_group_interval

if TYPE_CHECKING:
    from rich.table import Table

_CONFUSION_CELLS = 2**16
"""Above this many cells the groups' confusions are left out of the plain data: a result stays a small file."""


@dataclass(frozen=True)
class Row:
    """One group (or class): accuracies and errors are shares from 0 to 1, likelihoods nats; nan where not known."""

    name: str
    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    nll: float
    brier: float
    calibration_error: float
    note: str


@dataclass(frozen=True)
class Scores:
    """Likelihood and calibration: overall, and of each group with the unknown group last (`[G + 1]`)."""

    nll: float
    brier: float
    calibration_error: float
    group_nll: tuple[float, ...]
    group_brier: tuple[float, ...]
    group_calibration_error: tuple[float, ...]
    bins: int = 15
    binning: str = "equal_width"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` found. Everything shown is read from the counts and the scores.

    `print` shows a table; `rows` holds one row a group, `class_rows` one a class, `summary` the single numbers,
    `notes` what a reader must know (unknown, empty and small groups). `to_dict` and `from_dict` are plain JSON.
    """

    counts: GroupCounts
    scores: Scores | None
    """None where only predicted classes were given."""
    training_counts: tuple[int, ...] | None = None
    interval: str = "wilson"
    level: float = 0.95
    minimum: int = 10

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """One row a group, in the order of the groups; then the unknown group where it has samples."""
        counts, worst = self.counts, self.counts.worst(self.minimum)
        names = [*counts.group_names, UNKNOWN_GROUP]
        totals, correct = counts.outcomes.sum(axis=1), counts.outcomes[:, 1]
        rows = []
        for g, name in enumerate(names):
            unknown = g == len(counts.group_names)
            if unknown and totals[g] == 0:
                continue
            notes = [] if unknown else self._group_notes(g, int(totals[g]))
            if worst is not None and g == worst.position and len(counts.group_names) > 1:
                notes.insert(0, "worst")
            rows.append(self._row(name, int(totals[g]), int(correct[g]), self._group_scores(g), "; ".join(notes)))
        return tuple(rows)

    @cached_property
    def class_rows(self) -> tuple[Row, ...]:
        """One row a class: its recall, without likelihood or calibration."""
        counts, worst = self.counts, self.counts.worst_class(self.minimum)
        unscored = (math.nan, math.nan, math.nan)
        rows = []
        for c, name in enumerate(counts.class_names):
            n = int(counts.class_totals[c])
            notes = self._size_notes(n)
            if worst is not None and c == worst.position:
                notes.insert(0, "worst")
            rows.append(self._row(name, n, int(counts.class_correct[c]), unscored, "; ".join(notes)))
        return tuple(rows)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The single numbers; nan (a name: None) where one is not known."""
        counts = self.counts
        worst, worst_class = counts.worst(self.minimum), counts.worst_class(self.minimum)
        low, high = proportion_interval(counts.outcomes[:, 1].sum(), counts.samples, self.interval, self.level)
        worst_low, worst_high = worst_group_interval(counts.correct, counts.totals, self.level, self.minimum)
        weighted = math.nan if self.training_counts is None else counts.average_weighted(np.array(self.training_counts))
        return {
            "samples": counts.samples,
            "average": counts.average,
            "average_low": float(low),
            "average_high": float(high),
            "average_training_weighted": weighted,
            "worst_group": math.nan if worst is None else worst.accuracy,
            "worst_group_name": None if worst is None else worst.name,
            "worst_group_low": worst_low,
            "worst_group_high": worst_high,
            "gap": counts.gap(self.minimum),
            "worst_class": math.nan if worst_class is None else worst_class.accuracy,
            "worst_class_name": None if worst_class is None else worst_class.name,
            "balanced_accuracy": counts.balanced_accuracy,
            "nll": math.nan if self.scores is None else self.scores.nll,
            "brier": math.nan if self.scores is None else self.scores.brier,
            "calibration_error": math.nan if self.scores is None else self.scores.calibration_error,
        }

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Sentences on samples and groups that do not count as one might think."""
        counts = self.counts
        names, totals = counts.group_names, counts.totals
        notes = []
        if counts.unknown_total:
            notes.append(f"{counts.unknown_total:,} samples of unknown group count in the average and in no group")
        if empty := [name for name, n in zip(names, totals, strict=True) if n == 0]:
            notes.append(f"groups without a sample here, so without an accuracy: {_listed(empty)}")
        if small := [name for name, n in zip(names, totals, strict=True) if 0 < n < self.minimum]:
            notes.append(f"groups with fewer than {self.minimum} samples, never called the worst: {_listed(small)}")
        if self.training_counts is not None and math.isnan(self.summary["average_training_weighted"]):
            notes.append("the average by training shares is not known: a group that was trained on has no sample here")
        return tuple(notes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; None for nan. Very large tables (65,536 cells on) leave out the groups' confusions."""
        counts, table = self.counts, self.counts.table
        kept = table is not None and table.size <= _CONFUSION_CELLS
        scores = Scores(math.nan, math.nan, math.nan, (), (), ()) if self.scores is None else self.scores
        plain = {
            **self.summary,
            "group_names": list(counts.group_names),
            "class_names": list(counts.class_names),
            "group_total": counts.totals.tolist(),
            "group_correct": counts.correct.tolist(),
            "unknown_total": counts.unknown_total,
            "unknown_correct": counts.unknown_correct,
            "confusion": counts.confusion.tolist(),
            "group_confusion": counts.group_confusion.tolist() if kept else None,
            "group_nll": list(scores.group_nll),
            "group_brier": list(scores.group_brier),
            "group_calibration_error": list(scores.group_calibration_error),
            "calibration_bins": scores.bins,
            "calibration_binning": scores.binning,
            "training_counts": None if self.training_counts is None else list(self.training_counts),
            "interval": self.interval,
            "level": self.level,
            "minimum": self.minimum,
            "notes": list(self.notes),
        }
        return {key: _plain(value) for key, value in plain.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Evaluation:
        """The evaluation that `to_dict` wrote; derived numbers are computed again from the counts.

        Raises:
            DataError: a key is missing, or its value is not what `to_dict` writes.
        """
        try:
            names, classes = tuple(plain["group_names"]), tuple(plain["class_names"])
            total = _counts("group_total", [*plain["group_total"], plain["unknown_total"]])
            correct = _counts("group_correct", [*plain["group_correct"], plain["unknown_correct"]])
            confusion = _counts("confusion", plain["confusion"])
            counts = GroupCounts(names, classes, np.stack([total - correct, correct], axis=1), confusion)
            if plain["group_confusion"] is not None:
                groups = _counts("group_confusion", plain["group_confusion"])
                table = np.concatenate([groups, (confusion - groups.sum(axis=0))[None]])
                margins, counts = counts, GroupCounts.from_table(table, names, classes)
                if not np.array_equal(counts.outcomes, margins.outcomes):
                    raise DataError("evaluation: group_confusion and group_total or group_correct differ")
            scores = Scores(
                _number(plain["nll"]),
                _number(plain["brier"]),
                _number(plain["calibration_error"]),
                tuple(map(_number, plain["group_nll"])),
                tuple(map(_number, plain["group_brier"])),
                tuple(map(_number, plain["group_calibration_error"])),
                int(plain["calibration_bins"]),
                str(plain["calibration_binning"]),
            )
            lengths = {len(scores.group_nll), len(scores.group_brier), len(scores.group_calibration_error)}
            if lengths not in ({0}, {len(names) + 1}):
                raise DataError(f"evaluation: expected scores of {len(names)} groups and the unknown one, or none")
            training = plain["training_counts"]
            return cls(
                counts,
                scores if scores.group_nll else None,
                None if training is None else tuple(int(n) for n in training),
                str(plain["interval"]),
                float(plain["level"]),
                int(plain["minimum"]),
            )
        except KeyError as error:
            raise DataError(f"evaluation: the key {error} is missing: was it written by Evaluation.to_dict?") from error
        except DataError:
            raise
        except (TypeError, ValueError) as error:
            raise DataError(f"evaluation: not as written by Evaluation.to_dict ({error})") from error

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Evaluation):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def to_pandas(self) -> Any:
        """The rows as a pandas `DataFrame`, one a group.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return require("pandas", "pandas").DataFrame([asdict(row) for row in self.rows])

    def table(self) -> Table:
        """The rows as a `rich` table; `rich.print(evaluation)` shows it."""
        from rich.table import Table

        header, lines = self._cells()
        table = Table(
            title=self._headline(), title_justify="left", caption="\n".join(self.notes) or None, caption_justify="left"
        )
        for place, title in enumerate(header):
            name_or_note = place in (0, len(header) - 1)
            table.add_column(title, justify="left" if name_or_note else "right", no_wrap=place in (1, 2, 3))
        for row, cells in zip(self._shown(), lines, strict=True):
            table.add_row(*cells, style="bold" if row.note.startswith("worst") else None)
        return table

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        header, lines = self._cells()
        widths = [max(map(_width, column)) for column in zip(header, *lines, strict=True)]
        text = []
        for cells in (header, *lines):
            padded = [
                cell + " " * (width - _width(cell))
                if place in (0, len(header) - 1)
                else " " * (width - _width(cell)) + cell
                for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            text.append("  ".join(padded).rstrip())
        rule = "-" * max(map(_width, text))
        return "\n".join([self._headline(), "", text[0], rule, *text[1:], *(["", *self.notes] if self.notes else [])])

    def _headline(self) -> str:
        s, several = self.summary, len(self.counts.group_names) > 1
        parts = [f"average {_percent(s['average'])} ({100 * s['average_low']:.1f} to {_percent(s['average_high'])})"]
        if not math.isnan(s["average_training_weighted"]):
            parts.append(f"by training shares {_percent(s['average_training_weighted'])}")
        if several and s["worst_group_name"] is not None:
            parts.append(
                f"worst group {s['worst_group_name']}: {_percent(s['worst_group'])} "
                f"({100 * s['worst_group_low']:.1f} to {_percent(s['worst_group_high'])})"
            )
            parts.append(f"gap {100 * s['gap']:.1f} points")
        elif several:
            parts.append("worst group not known")
        if s["worst_class_name"] is not None:
            parts.append(f"worst class {s['worst_class_name']}: {_percent(s['worst_class'])}")
        return "\n".join(parts)

    def _shown(self) -> tuple[Row, ...]:
        """The groups; where none were declared, the classes follow."""
        if len(self.counts.group_names) > 1:
            return self.rows
        return self.rows + tuple(replace(row, name=f"class {row.name}") for row in self.class_rows)

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        header = ["group", "n", "accuracy", f"{100 * self.level:g} % interval"]
        scored = self.scores is not None
        header += ["nll", "calibration error", "note"] if scored else ["note"]
        lines = []
        for row in self._shown():
            span = "" if math.isnan(row.low) else f"{100 * row.low:.1f} to {_percent(row.high)}"
            cells = [row.name, f"{row.n:,}", _percent(row.accuracy), span]
            if scored:
                cells += ["" if math.isnan(row.nll) else f"{row.nll:.3f}", _percent(row.calibration_error)]
            lines.append([*cells, row.note])
        return header, lines

    def _row(self, name: str, n: int, correct: int, scores: tuple[float, float, float], note: str) -> Row:
        low, high = proportion_interval(correct, n, self.interval, self.level)
        return Row(name, n, correct, correct / n if n else math.nan, float(low), float(high), *scores, note)

    def _group_scores(self, g: int) -> tuple[float, float, float]:
        s = self.scores
        if s is None:
            return math.nan, math.nan, math.nan
        return s.group_nll[g], s.group_brier[g], s.group_calibration_error[g]

    def _size_notes(self, n: int) -> list[str]:
        if n == 0:
            return ["no sample"]
        return [f"too small ({n} < {self.minimum})"] if n < self.minimum else []

    def _group_notes(self, g: int, n: int) -> list[str]:
        absent = self.training_counts is not None and self.training_counts[g] == 0
        return self._size_notes(n) + (["not in training"] if absent else [])


def evaluate(
    predictions: Any,
    data: Any = None,
    *,
    labels: Any = None,
    groups: Any = None,
    group_names: Sequence[str] | None = None,
    classes: Sequence[str] | int | None = None,
    training_counts: Any = None,
    interval: str = "wilson",
    level: float = 0.95,
    minimum: int = 10,
    kind: Kind = "auto",
    bins: int = 15,
    binning: Binning = "equal_width",
) -> Evaluation:
    """Evaluate a model, its logits or its predicted classes, group by group.

    Args:
        predictions: a model (anything callable; needs `data`), logits or probabilities `[N, C]` (floats), or predicted
            classes `[N]` (integers; then without likelihood and calibration). Arrays or tensors.
        data: where labels, groups and class names come from unless given apart.
        labels: true classes `[N]`.
        groups: group of each sample `[N]`: integers with `group_names` (-1: unknown), or names (None or nan: unknown).
            Without groups there is one group "all", and the table shows the classes.
        group_names: the G names. Give them wherever a group may be absent: it is then shown as empty.
        classes: the C class names, or their number.
        training_counts: training samples of each group `[G]`: gives the average weighted by training shares.
        interval: "wilson" or "clopper_pearson", for each group and the average. The worst group's own interval accounts
            for its having been selected: see `worst_group_interval`.
        level: of every interval.
        minimum: samples that a group needs to be called the worst; smaller groups are shown and named.
        kind: "logits", "probabilities", or "auto": probabilities where every row is one.
        bins, binning: of the calibration error; "equal_width" or "equal_mass".

    Raises:
        DataError: lengths differ, an index is out of range, a prediction is not finite, nothing to evaluate.
        ConfigError: an unknown option, with the nearest known one.
    """
    if callable(predictions):
        if data is None:
            raise DataError("data: a model was given and nothing to run it on: evaluate(model, data)")
        from limbeck.predict import predict_logits

        predictions = predict_logits(predictions, data)
    values = _array(predictions)
    if labels is None and data is None:
        raise DataError("labels: none given: evaluate(predictions, data) or evaluate(predictions, labels=...)")
    y = _array(data.y if labels is None else labels)
    scored = values.ndim == 2
    if not scored and (values.ndim != 1 or values.dtype.kind not in "iub"):
        raise DataError(
            "predictions: expected logits or probabilities [N, C] (floats) or predicted classes [N] (integers); found "
            f"{values.dtype} of shape {list(values.shape)}"
        )
    same_length(predictions=values, labels=y)
    if len(y) == 0:
        raise DataError("labels: no sample to evaluate")
    if classes is None and data is not None:
        classes = data.classes
    class_names = _class_names(classes, values, y)
    if scored and values.shape[1] != len(class_names):
        raise DataError(f"predictions: {values.shape[1]} columns but {len(class_names)} classes")
    if groups is None and data is not None:
        groups = data.groups
    index, names = _groups(groups, group_names, training_counts)

    sample_scores = score_samples(values, y, kind) if scored else None
    predicted = values if sample_scores is None else sample_scores.predicted
    counts = GroupCounts.from_predictions(y, predicted, index, class_names=class_names, group_names=names)
    scores = None
    if sample_scores is not None:
        places = len(names) + 1
        place = np.zeros(len(y), np.int64) if index is None else np.where(index < 0, len(names), index)
        right = sample_scores.predicted == y
        whole = group_calibration_error(sample_scores.confidence, right, bins=bins, binning=binning)
        each = group_calibration_error(sample_scores.confidence, right, place, places, bins=bins, binning=binning)
        scores = Scores(
            float(group_means(sample_scores.nll)[0]),
            float(group_means(sample_scores.brier)[0]),
            float(whole[0]),
            tuple(group_means(sample_scores.nll, place, places).tolist()),
            tuple(group_means(sample_scores.brier, place, places).tolist()),
            tuple(each.tolist()),
            bins,
            binning,
        )
    training = None
    if training_counts is not None:
        # The weighted average is asked for once here, so that counts that do not fit are refused now.
        counts.average_weighted(_array(training_counts))
        training = tuple(int(n) for n in _array(training_counts))
    result = Evaluation(counts, scores, training, interval, level, minimum)
    # So is the summary, which refuses an interval or a level that does not exist.
    _ = result.summary
    return result


def _array(values: Any) -> NDArray[Any]:
    """A NumPy array of anything array-like, tensors on any device and in bfloat16 included, without importing torch."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":
            values = values.float()
        values = values.numpy()
    return np.asarray(values)


def _class_names(classes: Sequence[str] | int | None, values: NDArray[Any], labels: NDArray[Any]) -> tuple[str, ...]:
    if classes is None:
        highest = [int(a.max()) for a in (values, labels) if a.ndim == 1 and a.dtype.kind in "iub"]
        classes = values.shape[1] if values.ndim == 2 else max([*highest, 0]) + 1
    return tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(map(str, classes))


def _groups(
    groups: Any, group_names: Sequence[str] | None, training_counts: Any
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Group of each sample and the groups' names, from a `Groups`, integers or names."""
    if groups is None:
        return None, ("all",) if group_names is None else tuple(group_names)
    if hasattr(groups, "index") and hasattr(groups, "names"):
        group_names = groups.names if group_names is None else group_names
        groups = groups.index
    values = _array(groups)
    if values.dtype.kind in "OUST":
        return _named_groups(values, group_names)
    if group_names is None:
        highest = int(values.max()) + 1 if values.size and values.dtype.kind in "iub" else 0
        size = highest if training_counts is None else len(training_counts)
        group_names = [f"group {g}" for g in range(max(size, 1))]
    return checked_index("groups", values, len(group_names), "groups", unknown=True), tuple(group_names)


def _named_groups(values: NDArray[Any], group_names: Sequence[str] | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    # nan differs from itself, and pandas.NA answers neither yes nor no.
    missing = np.array([value is None or (value == value) is not True for value in values.tolist()], bool)
    text = values.astype(str)
    found = sorted(set(text[~missing].tolist()))
    names = tuple(found) if group_names is None else tuple(group_names)
    place = {name: g for g, name in enumerate(names)}
    if strangers := [name for name in found if name not in place]:
        raise DataError(f"groups: {unknown_name('group', strangers[0], names)}")
    index = [-1 if gone else place[name] for gone, name in zip(missing.tolist(), text.tolist(), strict=True)]
    return np.array(index, np.int64), names or ("all",)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _counts(key: str, values: Any) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise DataError(f"evaluation: {key} must hold counts, found {array.dtype}")
    return array.astype(np.int64)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.1f} %"


def _listed(names: Sequence[str], most: int = 8) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _width(text: str) -> int:
    """Columns on a terminal: East Asian wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
