"""Which pilot of several: of which data set, with which student."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Place(NamedTuple):
    """The data set and the student of a pilot, None where there is only one."""

    data: str | None = None
    student: str | None = None

    @property
    def parts(self) -> list[str]:
        """What tells it from the others."""
        return [part for part in self if part is not None]

    @property
    def path(self) -> Path:
        """Its folder inside that of all."""
        return Path(*self.parts)

    def __str__(self) -> str:
        return ", ".join(self.parts)
