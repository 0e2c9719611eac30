"""README.md against what it speaks of: every key, every command, every file."""

import re
from typing import Any

import pytest

from stages.common.params import read
from tests.project import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def dotted(values: dict[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in values.items():
        keys += dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
    return keys


def test_the_table_has_exactly_the_keys_of_params_yaml() -> None:
    listed = re.findall(r"^\| ([a-z]+(?:\.[a-z0-9_]+)+) \|", README, flags=re.MULTILINE)
    assert sorted(listed) == sorted(dotted(read(ROOT / "params.yaml")))


def test_the_table_s_defaults_are_those_of_params_yaml() -> None:
    values: Any = read(ROOT / "params.yaml")
    for key, default in re.findall(r"^\| ([a-z]+(?:\.[a-z0-9_]+)+) \| ([^|]+) \|", README, flags=re.MULTILINE):
        found: Any = values
        for part in key.split("."):
            found = found[part]
        if default not in ("2 blocks", "the official archive's"):
            assert default == (str(found).lower() if isinstance(found, bool) else str(found)), key


@pytest.mark.parametrize(
    "target", sorted(set(re.findall(r"(?:^    |`)make ([a-z-]+)\b", README, flags=re.MULTILINE)))
)
def test_a_make_target_that_the_readme_names_exists(target: str) -> None:
    assert re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((docs/[^)]+)\)", README))))
def test_a_file_that_the_readme_shows_exists(path: str) -> None:
    assert (ROOT / path).exists()
