"""What a teacher is: a source of outputs by sample id that says, before any training, what it can supply."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import LimbeckError, TeacherError, unknown_name
from limbeck.predict import InputReader

if TYPE_CHECKING:
    from limbeck.data import Data

SUPPLIES: Mapping[str, str] = MappingProxyType(
    {
        "logits": "logits",
        "probabilities": "probabilities",
        "features": "features (the input of the last layer)",
        "maps": "feature maps",
        "head": "the last layer",
        "teachers_logits": "the logits of several teachers kept apart",
    }
)
"""Everything a teacher may supply, and how a message calls it."""

FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "teacher_logits": "logits",
        "teachers_logits": "teachers_logits",
        "teacher_features": "features",
        "teacher_maps": "maps",
    }
)
"""The fields of a batch that come from a teacher, and which of `SUPPLIES` each is."""

BY_CLASS = frozenset({"logits", "probabilities", "teachers_logits"})
"""What has one value a class, so that the teacher's classes must be the data's."""

_SHOWN = 5
_CHECKED_ROWS = 32


@runtime_checkable
class Teacher(Protocol):
    """A source of teacher outputs.

    Subclassing `Source` gives `head` and `check`; any object with these members will do.
    """

    @property
    def supplies(self) -> frozenset[str]:
        """What it can supply, names of `SUPPLIES`."""

    @property
    def classes(self) -> int:
        """The number of classes C; 0 where it supplies features only."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes in the order of its outputs; None where it knows only their number."""

    def fingerprint(self) -> str:
        """A hash that changes with anything that changes the outputs."""

    def outputs(self, x: Any, ids: Any, want: Sequence[str]) -> dict[str, Tensor]:
        """The outputs of a batch, float32 and without gradients.

        Args:
            x: inputs as a model sees them, a tensor or a mapping of tensors; a source that goes by id ignores them.
            ids: the samples' ids `[B]`, int64.
            want: names of `SUPPLIES`, `head` aside.

        Returns:
            `logits` `[B, C]`, `probabilities` `[B, C]`, `features` `[B, D]`, `maps` `[B, channels, H, W]`,
            `teachers_logits` `[T, B, C]`. Maps of several layers are called `maps.0`, `maps.1`, ...
        """

    def head(self) -> tuple[Tensor, Tensor]:
        """Weight `[C, D]` and bias `[C]` of the last layer; raises `TeacherError` where there is none to give."""

    def check(self, data: Data, want: Sequence[str] | None = None) -> None:
        """Raise `TeacherError` where it cannot teach these data: called before any training.

        Args:
            want: what will be asked of it; by default its logits or probabilities.
        """


class Source:
    """What the teachers of this package share: refusals with a way out, and the check against the data."""

    description: str = "a teacher"
    reads_inputs: bool = True
    advice: Mapping[str, str] = MappingProxyType({})
    """For what it cannot supply, the way out."""

    @property
    def supplies(self) -> frozenset[str]:
        raise TypeError(f"{type(self).__name__} does not say what it supplies")

    @property
    def classes(self) -> int:
        raise TypeError(f"{type(self).__name__} does not say how many classes it knows")

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return None

    def fingerprint(self) -> str:
        raise TypeError(f"{type(self).__name__} has no fingerprint")

    def outputs(self, x: Any, ids: Any, want: Sequence[str]) -> dict[str, Tensor]:
        raise TypeError(f"{type(self).__name__} has no outputs")

    def head(self) -> tuple[Tensor, Tensor]:
        raise TeacherError(refusal(self, ("head",), "this call"))

    def check(self, data: Data, want: Sequence[str] | None = None) -> None:
        check_teacher(self, data, want)

    def accepts(self, data: Data) -> None:
        """Raise where it knows too little of these data, such as missing ids; part of `check`."""

    def computed(self, how: Mapping[str, Any], example: Any) -> Source:
        """This teacher, computing otherwise where it can: the same outputs up to rounding, the same fingerprint.

        Args:
            how: any of `channels_last`, `autocast` (to bfloat16), `fold` (batch normalisation into the layers before)
                and `compile`, true or false.
            example: a batch of inputs.
        """
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.description}, {self.classes} classes)"


def describe(teacher: Teacher) -> str:
    """How a message calls a teacher: `a table of probabilities`, `an ONNX file 'model.onnx'`."""
    return str(getattr(teacher, "description", f"a {type(teacher).__name__}"))


def reads_inputs(teacher: Teacher) -> bool:
    """Whether `outputs` looks at the inputs, and not only at the ids."""
    return bool(getattr(teacher, "reads_inputs", True))


