"""The page: sections and charts as one HTML file that needs nothing else, and its Markdown and JSON twins."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import vl_convert
from markupsafe import Markup

from limbeck import __version__
from limbeck.report import numbers
from limbeck.report.blocks import Block, Chart, Panels
from limbeck.report.language import Language, load_language
from limbeck.report.markdown import markdown
from limbeck.report.sections import cards, sections, tone
from limbeck.report.sentences import headline
from limbeck.report.summary import Summary

_TEMPLATES = resources.files("limbeck.report") / "templates"


def write_html(result: Mapping[str, Any], path: str | os.PathLike[str], *, language: str = "en") -> Path:
    """Write a report as one HTML file: no network, no other file, readable without JavaScript.

    Args:
        result: the plain dict of `PilotResult.to_dict()`.
        path: the file to write; missing folders are made. It is replaced only once the new one is complete.
        language: a code of `languages()`, `en` or `ja`.

    Returns:
        The path written.

    Raises:
        DataError: where the result lacks a key or its parts do not fit each other.
        ConfigError: for an unknown language.
    """
    return write_bytes(path, html(Summary.from_result(result), load_language(language)).encode())


def write_markdown(result: Mapping[str, Any], path: str | os.PathLike[str], *, language: str = "en") -> Path:
    """Write a report as Markdown: the verdict, every sentence and every table. Arguments as `write_html`."""
    return write_bytes(path, markdown(Summary.from_result(result), load_language(language)).encode())


def write_json(result: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the result itself as strict JSON (NaN and infinities become null). Arguments as `write_html`."""
    Summary.from_result(result)
    text = json.dumps(_strict(result), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    return write_bytes(path, text.encode())


def html(summary: Summary, t: Language) -> str:
    """The whole page as text; the same summary and language give the same bytes."""
    chapters = sections(summary, t)
    specs = {
        chart.key: embedded_json(_spec(chart.draw()))
        for section in chapters
        for block in section.blocks
        for chart in charts_of(block)
    }
    library, script = _library(), template_text("page.js")
    words = {key: t(f"page.{key}") for key in ("save", "save_svg", "save_png", "chart_failed")}
    return template("page.html.j2").render(
        t=t,
        summary=summary,
        sections=chapters,
        cards=cards(summary, t),
        tone=tone(summary),
        specs=specs,
        headline=headline(summary, t),
        created=numbers.moment(summary.result.get("created", "")),
        test_samples=numbers.count(summary.samples.get("test")),
        policy=_policy(library, script),
        style=Markup(template_text("page.css")),
        library=Markup(library),
        script=Markup(script),
        words=embedded_json(words),
        version=__version__,
    )


def charts_of(block: Block) -> Iterator[Chart]:
    """The charts in a block."""
    if isinstance(block, Chart):
        yield block
    elif isinstance(block, Panels):
        for _, panel in block.panels:
            yield from panel


def _spec(chart: Any) -> dict[str, Any]:
    """The Vega-Lite specification, its rows as columns and bare values: half the size; the page turns them back."""
    data, bare = chart.datasets, chart.copy(deep=False)
    # Altair would walk through every value.
    bare.datasets = {}
    spec: dict[str, Any] = bare.to_dict(validate=False)
    for name, rows in data.items():
        columns = list(rows[0]) if rows else []
        spec["datasets"][name] = {"columns": columns, "rows": [[row[column] for column in columns] for row in rows]}
    return spec


def embedded_json(value: Any) -> Markup:
    """JSON that can stand inside a script element: no name in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _policy(*scripts: str) -> str:
    """A content security policy: only our own two scripts may run, and nothing may be fetched."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, of the version Altair writes for."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=vega_lite_version())
    return bundle.replace("</script", "<\\/script").replace("\r\n", "\n")


@cache
def vega_lite_version() -> str | None:
    """The version of Vega-Lite that Altair writes for; None for the newest there is, where that one is not."""
    wanted = re.fullmatch(r"v?(\d+)\.(\d+).*", alt.SCHEMA_VERSION)
    version = f"{wanted[1]}.{wanted[2]}" if wanted else None
    return version if version in vl_convert.get_vegalite_versions() else None


@cache
def template(name: str) -> jinja2.Template:
    """A template of this room; everything it is given is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(template_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def template_text(name: str) -> str:
    """A file of the folder of templates."""
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write beside the target, then rename: a reader sees the old file or the new one, never half of it."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return target
