"""The page is one small file that loads nothing from elsewhere and builds no HTML of data; a browser shows it."""

from __future__ import annotations

import re
import shutil
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import opero.integrations.web
from integrations.web.conftest import TOKEN, Program, ask
from opero import Policy, serve
from opero.integrations.web.page import page

TEXT = (Path(opero.integrations.web.__file__).parent / "page.html").read_text("utf-8")
WAIT = 60_000


def test_it_is_small_and_whole() -> None:
    assert len(TEXT.encode()) <= 60_000
    assert re.findall(r"https?://(?!www\.w3\.org/)", TEXT) == []
    assert re.findall(r"<(?:link|img|iframe|object|script)[^>]*\b(?:src|href)=\"(?!data:)", TEXT) == []
    assert "@import" not in TEXT
    assert "url(" not in TEXT


def test_it_makes_no_html_of_data() -> None:
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", " style="):
        assert name not in TEXT, name
    assert re.findall(r"<[a-z][^>]*\son\w+=", TEXT) == []


def test_its_scripts_and_styles_are_allowed_by_their_hashes_alone() -> None:
    policy = dict(page().headers())["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; ")
    for tag in ("script", "style"):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", TEXT, re.DOTALL)
        assert f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'" in policy


def test_its_picture_is_small() -> None:
    picture = Path(__file__).parents[3] / "docs" / "live-page.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 300_000


# In a browser