def refusal(teacher: Teacher, missing: Iterable[str], by: str) -> str:
    """The sentence for what a teacher cannot supply: what it can, what was asked, the way out."""
    lacking = list(missing)
    advice: Mapping[str, str] = getattr(teacher, "advice", {})
    ways = list(dict.fromkeys(advice[name] for name in lacking if name in advice))
    able = _joined(SUPPLIES[name] for name in SUPPLIES if name in teacher.supplies)
    message = f"{describe(teacher)} supplies {able}; {by} needs {_joined(SUPPLIES[name] for name in lacking)}"
    return f"{message}: {'; '.join(ways)}" if ways else message


def as_names(want: Iterable[str]) -> tuple[str, ...]:
    """Names as a tuple; one name may be given as it is."""
    return (want,) if isinstance(want, str) else tuple(want)


def require(teacher: Teacher, wanted: Iterable[str], by: str = "this recipe") -> None:
    """Refuse a teacher that cannot supply what is wanted; called where a combination is made, before any training.

    Args:
        wanted: names of `SUPPLIES`, or of the fields of a batch (`teacher_logits`, `teacher_features`, ...).
        by: who wants it, as the message shall say: `recipe 'dett'`.

    Raises:
        TeacherError: naming what it can supply, what is missing and the way out.
    """
    names = [FIELDS.get(name, name) for name in as_names(wanted)]
    for name in names:
        if name not in SUPPLIES:
            raise TeacherError(unknown_name("teacher output", name, [*SUPPLIES, *FIELDS]))
    missing = [name for name in SUPPLIES if name in names and name not in teacher.supplies]
    if missing:
        raise TeacherError(refusal(teacher, missing, by))


def check_teacher(teacher: Teacher, data: Data, want: Sequence[str] | None = None) -> None:
    """Label space, one real batch, and whether an answer depends on the sample alone.

    Raises:
        TeacherError: where the classes are not the data's, where a real batch fails, has a wrong shape or values that
            are not finite, or where the same sample is answered differently in another batch.
    """
    accept(teacher, data)
    # A recipe that needs logits only is not refused for features that cannot be tapped.
    names = set(teacher.supplies & BY_CLASS or teacher.supplies) if want is None else set(as_names(want))
    require(teacher, names, "the check")
    if names & (BY_CLASS | {"head"}):
        check_label_space(teacher, data)
    shortened = bool(getattr(teacher, "shortened", False))
    if "head" in names and {"logits", "features"} <= teacher.supplies:
        names |= {"logits", "features"}
    asked = [name for name in SUPPLIES if name in names and name != "head"]
    count = len(data)
    if count == 0 or not asked:
        return
    rows = np.unique(np.linspace(0, count - 1, min(count, _CHECKED_ROWS)).astype(np.int64))
    reader = InputReader(data)
    found = batch_outputs(teacher, reader, data, rows, asked)
    if reads_inputs(teacher) and len(rows) > 1:
        _check_sample_alone(teacher, reader, data, rows, asked, found)
    if {"head", "logits", "features"} <= names and not shortened:
        _check_head(teacher, found["features"], found["logits"])


def accept(teacher: Teacher, data: Data) -> None:
    """Call the teacher's `accepts`, where it has one."""
    accepts = getattr(teacher, "accepts", None)
    if accepts is not None:
        accepts(data)


def check_label_space(teacher: Teacher, data: Data) -> None:
    """Raise `TeacherError` unless the teacher's classes are the data's, in the data's order."""
    names, theirs = teacher.class_names, tuple(map(str, data.classes))
    if teacher.classes != data.num_classes:
        raise TeacherError(
            f"{describe(teacher)} has {teacher.classes} classes{_in_brackets(names)}, the data {data.name!r} have "
            f"{data.num_classes}{_in_brackets(theirs)}: say which of its classes is which of theirs with "
            "map_classes(teacher, ...)"
        )
    if names is None or names == theirs:
        return
    if sorted(names) == sorted(theirs):
        raise TeacherError(
            f"{describe(teacher)} has the classes of the data {data.name!r} in another order{_in_brackets(names)}, "
            f"the data have{_in_brackets(theirs)}: map_classes(teacher, data.classes) puts them in the data's order"
        )
    place = next(index for index, (own, other) in enumerate(zip(names, theirs)) if own != other)
    raise TeacherError(
        f"{describe(teacher)} and the data {data.name!r} name their classes differently: class {place} is "
        f"{names[place]!r} for the teacher and {theirs[place]!r} in the data: say which is which with "
        "map_classes(teacher, {teacher's class: data's class, ...}, classes=data.classes)"
    )


def batch_outputs(
    teacher: Teacher, reader: InputReader, data: Data, rows: np.ndarray[Any, Any], want: Sequence[str]
) -> dict[str, Tensor]:
    """The outputs of these rows of the data, checked: complete, of the right shape, finite, float32.

    Raises:
        TeacherError: naming the output and, where values are not finite, the ids.
    """
    ids = torch.from_numpy(np.asarray(data.ids)[rows])
    x = reader(torch.from_numpy(rows)) if reads_inputs(teacher) else None
    return checked_outputs(teacher, x, ids, want)


