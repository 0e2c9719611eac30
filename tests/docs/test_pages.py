"""README.md, CONTRIBUTING.md and docs/: every key, command, link and quoted message is one that exists."""

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.common.params import read
from tests.project import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
TEXTS = dict(zip(NAMES, (page.read_text(encoding="utf-8") for page in PAGES), strict=True))
ARCHAIC = r"\b(have|has) not the\b|in the place of|\bbesides\b|held to|\bof one\'s own\b"


def dotted(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for name, value in values.items():
        keys |= dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return keys


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_tables_of_parameters_have_every_key_with_its_default() -> None:
    rows = re.findall(
        r"^\| ([a-z]+(?:\.[a-z0-9_]+)+) \| ([^|]*) \|", TEXTS["docs/parameters.md"], flags=re.MULTILINE
    )
    values = dotted(read(ROOT / "params.yaml"))
    assert sorted(key for key, _ in rows) == sorted(values)
    for key, default in rows:
        if default not in ("2 blocks", "the official archive's"):
            value = values[key]
            assert default.strip() == (str(value).lower() if isinstance(value, bool) else str(value)), key


@pytest.mark.parametrize("name", NAMES)
def test_every_make_target_exists(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^    |`|KILLS=60 )make ([a-z][a-z-]*)\b", TEXTS[name], flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("name", NAMES)
def test_every_module_that_is_run_exists(name: str) -> None:
    for module in re.findall(r"python3? -m ((?:tools|stages|benchmarks)\.[a-z]\w+)", TEXTS[name]):
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("name", NAMES)
def test_every_option_of_our_commands_exists(name: str) -> None:
    for module, options in re.findall(r"python -m (tools\.\w+)([^\n`|#]*)", TEXTS[name]):
        package = ROOT.joinpath(*module.split("."))
        source = (package / "__main__.py" if package.is_dir() else package.with_suffix(".py")).read_text("utf-8")
        for option in re.findall(r"(?<!\S)(--[a-z-]+)", options):
            assert f'"{option}"' in source, f"{module} {option}"


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_to_a_file_and_a_heading_that_exist(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", TEXTS[name]):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("name", NAMES)
def test_every_manifest_and_shell_script_parses(name: str) -> None:
    for language, block in re.findall(r"^```(sh|yaml)\n(.*?)^```", TEXTS[name], flags=re.MULTILINE | re.DOTALL):
        if language == "yaml":
            assert yaml.safe_load(block)
        else:
            subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def test_every_page_is_in_the_readme() -> None:
    for name in NAMES[1:]:
        assert f"({name})" in TEXTS["README.md"], name


def test_every_message_in_troubleshooting_exists_in_the_code() -> None:
    own = TEXTS["docs/troubleshooting.md"].partition("## Messages of DVC")[0]
    cells = re.findall(r"^\| (.*?) \|", own, flags=re.MULTILINE)
    quoted = [text for cell in cells for text in re.findall(r"`([^`]+)`", cell) if text != "dvc"]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "stages").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", sources)  # messages that are split over lines
    assert len(quoted) > 10
    for text in quoted:
        assert text in code


@pytest.mark.parametrize("name", [name for name in NAMES if name != "CHANGELOG.md"])
def test_a_page_has_at_most_200_lines(name: str) -> None:
    assert len(TEXTS[name].splitlines()) <= 200


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_no_archaic_phrase(name: str) -> None:
    assert re.findall(ARCHAIC, TEXTS[name]) == []


def test_the_citation_has_the_keys_that_the_format_requires() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_changelog_has_the_version_of_the_project() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text("utf-8"), flags=re.MULTILINE)
    assert version
    assert re.search(
        rf"^## \[{re.escape(version[1])}\] - \d{{4}}-\d\d-\d\d$", TEXTS["CHANGELOG.md"], flags=re.MULTILINE
    )


def test_the_pre_commit_hooks_are_local() -> None:
    hooks = yaml.safe_load(Path(ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repo["repo"] for repo in hooks["repos"]] == ["local"]
