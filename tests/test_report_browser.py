"""The report in a real browser: drawn offline, without an error or overflow, in both languages and at two widths."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limbeck.report import write_html
from test_report import evil_result
from test_report_results import big_result, evidence, whole_result

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)


class Browser:
    """A headless Chromium spoken to over its debugging pipe: JSON messages ended by a zero byte, no other package."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        from_us, self._out = os.pipe()
        self._in, to_us = os.pipe()

        def wire() -> None:
            # Chromium reads commands from descriptor 3 and answers on 4; copies first, for either may be in use.
            reading, writing = os.dup(from_us), os.dup(to_us)
            os.dup2(reading, 3)
            os.dup2(writing, 4)

        self._process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=wire,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(from_us)
        os.close(to_us)
        self._buffer = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank", session=None)["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True, session=None)["sessionId"]
        self.send("Emulation.setScrollbarsHidden", hidden=True)
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, session: str | None = "page", **params: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def open(self, path: Path, width: int, height: int = 900, *, scripts: bool = True) -> None:
        """Load a page from disk at a width, and wait until its charts are drawn."""
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.send("Page.navigate", url="about:blank")
        self.events.clear()
        self.send("Page.navigate", url=path.as_uri())
        # Chromium answers our questions even where a page's own scripts may not run.
        ready = (
            "document.documentElement?.dataset.charts === 'drawn'" if scripts else "document.readyState === 'complete'"
        )
        deadline = time.monotonic() + 60
        while not self.ask(f"location.protocol === 'file:' && {ready}"):
            assert time.monotonic() < deadline, f"{path.name}: not drawn after a minute"
            time.sleep(0.05)

    def ask(self, expression: str) -> Any:
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as a picture."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        answer = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(answer["data"]))

    def complaints(self) -> list[str]:
        """Errors and warnings on the console, uncaught exceptions, and messages of the security policy."""
        found = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                found.append(str(params["args"]))
            elif method == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
            elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(str(params["entry"]))
        return found

    def requests(self) -> list[str]:
        """Everything the page asked for, but what it carries itself."""
        sent = (e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent")
        return [url for url in sent if not url.startswith(("data:", "blob:", "about:"))]

    def close(self) -> None:
        os.close(self._out)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._in, 1 << 20)
            assert chunk, "Chromium has closed its pipe"
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        return message


# A telephone zooms out until the page fits, so that only the width asked for tells an overflow.
OVERFLOWS = """
((width) => {
  const found = [];
  if (document.documentElement.scrollWidth > width) found.push(`page ${document.documentElement.scrollWidth}`);
  const scrolls = (node) => node.closest(".scroll, pre, .skip, script, style, noscript");
  for (const node of document.querySelectorAll("body *")) {
    if (scrolls(node) && node.matches(":not(.scroll):not(pre)")) continue;
    const box = node.getBoundingClientRect();
    if (!box.width || getComputedStyle(node).visibility === "hidden") continue;
    const svg = node.ownerSVGElement;
    // Marks end at the plot's edge and letters are measured before they are drawn: two pixels are no overflow.
    const limits = svg ? svg.getBoundingClientRect() : { left: 0, right: width };
    const counts = svg ? node.tagName === "text" && node.textContent && node.getAttribute("opacity") !== "0" : true;
    if (counts && (box.left < limits.left - 2 || box.right > limits.right + 2))
      found.push(`${node.tagName}.${node.className} ${node.textContent.trim().slice(0, 40)} ${box.left} ${box.right}`);
  }
  return found;
})
"""

# Relative luminance and contrast as WCAG 2.2 defines them; the nearest painted ancestor is the background.
LOW_CONTRAST = """
(() => {
  const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const numbers = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const [r, g, b, a = 1] = numbers(getComputedStyle(node).backgroundColor);
      if (a > 0) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim()) continue;
    if (node.closest("svg, script, style, noscript, .vega-embed > details")) continue;
    const [a, b] = [luminance(numbers(getComputedStyle(node).color)), luminance(ground(node))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) found.push(`${node.tagName}.${node.className} ${contrast}`);
  }
  return [...new Set(found)];
})()
"""

