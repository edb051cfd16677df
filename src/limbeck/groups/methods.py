"""The methods of discovery by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from limbeck.errors import ConfigError, unknown_name
from limbeck.groups.clusters import Clusters
from limbeck.groups.errors import Disagreement, Errors
from limbeck.groups.mixture import Mixture
from limbeck.groups.rules import Method
from limbeck.groups.tree import Tree

METHODS: Mapping[str, type[Any]] = MappingProxyType(
    {method.name: method for method in (Errors, Tree, Clusters, Mixture, Disagreement)}
)


def as_method(method: str | Method, options: Mapping[str, Any] | None = None) -> Method:
    """A method by name with options, or one that is made already, as it is.

    Raises:
        ConfigError: for an unknown name or option, with the nearest known one, or a value of another type.
    """
    options = dict(options or {})
    if not isinstance(method, str):
        if options:
            raise ConfigError(f"options {', '.join(options)} are given beside a method that is made already")
        return method
    if method not in METHODS:
        raise ConfigError(unknown_name("way to discover groups", method, METHODS))
    known = {entry.name: entry for entry in dataclasses.fields(METHODS[method])}
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"{method}: {unknown_name('option', name, known)}")
        _check_type(method, name, value, known[name].default)
    return cast(Method, METHODS[method](**options))


def _check_type(method: str, name: str, value: Any, default: Any) -> None:
    """An option is of the type of its default; a whole number does for any number."""
    if default is None:
        fits, expected = value is None or isinstance(value, (list, tuple)), "a list of names"
    elif isinstance(default, bool):
        fits, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        fits, expected = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif isinstance(default, float):
        fits, expected = isinstance(value, (int, float)) and not isinstance(value, bool), "a number"
    else:
        fits, expected = isinstance(value, str), "a text"
    if not fits:
        raise ConfigError(f"{method}: {name} is {value!r}, expected {expected}")
