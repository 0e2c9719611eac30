"""Reports a stage's failure: one line with what happened, where and what to do, and a non-zero exit code.

Stages raise `StageError` for problems that the user can fix and run their main function through `run`. `--debug`
or STAGES_DEBUG=1 in the environment also prints the traceback.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence


class StageError(Exception):
    """A problem that the user can fix; the message is one line that names the remedy."""


def run(name: str, main: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> int:
    """Call `main` with the command line's arguments and return the process's exit code.

    0: success; 1: a problem that the user can fix; 130: Ctrl-C; 141: the reader of standard output has closed
    it. Any other exception is a bug and keeps its traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or os.environ.get("STAGES_DEBUG", "") not in ("", "0")
    try:
        main([argument for argument in arguments if argument != "--debug"])
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `| head`, has gone. Python flushes once more at exit, so give it somewhere to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (Exception, KeyboardInterrupt) as error:
        explanation = _explain(error)
        if explanation is None:
            raise
        if debug:
            traceback.print_exc()
        # On a terminal the cursor may be at the end of a progress bar: overwrite it.
        start = "\r\x1b[K" if sys.stderr.isatty() else ""
        print(f"{start}{name}: {' '.join(explanation.split())}", file=sys.stderr, flush=True)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _explain(error: BaseException) -> str | None:
    """Return the message for an error that the user can fix, None for a bug."""
    # Compare TensorFlow's error by name: not every stage loads TensorFlow.
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return "out of memory; close other programs or use a smaller train.batch_size"
    match error:
        case KeyboardInterrupt():
            return "stopped by Ctrl-C"
        case OSError(errno=int(number)):
            # Such as a full disk, a missing permission or a read-only folder.
            where = f"{error.filename}: " if error.filename else ""
            return f"{where}{os.strerror(number)}; fix that, then run again"
        case StageError():
            return str(error)
        case _:
            return None
