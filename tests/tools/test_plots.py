"""tools/plots.py: DVC's pages of charts, opened in Chromium without network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Browser

from stages.common.failure import StageError
from tests.project import ROOT
from tools import plots

WIDTHS = (
    "[...document.querySelectorAll('main > div')].map(one => one.querySelector('svg.marks')?.clientWidth ?? 0)"
)


@pytest.fixture(scope="module", params=["show", "diff"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DVC's page of the committed results."""
    folder = tmp_path_factory.mktemp(request.param)
    command = [str(Path(sys.executable).parent / "dvc"), "plots", request.param, "--out", str(folder)]
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return folder / "index.html"


def test_every_chart_is_drawn_without_network(page: Path, browser: Browser) -> None:
    plots.write_scripts(page.with_name(plots.SCRIPTS.name))
    tab = browser.new_page()
    asked: list[str] = []
    errors: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.goto(page.as_uri())
    tab.wait_for_function(f"{WIDTHS}.every(width => width)")
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    charts = sum(len(stage.get("plots", [])) for stage in pipeline["stages"].values()) + len(pipeline["plots"])
    widths = tab.evaluate(WIDTHS)
    tab.close()
    assert errors == []
    assert asked == [page.as_uri(), page.with_name("vega.js").as_uri()]
    assert len(widths) == charts
    assert min(widths) > 200


def test_a_page_without_its_scripts_names_the_command_that_writes_them(page: Path, browser: Browser) -> None:
    page.with_name("vega.js").unlink(missing_ok=True)
    tab = browser.new_page()
    tab.goto(page.as_uri())
    shown = tab.inner_text("body")
    tab.close()
    assert "Run: make plots" in shown


def test_without_a_run_the_error_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"there is nothing to draw; run: make repro"):
        plots.main([str(tmp_path)])


def test_the_template_loads_its_scripts_from_the_folder_of_the_page() -> None:
    template = (ROOT / ".dvc" / "plots" / "page.html").read_text(encoding="utf-8")
    assert f'<script src="{plots.SCRIPTS.name}"></script>' in template
    assert "{scripts}" not in template  # DVC would put there those that load from a host, in a comment too