def checked_outputs(teacher: Teacher, x: Any, ids: Tensor, want: Sequence[str]) -> dict[str, Tensor]:
    """One call of `outputs`, checked; see `batch_outputs`."""
    try:
        found = teacher.outputs(x, ids, want)
    except LimbeckError:
        raise
    except Exception as error:
        raise TeacherError(f"{describe(teacher)} fails on inputs of shape {_shapes(x)}: {error}") from error
    checked = {}
    for name in want:
        parts = {key: value for key, value in found.items() if key == name or key.startswith(f"{name}.")}
        if not parts:
            raise TeacherError(f"{describe(teacher)} was asked for {name!r} and returned {sorted(found) or 'nothing'}")
        for key, value in parts.items():
            _check_values(teacher, key, value, ids)
            checked[key] = value.float()
    return checked


def batch_axis(name: str) -> int:
    """Along which axis the samples of an output lie: 1 for `teachers_logits` `[T, B, C]`, 0 for all others."""
    return 1 if name == "teachers_logits" else 0


def shown(values: Iterable[object]) -> str:
    """The first few of some values, for a message."""
    found = [str(value) for value in values]
    return ", ".join(found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")


def _check_values(teacher: Teacher, name: str, value: Tensor, ids: Tensor) -> None:
    axis, batch = batch_axis(name), len(ids)
    dimensions = {"logits": 2, "probabilities": 2, "features": 2, "teachers_logits": 3}.get(name)
    shape = tuple(value.shape)
    if (dimensions or max(value.ndim, 2)) != value.ndim or shape[axis] != batch:
        raise TeacherError(f"{describe(teacher)} returned {name} of shape {shape} for {batch} samples")
    if name in BY_CLASS and shape[-1] != teacher.classes:
        raise TeacherError(
            f"{describe(teacher)} returned {name} of {shape[-1]} classes and was declared with {teacher.classes}"
        )
    # The sum of finite values may overflow, that of others is never finite: so mostly one pass without a copy will do.
    if not bool(torch.isfinite(value.sum())) and not bool(torch.isfinite(value).all()):
        good = torch.isfinite(value).movedim(axis, 0).flatten(1).all(1)
        raise TeacherError(
            f"{describe(teacher)} returned {name} that are not finite for {int((~good).sum())} of {batch} samples "
            f"(ids {shown(ids[~good.cpu()].tolist())}): check these inputs and its weights"
        )


def _check_head(teacher: Teacher, features: Tensor, logits: Tensor) -> None:
    weight, bias = teacher.head()
    if weight.shape != (teacher.classes, features.shape[1]) or bias.shape != (teacher.classes,):
        raise TeacherError(
            f"the last layer of {describe(teacher)} has weight {tuple(weight.shape)} and bias {tuple(bias.shape)}, "
            f"its features are {features.shape[1]} wide and its classes {teacher.classes}: name the layer that "
            "makes the logits"
        )
    made = features.double() @ weight.double().T.to(features.device) + bias.double().to(features.device)
    if not _close(made.float(), logits):
        raise TeacherError(
            f"the logits of {describe(teacher)} are not its last layer applied to its features: something comes after "
            "that layer, or another layer makes the logits (name it)"
        )


def _check_sample_alone(
    teacher: Teacher,
    reader: InputReader,
    data: Data,
    rows: np.ndarray[Any, Any],
    want: Sequence[str],
    whole: Mapping[str, Tensor],
) -> None:
    again = batch_outputs(teacher, reader, data, rows[: (len(rows) + 1) // 2], want)
    for name, value in again.items():
        axis = batch_axis(name)
        if not _close(value, whole[name].narrow(axis, 0, value.shape[axis])):
            raise TeacherError(
                f"{describe(teacher)} answers the same sample differently in another batch or at another time "
                f"({name}): dropout that ignores evaluation mode, batch norm without running statistics, or noise; "
                "a teacher must be a function of the sample alone"
            )


def _close(found: Tensor, expected: Tensor) -> bool:
    # Loose enough for a bfloat16 teacher, whose kernels differ with the batch size.
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    return bool(((found - expected).abs() <= 2e-2 * scale + 1e-5).all())


def _joined(words: Iterable[str]) -> str:
    found = list(words)
    return " and ".join([", ".join(found[:-1]), found[-1]]) if len(found) > 1 else (found[0] if found else "nothing")


def _in_brackets(names: Sequence[str] | None) -> str:
    return f" ({shown(names)})" if names else ""


def _shapes(x: Any) -> str:
    if isinstance(x, Mapping):
        return ", ".join(f"{name} {tuple(value.shape)}" for name, value in x.items())
    return str(tuple(x.shape)) if hasattr(x, "shape") else type(x).__name__
