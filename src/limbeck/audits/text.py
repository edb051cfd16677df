"""An audit in a terminal."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck.audits.teacher import Slice
    from limbeck.audits.whole import Audit

ROWS = 40
"""Groups that a table shows; the plain data has them all."""


def text(audit: Audit, width: int) -> str:
    """Verdicts, table and advice."""
    parts = [f"Audit of {audit.data['name']}: {audit.data['samples']:,} samples"]
    parts += ["", *_wrapped(audit.verdicts, width), "", table(audit, width), "", "Advice"]
    parts += _wrapped([entry.sentence() for entry in audit.advice], width)
    return "\n".join(parts)


def table(audit: Audit, width: int) -> str:
    """One row a group: what the teacher reaches, what the labels alone give, and what stands behind it."""
    from rich.console import Console
    from rich.table import Table

    cap = audit.cap
    accuracy = dict(zip(cap.group_names, cap.labels.groups, strict=True))
    copy = {} if cap.copy is None else dict(zip(cap.group_names, cap.copy.groups, strict=True))
    slices = _slices(audit)
    verdicts = {entry.group: entry.verdict for entry in cap.verdicts}
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("group" if audit.data["groups"] is not None else "class")
    titles = ["samples", "teacher %", "labels alone %", "confident where wrong", "top 2 %", "wrong: teacher/label/?"]
    wanted = titles if slices else ["labels alone %"]
    for title in wanted:
        shown.add_column(title, justify="right")
    if slices:
        shown.add_column("copying")
    for name in list(cap.group_names)[:ROWS]:
        if not slices:
            shown.add_row(name, _percent(accuracy[name]))
            continue
        entry = slices.get(name)
        if entry is None:
            shown.add_row(name, "0", *[""] * 5, "not audited")
            continue
        sides = f"{entry.teacher_wrong:,}/{entry.label_suspicious:,}/{entry.undecided:,}"
        wrong = f"{entry.confidence_wrong:.2f}" if entry.confidence_wrong == entry.confidence_wrong else "–"
        shown.add_row(
            name,
            f"{entry.samples:,}",
            _percent(copy[name]),
            _percent(accuracy[name]),
            wrong,
            _percent(entry.top2),
            sides,
            verdicts.get(name, "too few samples"),
        )
    buffer = io.StringIO()
    Console(file=buffer, width=width).print(shown)
    left = len(cap.group_names) - ROWS
    return buffer.getvalue().rstrip("\n") + (f"\n… and {left} more" if left > 0 else "")


def _slices(audit: Audit) -> dict[str, Slice]:
    if audit.teacher is None:
        return {}
    entries = audit.teacher.groups if audit.data["groups"] is not None else audit.teacher.classes
    return {entry.name: entry for entry in entries}


def _wrapped(sentences: list[str], width: int) -> list[str]:
    return [textwrap.fill(sentence, width, initial_indent="* ", subsequent_indent="  ") for sentence in sentences]


def _percent(share: float) -> str:
    return "–" if share != share else f"{100 * share:.1f}"
