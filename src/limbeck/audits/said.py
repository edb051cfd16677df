"""What an audit says, apart from its language: English that remembers which sentence it is, and what is in it."""

from __future__ import annotations

import copy
import string
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import yaml

from limbeck.plain import flattened

SHOWN = 3
"""Names of a list that a sentence gives; the others are counted."""


class Said(str):
    """A sentence, or a part of one, in English; `to_dict` holds what `spoken` says it from in another language.

    Args:
        key: of `words.yaml`.
        values: what is filled in: numbers, texts, lists of names, and parts that are `Said` themselves. Those that the
            sentence does not name are left out.
    """

    __slots__ = ("key", "values")

    key: str
    values: Mapping[str, Any]

    def __new__(cls, key: str, values: Mapping[str, Any] | None = None) -> Said:
        sentence = english()[key]
        named = {name for _, name, _, _ in string.Formatter().parse(sentence) if name is not None}
        filled = {name: value for name, value in (values or {}).items() if name in named}
        found = super().__new__(cls, _Filled(english()).vformat(sentence, (), filled))
        found.key, found.values = key, filled
        return found

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.key, dict(self.values)

    def __deepcopy__(self, memo: dict[int, Any]) -> Said:
        return Said(self.key, copy.deepcopy(dict(self.values), memo))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: the key and the values; None for nan."""
        return {"key": self.key, "values": {name: plain(value) for name, value in self.values.items()}}


def plain(value: Any) -> Any:
    """A text, or any value in one, as plain JSON."""
    if isinstance(value, Said):
        return value.to_dict()
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and value != value else value


def spoken(said: str | Mapping[str, Any], words: Mapping[str, str]) -> str:
    """A text in the language of the words.

    Args:
        said: what `plain` made of a `Said`; any other text stays as it is.
        words: the sentences by key. Their placeholders may have a format of Python's, or `share` (.32), `percent`
            (32.0 %) or `points` (+32.0), all from a share; of a list, how many names are given.
    """
    return said if isinstance(said, str) else _Filled(words).vformat(words[said["key"]], (), said["values"])


@cache
def english() -> Mapping[str, str]:
    """The English sentences by key; those of other languages are the report's."""
    text = (resources.files("limbeck") / "audits" / "words.yaml").read_text(encoding="utf-8")
    return dict(flattened(yaml.safe_load(text)))


class _Filled(string.Formatter):
    """Fills a sentence with numbers, names and other sentences."""

    def __init__(self, words: Mapping[str, str]) -> None:
        self._words = words

    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None:
            return "–"
        if isinstance(value, Mapping):
            return spoken(value, self._words)
        if isinstance(value, Sequence) and not isinstance(value, str):
            return self._named([str(name) for name in value], int(format_spec or SHOWN))
        match format_spec:
            case "share":
                return f"{value:.2f}".removeprefix("0") if value < 0.995 else "1.00"
            case "percent":
                return f"{100 * value:.1f} %"
            case "points":
                return f"{100 * value:+.1f}"
        return format(value, format_spec)

    def _named(self, names: Sequence[str], most: int) -> str:
        shown = self._words["join"].join(names[:most])
        left = len(names) - most
        return self._words["more"].format(names=shown, n=left) if left > 0 else shown