MARKS = """
Object.fromEntries([...document.querySelectorAll("[data-chart]")].map((holder) => [
  holder.dataset.chart,
  holder.querySelectorAll("svg .role-mark path[d]:not([d='']), svg .role-mark text, svg .role-mark line").length,
]))
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    return {
        language: write_html(whole_result(), folder / f"{language}.html", language=language)
        for language in ("en", "ja")
    }


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_is_drawn_offline_without_error_or_overflow(
    browser: Browser, reports: dict[str, Path], language: str, width: int
) -> None:
    browser.open(reports[language], width)
    assert browser.complaints() == []
    assert browser.requests() == [reports[language].as_uri()]
    marks = browser.ask(MARKS)
    # Those of the result alone, who is worse off, four feature spaces, and corrections by class, group and rule.
    assert len(marks) == 23 + 1 + 4 + 3
    assert {chart: count for chart, count in marks.items() if count < 2} == {}
    assert browser.ask("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert browser.ask(f"{OVERFLOWS}({width})") == []
    # Everything unfolded, it still fits.
    browser.ask(
        "document.querySelectorAll('main details:not(.vega-embed details)').forEach((one) => { one.open = true; })"
    )
    assert browser.ask(f"{OVERFLOWS}({width})") == []
    assert browser.ask(LOW_CONTRAST) == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1440])
def test_a_large_pilot_is_drawn_too(browser: Browser, tmp_path: Path, width: int) -> None:
    result = big_result()
    path = write_html({**result, "evidence": evidence(result)}, tmp_path / "big.html")
    browser.open(path, width)
    assert browser.complaints() == []
    assert min(browser.ask(MARKS).values()) > 1
    assert browser.ask(f"{OVERFLOWS}({width})") == []


LONG = tuple(
    f"income above 50,000 a year, {sex}, {race}, of the northern region and the islands"
    for sex in ("Female", "Male")
    for race in ("White", "Black or African American", "Asian or Pacific Islander", "American Indian")
)
SCROLLING = """
[...document.querySelectorAll(".scroll")].filter((one) => one.clientWidth && one.scrollWidth > one.clientWidth + 1)
  .map((one) => one.querySelector("caption").textContent)
