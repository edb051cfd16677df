"""The errors a user meets: each says what was found, what was expected and the way out."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class LimbeckError(ValueError):
    """Base of every error that Limbeck raises on purpose."""


class DataError(LimbeckError):
    """The data cannot be used as they are: names the file, column or id at fault."""


class ConfigError(LimbeckError):
    """The configuration cannot be used: names the key."""


class RecipeError(LimbeckError):
    """The parts of a recipe do not fit each other, the data or the teacher."""


class TeacherError(LimbeckError):
    """The teacher cannot supply what is asked of it."""


class StoreError(LimbeckError):
    """A store of teacher outputs is stale, truncated or belongs to something else."""


class CheckpointError(LimbeckError):
    """A checkpoint cannot be resumed from."""


class MissingExtraError(LimbeckError, ImportError):
    """A feature needs an optional package that is not installed."""


def unknown_name(kind: str, found: object, options: Iterable[str]) -> str:
    """The sentence for a name that does not exist, with the nearest one that does.

    >>> unknown_name("recipe", "grup_dro", ["erm", "group_dro"])
    "unknown recipe 'grup_dro': did you mean 'group_dro'? Known: erm, group_dro"
    """
    names = sorted(options)
    near = difflib.get_close_matches(str(found), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {str(found)!r}: {hint}Known: {', '.join(names)}"


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module.

    Raises:
        MissingExtraError: where it is not installed, naming the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is needed here and cannot be imported ({error}): pip install 'limbeck[{extra}]'"
        ) from error
