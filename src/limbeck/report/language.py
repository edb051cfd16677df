"""The words of a report: one YAML file a language, beside the code, with the same keys and placeholders in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import yaml

from limbeck.errors import ConfigError, unknown_name
from limbeck.plain import flattened

_FOLDER = resources.files("limbeck.report") / "languages"
_AUDITS = resources.files("limbeck") / "audits" / "words.yaml"


@dataclass(frozen=True)
class Language:
    """The strings of one language, called with a key and the values of its placeholders.

    >>> load_language("en")("part.plain")
    'Plain student'
    """

    code: str
    strings: Mapping[str, str]

    def __call__(self, key: str, **values: object) -> str:
        return self.strings[key].format(**values)

    def term(self, family: str, name: object) -> str:
        """The word for a value that results hold (a metric, a selection rule); the value itself where there is none."""
        return self.strings.get(f"{family}.{name}", str(name))

    def audit(self) -> dict[str, str]:
        """The sentences of an audit by their own keys, for `limbeck.audits.said.spoken`."""
        return {key.removeprefix("audit."): text for key, text in self.strings.items() if key.startswith("audit.")}

    def join(self, parts: list[str]) -> str:
        """Several names as one enumeration."""
        return self("join").join(parts)


def languages() -> tuple[str, ...]:
    """The codes of the languages a report can be written in."""
    return tuple(sorted(file.name.removesuffix(".yaml") for file in _FOLDER.iterdir() if file.name.endswith(".yaml")))


def load_language(code: str) -> Language:
    """Read the strings of one language.

    Raises:
        ConfigError: for a language there is no file for.
    """
    if code not in languages():
        raise ConfigError(unknown_name("report language", code, languages()))
    tree = yaml.safe_load((_FOLDER / f"{code}.yaml").read_text(encoding="utf-8"))
    if code == "en":
        # An audit speaks English by itself, without a report.
        tree["audit"] = yaml.safe_load(_AUDITS.read_text(encoding="utf-8"))
    return Language(code, dict(flattened(tree)))
