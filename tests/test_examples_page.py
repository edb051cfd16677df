"""The pilots kept under docs/examples: their pages in a real browser, clicked through, and what they are of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from limbeck.config import load_config
from test_report_browser import CHROMIUM, LOW_CONTRAST, MARKS, OVERFLOWS, Browser

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
PAGES = {
    f"{name}.{language}": EXAMPLES / f"{name}.{language}.html"
    for name in ("adult", "coloured-mnist")
    for language in ("en", "ja")
}
SMALL = 2_500_000
UNFOLD = "document.querySelectorAll('main details:not(.vega-embed details)').forEach((one) => { one.open = true; })"

in_browser = [pytest.param(page, marks=[pytest.mark.slow] if page.endswith(".ja") else []) for page in PAGES]
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.mark.parametrize("page", PAGES)
def test_the_page_is_of_the_configuration_beside_it(page: str) -> None:
    name, _, language = page.rpartition(".")
    config = load_config(EXAMPLES / f"{name}.yaml")
    text = PAGES[page].read_text(encoding="utf-8")
    assert len(text.encode()) < SMALL
    assert f'<html lang="{language}"' in text
    assert len(config.seeds) == 5
    plain = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    missing = [entry.label for entry in config.recipes if entry.label.replace("'", "&#39;") not in plain]
    assert missing == []


@in_chromium
@pytest.mark.parametrize("page", in_browser)
@pytest.mark.parametrize("width", [390, 1440])
def test_it_is_drawn_offline_without_error_or_overflow(browser: Browser, page: str, width: int) -> None:
    browser.open(PAGES[page], width)
    assert browser.complaints() == []
    assert browser.requests() == [PAGES[page].as_uri()]
    marks = browser.ask(MARKS)
    assert len(marks) > 10
    assert {chart: count for chart, count in marks.items() if count < 2} == {}
    assert browser.ask(f"{OVERFLOWS}({width})") == []
    browser.ask(UNFOLD)
    assert browser.ask(f"{OVERFLOWS}({width})") == []
    assert browser.ask(LOW_CONTRAST) == []


@in_chromium
@pytest.mark.parametrize("page", in_browser)
def test_clicking_through(browser: Browser, page: str) -> None:
    browser.open(PAGES[page], 1440)
    links = browser.ask("[...document.querySelectorAll('.contents a')].map((link) => link.hash)")
    assert len(links) > 8
    for key in links:
        browser.ask(f"document.querySelector('.contents a[href=\"{key}\"]').click()")
        assert browser.ask("location.hash") == key
        assert browser.ask(f"document.querySelector('{key}').getBoundingClientRect().height") > 50
    # Every entry of every list draws something, and one list at least draws something else.
    picture = """list.closest("[data-chart]").querySelector("svg").innerHTML"""
    changes = browser.ask(f"""(async () => {{
      const found = [];
      for (const list of document.querySelectorAll("[data-chart] select")) {{
        const pictures = [];
        for (const option of [...list.options].slice(0, 4)) {{
          list.value = option.value;
          list.dispatchEvent(new Event("change")); list.dispatchEvent(new Event("input"));
          pictures.push(await new Promise((done) => setTimeout(() => done({picture}), 60)));
        }}
        found.push(new Set(pictures).size);
      }}
      return found;
    }})()""")
    assert changes
    assert max(changes) > 1
    assert {chart: count for chart, count in browser.ask(MARKS).items() if count < 2} == {}
    # Every fold opens by a click on its title.
    folds = "[...document.querySelectorAll('main details:not(.vega-embed details)')]"
    browser.ask(f"{folds}.filter((one) => !one.open).forEach((one) => one.querySelector('summary').click())")
    assert browser.ask(f"{folds}.every((one) => one.open)")
    assert browser.ask(f"Math.min(...{folds}.map((one) => one.getBoundingClientRect().height))") > 30
    assert browser.complaints() == []
    assert browser.requests() == [PAGES[page].as_uri()]
