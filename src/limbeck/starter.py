"""`limbeck init`: looks at a file or folder and writes a commented configuration to start from.

Every guess is explained beside it, because a guess that nobody sees is a mistake that nobody finds.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.build import IMAGE_ENDINGS, image_table
from limbeck.errors import DataError, unknown_name
from limbeck.plain import parse_plain

if TYPE_CHECKING:
    import pyarrow as pa

# fmt: off
LABEL_NAMES = (
    "label", "labels", "target", "class", "y", "outcome", "income", "diagnosis", "species", "churn", "survived",
    "employed", "defect", "fraud", "approved", "readmitted", "default", "category", "quality",
)
"""Names of a label, the surest first."""

GROUP_NAMES = (
    "sex", "gender", "race", "ethnicity", "ethnic", "disability", "site", "hospital", "clinic", "centre", "center",
    "scanner", "device", "machine", "line", "branch", "plant", "factory", "region", "country", "state", "age_group",
    "skin", "source", "domain", "background", "environment", "camera", "operator", "annotator", "shift", "language",
)
"""Names of columns that often tell apart who a model works for and who it does not."""
# fmt: on

OUTPUT_NAMES = ("prediction", "predicted", "predictions", "pred", "probability", "proba", "score", "logit")
ID_NAMES = ("id", "index", "key", "uuid", "rowid", "sampleid")
ID_ENDINGS = ("id", "uuid", "key")
SPLIT_NAMES = ("split", "subset", "partition", "fold", "set")
SPLIT_VALUES = {"train", "training", "tr", "validation", "valid", "val", "dev", "test", "testing", "te"}
MISSING_TEXTS = {"?", "-", "--", "na", "n/a"}
"""Signs for a missing value. Words such as "unknown" are left alone: they may well be a group of people."""


MOST_CLASSES = 100
MOST_CELLS = 12
"""Values that a column may have and still be one to make groups over."""

FEWEST_IN_GROUP = 30
"""Rows that the smallest group must have for a guess: fewer, and its accuracy is a matter of luck."""


@dataclass(frozen=True)
class Starter:
    """A configuration to start from.

    Attributes:
        text: the YAML.
        seen: what was found in the data, one line each.
    """

    text: str
    seen: tuple[str, ...]


def starter(source: str | Path, *, label: str | None = None, folder: str | Path | None = None) -> Starter:
    """Look at data and write a configuration to start from.

    Args:
        source: a CSV or Parquet table, an `.npz` file, or a folder of images.
        label: the column (or array) of the classes, where the guess would be wrong.
        folder: where the configuration will be, for the paths in it; the working directory where none is given.

    Raises:
        DataError: where the source cannot be read, or nothing in it looks like a label.
    """
    path = Path(source).expanduser()
    place = Path(folder or "").resolve()
    if path.is_dir():
        plan = _images(path, label, place)
    elif not path.exists():
        raise DataError(f"there is no file or folder {path}")
    elif path.suffix.lower() == ".npz":
        plan = _arrays(path, label)
    else:
        plan = _table(path, label)
    text = _written(plan, _relative(path, place))
    parse_plain(text, name="starter")
    return Starter(text, tuple(map(_printable, plan.seen)))


# The plan and its text ------------------------------------------------------------------------------------------------


@dataclass
class _Plan:
    """What the configuration will say: lines of its data section, with comments, and the models that suit."""

    name: str
    kind: str
    seen: list[str] = field(default_factory=list)
    lines: list[tuple[str, str]] = field(default_factory=list)
    grouped: bool = False
    teacher: str = "{name: mlp, hidden: [256, 256]}"
    student: str = "{name: mlp, hidden: [16]}"
    epochs: int = 10

    def say(self, line: str, why: str = "") -> None:
        """One line of the data section, and the comment before it."""
        self.lines.append((line, why))


def _written(plan: _Plan, path: str) -> str:
    data = [f"  {plan.kind}: {_yaml(path)}"]
    for line, why in plan.lines:
        data += [f"  # {part}" for part in _wrapped(why)]
        data += [f"  {part}" for part in line.splitlines()]
    recipes = ["erm                                # the plain student, to be beaten"]
    if plan.grouped:
        recipes.append("group_dro                          # no teacher, but the groups of the training samples")
    recipes.append("{recipe: kd, teacher: erm}         # plain distillation")
    if plan.grouped:
        recipes.append("{recipe: groupdistil, teacher: erm}  # distillation that listens to the worst group")
    selection = (
        "worst_group  # the epoch kept is the best in its worst group on validation data"
        if plan.grouped
        else "average  # the epoch kept is the best on validation data; worst_group needs groups"
    )
    parts = [
        "# A configuration to start from. Every guess says why; correct what is wrong, then run:",
        "#   limbeck pilot <this file>",
        "# Paths are relative to this file.",
        f"name: {plan.name}",
        "",
        "data:",
        *data,
        "",
        "# The big model. It is trained here; for one you have, see weights, table or onnx in the documentation.",
        "teachers:",
        f"  erm: {{model: {plan.teacher}, recipe: erm}}",
        "",
        "# The small model that will be used. To compare sizes, name several: students: {tiny: linear, …}.",
        f"student: {plan.student}",
        "",
        "# What to compare. `limbeck recipes` lists them all.",
        "recipes:",
        *(f"  - {recipe}" for recipe in recipes),
        "",
        "training:",
        f"  epochs: {plan.epochs}",
        "  batch_size: 256",
        "  optimiser: adamw",
        "  learning_rate: 0.001",
        "",
        "seeds: [0, 1, 2]  # each recipe is run with each, so that luck can be told from method",
        f"selection: {selection}",
        "",
    ]
    return "\n".join(parts)


def _wrapped(text: str, width: int = 110) -> list[str]:
    return [line for part in text.splitlines() for line in textwrap.wrap(_printable(part), width)]


def _printable(text: str) -> str:
    """Text from the data made fit for a comment or a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


