"""Checked settings: strict types, unknown keys refused, every problem named by its path and told in one sentence.

A `Section` is a frozen pydantic model. What it refuses comes out of `problems` as (path, sentence) pairs, so that a
caller who knows the file and its lines can say where.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

_OURS = "limbeck"
_LONGEST = 60


class Problem(NamedTuple):
    """One thing wrong with the settings: where, and what."""

    path: tuple[str | int, ...]
    message: str

    def __str__(self) -> str:
        where = dotted(self.path)
        return f"{where}: {self.message}" if where else self.message


class Section(BaseModel):
    """A part of the settings: strict, frozen, no key that is not declared."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _in_our_words(cls, value: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # Only here is the class known whose keys an unknown key should be compared with.
        try:
            return handler(value)
        except ValidationError as error:
            found = error.errors(include_url=False)
            # A list counts as too short when its items are refused; the items have then said it all.
            found = [d for d in found if d["type"] != "too_short" or not _any_below(d["loc"], found)]
            raise ValidationError.from_exception_data(cls.__name__, [_translated(cls, d) for d in found]) from None

    def plain(self) -> dict[str, Any]:
        """Plain data that is checked to an equal section; what was not written and is not set is left out."""
        # A null that was written stays: it may differ from saying nothing.
        return {key: _plain(value) for key, value in self if value is not None or key in self.model_fields_set}


def _plain(value: object) -> Any:
    match value:
        case Section():
            return value.plain()
        case Path():
            return str(value)
        case Mapping():
            return {str(key): _plain(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_plain(entry) for entry in value]
    return value


def problem(message: str) -> PydanticCustomError:
    """What a validator raises to refuse a value, in words of our own."""
    return PydanticCustomError(_OURS, "{message}", {"message": message})


def problem_at(path: Iterable[str | int], message: str, value: object = None) -> InitErrorDetails:
    """One problem at a path below the section that is being checked; for `refuse`."""
    return InitErrorDetails(type=problem(message), loc=tuple(path), input=value)


def refuse(title: str, details: list[InitErrorDetails]) -> None:
    """Raise all of `details` at once; nothing where there are none."""
    if details:
        raise ValidationError.from_exception_data(title, details)


def details(error: ValidationError) -> list[InitErrorDetails]:
    """What a refused section says, to be raised again beside something else."""
    return [problem_at(d["loc"], _sentence(d), d["input"]) for d in error.errors(include_url=False)]


def problems(error: ValidationError) -> list[Problem]:
    """What a refused section says, as paths and sentences."""
    # pydantic marks a refused key of a mapping by a further step of the path.
    return [Problem(tuple(p for p in d["loc"] if p != "[key]"), _sentence(d)) for d in error.errors(include_url=False)]


def dotted(path: Iterable[str | int]) -> str:
    """A path as people write it.

    >>> dotted(("teachers", "erm", "model", "hidden", 0))
    'teachers.erm.model.hidden[0]'
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def nearest(found: object, options: Iterable[str]) -> str:
    """`did you mean 'x'? ` for the nearest of the options, or nothing."""
    near = difflib.get_close_matches(str(found), sorted(options), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""


def described(value: object) -> str:
    """A value as an error message shows it: its kind and, where short, itself."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case str():
            return f"the text {_clipped(value)!r}"
        case int() | float():
            return str(value)
        case list() | tuple():
            return "a list" if value else "an empty list"
        case Mapping():
            return "a mapping" if value else "an empty mapping"
    return f"a {type(value).__name__}"


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _any_below(path: tuple[int | str, ...], found: list[ErrorDetails]) -> bool:
    return any(len(d["loc"]) > len(path) and d["loc"][: len(path)] == path for d in found)


def _translated(section: type[Section], detail: ErrorDetails) -> InitErrorDetails:
    if detail["type"] == "extra_forbidden" and len(detail["loc"]) == 1:
        known = sorted(section.model_fields)
        message = f"unknown key: {nearest(detail['loc'][0], known)}Known: {', '.join(known)}"
    else:
        message = _sentence(detail)
    return InitErrorDetails(type=problem(message), loc=detail["loc"], input=detail["input"])


_EXPECTED: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "string_pattern_mismatch": "letters, digits, dots, dashes and underscores, 64 at most",
    "multiple_of": "a multiple of {multiple_of}",
    "too_short": "at least {min_length} of them",
    "string_too_short": "a text that is not empty",
}


def _sentence(detail: ErrorDetails) -> str:
    kind, found, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == _OURS:
        return cast(str, context["message"])
    if kind == "missing":
        return "missing"
    if kind == "literal_error":
        options = [option.strip("' ") for option in str(context["expected"]).replace(" or ", ", ").split(",")]
        return f"found {described(found)}: {nearest(found, options)}Known: {', '.join(options)}"
    if kind in _EXPECTED:
        return f"found {described(found)}, expected {_EXPECTED[kind].format(**context)}"
    return detail["msg"]


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _as_texts(value: object) -> object:
    return (value,) if isinstance(value, str) else _as_tuple(value)


def _file(value: object, info: ValidationInfo) -> Path:
    path = _path(value, info)
    if path.is_dir():
        raise problem(f"{path} is a folder, expected a file")
    if not path.is_file():
        raise problem(f"there is no file {path}")
    return path


def _folder(value: object, info: ValidationInfo) -> Path:
    path = _path(value, info)
    if path.is_file():
        raise problem(f"{path} is a file, expected a folder")
    if not path.is_dir():
        raise problem(f"there is no folder {path}")
    return path


def _path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, (str, Path)) or not str(value) or "\0" in str(value):
        raise problem(f"found {described(value)}, expected a path")
    folder: Path = (cast(Any, info.context) or {}).get("folder") or Path()
    return Path.cwd() / folder / Path(value).expanduser()


Count = Annotated[int, Field(ge=1)]
"""A whole number of at least one."""

Natural = Annotated[int, Field(ge=0)]
"""A whole number of at least zero."""

Text = Annotated[str, Field(min_length=1)]
"""A text that is not empty."""

Texts = Annotated[tuple[Text, ...], BeforeValidator(_as_texts)]
"""A list of texts; a text alone is a list of one."""

Counts = Annotated[tuple[Count, ...], Field(min_length=1), BeforeValidator(_as_tuple)]
"""A list of whole numbers of at least one, not empty."""

FromList = BeforeValidator(_as_tuple)
"""A list, as files write it, where a tuple is declared."""

InputFile = Annotated[Path, BeforeValidator(_file)]
"""An existing file; a relative path is taken from the context's `folder`, the configuration's own."""

InputFolder = Annotated[Path, BeforeValidator(_folder)]
"""An existing folder; a relative path is taken from the context's `folder`, the configuration's own."""
