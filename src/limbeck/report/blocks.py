"""What a report is made of: sections of text, tables, charts and facts, the same for HTML and Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its text, a quieter second line, and a tone (`better`, `worse`, `same`, `worst`, `quiet`).

    A tone only colours; whatever it says is also in the text.
    """

    text: str
    detail: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Column:
    """A column's title, and whether it holds numbers (set flush right)."""

    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under columns; the first cell of a row names the row."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart, drawn only where it can be shown, and the table that says the same in numbers."""

    kind: ClassVar[str] = "chart"
    key: str
    title: str
    description: str
    draw: Callable[[], Any]
    table: Table | None = None
    narrow: bool = False
    """Whether it gains nothing from a wide page."""


@dataclass(frozen=True)
class Line:
    """A line of the legend that panels share: what it stands for, its colour and its dash pattern."""

    label: str
    colour: str
    dash: str
    marked: bool = False
    """Drawn as the mark of a selected epoch, not as a line."""
    sign: str = ""
    """Drawn as a sign of this name (`dot`, `cross`, `bar`, `tick`), not as a line."""


@dataclass(frozen=True)
class Panels:
    """Small charts of one kind beside each other under one legend, a title over each group of them."""

    kind: ClassVar[str] = "panels"
    legend: tuple[Line, ...]
    panels: tuple[tuple[str, tuple[Chart, ...]], ...]


@dataclass(frozen=True)
class Text:
    """Paragraphs, or the points of a list."""

    kind: ClassVar[str] = "text"
    paragraphs: tuple[str, ...]
    points: bool = False
    tone: str = ""
    title: str = ""
    language: str = ""
    """The code of the language, where it is not the page's."""


@dataclass(frozen=True)
class Facts:
    """Names and their values."""

    kind: ClassVar[str] = "facts"
    title: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Code:
    """Text set as it is typed."""

    kind: ClassVar[str] = "code"
    title: str
    text: str
    folded: bool = False


@dataclass(frozen=True)
class Folded:
    """Tables that only some readers want, behind one line."""

    kind: ClassVar[str] = "folded"
    title: str
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Exhibit:
    """One sample: its name, a picture (a data URI) or the values of its row, and what is said of it."""

    title: str
    picture: str
    description: str
    facts: tuple[tuple[str, str], ...]
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Gallery:
    """Samples beside each other."""

    kind: ClassVar[str] = "gallery"
    title: str
    items: tuple[Exhibit, ...]


Block = Table | Chart | Panels | Text | Facts | Code | Folded | Gallery


@dataclass(frozen=True)
class Section:
    """A chapter: an anchor, a title, a line that says how to read it, and blocks."""

    key: str
    title: str
    lead: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Card:
    """One model in the summary: a name for its part, its label, and a few figures, the first one large."""

    part: str
    label: str
    role: str
    figures: tuple[tuple[str, Cell], ...]
