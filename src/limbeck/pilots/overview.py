"""The page of several pilots: what they come to, and the way to the page of each; no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from limbeck import __version__
from limbeck.pilots.result import PilotResult
from limbeck.place import Place

if TYPE_CHECKING:
    from limbeck.report.language import Language

_STYLE = """
:root { --ink: #1f2933; --muted: #52606d; --line: #d9e0e7; color-scheme: light; }
html { font: 16px/1.55 system-ui, "Noto Sans", "Hiragino Sans", Meiryo, "Noto Sans CJK JP", sans-serif; }
body { color: var(--ink); margin: 0 auto; max-width: 80rem; padding: 1.5rem 1rem 3rem; overflow-wrap: anywhere; }
h1 { font-size: clamp(1.2rem, .95rem + 1.1vw, 1.75rem); line-height: 1.35; max-width: 60ch; }
h2 { font-size: 1.3rem; margin: 2rem 0 .25rem; }
p { max-width: 80ch; }
.quiet { color: var(--muted); margin: 0 0 .75rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .5rem .75rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; }
a { color: #00528a; text-underline-offset: .15em; }
:focus-visible { outline: 3px solid #56b4e9; outline-offset: 2px; }
@media print { .scroll { border: 0; overflow: visible; } table { font-size: 9pt; } }
"""
_COUNTED = ("better", "worse", "not distinguishable", "not measured", None)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"
_NUMBERS = ("parameters", "average", "worst_group", "plain", "share", "difference", "interval")


def overview_html(
    record: Mapping[str, Any], pilots: Mapping[Place, PilotResult], links: Mapping[Place, str], language: str
) -> str:
    """The page.

    Args:
        record: of a `MatrixResult`.
        pilots: its results.
        links: the page of each, relative to this one.
        language: a code of `limbeck.report.languages()`.

    Raises:
        ConfigError: for an unknown language.
    """
    from limbeck.report.language import load_language

    t = load_language(language)
    rows = record["pilots"]
    titles = [kind for kind in ("data", "student") if any(row[kind] is not None for row in rows)]
    first = _overall(rows, t)
    parts = [
        Markup("<h1>{}</h1>").format(first),
        Markup('<p class="quiet">{}</p>').format(
            t(
                "overview.run",
                name=record["name"],
                created=record["created"],
                seeds=", ".join(map(str, record["seeds"])),
                version=__version__,
            )
        ),
        _heading(t("overview.pilots"), t("overview.pilots_lead")),
        _table(
            [*titles, "parameters", "label", "average", "worst_group", "plain", "outcome"],
            [_pilot_row(row, titles, links, t) for row in rows],
            t,
        ),
    ]
    if record["comparisons"]:
        parts += [
            _heading(t("overview.sizes"), t("overview.sizes_lead")),
            _table(
                [*titles, "against", "share", "metric", "difference", "interval", "verdict"],
                [_size_row(row, titles, t) for row in record["comparisons"]],
                t,
            ),
        ]
    parts.append(_heading(t("overview.verdicts"), ""))
    parts += [_verdict(place, result, t) for place, result in pilots.items()]
    return _page(first, language, parts)


def _page(title: str, language: str, parts: Iterable[Markup]) -> str:
    return str(
        Markup(
            '<!doctype html>\n<html lang="{}">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta http-equiv="Content-Security-Policy" content="{}">\n<title>{}</title>\n<style>{}</style>\n'
            "</head>\n<body>\n<main>\n{}\n</main>\n</body>\n</html>\n"
        ).format(language, _POLICY, title, Markup(_STYLE), Markup("\n").join(parts))
    )


def _overall(rows: Sequence[Mapping[str, Any]], t: Language) -> str:
    counts = {outcome: sum(row["outcome"] == outcome for row in rows) for outcome in _COUNTED}
    said = [t(f"overview.counted.{_named(outcome)}", count=count) for outcome, count in counts.items() if count]
    return t("overview.first", count=len(rows), parts=t.join(said))


def _named(outcome: str | None) -> str:
    return "not tried" if outcome is None else outcome


def _heading(title: str, lead: str) -> Markup:
    quiet = Markup('\n<p class="quiet">{}</p>').format(lead) if lead else Markup()
    return Markup("<h2>{}</h2>{}").format(title, quiet)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str | Markup]], t: Language) -> Markup:
    kinds = [Markup(' class="number"') if column in _NUMBERS else Markup() for column in columns]
    head = Markup().join(
        Markup('<th scope="col"{}>{}</th>').format(kind, t(f"overview.column.{column}"))
        for kind, column in zip(kinds, columns, strict=True)
    )
    body = Markup("\n").join(
        Markup("<tr>{}</tr>").format(
            Markup().join(Markup("<td{}>{}</td>").format(kind, cell) for kind, cell in zip(kinds, row, strict=True))
        )
        for row in rows
    )
    table = (
        '<div class="scroll" tabindex="0"><table>\n<thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody>\n</table></div>'
    )
    return Markup(table).format(head, body)


def _pilot_row(
    row: Mapping[str, Any], titles: Sequence[str], links: Mapping[Place, str], t: Language
) -> list[str | Markup]:
    place = Place(row["data"], row["student"])
    names: list[str | Markup] = [row[kind] or "" for kind in titles]
    # The last name of a row is the link: it is what tells the row from the one above.
    names[-1] = Markup('<a href="{}">{}</a>').format(links[place], names[-1])
    shares = (row["average"], row["worst_group"], row["plain"]["worst_group"])
    outcome = t(f"overview.outcome.{_named(row['outcome'])}")
    return [*names, _count(row["parameters"]), row["label"], *map(_percent, shares), outcome]


def _size_row(row: Mapping[str, Any], titles: Sequence[str], t: Language) -> list[str | Markup]:
    names = [f"{row['student']} ({row['label']})" if kind == "student" else row[kind] or "" for kind in titles]
    known = row["difference"] is not None and row["low"] is not None
    return [
        *names,
        f"{row['against_student']} ({row['against_label']})",
        f"{100 * row['parameters'] / row['against_parameters']:.3g}",
        t(f"overview.metric.{row['metric']}"),
        f"{100 * row['difference']:+.1f}" if known else "–",
        f"{100 * row['low']:+.1f} … {100 * row['high']:+.1f}" if known else "–",
        t(f"overview.outcome.{_named(row['verdict'])}"),
    ]


def _verdict(place: Place, result: PilotResult, t: Language) -> Markup:
    from limbeck.report.sentences import headline
    from limbeck.report.summary import Summary

    return Markup("<p><strong>{}</strong>: {}</p>").format(str(place), headline(Summary.from_result(result.record), t))


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
