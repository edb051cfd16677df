"""The report as PDF: the same chapters, its charts drawn beforehand, for those who print it or send it on.

Needs the extra `pdf` (WeasyPrint) and the system library Pango, which sets the text.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import vl_convert
from markupsafe import Markup

from limbeck import __version__
from limbeck.errors import MissingExtraError, require
from limbeck.report import numbers
from limbeck.report.blocks import Block, Chart, Panels, Table
from limbeck.report.language import Language, load_language
from limbeck.report.page import charts_of, template, template_text, vega_lite_version, write_bytes
from limbeck.report.sections import cards, sections, tone
from limbeck.report.sentences import headline
from limbeck.report.summary import Summary

COLUMNS = 8
"""Columns of a table beside the one that names the rows: what fits across a page. Wider tables go on below."""

FONTS = {
    "": '"Noto Sans", "DejaVu Sans", "Liberation Sans", Arial, "Noto Sans CJK JP", sans-serif',
    "ja": '"Noto Sans CJK JP", "Noto Sans JP", "Hiragino Sans", "Yu Gothic", "IPAexGothic", sans-serif',
}
"""Fonts by name, no `system-ui`: what lays a chart out and what sets the page must find the same one."""

_STRIPS = 60
_WIDTHS = {"page": 680, "narrow": 480, "panel": 310}
"""Widths of charts in CSS pixels; a page has 680."""


def write_pdf(result: Mapping[str, Any], path: str | os.PathLike[str], *, language: str = "en") -> Path:
    """Write a report as PDF, A4, tagged for screen readers. Arguments as `write_html`.

    What the page folds away (the numbers behind charts, epoch by epoch) is left out; HTML, Markdown and JSON have it.

    Raises:
        MissingExtraError: without WeasyPrint, or without the system library that it needs.
        DataError, ConfigError: as `write_html`.
    """
    weasyprint = _weasyprint()
    page = static_html(Summary.from_result(result), load_language(language))
    # Nothing may be fetched: names in a result are anybody's.
    fetcher = weasyprint.urls.URLFetcher(allowed_protocols=("data",))
    found: bytes = weasyprint.HTML(string=page, url_fetcher=fetcher).write_pdf(pdf_tags=True)
    return write_bytes(path, found)


def _weasyprint() -> ModuleType:
    try:
        return require("weasyprint", "pdf")
    except OSError as error:
        # WeasyPrint is there, and dlopen has not found what it stands on.
        raise MissingExtraError(
            f"PDF needs the system library Pango, which cannot be loaded ({str(error).splitlines()[0]}): install it "
            "with 'apt-get install libpango-1.0-0 libpangoft2-1.0-0' (Debian, Ubuntu), 'dnf install pango' (Fedora) or "
            "'brew install pango' (macOS); or write html, md or json"
        ) from error


def static_html(summary: Summary, t: Language) -> str:
    """The page that is turned into a PDF: no scripts, every chart a picture."""
    chapters = sections(summary, t)
    pictures = {
        chart.key: drawn(chart, _WIDTHS["panel" if inside else "narrow" if chart.narrow else "page"], fonts(t))
        for section in chapters
        for block in section.blocks
        for chart, inside in _placed(block)
    }
    return template("pdf.html.j2").render(
        t=t,
        summary=summary,
        sections=chapters,
        cards=cards(summary, t),
        tone=tone(summary),
        pictures=pictures,
        split=split,
        headline=headline(summary, t),
        created=numbers.moment(summary.result.get("created", "")),
        test_samples=numbers.count(summary.samples.get("test")),
        style=Markup(template_text("pdf.css")),
        fonts=Markup(fonts(t)),
        version=__version__,
    )


def _placed(block: Block) -> Iterator[tuple[Chart, bool]]:
    for chart in charts_of(block):
        yield chart, isinstance(block, Panels)


def fonts(t: Language) -> str:
    """The fonts of a language, for style sheets and charts."""
    return FONTS.get(t.code, FONTS[""])


def drawn(chart: Chart, width: int, font: str) -> str:
    """A chart as a data URI of SVG, laid out for a width in pixels."""
    spec = fitted(chart.draw().to_dict(validate=False), width, font)
    svg: str = vl_convert.vegalite_to_svg(spec, vl_version=vega_lite_version())
    return "data:image/svg+xml;base64," + base64.b64encode(plain_gradients(svg).encode()).decode()


def plain_gradients(svg: str) -> str:
    """A chart whose colour bars are made of plain strips: WeasyPrint draws no gradient within a picture."""
    stops = {
        name: [
            (float(offset), tuple(map(int, (red, green, blue))))
            for offset, red, green, blue in re.findall(
                r'offset="([\d.]+)" stop-color="rgb\((\d+), (\d+), (\d+)\)"', body
            )
        ]
        for name, body in re.findall(r'<linearGradient id="(\w+)"[^>]*>(.*?)</linearGradient>', svg, re.S)
    }

    def strips(found: re.Match[str]) -> str:
        width, height, name = float(found[1]), found[2], found[3]
        offsets, colours = zip(*stops[name], strict=True)
        parts = []
        for strip in range(_STRIPS):
            place = (strip + 0.5) / _STRIPS
            rgb = [round(float(np.interp(place, offsets, channel))) for channel in zip(*colours, strict=True)]
            # Each reaches a little under the next, so that no line shows between them.
            reach = width / _STRIPS + (0.5 if strip < _STRIPS - 1 else 0)
            x = width * strip / _STRIPS
            parts.append(
                f'<rect x="{x:.2f}" width="{reach:.2f}" height="{height}" fill="rgb({rgb[0]},{rgb[1]},{rgb[2]})"/>'
            )
        return "".join(parts)

    return re.sub(r'<path d="M0,0h([\d.]+)v([\d.]+)h-[\d.]+Z" fill="url\(#(\w+)\)"[^>]*/>', strips, svg)


def fitted(spec: dict[str, Any], width: int, font: str) -> dict[str, Any]:
    """A specification that asks the page how wide it is, told so: as `fit` of page.js does in a browser."""
    found: dict[str, Any] = json.loads(json.dumps(spec).replace("containerSize()[0]", str(width)))
    found["config"]["font"] = font.replace('"', "'")
    found |= {"width": width, "autosize": {"type": "fit-x", "contains": "padding"}}
    axis, legend = found["config"]["axis"], found["config"]["legend"]
    axis["labelLimit"] = round(min(axis["labelLimit"], width * 0.36))
    legend["labelLimit"] = round(min(legend["labelLimit"], width * 0.48))
    legend["gradientLength"] = round(min(legend["gradientLength"], width * 0.4))
    layers = found.get("layer", [found])
    named = any(((layer.get("encoding") or {}).get("y") or {}).get("type") == "nominal" for layer in layers)
    names = [
        str(name)
        for layer in layers
        for name in ((layer.get("encoding") or {}).get("color") or {}).get("scale", {}).get("domain", [])
    ]
    longest = max((min(len(name) * 7, legend["labelLimit"]) for name in names), default=0)
    room = width - axis["labelLimit"] if named else width
    legend["columns"] = int(min(max(room // (longest + 46), 1), 6))
    return found


def split(table: Table, columns: int = COLUMNS) -> tuple[Table, ...]:
    """A table as several of at most so many columns beside the first, which each of them has."""
    rest = range(1, len(table.columns))
    size = -(-len(rest) // max(-(-len(rest) // columns), 1)) or 1
    parts = [rest[start : start + size] for start in range(0, max(len(rest), 1), size)]
    return tuple(
        Table(
            table.caption,
            (table.columns[0], *(table.columns[place] for place in part)),
            tuple((row[0], *(row[place] for place in part)) for row in table.rows),
            table.note if part is parts[-1] else "",
        )
        for part in parts
    )
