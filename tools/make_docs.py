"""Write into the README and docs what is taken from the code: the table of recipes.

    python tools/make_docs.py [--check]

With --check nothing is written, and the exit code is 1 where a document is not up to date.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from limbeck.presets import describe_presets
from limbeck.terms.catalogue import CATALOGUE
from limbeck.weighting.catalogue import WEIGHTINGS

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- {name}: begin (make docs) -->", "<!-- {name}: end -->"


def recipes_short() -> str:
    """Name, title and paper of every recipe."""
    rows = [f"| `{row['name']}` | {row['title']} | {row['paper']} | {row['trusts']} |" for row in describe_presets()]
    return "\n".join(["| recipe | what it is | from | trusts |", "|---|---|---|---|", *rows])


def recipes_long() -> str:
    """What each recipe needs, and its hyper-parameters."""
    rows = [
        f"| `{row['name']}` | {row['teacher']} | {row['labels']} | {row['classes']} | "
        f"{', '.join(f'{key}={value}' for key, value in row['options'].items()) or '–'} | {row['note']} |"
        for row in describe_presets()
    ]
    head = "| recipe | of the teacher | labels beside training's | classes | hyper-parameters | note |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def parts() -> str:
    """Terms and weightings."""
    terms = [
        f"| `{name}` | {'a sample' if info.per_sample else 'the batch'} | {info.minimum_classes} | "
        f"{info.source or '–'} | {info.note} |"
        for name, info in CATALOGUE.items()
    ]
    weightings = [f"| `{name}` | {info.summary} | {info.source} |" for name, info in WEIGHTINGS.items()]
    return "\n".join(
        [
            "| term | one loss for | classes at least | from | note |",
            "|---|---|---|---|---|",
            *terms,
            "",
            "| weighting | listens to | from |",
            "|---|---|---|",
            *weightings,
        ]
    )


def replaced(text: str, name: str, content: str) -> str:
    """The text with what stands between the marks of that name replaced."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{content}\n{end}{after}"


def main() -> int:
    """Write the documents, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for path, sections in (
        (ROOT / "README.md", {"recipes": recipes_short()}),
        (ROOT / "docs" / "recipes.md", {"needs": recipes_long(), "parts": parts()}),
    ):
        old = new = path.read_text(encoding="utf-8")
        for name, content in sections.items():
            new = replaced(new, name, content)
        if new != old:
            stale.append(path.name)
            if not check:
                path.write_text(new, encoding="utf-8")
    if check and stale:
        print(f"not up to date: {', '.join(stale)}; run make docs", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