_PLAIN_TEXT = re.compile(r"[A-Za-z_./][A-Za-z0-9_./ -]*[A-Za-z0-9_./-]|[A-Za-z_./]")


def _yaml(value: str) -> str:
    """A text as YAML reads it back: as it is where that is safe, quoted otherwise."""
    if _PLAIN_TEXT.fullmatch(value) and parse_plain(f"x: {value}", name="x").values == {"x": value}:
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


def _yaml_list(values: Iterable[str]) -> str:
    return f"[{', '.join(map(_yaml, values))}]"


def _relative(path: Path, folder: Path) -> str:
    """The path from the configuration's folder, or the whole path where they share nothing."""
    absolute = path.resolve()
    if not set(absolute.parents) & {folder, *folder.parents} - {Path(absolute.anchor)}:
        return str(absolute)
    return Path(os.path.relpath(absolute, folder)).as_posix()


def _name(path: Path) -> str:
    stem = path.name.partition(".")[0] or "data"
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:40] or "data"


# Tables ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    """What a column looks like."""

    name: str
    kind: str
    """number, text, or other (dates, lists, …)."""
    whole: bool
    distinct: int
    missing: int
    rows: int
    counts: Mapping[str, int]
    """The most frequent values as text, up to a thousand of them."""

    @property
    def word(self) -> str:
        """Its name without case, dashes and the like, for comparing."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")

    @property
    def unique(self) -> bool:
        return self.distinct == self.rows and self.missing == 0

    def called(self, names: Sequence[str]) -> bool:
        return self.word in names or self.word.replace("_", "") in names

    @property
    def like_an_id(self) -> bool:
        """Whether its name says that it tells samples, people or parts apart, and its values may do so."""
        named = self.called(ID_NAMES) or self.word.endswith(tuple(f"_{name}" for name in ID_ENDINGS))
        return named and (self.whole or self.kind == "text") and self.distinct > MOST_CELLS

    def like(self, names: Sequence[str]) -> bool:
        """Whether its name is one of these, or begins or ends with one."""
        return self.called(names) or any(self.word.endswith(f"_{n}") or self.word.startswith(f"{n}_") for n in names)


def _look(table: pa.Table) -> list[_Column]:
    import pyarrow as pa
    import pyarrow.compute as pc

    found = []
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        number = (
            pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)
        )
        text = (
            pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_boolean(column.type)
        )
        counts: dict[str, int] = {}
        distinct = 0
        if number or text:
            known = column.drop_null()
            counted = pc.value_counts(known)
            distinct = len(counted)
            pairs = ((str(entry["values"]), entry["counts"].as_py()) for entry in counted[:1000])
            counts = dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))
        whole = pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)
        kind = "number" if number else "text" if text else "other"
        found.append(_Column(name, kind, whole, distinct, column.null_count, table.num_rows, counts))
    return found


def _table(path: Path, label: str | None) -> _Plan:
    from limbeck.data.tables import read_table

    table = read_table(path)
    columns = _look(table)
    missing = sorted({t for c in columns for t in c.counts if c.kind == "text" and t.strip().lower() in MISSING_TEXTS})
    if missing:
        # Only now is seen what is left of the columns, some of which turn out to be numbers.
        table = read_table(path, missing=missing)
        columns = _look(table)
    plan = _Plan(_name(path), "table")
    plan.seen.append(f"{path.name}: {table.num_rows:,} rows, {len(columns)} columns")

    split = next((c for c in columns if c.called(SPLIT_NAMES) and _says_split(c)), None)
    target, why = _label(columns, label, split)
    rest = [c for c in columns if c is not target and c is not split]
    key = next((c for c in rest if c.unique and c.whole and c.like_an_id), None)
    rest = [c for c in rest if c is not key]
    dropped = {c.name: reason for c in rest if (reason := _useless(c, target, table))}
    kept = [c for c in rest if c.name not in dropped]

    plan.say(f"label: {_yaml(target.name)}", why)
    _say_classes(plan, target.name, target.counts)
    _say_groups(plan, kept, target, table)
    if key is not None:
        plan.say(f"id: {_yaml(key.name)}", "A whole number of its own in every row: the sample's id.")
    else:
        plan.say("# id: <column>", "No column of unique whole numbers called id was found: the row number is the id.")
    if split is not None:
        plan.say(f"split: {_yaml(split.name)}", f"Says {', '.join(split.counts)}.")
    else:
        plan.say("fractions: [0.6, 0.2, 0.2]", "No column says which rows train: the split is made, by group and seed.")
    if dropped:
        lines = [f"{name}: {reason}" for name, reason in dropped.items()]
        plan.say(f"drop: {_yaml_list(dropped)}", "Not fed to the models:\n" + "\n".join(lines))
    if missing:
        plan.say(f"missing: {_yaml_list(missing)}", "Texts that seem to mean a missing value.")
    _say_kinds(plan, kept)
    empty = {c.name: c.missing for c in kept if c.missing}
    plan.seen.append(f"missing values: {_some(f'{n} {count:,}' for n, count in empty.items()) if empty else 'none'}")
    plan.epochs = 10 if table.num_rows >= 5_000 else 30
    return plan


def _says_split(column: _Column) -> bool:
    found = {text.strip().lower() for text in column.counts}
    return (
        column.missing == 0 and "train" in found | {v[:5] for v in found} and found <= SPLIT_VALUES and len(found) > 1
    )


def _label(columns: Sequence[_Column], wanted: str | None, split: _Column | None) -> tuple[_Column, str]:
    """The column of the classes, and why it is taken for that."""
    if wanted is not None:
        named = next((c for c in columns if c.name == wanted), None)
        if named is None:
            raise DataError(unknown_name("column", wanted, [c.name for c in columns]))
        _check_label(named)
        return named, "Named on the command line."
    possible = [
        c
        for c in columns
        if c is not split and not c.like_an_id and c.missing == 0 and 2 <= c.distinct <= MOST_CLASSES
        if c.kind == "text" or c.whole
    ]
    named_so = sorted((c for c in possible if c.word in LABEL_NAMES), key=lambda c: LABEL_NAMES.index(c.word))
    rules: list[tuple[Iterable[_Column], str]] = [
        (named_so, "its name says so"),
        ((c for c in possible if c.like(("label", "target", "class"))), "its name says so"),
        ((c for c in possible if c is columns[-1]), "the last column"),
        ((c for c in possible if c.word.startswith(("is_", "has_"))), "the name of a yes or no"),
        ((c for c in possible if c.distinct == 2 and not _group_like(c)), "the first column with two values"),
    ]
    for found, why in rules:
        for column in found:
            return column, f"Guessed: {why}, and it has {column.distinct} different values. --label names another."
    raise DataError(
        f"no column looks like a label (2 to {MOST_CLASSES} different values, none missing): name it with --label; "
        f"there are {_some(c.name for c in columns)}"
    )


def _check_label(column: _Column) -> None:
    if column.kind == "other" or column.distinct > MOST_CLASSES:
        raise DataError(
            f"column {column.name!r} has {column.distinct:,} different values: a label has 2 to {MOST_CLASSES}, "
            "so turn it into classes first"
        )
    if column.distinct < 2:
        raise DataError(f"column {column.name!r} has {column.distinct} value: a label has at least 2 classes")
    if column.missing:
        raise DataError(
            f"column {column.name!r} is missing in {column.missing:,} of {column.rows:,} rows: label or remove them"
        )


def _useless(column: _Column, target: _Column, table: pa.Table) -> str:
    """Why a column should not be a feature; nothing where it should."""
    if column.missing == column.rows:
        return "empty"
    if column.kind == "other":
        return f"of type {table.column(column.name).type}, which is neither a number nor a text"
    if column.distinct < 2 and not column.missing:
        return "the same in every row"
    if column.called(OUTPUT_NAMES) or column.like(("predicted", "prediction", "pred")):
        return "by its name the output of another model, which knows the label in its own way"
    if column.like_an_id and column.unique:
        return "a value of its own in every row"
    if column.like_an_id:
        return (
            f"{column.distinct:,} values over {column.rows:,} rows. If these are people or parts, rows of one of them "
            "should not be in training and test both: make the split yourself"
        )
    if column.kind == "text" and column.distinct > min(1000, column.rows // 2):
        return f"{column.distinct:,} different texts"
    if column.distinct == target.distinct and _copies(table, column.name, target.name):
        return "goes one to one with the label"
    return ""


def _copies(table: pa.Table, one: str, other: str) -> bool:
    pairs = table.select([one, other]).group_by([one, other]).aggregate([])
    ones, others = pairs.column(one).to_pylist(), pairs.column(other).to_pylist()
    return len(set(ones)) == len(ones) and len(set(others)) == len(others) and None not in ones


def _say_groups(plan: _Plan, kept: Sequence[_Column], target: _Column, table: pa.Table) -> None:
    """Which columns groups could be made over, and the guess."""
    from limbeck.data.columns import Column

    labels = Column.of(table.column(target.name), target.name)
    candidates: list[tuple[_Column, int, int]] = []
    for column in kept:
        discrete = column.kind == "text" or column.whole
        if not discrete or not 2 <= column.distinct <= MOST_CELLS or column.missing > column.rows // 5:
            continue
        values = Column.of(table.column(column.name), column.name)
        cells = np.bincount((labels.codes * len(values.values) + values.codes)[values.codes >= 0])
        candidates.append((column, int(cells[cells > 0].min()), int((cells > 0).sum())))
    candidates.sort(key=lambda entry: (not _group_like(entry[0]), entry[0].kind != "text", entry[0].distinct))
    good = [entry for entry in candidates if entry[1] >= FEWEST_IN_GROUP]
    plan.grouped = True
    if not good:
        plan.say("groups: [label]", "No column was found that makes groups of enough rows: each class is a group.")
        plan.seen.append(f"smallest class: {min(target.counts.values()):,} rows")
        return
    chosen, smallest, cells_found = good[0]
    names = [column.name for column, _, _ in candidates[:4]]
    if chosen.name not in names:
        names[-1] = chosen.name
    why = "a name that often tells groups apart" if _group_like(chosen) else f"{chosen.distinct} different values"
    plan.say(
        f"attributes: {_yaml_list(names)}",
        f"Columns with up to {MOST_CELLS} values: groups can be made over them. They stay features as well.",
    )
    others = "; ".join(f"{c.name} ({number} groups, the smallest {rows:,})" for c, rows, number in good[1:4])
    plan.say(
        f"groups: {_yaml_list(['label', chosen.name])}",
        f"The groups that no student may fail: each class within each {chosen.name} ({why}), {cells_found} groups, the "
        f"smallest of {smallest:,} rows. Others with enough rows: {others or 'none'}.",
    )
    plan.seen.append(f"groups: label × {chosen.name}, the smallest of {cells_found} has {smallest:,} rows")


def _group_like(column: _Column) -> bool:
    return column.like(GROUP_NAMES)


def _say_kinds(plan: _Plan, kept: Sequence[_Column]) -> None:
    codes = [c.name for c in kept if c.whole and c.kind == "number" and 3 <= c.distinct <= MOST_CELLS]
    numbers = sum(c.kind == "number" for c in kept)
    plan.seen.append(f"features: {numbers} numeric columns, {len(kept) - numbers} of texts")
    if codes:
        plan.say(
            f"# categorical: {_yaml_list(codes)}",
            "Whole numbers with few values are read as numbers. Where they are codes, remove the #.",
        )


def _say_classes(plan: _Plan, name: str, counts: Mapping[str, int]) -> None:
    total = sum(counts.values())
    shown = (f"{value} {count:,} ({count / total:.0%})" for value, count in counts.items())
    plan.seen.append(f"label {name}: {len(counts)} classes, {_some(shown)}")


def _some(parts: Iterable[str], limit: int = 6) -> str:
    listed = list(parts)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


# Arrays ---------------------------------------------------------------------------------------------------------------


def _arrays(path: Path, label: str | None) -> _Plan:
    from limbeck.data.npz import read_npz

    arrays = read_npz(path)
    plan = _Plan(_name(path), "npz")
    plan.seen.append(f"{path.name}: " + _some(f"{key} {list(a.shape)} {a.dtype}" for key, a in arrays.items()))
    inputs = _inputs(path, arrays)
    count = len(arrays[inputs])
    target = _label_array(path, arrays, label, inputs, count)
    values, numbers = np.unique(arrays[target], return_counts=True)
    names = _class_names(arrays, values)
    plan.say(f"x: {_yaml(inputs)}", f"The inputs: {_shape(arrays[inputs].shape)}.")
    why = f"Guessed: {len(values)} different values. --label names another."
    plan.say(f"label: {_yaml(target)}", why if label is None else "Named on the command line.")
    if names is not None:
        plan.say(f"classes: {_yaml(names)}", "As many texts as there are classes: their names.")
    shown = map(str, values if names is None else arrays[names])
    _say_classes(plan, target, dict(zip(shown, map(int, numbers), strict=True)))
    others = {k: a for k, a in arrays.items() if k not in (inputs, target) and a.ndim == 1 and len(a) == count}
    split = next((k for k, a in others.items() if k.lower() in SPLIT_NAMES and _split_array(a)), None)
    _say_array_groups(plan, {k: a for k, a in others.items() if k != split}, arrays[target])
    if split is not None:
        plan.say(f"split: {_yaml(split)}", f"Says {', '.join(map(str, np.unique(others[split])))}.")
    else:
        why = "No array says which samples train: the split is made, by group and seed."
        numbered = next((k for k in others if k.lower() in SPLIT_NAMES), None)
        if numbered is not None:
            found = ", ".join(map(str, np.unique(others[numbered])[:6]))
            why = (
                f"The array {numbered!r} holds {found}. It would be read as 0 train, 1 validation, 2 test, and "
                "that would leave one of these empty: write it as texts to use it. Until then a split "
                "is made."
            )
        plan.say("fractions: [0.6, 0.2, 0.2]", why)
    _suit_models(plan, arrays[inputs].shape[1:])
    return plan


def _inputs(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    apart = [key for key in arrays if key.lower() in ("x_train", "x_test")]
    if len(apart) == 2:
        raise DataError(
            f"{path}: training and test samples are in arrays of their own ({', '.join(apart)}): join them to one "
            "array x and one array y, and add an array split of 'train' and 'test'"
        )
    possible = [key for key, a in arrays.items() if a.ndim >= 2 and a.dtype.kind in "fiu"]
    if not possible:
        raise DataError(f"{path}: no array looks like inputs [N, ...] of numbers; there are {_some(arrays)}")
    return next((key for key in possible if key.lower() == "x"), max(possible, key=lambda key: arrays[key].size))


def _label_array(
    path: Path, arrays: Mapping[str, np.ndarray[Any, Any]], label: str | None, inputs: str, count: int
) -> str:
    if label is not None:
        if label not in arrays:
            raise DataError(unknown_name("array", label, arrays))
        return label
    possible = [
        k for k, a in arrays.items() if a.ndim == 1 and len(a) == count and a.dtype.kind in "iuUb" and k != inputs
    ]
    possible = [k for k in possible if k.lower() not in SPLIT_NAMES and 2 <= len(np.unique(arrays[k])) <= MOST_CLASSES]
    if not possible:
        raise DataError(
            f"{path}: no array looks like labels [{count}] of 2 to {MOST_CLASSES} classes: name it with --label"
        )
    return next((k for name in LABEL_NAMES for k in possible if k.lower() == name), possible[0])


def _split_array(array: np.ndarray[Any, Any]) -> bool:
    found = {str(value).lower() for value in np.unique(array)}
    return len(found) > 1 and (found <= SPLIT_VALUES or found in ({"0", "1", "2"}, {"0", "2"}))


def _class_names(arrays: Mapping[str, np.ndarray[Any, Any]], values: np.ndarray[Any, Any]) -> str | None:
    """The array of the names of classes 0, 1, …, where there is just one that could be it."""
    if values.dtype.kind not in "iu" or [int(v) for v in values] != list(range(len(values))):
        return None
    found = [k for k, a in arrays.items() if a.dtype.kind == "U" and a.shape == values.shape and len(set(a)) == len(a)]
    return "classes" if "classes" in found else found[0] if len(found) == 1 else None


def _say_array_groups(plan: _Plan, others: Mapping[str, np.ndarray[Any, Any]], labels: np.ndarray[Any, Any]) -> None:
    codes = np.unique(labels, return_inverse=True)[1]
    good = []
    for key, array in others.items():
        values, index = np.unique(array, return_inverse=True)
        if array.dtype.kind not in "iuUb" or not 2 <= len(values) <= MOST_CELLS or key.lower() in ID_NAMES:
            continue
        cells = np.bincount(codes * len(values) + index)
        smallest = int(cells[cells > 0].min())
        if smallest >= FEWEST_IN_GROUP:
            good.append((key.lower() not in GROUP_NAMES, key, smallest, int((cells > 0).sum())))
    plan.grouped = True
    if not good:
        plan.say("groups: [label]", "No array was found that makes groups of enough samples: each class is a group.")
        return
    _, key, smallest, number = min(good)
    plan.say(f"attributes: {_yaml_list(entry[1] for entry in good)}", f"Arrays with up to {MOST_CELLS} values.")
    plan.say(
        f"groups: {_yaml_list(['label', key])}",
        f"The groups that no student may fail: each class within each {key}, {number} groups, the smallest of "
        f"{smallest:,} samples.",
    )
    plan.seen.append(f"groups: label × {key}, the smallest of {number} has {smallest:,} samples")


def _shape(shape: Sequence[int]) -> str:
    return f"{shape[0]:,} samples of {' × '.join(map(str, shape[1:]))}"


def _suit_models(plan: _Plan, shape: Sequence[int]) -> None:
    """Convolutions for images, perceptrons for the rest."""
    if len(shape) == 3:
        plan.teacher, plan.student = "resnet20", "{name: cnn, channels: [8, 16, 32]}"
        if min(shape[1:]) > 64:
            plan.teacher = "{name: cnn, channels: [32, 64, 128, 256]}"


# Images ---------------------------------------------------------------------------------------------------------------


def _images(folder: Path, label: str | None, place: Path) -> _Plan:
    from PIL import Image

    tables = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".csv", ".parquet", ".tsv"))
    plan = _Plan(_name(folder.resolve()), "images")
    if tables:
        _about_images(plan, tables[0], label, place)
        first = next((p for p in sorted(folder.rglob("*")) if p.suffix.lower() in IMAGE_ENDINGS), None)
        if first is None:
            raise DataError(f"{folder}: there is no image in it")
    else:
        if label is not None:
            raise DataError(f"{folder} holds no table, so there is no column {label!r}: the folders are the classes")
        table = image_table(folder)
        first = folder / table["file"][0]
        plan.seen.append(f"{folder.name}: {len(table['file']):,} images")
        values, numbers = np.unique(table["label"], return_counts=True)
        _say_classes(plan, "(folder)", dict(zip(map(str, values), map(int, numbers), strict=True)))
        plan.grouped = True
        plan.say("groups: [label]", "The folders are the classes, and nothing else is known: each class is a group.")
        if "split" not in table:
            plan.say(
                "fractions: [0.6, 0.2, 0.2]", "The folders do not say which images train: the split is made by seed."
            )
    try:
        with Image.open(first) as image:
            width, height, mode = image.width, image.height, image.mode
    except OSError as error:
        raise DataError(f"{first} cannot be read as an image: {error}") from error
    plan.seen.append(f"first image: {height} × {width} pixels, mode {mode}")
    side = min(height, width)
    if height != width or side > 64:
        side = 64
        plan.say("size: 64", f"The first image is {height} × {width}: all are resized to 64 × 64. Larger is slower.")
    else:
        plan.say(f"size: {side}", "The size of the first image; others are resized to it.")
    plan.say(f"mode: {'L' if mode in ('L', '1', 'I', 'F') else 'RGB'}", "L for one channel, RGB for three.")
    _suit_models(plan, (3, side, side))
    return plan


def _about_images(plan: _Plan, path: Path, label: str | None, place: Path) -> None:
    """The part of the plan that a table about the images decides."""
    from limbeck.data.tables import read_table

    table = read_table(path)
    columns = _look(table)
    plan.seen.append(f"{path.name}: {table.num_rows:,} rows, {len(columns)} columns")
    file = next((c for c in columns if c.kind == "text" and _names_images(c)), None)
    if file is None:
        raise DataError(
            f"{path}: no column names image files (such as a.png); there are {_some(c.name for c in columns)}"
        )
    plan.say(f"table: {_yaml(_relative(path, place))}", "The table in the folder.")
    plan.say(f"file: {_yaml(file.name)}", "Its texts end like image files.")
    rest = [c for c in columns if c is not file]
    split = next((c for c in rest if c.called(SPLIT_NAMES) and _says_split(c)), None)
    target, why = _label(rest, label, split)
    plan.say(f"label: {_yaml(target.name)}", why)
    _say_classes(plan, target.name, target.counts)
    kept = [c for c in rest if c is not target and c is not split and not _useless(c, target, table)]
    _say_groups(plan, kept, target, table)
    if split is not None:
        plan.say(f"split: {_yaml(split.name)}", f"Says {', '.join(split.counts)}.")
    else:
        plan.say(
            "fractions: [0.6, 0.2, 0.2]", "No column says which images train: the split is made, by group and seed."
        )


def _names_images(column: _Column) -> bool:
    return bool(column.counts) and all(text.lower().endswith(IMAGE_ENDINGS) for text in column.counts)
