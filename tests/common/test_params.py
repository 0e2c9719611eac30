"""stages/common/params.py: mistakes in params.yaml and the messages that report them."""

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from stages.common import params
from stages.common.failure import StageError
from stages.datasets.registry import DatasetParams
from tests.project import ROOT


class Block(params.Section):
    filters: int = Field(gt=0)


class Train(params.Section):
    learning_rate: float = Field(gt=0)
    epochs: int = Field(ge=1)
    optimizer: Literal["adam", "sgd"]
    augment: bool
    blocks: list[Block]


GOOD = """\
train:
  learning_rate: 1e-3
  epochs: 20
  optimizer: adam
  augment: false
  blocks:
    - filters: 32
    - filters: 64
"""


@pytest.fixture
def written(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(GOOD)
    return tmp_path / "params.yaml"


def load(path: Path) -> Train:
    return params.load(path, "train", Train)


def test_a_float_in_scientific_notation_without_a_point_is_a_number(written: Path) -> None:
    assert load(written).learning_rate == 0.001


@pytest.mark.parametrize(("text", "value"), [("010", 10), ("0o10", 8), ("0x10", 16), ("+7", 7)])
def test_integers_are_read_as_yaml_1_2_reads_them(written: Path, text: str, value: int) -> None:
    written.write_text(GOOD.replace("epochs: 20", f"epochs: {text}"))
    assert load(written).epochs == value


def test_the_loaded_section_cannot_be_changed(written: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(written).epochs = 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs: 20", "epoch: 20", r"params.yaml:3: train.epoch: unknown key; did you mean 'epochs'\?$"),
        ("epochs: 20", "zzz: 20", r":3: train.zzz: unknown key; known: learning_rate, epochs"),
        ("  epochs: 20\n", "", r"params.yaml:1: train.epochs: this key is missing"),
        (
            "epochs: 20",
            "epochs: '20'",
            r":3: train.epochs: it should be a valid integer, found '20'; write it without quotes",
        ),
        ("epochs: 20", "epochs: twenty", r":3: train.epochs: it should be a valid integer, found 'twenty'$"),
        ("epochs: 20", "epochs: 2.5", r":3: train.epochs: .*integer, found 2.5$"),
        ("epochs: 20", "epochs: 20.0", r":3: train.epochs: .*integer, found 20.0; write 20$"),
        ("epochs: 20", "epochs:", r":3: train.epochs: .*integer, found nothing"),
        ("epochs: 20", "epochs: 0", r":3: train.epochs: .*greater than or equal to 1, found 0"),
        ("epochs: 20", "epochs: true", r":3: train.epochs: .*integer, found True"),
        ("1e-3", ".nan", r":2: train.learning_rate: .*finite number, found nan"),
        ("1e-3", ".inf", r":2: train.learning_rate: .*finite number, found inf"),
        ("augment: false", "augment: yes", r":5: train.augment: .*boolean, found 'yes'; write true or false$"),
        (
            "adam",
            "Adam",
            r":4: train.optimizer: it should be 'adam' or 'sgd', found 'Adam'; did you mean 'adam'\?",
        ),
        ("filters: 64", "filter: 64", r":8: train.blocks\[1\].filter: unknown key; did you mean 'filters'\?"),
        ("filters: 64", "filters: -1", r":8: train.blocks\[1\].filters: .*greater than 0, found -1"),
        ("- filters: 64", "- 64", r":8: train.blocks\[1\]: expected keys: filters"),
        ("epochs: 20", "epochs: 20\n  epochs: 3", r":4:3: not valid YAML: found duplicate key \"epochs\""),
        ("epochs: 20", "epochs: [", r"params.yaml:\d+:\d+: not valid YAML"),
        ("epochs: 20", "1: 2", r":3: train\[1\]: unknown key; known: learning_rate"),
        ("1e-3", "&a [*a]", r":2: train.learning_rate: it should be a valid number, found \[\[\.\.\.\]\]"),
        ("train:", "trian:", r":1: trian: unknown section; did you mean 'train'\?"),
        (GOOD, "runtime: {}", r"params.yaml:1: the section 'train' is missing"),
        (GOOD, "train: 3", r":1: train: expected keys: learning_rate"),
        (GOOD, "", r"params.yaml:1: expected sections with keys"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_key(written: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    written.write_text(GOOD.replace(old, new))
    with pytest.raises(StageError, match=message):
        load(written)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"nowhere\.yaml: no such file; run from the repository's root"):
        load(tmp_path / "nowhere.yaml")


def test_a_file_that_is_not_utf_8_is_named(written: Path) -> None:
    written.write_bytes(b"train: \xff")
    with pytest.raises(StageError, match="not UTF-8 text at byte 7"):
        load(written)


def test_the_key_that_a_misspelt_one_meant_is_not_counted_as_missing(written: Path) -> None:
    written.write_text(GOOD.replace("epochs", "epoch").replace("1e-3", "-1"))
    with pytest.raises(StageError, match=r"did you mean 'epochs'\? \(and 1 more like it\)$"):
        load(written)


def test_further_mistakes_are_counted(written: Path) -> None:
    written.write_text(GOOD.replace("20", "0").replace("1e-3", "-1"))
    with pytest.raises(StageError, match=r"\(and 1 more like it\)"):
        load(written)


def test_missing_keys_are_counted_each(written: Path) -> None:
    written.write_text("train: {epochs: 20, optimizer: adam, augment: false}")
    with pytest.raises(StageError, match=r"this key is missing; .* \(and 1 more like it\)$"):
        load(written)


def test_a_number_that_stands_for_two_is_one_mistake(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("pixels: 32", "pixels: 0")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(StageError, match=r"dataset\.folder\.pixels.*greater than or equal to 1, found 0$"):
        params.load(tmp_path / "params.yaml", "dataset", DatasetParams)


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_file_gives_a_section_or_the_documented_error(
    tmp_path_factory: pytest.TempPathFactory, content: str | bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    with pytest.raises(StageError):
        load(path)
