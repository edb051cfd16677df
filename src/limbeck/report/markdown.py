"""The report as Markdown (GitHub's dialect): the verdict, the sentences and the tables; charts become their tables."""

from __future__ import annotations

import re
from collections.abc import Iterator

from limbeck.report import numbers
from limbeck.report.blocks import Block, Card, Cell, Chart, Code, Facts, Folded, Gallery, Table, Text
from limbeck.report.language import Language
from limbeck.report.sections import cards, sections
from limbeck.report.sentences import headline
from limbeck.report.summary import Summary


def markdown(summary: Summary, t: Language) -> str:
    """The whole report; its first line is the verdict."""
    first, created = headline(summary, t), numbers.moment(summary.result.get("created", ""))
    lines = [f"# {_escape(first)}", ""]
    lines += [] if first == summary.verdict else [_escape(summary.verdict), ""]
    lines += [_escape(t("page.run", name=summary.name, created=created)), ""]
    lines += [*_cards(cards(summary, t), t), ""]
    for section in sections(summary, t):
        lines += [f"## {_escape(section.title)}", ""]
        if section.lead:
            lines += [_escape(section.lead), ""]
        for block in section.blocks:
            lines += _block(block)
    return "\n".join(lines).rstrip() + "\n"


def _cards(items: tuple[Card, ...], t: Language) -> Iterator[str]:
    if not items:
        return
    names = [name for name, _ in items[0].figures]
    yield _line([t("page.summary"), t("column.model"), *names])
    yield _line(["---"] * (2 + len(names)))
    for card in items:
        yield _line([card.part, card.label, *(_text(figure) for _, figure in card.figures)])


def _block(block: Block) -> list[str]:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Chart):
        return _table(block.table) if block.table else []
    if isinstance(block, Folded):
        return [line for table in block.tables for line in _table(table)]
    if isinstance(block, Gallery):
        return _gallery(block)
    if isinstance(block, Text):
        title = [f"**{_escape(block.title)}**", ""] if block.title else []
        return [*title, *(f"{'- ' if block.points else ''}{_escape(line)}" for line in block.paragraphs), ""]
    if isinstance(block, Facts):
        return [f"**{_escape(block.title)}**", "", *(f"- {_escape(n)}: {_escape(v)}" for n, v in block.pairs), ""]
    if isinstance(block, Code):
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", block.text)), default=0))
        return [f"**{_escape(block.title)}**", "", fence, block.text.rstrip(), fence, ""]
    # The tables of panels stand beside them as blocks of their own.
    return []


def _gallery(block: Gallery) -> list[str]:
    """One row a sample; pictures stay in the page."""
    lines = [f"**{_escape(block.title)}**", ""]
    for item in block.items:
        said = [f"{name}: {value}" for name, value in (*item.lines, *item.facts)]
        lines.append(f"- {_escape(item.title)}. {_escape('; '.join(said))}")
    return [*lines, ""]


def _table(table: Table) -> list[str]:
    lines = [f"**{_escape(table.caption)}**", "", _line([column.title for column in table.columns])]
    lines.append(_line(["---:" if column.numeric else "---" for column in table.columns]))
    lines += [_line([_text(cell) for cell in row]) for row in table.rows]
    return [*lines, "", *([_escape(table.note), ""] if table.note else [])]


def _text(cell: Cell) -> str:
    return f"{cell.text} ({cell.detail})" if cell.detail else cell.text


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(_escape(cell) for cell in cells)} |"


def _escape(text: str) -> str:
    """Names stay names: nothing in them is read as Markdown or HTML, and a cell stays on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
