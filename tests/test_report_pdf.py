"""The report as PDF: its text in both languages, its charts and tables, and what is said where it cannot be made."""

from __future__ import annotations

import base64
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import MissingExtraError
from limbeck.report import pdf, write_pdf
from limbeck.report.blocks import Cell, Column, Table
from limbeck.report.language import load_language
from limbeck.report.page import charts_of
from limbeck.report.sections import sections
from limbeck.report.sentences import headline, sentences
from limbeck.report.summary import Summary
from test_report import evil_result
from test_report_results import PICTURE, whole_result

EN = load_language("en")


@pytest.fixture(scope="module")
def needs_weasyprint() -> Any:
    pytest.importorskip("pypdf")
    try:
        return pdf._weasyprint()
    except MissingExtraError as error:
        pytest.skip(str(error))


def squeezed(text: str) -> str:
    """Text without what a line break may have done to it."""
    return re.sub(r"[\s\u00ad]+", "", text)


@pytest.mark.parametrize("language", [pytest.param("en", marks=pytest.mark.slow), "ja"])
def test_the_text_of_the_page_can_be_read_out_of_the_pdf(needs_weasyprint: Any, tmp_path: Path, language: str) -> None:
    from pypdf import PdfReader

    result, t = whole_result(recipes=4, seeds=1, epochs=2), load_language(language)
    summary = Summary.from_result(result)
    path = write_pdf(result, tmp_path / "a" / "report.pdf", language=language)
    assert path.read_bytes().startswith(b"%PDF-1.")
    assert [one.name for one in path.parent.iterdir()] == ["report.pdf"]
    reader = PdfReader(path)
    text = squeezed("".join(page.extract_text() for page in reader.pages))
    assert squeezed(headline(summary, t)) in text
    for section in sections(summary, t):
        assert squeezed(section.title) in text
    for sentence in sentences(summary, t):
        assert squeezed(sentence)[:25] in text
    for model in summary.models:
        assert f"{model.parameters:,}" in text
    width, height = reader.pages[0].mediabox[2:]
    assert (round(float(width)), round(float(height))) == (595, 842)
    assert reader.trailer["/Root"]["/Lang"] == language
    assert reader.trailer["/Root"]["/MarkInfo"]["/Marked"]
    assert 5 < len(reader.pages) < 40
    assert path.stat().st_size < 5_000_000


def test_every_chart_is_a_picture_that_asks_the_page_nothing() -> None:
    summary = Summary.from_result(whole_result(seeds=1, epochs=2))
    keys = [chart.key for section in sections(summary, EN) for block in section.blocks for chart in charts_of(block)]
    page = pdf.static_html(summary, EN)
    pictures = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]+)"', page)
    assert len(pictures) == len(keys) > 20
    for text, description in pictures:
        svg = base64.b64decode(text).decode()
        assert svg.startswith("<svg")
        assert "url(#gradient" not in svg
        assert len(re.findall(r"<(?:path|text|rect)", svg)) > 10
        assert len(description) > 20
    assert page.count(f'<img src="{PICTURE}"') == 6
    assert "<script" not in page
    assert "details" not in page


def test_colour_bars_are_strips_from_the_first_colour_to_the_last() -> None:
    svg = (
        '<path d="M0,0h220v16h-220Z" fill="url(#gradient_0)" stroke="#ddd" opacity="1"/><defs>'
        '<linearGradient id="gradient_0" x1="0" x2="1"><stop offset="0" stop-color="rgb(0, 0, 0)"/>'
        '<stop offset="1" stop-color="rgb(240, 120, 60)"/></linearGradient></defs>'
    )
    strips = re.findall(
        r'<rect x="([\d.]+)" width="([\d.]+)" height="16" fill="rgb\((\d+),(\d+),(\d+)\)"/>', pdf.plain_gradients(svg)
    )
    assert len(strips) == 60
    assert [int(value) for value in strips[0][2:]] == [2, 1, 0]
    assert [int(value) for value in strips[-1][2:]] == [238, 119, 60]
    assert float(strips[-1][0]) + float(strips[-1][1]) == pytest.approx(220, abs=0.02)
    assert [float(one[0]) for one in strips] == sorted(float(one[0]) for one in strips)


def test_a_wide_table_goes_on_below() -> None:
    for count in range(0, 40):
        columns = tuple(Column(f"c{n}") for n in range(count + 1))
        rows = tuple(tuple(Cell(f"{row}.{n}") for n in range(count + 1)) for row in range(3))
        parts = pdf.split(Table("t", columns, rows, "note"))
        assert all(len(part.columns) <= pdf.COLUMNS + 1 for part in parts)
        assert [c for part in parts for c in part.columns[1:]] == list(columns[1:])
        for row in range(3):
            assert [cell for part in parts for cell in part.rows[row][1:]] == list(rows[row][1:])
            assert all(part.rows[row][0] == rows[row][0] for part in parts)
        assert [part.note for part in parts] == [""] * (len(parts) - 1) + ["note"]
        # No part is a rest of a column or two.
        sizes = [len(part.columns) for part in parts]
        assert max(sizes) - min(sizes) <= max(len(parts) - 1, 1)


@pytest.mark.slow
def test_names_that_attack_do_nothing(needs_weasyprint: Any, tmp_path: Path) -> None:
    page = pdf.static_html(Summary.from_result(evil_result()), EN)
    assert "<script" not in page
    assert not re.findall(r'<img src="(?!data:image/svg)', page)
    assert write_pdf(evil_result(), tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_nothing_is_fetched(needs_weasyprint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret.svg"
    secret.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><text>SECRET</text></svg>')
    monkeypatch.setattr(pdf, "static_html", lambda *_: f'<img src="{secret.as_uri()}" alt="refused"><p>here</p>')
    from pypdf import PdfReader

    text = PdfReader(write_pdf(whole_result(seeds=1, epochs=1), tmp_path / "a.pdf")).pages[0].extract_text()
    assert "here" in text
    assert "SECRET" not in text


def test_without_weasyprint_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "weasyprint", None)
    with pytest.raises(MissingExtraError, match=r"weasyprint is needed here .* pip install 'limbeck\[pdf\]'"):
        write_pdf(whole_result(), tmp_path / "a.pdf")
    assert list(tmp_path.iterdir()) == []


def test_without_pango_the_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def broken(name: str, package: str | None = None) -> Any:
        if name == "weasyprint":
            raise OSError("cannot load library 'libpango-1.0-0': no such file\nAdditionally, …")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(MissingExtraError, match=r"(?s)Pango.*libpango-1\.0-0.*apt-get install libpango.*brew install"):
        write_pdf(whole_result(), tmp_path / "a.pdf")
    assert list(tmp_path.iterdir()) == []


def test_other_formats_do_not_need_weasyprint() -> None:
    code = "import sys, limbeck.report; assert 'weasyprint' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