"""


@pytest.mark.parametrize("language", ["en", "ja"])
def test_eight_long_group_names_need_no_scrolling_on_a_desk(browser: Browser, tmp_path: Path, language: str) -> None:
    path = write_html(whole_result(groups=LONG, recipes=6), tmp_path / "long.html", language=language)
    for width in (390, 1440):
        browser.open(path, width)
        browser.ask(
            "document.querySelectorAll('main details:not(.vega-embed details)').forEach((one) => { one.open = true; })"
        )
        assert browser.ask(f"{OVERFLOWS}({width})") == []
        assert browser.complaints() == []
    assert browser.ask(SCROLLING) == []


def test_clicking_through(browser: Browser, reports: dict[str, Path]) -> None:
    browser.open(reports["en"], 1440)
    # Every entry of the contents leads to its chapter.
    for key in browser.ask("[...document.querySelectorAll('.contents a')].map((link) => link.hash)"):
        browser.ask(f"document.querySelector('.contents a[href=\"{key}\"]').click()")
        assert browser.ask("location.hash") == key
        assert browser.ask(f"document.querySelector('{key}').getBoundingClientRect().height") > 50
    # The two lists of the confusion chart choose what is drawn.
    texts = "document.querySelectorAll('[data-chart=confusion] .mark-text.role-mark text')"
    cells = f"[...{texts}].map((node) => node.textContent)"
    before = browser.ask(cells)
    assert len(before) == 4
    choose = """(() => {{
      const list = document.querySelectorAll("[data-chart=confusion] select")[{list}];
      list.value = {value}; list.dispatchEvent(new Event("change")); list.dispatchEvent(new Event("input"));
      return new Promise((done) => setTimeout(done, 200));
    }})()"""
    browser.ask(choose.format(list=0, value='"erm (no teacher)"'))
    other = browser.ask(cells)
    assert len(other) == 4
    assert other != before
    browser.ask(choose.format(list=1, value='"income >50K, Female"'))
    assert len(browser.ask(cells)) == 2  # one true class in that group
    # Every group and every error is drawn in the feature space, and the legend names the sign of an error.
    crosses = browser.ask(
        "document.querySelectorAll('[data-chart=features-erm] svg path[stroke-width=\"1.8\"]').length"
    )
    seen = whole_result()["evidence"]["feature_space"]
    wrong = sum(p != label for p, label in zip(seen["models"]["erm"]["predicted"], seen["label"], strict=True))
    assert crosses == wrong > 10
    assert browser.ask("document.querySelector('#feature-space .legend').textContent.includes('Wrong')")
    # Who is worse off: one point a group and model it is held against, and a rule for zero.
    points = "#worse-off [data-chart] svg .mark-symbol.role-mark path"
    assert browser.ask(f"document.querySelectorAll('{points}').length") == 8
    # The samples that moved farthest stand in the page, half of them with a picture.
    assert browser.ask("document.querySelectorAll('#corrections .exhibit').length") == 12
    assert browser.ask("document.querySelectorAll('#corrections .exhibit img').length") == 6
    # Tables unfold.
    folded = "document.querySelector('#training .folded')"
    assert browser.ask(f"{folded}.open") is False
    browser.ask(f"{folded}.querySelector('summary').click()")
    assert browser.ask(f"{folded}.querySelector('table').getBoundingClientRect().height") > 100
    assert browser.complaints() == []


def test_the_keyboard_reaches_everything(browser: Browser, reports: dict[str, Path]) -> None:
    browser.open(reports["en"], 1440)

    def press(key: str, code: int) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            browser.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    press("Tab", 9)
    assert browser.ask("document.activeElement.className") == "skip"
    assert browser.ask("document.activeElement.getBoundingClientRect().left") >= 0
    assert browser.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    seen = set()
    for _ in range(90):
        press("Tab", 9)
        seen.add(browser.ask("`${document.activeElement.tagName}.${document.activeElement.className}`"))
    assert {"A.", "SUMMARY.", "SELECT.", "DIV.scroll"} <= seen
    assert "PRE." in seen


def test_without_scripts_the_tables_say_everything(browser: Browser, reports: dict[str, Path]) -> None:
    browser.open(reports["en"], 1440, scripts=False)
    assert browser.ask("document.querySelectorAll('svg.marks').length") == 0
    assert browser.ask(
        "document.querySelector('noscript p') !== null || document.querySelector('noscript').textContent !== ''"
    )
    heights = browser.ask("[...document.querySelectorAll('table')].map((table) => table.rows.length)")
    assert len(heights) > 15
    assert min(heights) > 1
    assert browser.ask("document.documentElement.scrollWidth") <= 1440
    assert browser.complaints() == []


def test_names_that_attack_do_nothing(browser: Browser, tmp_path: Path) -> None:
    path = write_html(evil_result(), tmp_path / "evil.html")
    browser.open(path, 390)
    assert browser.complaints() == []
    assert browser.requests() == [path.as_uri()]
    assert browser.ask("window.broken") is None
    assert browser.ask("document.images.length") == 0
    assert min(browser.ask(MARKS).values()) > 1
    labels = browser.ask(
        "[...document.querySelectorAll('[data-chart=scatter] svg text')].map((node) => node.textContent)"
    )
    assert any("<script>" in label for label in labels)
    assert browser.ask("document.documentElement.scrollWidth") <= 390


def test_a_script_slipped_into_the_page_is_refused(browser: Browser, reports: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "slipped.html"
    text = reports["en"].read_text(encoding="utf-8")
    path.write_text(text.replace("<main", "<script>window.broken = 1</script><main", 1), encoding="utf-8")
    browser.open(path, 1440)
    assert browser.ask("window.broken") is None
    assert any("Content Security Policy" in complaint for complaint in browser.complaints())


def test_printing_unfolds_what_is_folded(browser: Browser, reports: dict[str, Path]) -> None:
    browser.open(reports["en"], 1000)
    closed = "document.querySelectorAll('main details:not([open]):not(.vega-embed details)').length"
    before = browser.ask(closed)
    assert before > 3
    browser.ask("void dispatchEvent(new Event('beforeprint'))")
    assert browser.ask(closed) == 0
    browser.ask("void dispatchEvent(new Event('afterprint'))")
    assert browser.ask(closed) == before
    printed = base64.b64decode(browser.send("Page.printToPDF", printBackground=True)["data"])
    assert printed.startswith(b"%PDF")
