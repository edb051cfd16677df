"""Pages from results: one self-contained HTML file, Markdown or JSON, in English and Japanese."""

from __future__ import annotations

from limbeck.report.language import languages
from limbeck.report.page import write_html, write_json, write_markdown

__all__ = ["languages", "write_html", "write_json", "write_markdown"]
