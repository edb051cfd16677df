"""Pages from results: one self-contained HTML file, Markdown, PDF or JSON, in English and Japanese."""

from __future__ import annotations

from limbeck.report.evidence import with_evidence
from limbeck.report.language import languages
from limbeck.report.page import write_html, write_json, write_markdown
from limbeck.report.pdf import write_pdf

__all__ = ["languages", "with_evidence", "write_html", "write_json", "write_markdown", "write_pdf"]
