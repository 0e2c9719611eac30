"""tools/serve: its pages in a real Chromium."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, FilePayload, Page

from tests.browsing import CONTRAST, visit
from tests.project import Project
from tests.tools.serving import Server, grey, png, serving

SCREENS = [(360, "light"), (360, "dark"), (1280, "light"), (1280, "dark")]


@pytest.fixture(scope="module")
def address(first_run: Project) -> Iterator[str]:
    """The server of the small model of digits."""
    server = Server(first_run.folder)
    yield server.url
    server.stop()


@pytest.fixture(params=SCREENS, ids=str)
def page(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Page]:
    """The page, which must cause no error and load from nowhere else."""
    width, scheme = request.param
    bypass_csp = "readable" in request.node.name  # the measurement of contrast adds a style
    with visit(browser, address, width, scheme, bypass_csp) as (page, messages, requests):
        yield page
        assert [text for text in messages if "status of 422" not in text] == []
        assert [url for url in requests if not url.startswith((address, "data:", f"blob:{address}"))] == []


def picture(name: str, level: int) -> FilePayload:
    return file(name, grey(level))


def file(name: str, content: bytes) -> FilePayload:
    return {"name": name, "mimeType": "image/png", "buffer": content}


def cards(page: Page, count: int) -> list[Any]:
    page.locator("#results > li").nth(count - 1).wait_for()
    return page.query_selector_all("#results > li")


def test_pictures_are_shown_as_given_as_seen_and_with_bars(page: Page, address: str) -> None:
    page.set_input_files("#files", [picture("one.png", 30), picture("two.png", 200)])
    for card in cards(page, 2):
        name = re.search(r"(\w+\.png), \d+ ms", card.inner_text())
        assert name
        level = {"one.png": 30, "two.png": 200}[name[1]]
        (prediction,) = httpx.post(f"{address}/predict", content=grey(level)).json()["predictions"]
        assert card.query_selector("h2").inner_text() == prediction["class"]
        assert len(card.query_selector_all("rect")) == 5
        assert f"{100 * prediction['probability']:.1f} %" in card.inner_text()
    shown = page.evaluate("[...document.images].map(image => [image.alt, image.naturalWidth])")
    assert sorted(shown) == sorted(
        [f"{name}.png, as {how}", size]
        for name in ("one", "two")
        for how, size in (("given", 4), ("the network sees it", 8))
    )


def test_a_file_that_is_no_picture_is_named_with_the_reason(page: Page) -> None:
    markup = '<img src=x onerror="document.title=1">.png'
    page.set_input_files("#files", file(markup, b"no picture"))
    (card,) = cards(page, 1)
    assert f"{markup} is not a picture in a supported format" in card.inner_text()
    assert "is not a picture" in page.inner_text("#status")
    assert page.title() == "Classify pictures: digits"


def test_pictures_can_be_dropped_and_pasted(page: Page) -> None:
    for target, kind, field in (("#drop", "drop", "dataTransfer"), ("body", "paste", "clipboardData")):
        page.evaluate(
            """([target, kind, field, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, {type: "image/png"}));
                const made = kind === "drop" ? DragEvent : ClipboardEvent;
                const event = new made(kind, {bubbles: true, cancelable: true, [field]: data});
                document.querySelector(target).dispatchEvent(event);
            }""",
            [target, kind, field, list(grey(40))],
        )
    assert {"drop.png", "paste.png"} == {
        name for card in cards(page, 2) for name in re.findall(r"\w+\.png", card.inner_text())
    }


def test_a_digit_that_is_drawn_reaches_the_network_and_fills_its_frame(page: Page) -> None:
    box = page.locator("#canvas").bounding_box()
    assert box
    x, y = box["x"] + 100, box["y"] + 60
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + 100, steps=5)
    page.mouse.up()
    (card,) = cards(page, 1)
    assert "drawing.png" in card.inner_text()
    ink = page.evaluate("""async () => {
        const image = [...document.images].find(each => each.alt.includes("sees"));
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [8, 8];
        const pen = canvas.getContext("2d");
        pen.drawImage(image, 0, 0);
        return [...pen.getImageData(0, 0, 8, 8).data].filter((_, index) => index % 4 === 0);
    }""")
    rows = np.array(ink).reshape(8, 8).max(axis=1)
    assert rows.min() > 100  # the line is as high as the frame
    page.click("#clear")
    assert page.evaluate(
        "canvas => !canvas.getContext('2d').getImageData(0, 0, 240, 240).data.some((v, i) => i % 4 < 3 && v)",
        page.query_selector("#canvas"),
    )


def test_the_page_is_usable_from_the_keyboard(page: Page) -> None:
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert reached == ["A", "files", "canvas", "clear"]
    with page.expect_file_chooser() as chooser:
        page.locator("#files").press("Enter")
    chooser.value.set_files([picture("one.png", 30)])
    assert cards(page, 1)


def test_nothing_is_wider_than_the_screen_and_text_is_readable(page: Page, request: pytest.FixtureRequest) -> None:
    long = picture(f"{'long' * 40}.png", 3)
    page.set_input_files("#files", [long, picture("two.png", 200)])
    cards(page, 2)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    faint = page.evaluate(CONTRAST)
    assert faint["measured"] > 20
    assert faint["below"] == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    level = sum(int(number) for number in re.findall(r"\d+", background)[:3]) / 3
    assert level < 40 if "dark" in request.node.callspec.id else level > 240


def test_only_digits_are_drawn(browser: Browser) -> None:
    with serving() as url, browser.new_context() as context:
        page = context.new_page()
        page.goto(url)
        assert page.is_visible("#drop")
        assert not page.is_visible("#canvas")


def test_the_page_of_the_api_is_readable_and_shows_every_operation(page: Page, address: str) -> None:
    page.click("text=API")
    page.wait_for_selector(".operation")
    titles = [each.inner_text() for each in page.query_selector_all(".operation h2")]
    description = json.loads(httpx.get(f"{address}/openapi.json").text)
    assert titles == [f"{name.upper()} {path}" for path, each in description["paths"].items() for name in each]
    assert '"probabilities": {"…": number, …}' in page.inner_text("main")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate(CONTRAST)["below"] == []


def test_a_picture_of_any_size_keeps_its_shape_on_the_page(page: Page) -> None:
    wide = png(np.full((20, 400), 90, np.uint8))
    page.set_input_files("#files", file("wide.png", wide))
    cards(page, 1)
    assert page.evaluate("getComputedStyle(document.images[0]).objectFit") == "contain"
