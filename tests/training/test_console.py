"""stages/training/console.py: lines for a log file, a bar for a person."""

import os
import pty
import re
import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from stages.common.failure import StageError, run
from stages.training.console import Console

LINE = r"epoch {}/3: loss 0\.5000, accuracy 0\.7500, val_loss 0\.6000, [\d,]+ images/s, \d+ min left\n"

END = "\N{END OF TRANSMISSION BLOCK}"


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Make standard error a pseudo-terminal of 120 columns; what is yielded returns what was written to it."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 120))
    with (
        os.fdopen(master, "rb", buffering=0) as screen,
        os.fdopen(slave, "w", encoding="utf-8") as stderr,
        monkeypatch.context() as patch,
    ):
        patch.setattr(sys, "stderr", stderr)

        def written() -> str:
            stderr.write(END)
            stderr.flush()
            text = b""
            while not text.endswith(END.encode()):  # the system hands it over in pieces, and later
                text += screen.read(1 << 16)
            return text.decode().removesuffix(END).replace("\r\n", "\n")

        yield written


def train(console: Console, epochs: int = 3) -> None:
    """Report epochs of 100 images in calls of 40, as the engine does."""
    for epoch in range(epochs):
        console.on_epoch_begin(epoch)
        for step in (3, 7, 9):
            console.on_train_batch_end(step, {"loss": 0.5, "accuracy": 0.75})
        console.on_epoch_end(epoch, {"loss": 0.5, "accuracy": 0.75, "val_loss": 0.6})


def test_without_a_terminal_an_epoch_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    train(Console(images=100, batch_size=10, epochs=3))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch("".join(LINE.format(epoch) for epoch in (1, 2, 3)), shown.err)


def test_nothing_is_left_to_do_after_the_last_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    train(Console(images=100, batch_size=10, epochs=3))
    assert capsys.readouterr().err.endswith(", 0 min left\n")


def test_the_speed_of_a_resumed_epoch_counts_what_was_trained_since(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(images=100, batch_size=10, epochs=2)
    clock = iter((5.0, 7.0))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    console.on_epoch_begin(0)
    console.on_train_batch_begin(6)  # the first six were trained before the run was stopped
    console.on_train_batch_begin(9)
    console.on_epoch_end(0)
    assert ", 20 images/s, 0 min left" in capsys.readouterr().err


def test_a_terminal_gets_a_bar_with_epoch_step_loss_and_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(images=100, batch_size=10, epochs=3)
    with terminal(monkeypatch) as written:
        console.on_epoch_begin(0)
        console.on_train_batch_end(3, {"loss": 0.5, "accuracy": 0.75})
        bar = written().rpartition("\r")[2]
        console.on_epoch_end(0)
    assert re.search(r"epoch 1/3: .* images.*accuracy=0\.7500, loss=0\.5000, step=4\]", bar)


def test_the_bar_is_full_at_the_end_of_an_epoch_with_a_smaller_last_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(images=95, batch_size=10, epochs=1)
    with terminal(monkeypatch) as written:
        console.on_epoch_begin(0)
        console.on_train_batch_end(9, {"loss": 0.5, "accuracy": 0.75})
        console.on_train_batch_end(9, {"loss": 0.5, "accuracy": 0.75})  # draws what the one before counted
        bar = written().rpartition("\r")[2]
        console.on_epoch_end(0)
    assert "100%" in bar and "95/95" in bar


def test_the_line_of_an_epoch_takes_the_place_of_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as written:
        train(Console(images=100, batch_size=10, epochs=3), epochs=1)
        *bars, cleared, line = written().split("\r")
    assert any("epoch 1/3" in bar for bar in bars)
    assert cleared.strip() == ""
    assert re.fullmatch(LINE.format(1), line)


def test_a_failure_takes_the_place_of_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(images=100, batch_size=10, epochs=1)

    def fail(_: Sequence[str]) -> None:
        console.on_epoch_begin(0)
        console.on_train_batch_end(3, {"loss": 0.5, "accuracy": 0.75})
        raise StageError("the loss is nan")

    with terminal(monkeypatch) as written:
        run("train", fail, [])
        assert written().rpartition("\r")[2] == "\x1b[Ktrain: the loss is nan\n"
        console.on_epoch_end(0)
