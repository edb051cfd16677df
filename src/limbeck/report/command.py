"""`limbeck report`: the page of a finished run, in any language and format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limbeck.errors import ConfigError, LimbeckError, unknown_name
from limbeck.report import evidence
from limbeck.report.evidence import EVIDENCE, with_evidence
from limbeck.report.language import load_language
from limbeck.report.page import write_html, write_json, write_markdown
from limbeck.report.pdf import write_pdf

ENDINGS = {".html": "html", ".htm": "html", ".md": "md", ".json": "json", ".pdf": "pdf"}


def write_report(
    run: str | Path,
    *,
    kind: str | None = None,
    language: str = "en",
    output: str | Path | None = None,
    models: str | Path | None = None,
    refresh: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write the report of a run folder.

    Args:
        run: the folder of a finished pilot.
        kind: html, md, json or pdf; by default by the ending of `output`, else html.
        language: a code of `limbeck.report.languages()`.
        output: the file; by default `report.html` in the folder, with the language in its name unless that is English.
        models: the Python file of the user's own models, where something is measured.
        refresh: measure what the report shows beside the result again.
        say: told what takes time, and what could not be measured.

    Raises:
        ConfigError: where the folder holds no finished pilot, or for an unknown format or language.
        MissingExtraError: for PDF without what it needs.
    """
    folder = Path(run)
    t = load_language(language)
    kind = kind or (ENDINGS.get(Path(output).suffix.lower(), "") if output is not None else "html")
    if kind not in set(ENDINGS.values()):
        raise ConfigError(unknown_name("report format", kind or Path(output or "").suffix, set(ENDINGS.values())))
    record = finished(folder)
    if refresh or not (folder / EVIDENCE).is_file():
        _measure(folder, record, models, refresh, say)
    whole = with_evidence(record, folder)
    name = f"report.{kind}" if language == "en" or kind == "json" else f"report.{language}.{kind}"
    path = folder / name if output is None else Path(output)
    if kind == "json":
        return write_json(whole, path)
    write = {"html": write_html, "md": write_markdown, "pdf": write_pdf}[kind]
    return write(whole, path, language=t.code)


def finished(folder: Path) -> dict[str, Any]:
    """The result of a finished pilot.

    Raises:
        ConfigError: where there is none.
    """
    path = folder / "result.json"
    if not path.is_file():
        begun = (folder / "run.json").is_file()
        found = (
            "a pilot that is not finished: run the same command again" if begun else "no pilot: expected result.json"
        )
        raise ConfigError(f"{folder} holds {found}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not whole: run the pilot's command again ({error})") from error
    assert isinstance(record, dict)
    return record


def _measure(
    folder: Path, record: dict[str, Any], models: str | Path | None, again: bool, say: Callable[[str], None]
) -> None:
    """Gather the evidence from what is on disk; a report without it is still a report."""
    from limbeck.config import load_config
    from limbeck.pilots import PilotResult, plan

    config = folder / "config.yaml"
    if not config.is_file():
        say(f"{folder} has no config.yaml, so cost, corrections and features cannot be measured: they are left out")
        return
    say("measuring cost, corrections and features")
    try:
        data, arms = plan(load_config(str(config)), models)
        evidence.gather(PilotResult(record, folder), data, arms, models, again=again)
    except LimbeckError as error:
        say(f"cost, corrections and features are left out: {error}")
        return
    for note in json.loads((folder / EVIDENCE).read_text(encoding="utf-8"))["notes"]:
        say(note)
