"""`limbeck ledger …`: what students were told, and whether the record of who ran what still holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from limbeck.errors import ConfigError

if TYPE_CHECKING:
    from limbeck.ledgers import Ledger

_RUN = click.argument("run", metavar="RUN")
_JSON = click.option("--json", "as_json", is_flag=True, help="Plain JSON in place of text.")


@click.group()
def ledger() -> None:
    """What the students of a pilot were told, why, and who ran it.

    RUN is a run folder, one run in it (FOLDER:kd-seed0), or the file of a ledger (ledger/samples/kd-seed0.parquet).
    """


def _found(reference: str) -> list[Ledger]:
    """The ledgers that a reference means: one, or all of a folder."""
    from limbeck.ledgers import Ledger, runs_in

    path, name = Path(reference), None
    if not path.exists() and ":" in reference:
        folder, _, name = reference.rpartition(":")
        path = Path(folder)
    if not path.exists():
        raise ConfigError(f"{path}: there is no such run folder or ledger")
    if name is not None or path.is_file():
        return [Ledger.read(path, name)]
    names = runs_in(path)
    return [Ledger.read(path, found) for found in names] if names else [Ledger.read(path)]


def _one(reference: str) -> Ledger:
    found = _found(reference)
    if len(found) > 1:
        names = ", ".join(f"{reference}:{entry.run}" for entry in found[:4])
        raise ConfigError(f"{reference} holds the ledgers of {len(found)} runs: name one, such as {names}")
    return found[0]


def _say(value: Any, text: str, as_json: bool) -> None:
    click.echo(json.dumps(value, indent=1) if as_json else text)


@ledger.command()
@_RUN
@_JSON
def show(run: str, as_json: bool) -> None:
    """How far the targets moved, by rule, label and group; for a folder of several runs, one line each."""
    from limbeck.ledgers.text import overview, shown

    found = _found(run)
    plain = [{**entry.meta, **{by: entry.summary(by) for by in ("rule", "label", "group")}} for entry in found]
    _say(plain, shown(found[0]) if len(found) == 1 else overview(found), as_json)


@ledger.command()
@_RUN
@click.option("-n", "count", type=click.IntRange(min=1), default=20, help="How many (default 20).")
@click.option("--by", type=click.Choice(["label", "teacher"]), default="label", help="Farthest from what.")
@click.option("--group", help="Only of this group.")
@click.option("--rule", help="Only where this rule decided, such as 'kl_divergence: followed'.")
@_JSON
def top(run: str, count: int, by: str, group: str | None, rule: str | None, as_json: bool) -> None:
    """The samples whose targets moved farthest."""
    from limbeck.ledgers.text import farthest

    found = _found(run)
    rows: list[dict[str, Any]] = []
    refused: ConfigError | None = None
    for entry in found:
        # A rule is one recipe's: in a folder of several it need not occur in each.
        try:
            rows += entry.top(count, by=by, group=group, rule=rule)
        except ConfigError as error:
            refused = error
    if not rows and refused is not None:
        raise refused
    rows = sorted(rows, key=lambda row: -(row[f"moved_from_{by}"] or 0.0))[:count]
    _say(rows, farthest(rows), as_json)


@ledger.command()
@_RUN
@click.argument("sample", metavar="ID", type=int)
@_JSON
def why(run: str, sample: int, as_json: bool) -> None:
    """What the student was told of the training sample ID, by which rule, and what the teacher had said."""
    from limbeck.ledgers.text import because

    rows = [entry.why(sample) for entry in _found(run)]
    _say(rows, "\n\n".join(map(because, rows)), as_json)


@ledger.command()
@_RUN
@click.argument("other", metavar="RUN")
@click.option("-n", "count", type=click.IntRange(min=1), default=20, help="How many samples (default 20).")
@_JSON
def diff(run: str, other: str, count: int, as_json: bool) -> None:
    """Where two runs told the same samples different things."""
    from limbeck.ledgers.text import different

    found = _one(run).diff(_one(other), count)
    _say(found, different(found), as_json)


@ledger.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--expect", metavar="HASH", help="The hash of an entry that must be in the log.")
@_JSON
@click.pass_context
def verify(ctx: click.Context, folder: Path, expect: str | None, as_json: bool) -> None:
    """Whether the log of who ran what was tampered with, and whether the results are still those that were logged.

    Exit code 1 where something is wrong.
    """
    from limbeck.audit_log import AuditLog

    path = folder / "audit.jsonl" if folder.is_dir() else folder
    found = AuditLog(path).verify(expected=expect)
    lines = [*found.problems, *found.notes]
    state = "holds" if found.holds else "DOES NOT HOLD"
    lines.append(f"{path}: {found.entries} entries, the chain {state}; head {found.head}")
    _say(vars(found) | {"holds": found.holds}, "\n".join(lines), as_json)
    if not found.holds:
        ctx.exit(1)
