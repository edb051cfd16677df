"""What a ledger says, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.ledgers.columns import RANKS
from limbeck.ledgers.ledger import Ledger
from limbeck.ledgers.targets import EDITS


def overview(ledgers: Sequence[Ledger]) -> str:
    """One line a run: how far its targets moved."""
    rows = []
    for ledger in ledgers:
        overturned = int(ledger.overturned().sum())
        moved = [_mean(ledger, f"moved_from_{what}") for what in ("label", "teacher")]
        rows.append([ledger.run, f"{len(ledger):,}", f"{overturned:,}", *map(_share, moved)])
    return _table(["run", "samples", "label overturned", "moved from label", "from teacher"], rows)


def shown(ledger: Ledger) -> str:
    """One run by rule, label and group, with its last group weights and the notes."""
    lines = [f"{ledger.run}: {len(ledger):,} training samples, recipe {ledger.meta['recipe']['name']}"]
    for by in ("rule", "label", "group"):
        rows = ledger.summary(by)
        if by == "group" and not ledger.meta["groups"]:
            continue
        body = [
            [
                str(row[by]),
                f"{row['samples']:,}",
                f"{row['overturned']:,}",
                f"{row['held_back']:,}",
                _share(row["moved_from_label"]),
                _share(row["moved_from_teacher"]),
                _number(row["weight_mean"]),
            ]
            for row in rows
        ]
        title = [by, "samples", "label overturned", "held back", "moved from label", "from teacher", "mean weight"]
        lines += ["", _table(title, body)]
    last = [row for row in ledger.epochs.to_pylist() if row["epoch"] == ledger.meta["epochs"] and row["group"]]
    if last:
        body = [[row["group"], _number(row["loss"]), _number(row["q"])] for row in last]
        lines += ["", _table(["group, last epoch", "training loss", "q"], body)]
    lines += [f"note: {note}" for note in ledger.meta["notes"]]
    return "\n".join(lines)


def farthest(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a sample."""
    body = [
        [
            row["run"],
            str(row["id"]),
            str(row["label"]),
            _named(row["group"]),
            _likeliest(row, "teacher"),
            _likeliest(row, "target"),
            _share(row["moved_from_label"]),
            _share(row["moved_from_teacher"]),
            row["rule"],
        ]
        for row in rows
    ]
    title = ["run", "id", "label", "group", "teacher", "told", "moved from label", "from teacher", "rule"]
    return _table(title, body)


def because(row: Mapping[str, Any]) -> str:
    """What one run told of one sample, and why."""
    term, _, edit = str(row["rule"]).partition(": ")
    lines = [f"id {row['id']} in {row['run']}", f"  label          {row['label']}"]
    if row["group"] is not None:
        lines.append(f"  group          {row['group']}")
    if row["teacher_1"] is not None:
        agrees = "agrees with the label" if row["teacher_1"] == row["label"] else "disagrees with the label"
        own = f"{row['teacher_label_probability']:.3f} on the label"
        lines.append(f"  teacher said   {_ranked(row, 'teacher')} ({agrees}, {own})")
    if row["target_1"] is None:
        lines.append("  student told   nothing about the classes")
    else:
        lines.append(f"  student told   {_ranked(row, 'target')}")
        moved = f"{row['moved_from_label']:.3f} from the label"
        if row["moved_from_teacher"] is not None:
            moved += f", {row['moved_from_teacher']:.3f} from the teacher"
        lines.append(f"  moved          {moved} (total variation)")
    masked = "" if row["masked"] is None or edit != "refined" else f" ({row['masked']} masked beside the label)"
    lines.append(f"  rule           {term}: {EDITS[edit or term]}{masked}")
    weights = [_number(row[f"weight_{when}"]) for when in ("first", "last", "mean")]
    lines.append(f"  weight         {weights[0]} in the first epoch, {weights[1]} in the last, {weights[2]} on average")
    if row.get("weight_rule"):
        lines.append(f"  why so heard   {row['weight_rule']}")
    flags = [name.replace("_", " ") for name in ("held_back", "reviewed") if row[name]]
    if flags:
        lines.append(f"  flags          {', '.join(flags)}")
    return "\n".join(lines)


def different(found: Mapping[str, Any]) -> str:
    """What two runs told the same samples."""
    one, other = found["runs"]
    lost = found["overturned"]
    lines = [
        f"{one} and {other}: {found['samples']:,} training samples in both",
        f"  another likeliest class: {found['likeliest']:,}",
        f"  label overturned: {lost[one]:,} only by {one}, {lost[other]:,} only by {other}, {lost['both']:,} by both",
    ]
    if found["moved"] is not None:
        lines.append(f"  {other} gives the label {100 * found['moved']:+.1f} points on average")
    body = [
        [
            str(row["id"]),
            str(row["label"]),
            _named(row["group"]),
            *(
                f"{_named(name)} ({_share(share)} on the label)"
                for name, share in zip(row["target_1"], row["target_of_label"])
            ),
            " / ".join(dict.fromkeys(row["rule"])),
        ]
        for row in found["rows"]
    ]
    return "\n".join([*lines, "", _table(["id", "label", "group", f"told by {one}", f"told by {other}", "rule"], body)])


def _mean(ledger: Ledger, column: str) -> float | None:
    import pyarrow.compute as pc

    found = pc.mean(ledger.samples[column]).as_py()
    return None if found is None else float(found)


def _likeliest(row: Mapping[str, Any], who: str) -> str:
    name = row[f"{who}_1"]
    return "–" if name is None else f"{name} {row[f'{who}_1_probability']:.2f}"


def _ranked(row: Mapping[str, Any], who: str) -> str:
    parts = [(row[f"{who}_{rank}"], row[f"{who}_{rank}_probability"]) for rank in range(1, RANKS + 1)]
    return ", ".join(f"{name} {share:.3f}" for name, share in parts if name is not None and share >= 5e-4)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _named(value: Any) -> str:
    return "–" if value is None else str(value)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(titles, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (titles, *rows)]
    return "\n".join(lines)
