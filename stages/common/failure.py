"""How a stage fails: one line that says what, where and what to do, and a non-zero exit.

A stage raises `StageError` for what a person can mend and runs its main through `run`. `--debug`, or
STAGES_DEBUG=1 in the environment, shows the traceback as well.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence


class StageError(Exception):
    """Something that the person at the keyboard can mend; the message is one line and names the remedy."""


def run(name: str, main: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> int:
    """Call `main` with the command line's arguments and return the process's exit code.

    0 on success, 1 for a failure that the user can mend, 130 for Ctrl-C as shells expect, 141 when nobody reads
    the output any more. Any other exception is a defect of the stage and keeps its traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or os.environ.get("STAGES_DEBUG", "") not in ("", "0")
    try:
        main([argument for argument in arguments if argument != "--debug"])
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads the output has seen enough of it, as `| head` has: what is left to flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (Exception, KeyboardInterrupt) as error:
        explanation = _explain(error)
        if explanation is None:
            raise
        if debug:
            traceback.print_exc()
        # On a terminal the cursor may stand at the end of a progress bar: the line takes its place.
        start = "\r\x1b[K" if sys.stderr.isatty() else ""
        print(f"{start}{name}: {' '.join(explanation.split())}", file=sys.stderr, flush=True)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _explain(error: BaseException) -> str | None:
    """Return what to say of an error that a person can mend; None for a defect."""
    # TensorFlow's own error is known by its name, as the stages that do without TensorFlow do not load it.
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return "out of memory; close other programs or use a smaller train.batch_size"
    match error:
        case KeyboardInterrupt():
            return "stopped by Ctrl-C"
        case OSError(errno=int(number)):
            # A full disk, a missing permission, a read-only folder: the system's words and the path say it all.
            where = f"{error.filename}: " if error.filename else ""
            return f"{where}{os.strerror(number)}; free or correct that, then run again"
        case StageError():
            return str(error)
        case _:
            return None
