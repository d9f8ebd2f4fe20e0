"""The page in a real browser: from disk, without a network, with hostile text in it; and live."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.view.conftest import HOSTILE, completion, metrics, trace, write_lines, write_run
from unipo.view.page import _evenly, _packed, _reversed_bits, _spread, whole_page
from unipo.view.reading import Run
from unipo.view.server import make_server

DEADLINE = 60.0


# -- without a browser -----------------------------------------------------------------------------
def test_nothing_that_a_model_wrote_stands_in_the_file_as_it_is(small: Path) -> None:
    page = whole_page([Run(small)])
    assert "hacked" not in page
    assert page.count("<script") == 1 + page.count('<script type="text/plain"')
    assert not re.search(r'(src|href)="?http', page), "the page asks the network for something"


def test_a_name_of_a_run_cannot_become_markup(tmp_path: Path) -> None:
    page = whole_page([Run(write_run(tmp_path / "<img onerror=alert(1)>", steps=1))])
    assert "<img onerror" not in page
    assert "&lt;img onerror" in page


def test_what_has_no_room_is_left_out_evenly_and_those_with_tokens_come_first(small: Path) -> None:
    run = Run(small)
    run.refresh()
    packs = list(_spread(range(len(run)), run.rows["step"], run.rows["traced"]))
    assert sorted(i for pack in packs for i in pack) == list(range(len(run)))
    traced = [all(run.rows["traced"][i] for i in pack) for pack in packs]
    assert traced == sorted(traced, reverse=True)


def test_the_room_is_kept_and_shared_between_texts_with_tokens_and_without(tmp_path: Path) -> None:
    def inside_of(packs: list[str]) -> list[str]:
        return [pack.partition(">")[2].partition("<")[0] for pack in packs]

    run = Run(write_run(tmp_path / "run", steps=40, per_step=8, traced=4, length=20))
    run.refresh()
    whole = inside_of(_packed(run, 1 << 30, "p")[1])
    room = 2 * len(whole[0]) + 200  # in its half, the first pack with tokens just fits
    first, packs = _packed(run, room, "p")
    data = inside_of(packs)
    assert sum(map(len, data)) <= room
    inside = [(traced, pack >= 0) for traced, pack in zip(first["rows"]["traced"], first["rows"]["pack"], strict=True)]
    assert {(1, True), (1, False), (0, True)} <= set(inside)
    # every row that is inside is found at its place in its pack
    texts = [json.loads(gzip.decompress(base64.b64decode(d))) for d in data]
    rows = first["rows"]
    for i, (pack, place) in enumerate(zip(rows["pack"], rows["place"], strict=True)):
        if pack >= 0:
            assert texts[pack][place]["text"] == run.detail(i)["text"]


def test_bits_in_reverse_visit_a_range_coarsely_first() -> None:
    order = sorted(range(8), key=_reversed_bits)
    assert order == [0, 4, 2, 6, 1, 5, 3, 7]


def test_of_too_many_responses_whole_steps_are_kept() -> None:
    steps = [s for s in range(1, 11) for _ in range(3)]
    kept = _evenly(steps, 12)  # every third of ten steps, and the last
    assert [steps[i] for i in kept] == [1, 1, 1, 4, 4, 4, 7, 7, 7, 10, 10, 10]
    assert _evenly(steps, 30) == list(range(30))


# -- in a browser ----------------------------------------------------------------------------------
def wait(what: Callable[[], Any], why: str) -> Any:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {DEADLINE:.0f} s: {why}")


class Page:
    """The page as a reader uses it."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser = browser
        browser.get("about:blank")
        browser.get_log("browser")
        browser.get(address)
        wait(lambda: self.js("return document.body.dataset.ready === 'yes'"), "the page is drawn")

    def js(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def all(self, selector: str) -> list[Any]:
        return list(self.browser.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        return wait(lambda: next(iter(self.all(selector)), None), selector)

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def press(self, key: str) -> None:
        self.browser.switch_to.active_element.send_keys(key)

    def type(self, name: str, value: str) -> None:
        self.one(f"#filters [name={name}]").send_keys(value)

    def open_completions(self) -> None:
        self.one("#tab-completions").click()
        wait(lambda: self.all(".rows .row"), "rows are drawn")

    def count(self, expected: str) -> None:
        wait(lambda: self.text("#count").startswith(expected), f"{expected!r}, it says {self.text('#count')!r}")

    def complaints(self) -> list[str]:
        return [
            entry["message"] for entry in self.browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
        ]


@pytest.fixture
def page(browser: Any, small: Path, tmp_path: Path) -> Iterator[Page]:
    file = tmp_path / "page.html"
    other = write_run(tmp_path / "other", steps=20)
    file.write_text(whole_page([Run(small), Run(other)]), encoding="utf-8")
    opened = Page(browser, file.as_uri())
    yield opened
    assert opened.complaints() == []
    assert opened.js("return document.body.dataset.hacked ?? null") is None


def test_curves_of_two_runs_are_laid_over_each_other_and_warnings_are_said(page: Page) -> None:
    wait(lambda: page.all(".chart canvas"), "charts are drawn")
    assert "small" in page.text("#runs")
    assert re.search(r"small 0\.\d+ other 0\.\d+", page.text('[data-title="Reward"] .reading'))
    assert "Entropy is collapsing" in page.text("#alarms")
    page.all("#runs button")[1].click()
    wait(lambda: "other" not in page.text('[data-title="Reward"] .reading'), "the other run is hidden")


def test_responses_are_filtered_by_each_field(page: Page) -> None:
    page.open_completions()
    page.count("400 of 400")
    page.type("stepLow", "21")
    page.count("80 of 400")
    page.type("rewardLow", "1")
    page.count("16 of 400")  # rewards go through five values in turn, and the sixteen-fold of five is eighty
    page.one("#filters [type=reset]").click()
    page.count("400 of 400")
    page.type("text", "(7, 3)")
    page.count("2 of 400")
    page.one("#filters [type=reset]").click()
    page.type("prompt", "question 1 of step 5:")
    page.count("8 of 400")
    page.one("#filters [name=traced]").click()
    page.count("0 of 400")


def test_responses_are_sorted_both_ways(page: Page) -> None:
    page.open_completions()
    head = page.one(".head .c-length button")
    head.click()
    first = page.text(".rows .row .c-length")
    assert page.one(".head .c-length").get_attribute("aria-sort") == "descending"
    head.click()
    last = page.text(".rows .row .c-length")
    assert page.one(".head .c-length").get_attribute("aria-sort") == "ascending"
    assert int(first) > int(last)


def test_a_response_opens_with_its_tokens_coloured_and_values_on_hover(page: Page) -> None:
    from selenium.webdriver import ActionChains

    page.open_completions()
    page.type("stepLow", "5")
    page.one("#filters [name=traced]").click()
    page.type("stepHigh", "5")
    page.count("4 of 400")
    page.one(".rows .row").click()
    spans = wait(lambda: page.all("#tokens .t"), "tokens are shown")
    assert "".join(s.get_attribute("textContent") for s in spans) == page.js("return tokens.detail.text")
    shade = "return getComputedStyle(document.querySelectorAll('#tokens .t')[arguments[0]]).backgroundColor"
    before = page.js(shade, 1)
    page.js("const c = document.getElementById('column'); c.value = 'ratio'; c.dispatchEvent(new Event('change'))")
    assert page.js(shade, 1) != before
    assert "ratio:" in page.text(".legend")
    ActionChains(page.browser).move_to_element(spans[2]).perform()
    tip = wait(lambda: page.text("#tip") if page.one("#tip").is_displayed() else "", "the tip is shown")
    assert "clippedyes" in tip
    assert "advantage" in tip
    tool = [s.get_attribute("data-n") for s in page.all("#tokens .t.tool")]
    assert tool == ["4", "5"]
    assert page.js("return getComputedStyle(document.querySelector('.prompt')).backgroundColor") != page.js(
        "return getComputedStyle(document.querySelector('.tokens')).backgroundColor"
    )
    assert "Group: 4 recorded answers" in page.text("#detail")


def test_the_keyboard_is_enough(page: Page) -> None:
    page.press("2")
    wait(lambda: page.all(".rows .row"), "rows are drawn")
    page.press("/")
    assert page.js("return document.activeElement.name") == "text"
    page.press("(9, 0)")
    page.count("2 of 400")
    page.press("\ue00c")  # Escape
    page.press("j")
    wait(lambda: "step 9" in page.text("#detail h2"), "a response is open")
    wait(lambda: page.all("#tokens .t"), "its tokens are shown")
    page.press("t")
    page.press("\ue014")  # arrow to the right
    page.press("\ue014")
    assert page.text("#values").startswith('Token 2, " see":')
    page.press("c")
    assert page.js("return tokens.column") == "ratio"
    page.press("3")
    assert "-min(r A, clip(r) A)" in page.text("#method .formula")
    assert "objective.high0.20.28" in page.text("#method")


def test_hostile_text_stays_text(page: Page) -> None:
    page.open_completions()
    page.type("text", "dataset.hacked")
    page.count("2 of 400")
    page.one(".rows .row").click()
    wait(lambda: page.all("#tokens .t"), "tokens are shown")
    assert page.text("#detail .prompt") == HOSTILE
    assert page.js("return tokens.spans.map((s) => s.textContent).join('')") == HOSTILE
    assert page.all("#completions img, #completions script") == []
    page.js("hover(tokens.spans[0])")
    assert page.all("#tip img, #tip script") == []


def test_a_script_that_got_into_the_page_would_not_run(page: Page) -> None:
    page.js(
        "const s = document.createElement('script'); s.textContent = 'document.body.dataset.hacked = 1'; document.body.append(s)"
    )
    page.js(
        "const d = document.createElement('div'); d.innerHTML = '<img src=x onerror=\"document.body.dataset.hacked=1\">'; document.body.append(d)"
    )
    time.sleep(0.3)
    assert page.js("return document.body.dataset.hacked ?? null") is None
    assert any("Content Security Policy" in text for text in page.complaints())


CONTRAST = """
const read = (text) => { const c = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  c.fillStyle = arguments[0]; c.fillRect(0, 0, 1, 1); c.fillStyle = text; c.fillRect(0, 0, 1, 1);
  return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3); };
const light = (rgb) => { const [r, g, b] = rgb.map((x) => (x /= 255) <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
const [a, b] = [light(read(style(arguments[1]))), light(read(style(arguments[2])))];
return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_on_every_ground_it_stands_on(page: Page, theme: str) -> None:
    page.js("setTheme(arguments[0])", theme)
    pairs = [("--text", g) for g in ("--back", "--panel", "--chosen", "--tool", "--plus", "--minus", "--amount")]
    pairs += [("--dim", g) for g in ("--back", "--panel", "--prompt", "--chosen", "--tool")] + [
        ("--alarm", "--alarm-back")
    ]
    pairs += [(f"--run{k}", "--panel") for k in range(6)] + [("--accent", "--panel")]
    ratios = {pair: page.js(CONTRAST, "#000", *pair) for pair in pairs}
    assert {pair: round(x, 2) for pair, x in ratios.items() if x < 4.5} == {}


def test_on_a_phone_nothing_is_wider_than_the_screen(page: Page) -> None:
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        for key in "123":
            page.press(key)
            assert page.js("return document.documentElement.scrollWidth") <= 390, f"view {key}"
        page.press("2")
        page.press("j")
        wait(lambda: page.one("#detail").is_displayed(), "the response takes the place of the list")
        assert page.js("return document.documentElement.scrollWidth") <= 390
        page.one(".back").click()
        assert page.one("#table").is_displayed()
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_live_page_follows_a_run(browser: Any, small: Path) -> None:
    os.utime(small / "metrics.jsonl")
    (small / "result.json").unlink()
    with make_server([Run(small)]) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            page = Page(browser, "http://127.0.0.1:{1}/".format(*server.server_address))
            page.open_completions()
            page.count("240 of 240")
            write_lines(small / "metrics.jsonl", [metrics(31, 31)], "a")
            write_lines(small / "tokens.jsonl", [trace(31, 0, "just now")], "a")
            write_lines(small / "completions.jsonl", [completion(31, 0, "just now")], "a")
            page.count("241 of 241")
            assert "31/30 running" in page.text("#runs")
            page.one(".rows .row").click()
            wait(lambda: page.text("#tokens") == "just now", "the new response is open with its tokens")
            assert page.complaints() == []
        finally:
            server.shutdown()
            thread.join()


def test_the_command_writes_the_file_and_ends(small: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.html"
    command = [sys.executable, "-m", "unipo", "view", str(small), "--html", str(file), "--no-serve"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{file}: " in done.stdout
    assert "240 responses" in done.stdout
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")