def browser_path() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next((found for name in names if (found := shutil.which(name)) is not None), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = browser_path()
    with api.sync_playwright() as driver:
        try:
            started = driver.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=WAIT)
        except api.Error as error:
            pytest.skip(f"there is no Chromium here: {str(error).splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture
def show(browser: Any) -> Iterator[Any]:
    """Opens the page of a server in a window; nothing may be reported on its console."""
    contexts, reported = [], []

    def opened(url: str, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        made = context.new_page()
        made.set_default_timeout(WAIT)
        made.on("console", lambda message: reported.append(message.text))
        made.on("pageerror", lambda error: reported.append(str(error)))
        made.on("dialog", lambda dialog: reported.append(f"dialog {dialog.message}"))
        made.goto(url)
        made.get_by_text("live", exact=True).wait_for()
        return made

    yield opened
    for each in contexts:
        each.close()
    assert [each for each in reported if "ERR_CONNECTION_REFUSED" not in each and "net::ERR" not in each] == []


def test_it_shows_a_program_that_breaks(program: Program, show: Any) -> None:
    program.charge(1)
    with serve(0, registry=program.registry) as server:
        shown = show(server.url)
        row = shown.locator("#profiles tr.row", has_text="api")
        row.get_by_text("circuit closed").wait_for()
        program.fail(5)
        row.get_by_text("circuit open").wait_for()
        event = shown.locator("#list li", has_text="circuit opened")
        event.wait_for()
        assert "<img src=x onerror=alert(1)>" in event.inner_text(), "shown as text"
        assert shown.locator("img").count() == 0
        row.get_by_role("button", name="api", exact=True).click()
        detail = shown.locator("tr.detail")
        detail.get_by_text("retry.retries").wait_for()
        assert "ConnectionError" in detail.inner_text()
        assert shown.title().startswith("opero")


def test_names_are_shown_as_text(show: Any) -> None:
    from opero import Registry

    def hostile() -> None:
        raise type("<b>E</b>", (Exception,), {})("</script><script>alert(2)</script>")

    hostile.__qualname__ = "<script>alert(1)</script>"
    registry = Registry({"<i>p</i>": Policy(retry={"retries": 1, "min_delay": 0})})
    bound: Any = registry.bind(hostile, "<i>p</i>")
    with serve(0, registry=registry) as server:
        shown = show(server.url)
        with pytest.raises(Exception, match="script|all"):
            bound()
        shown.locator("#list li", has_text="alert(2)").first.wait_for()
        shown.locator("#functions .name").first.click()
        shown.locator("tr.detail").get_by_text("<b>E</b>").wait_for()
        assert shown.locator("i:has-text('p')").count() == 0
        assert shown.locator("script").count() == 1


def test_it_says_when_it_is_disconnected_and_comes_back(program: Program, show: Any) -> None:
    server = serve(0, registry=program.registry)
    shown = show(server.url)
    server.close()
    shown.get_by_text("disconnected since").wait_for()
    with serve(server.port, registry=program.registry):
        shown.get_by_text("live", exact=True).wait_for()


def test_actions_are_done_by_hand(program: Program, show: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPERO_TOKEN", TOKEN)
    program.charge(1)
    with serve(0, registry=program.registry) as server:
        shown = show(server.url)
        shown.get_by_role("button", name="Actions", exact=True).click()
        shown.locator("#token").fill(TOKEN)
        shown.locator("#by").fill("ada")
        shown.keyboard.press("Enter")
        shown.locator("#profiles").get_by_role("button", name="api", exact=True).click()
        shown.get_by_role("button", name="Force open").click()
        shown.get_by_text("forced open: api").wait_for()
        shown.locator("#profiles tr.row", has_text="api").get_by_text("forced open").wait_for()
        assert program.registry.state("api").circuit_breaker.state == "forced_open"


def test_it_is_used_by_keyboard(program: Program, show: Any) -> None:
    with serve(0, registry=program.registry) as server:
        shown = show(server.url)
        shown.keyboard.press("/")
        shown.keyboard.type("quiet")
        shown.get_by_text("1 of 2").first.wait_for()
        shown.keyboard.press("Escape")
        shown.locator("#profiles .name").first.focus()
        shown.keyboard.press("Enter")
        shown.locator("tr.detail").wait_for()
        assert shown.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
        shown.locator("#profiles thead").get_by_role("button", name="Retries").click()
        assert shown.locator("#profiles th[aria-sort=descending]").inner_text().startswith("Retries")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(program: Program, show: Any, scheme: str) -> None:
    program.fail(5)
    with serve(0, registry=program.registry) as server:
        shown = show(server.url, viewport={"width": 360, "height": 740}, color_scheme=scheme, reduced_motion="reduce")
        shown.locator("#profiles .name").first.click()
        shown.locator("tr.detail").get_by_text("retry.retries").wait_for()
        assert shown.evaluate("document.documentElement.scrollWidth") <= 360
        heights = shown.locator("header button, tbody button, form button:visible").evaluate_all(
            "all => all.map(each => each.offsetHeight)"
        )
        assert min(heights) >= 28


def test_a_screen_reader_finds_tables_rows_and_states(program: Program, show: Any) -> None:
    program.charge(1)
    with serve(0, registry=program.registry) as server:
        for width in (1280, 360):
            shown = show(server.url, viewport={"width": width, "height": 800})
            table = shown.get_by_role("table", name="Profiles")
            table.get_by_role("rowheader", name="api").wait_for()
            assert table.get_by_role("row").count() == 3
            assert shown.get_by_role("status").first.inner_text() == "live"
            assert shown.get_by_role("heading", level=2).all_inner_texts() == ["Profiles", "Functions", "Events"]


def test_a_thousand_functions_are_shown_a_hundred_at_a_time(show: Any) -> None:
    from opero import Registry

    registry = Registry({"api": Policy(retry=1)})

    def named(number: int) -> Any:
        def work() -> int:
            return number

        work.__qualname__ = f"work{number:04}"
        return registry.bind(work, "api")

    bound = [named(number) for number in range(1000)]
    bound[0]()
    with serve(0, registry=registry) as server:
        shown = show(server.url)
        assert shown.locator("#functions tr.row").count() == 100
        shown.get_by_role("button", name="Show all 1000").click()
        shown.locator("#functions tr.row >> nth=999").wait_for()
        assert ask(f"{server.url}/state.json").json["functions"].keys() >= {"integrations.web.test_page:work0999"}
