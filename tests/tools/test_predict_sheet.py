"""tools.predict --sheet: the page, read back and opened in a real Chromium."""

import base64
import io
import re
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser

from stages.common import failure
from stages.common.confidence import Confidence
from stages.common.failure import StageError
from stages.common.pictures import Decoding
from stages.common.splits import read
from tests.browsing import visit
from tests.project import Project
from tools.predict import sheet
from tools.predict.__main__ import main

pytestmark = pytest.mark.usefixtures("started")


@pytest.fixture(scope="module")
def address(first_run: Project, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the page is of seven digits, a photograph stored sideways, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("sheet")
    images = read(first_run.folder / "data/raw/test.npz").images
    for number in range(7):
        Image.fromarray(np.array(images[number, :, :, 0])).save(folder / f"digit {number}.png")
    exif = Image.Exif()
    exif[sheet.EXIF_ORIENTATION] = 6
    Image.new("RGB", (400, 200), "red").save(folder / "photograph.jpg", exif=exif)
    (folder / "<b>words.png").write_text("no picture")
    page = folder / "pages" / "sheet.html"
    command = ["--folder", str(first_run.folder), "--top", "2", "--sheet", str(page), str(folder / "*.*")]
    assert failure.run("predict", main, command) == 1
    return page.as_uri()


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_shows_every_picture_on_any_screen_and_loads_nothing(
    browser: Browser, address: str, width: int, scheme: Literal["light", "dark"]
) -> None:
    with visit(browser, address, width, scheme) as (page, messages, requests):
        page.wait_for_load_state("networkidle")  # a blocked style is reported in the console
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert page.locator("li").count() == 9
        assert page.evaluate("[...document.images].map(image => image.naturalWidth > 0)") == [True] * 16
        bars = page.evaluate(
            "[...document.querySelectorAll('rect')].map(bar => bar.getBoundingClientRect().width)"
        )
        assert len(bars) == 16 and min(bars) > 5
        assert page.evaluate("getComputedStyle(document.querySelector('.seen')).imageRendering") == "pixelated"
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        level = int(re.findall(r"\d+", background)[0])
        assert level < 40 if scheme == "dark" else level > 240
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [address]


def test_a_picture_is_shown_upright_and_in_color_and_as_the_network_sees_it(address: str) -> None:
    content = Path(address.removeprefix("file://")).read_text()
    (item,) = [item for item in content.split("<li>") if "photograph.jpg" in item]
    given, seen = (
        Image.open(io.BytesIO(base64.b64decode(uri))) for uri in re.findall('src="[^,]*,([^"]*)"', item)
    )
    assert (given.mode, given.size) == ("RGB", (96, 192))
    assert (seen.mode, seen.size) == ("L", (8, 8))


def test_names_and_reasons_are_text(address: str) -> None:
    content = Path(address.removeprefix("file://")).read_text()
    assert "&lt;b&gt;words.png" in content and "is not a picture" in content
    assert "<b>" not in content


def test_a_page_has_a_limit_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "MOST", 2)
    rules = Decoding(height=8, width=8, channels=1)
    with sheet.open_sheet(tmp_path / "sheet.html", ["a"], 1, Confidence(model_sha256=""), rules) as page:
        for number in range(3):
            page.unreadable(f"{number}.png", "is damaged")
    content = (tmp_path / "sheet.html").read_text()
    assert content.count("is damaged") == 2
    assert "The first 2 of 3 pictures." in content


def test_a_picture_is_not_taken_for_the_page(first_run: Project, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"cat\.jpg: it should be a file that ends in \.html"):
        main(["--folder", str(first_run.folder), "--sheet", "cat.jpg", "dog.jpg"])
