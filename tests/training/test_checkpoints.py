"""stages/training/checkpoints.py: the newest sound checkpoint of the same run, or none."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.training.checkpoints import Checkpoints, unpack

KEY = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4


def arrays(value: float) -> list[NDArray[Any]]:
    """A weight, a generator's state and a counter, as Keras has them."""
    return [np.full((2, 3), value, np.float32), np.array([1, 2], np.uint32), np.array(7, np.int64)]


def save(checkpoints: Checkpoints, epoch: int, step: int = 0) -> None:
    checkpoints.save(epoch, step, arrays(epoch + step / 100), {"epoch": epoch, "step": step, "note": "ä"})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def two(folder: Path) -> tuple[Checkpoints, Path, Path]:
    """Checkpoints after epochs 1 and 2, and their files."""
    checkpoints = Checkpoints(folder, KEY)
    save(checkpoints, 1)
    save(checkpoints, 2)
    older, newer = sorted(folder.iterdir())
    return checkpoints, older, newer


def latest_epoch(checkpoints: Checkpoints) -> int | None:
    content = checkpoints.latest()
    return int(unpack(content)[1]["epoch"]) if content else None


def test_arrays_and_state_are_read_back_as_they_were(folder: Path) -> None:
    checkpoints = Checkpoints(folder, KEY)
    save(checkpoints, 3, 5)
    found, state = unpack(checkpoints.latest())
    assert state == {"epoch": 3, "step": 5, "note": "ä"}
    for read, written in zip(found, arrays(3.05), strict=True):
        np.testing.assert_array_equal(read, written, strict=True)


def test_without_a_checkpoint_there_is_none_and_nothing_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Checkpoints(folder, KEY).latest() == b""
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("earlier", "later"), [((9, 0), (10, 0)), ((2, 9), (2, 10)), ((2, 99), (3, 0))])
def test_the_newest_is_the_one_furthest_in_the_run(
    folder: Path, earlier: tuple[int, int], later: tuple[int, int]
) -> None:
    checkpoints = Checkpoints(folder, KEY)
    save(checkpoints, *earlier)
    save(checkpoints, *later)
    _, state = unpack(checkpoints.latest())
    assert (state["epoch"], state["step"]) == later


def test_only_the_last_two_are_kept(folder: Path) -> None:
    checkpoints = Checkpoints(folder, KEY)
    for epoch in range(1, 6):
        save(checkpoints, epoch)
    assert names(folder) == [f"0123456789abcdef-{epoch:06d}-000000000.npz" for epoch in (4, 5)]


def test_one_cut_short_anywhere_is_passed_over_for_the_one_before(two: tuple[Checkpoints, Path, Path]) -> None:
    checkpoints, _, newer = two
    whole = newer.read_bytes()
    for length in range(len(whole)):
        newer.write_bytes(whole[:length])
        assert latest_epoch(checkpoints) == 1, f"cut after {length} bytes"


def test_one_with_any_changed_bit_is_passed_over_for_the_one_before(two: tuple[Checkpoints, Path, Path]) -> None:
    checkpoints, _, newer = two
    whole = newer.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        newer.write_bytes(damaged)
        assert latest_epoch(checkpoints) == 1, f"a bit of byte {place} changed"


def test_a_damaged_one_is_named(two: tuple[Checkpoints, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints, _, newer = two
    newer.write_bytes(b"")
    checkpoints.latest()
    assert f"train: {newer} is damaged" in capsys.readouterr().err


def test_when_all_are_damaged_there_is_none(two: tuple[Checkpoints, Path, Path]) -> None:
    checkpoints, older, newer = two
    older.write_bytes(older.read_bytes()[:-1])
    newer.write_bytes(b"")
    assert checkpoints.latest() == b""


def test_those_of_another_key_are_ignored_and_said_to_be(
    two: tuple[Checkpoints, Path, Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Checkpoints(folder, OTHER).latest() == b""
    shown = capsys.readouterr().err
    assert shown.startswith(
        f"train: 2 checkpoints in {folder}/ belong to other params, data or code and are ignored"
    )
    assert f"rm -r {folder}" in shown


def test_those_of_another_key_are_neither_counted_nor_removed(
    two: tuple[Checkpoints, Path, Path], folder: Path
) -> None:
    before = names(folder)
    other = Checkpoints(folder, OTHER)
    for epoch in range(3, 6):
        save(other, epoch)
    other.clear()
    assert names(folder) == before


def test_the_folder_goes_with_the_last_checkpoint(two: tuple[Checkpoints, Path, Path], folder: Path) -> None:
    two[0].clear()
    assert not folder.exists()


def test_clearing_nothing_is_no_error(folder: Path) -> None:
    Checkpoints(folder, KEY).clear()
    assert not folder.exists()


def test_what_a_kill_left_of_one_being_written_is_not_read(two: tuple[Checkpoints, Path, Path]) -> None:
    checkpoints, _, newer = two
    shutil.copyfile(newer, newer.with_name("0123456789abcdef-000003-000000000.npz.partial"))
    assert latest_epoch(checkpoints) == 2


def test_what_a_kill_left_of_one_being_written_is_cleared_as_well(
    two: tuple[Checkpoints, Path, Path], folder: Path
) -> None:
    checkpoints, _, newer = two
    shutil.copyfile(newer, newer.with_name("0123456789abcdef-000003-000000007.npz.partial"))
    checkpoints.clear()
    assert not folder.exists()


def test_a_full_disk_leaves_those_before(small_disk: Path) -> None:
    checkpoints = Checkpoints(small_disk, KEY)
    save(checkpoints, 1)
    save(checkpoints, 2)
    before = names(small_disk)
    with pytest.raises(OSError, match=r"No space left on device: .*-000003-000000000\.npz'"):
        checkpoints.save(3, 0, [np.zeros(100_000, np.float32)], {"epoch": 3, "step": 0})
    assert names(small_disk) == before
    assert latest_epoch(checkpoints) == 2
