"""All checks by name, run in parallel."""

import os
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from stages.common.failure import StageError
from tools.doctor import environment, processes, remote, repository, sources, storage, unfinished
from tools.doctor.finding import Finding, NotChecked

Check = Callable[[], Iterator[Finding]]


def all_checks(offline: bool) -> dict[str, Check]:
    """Return the checks by name, in the order of the report."""
    return {
        "python": environment.python_version,
        "packages": environment.packages,
        "tensorflow": environment.tensorflow,
        "config": repository.config,
        "params": repository.params,
        "dvc.yaml": repository.pipeline,
        "git": repository.git,
        "dvc.lock": repository.lock,
        "dvc locks": processes.dvc_locks,
        "stages": processes.running_stages,
        "checkpoints": unfinished.checkpoints,
        "leftovers": unfinished.leftovers,
        "disk": storage.disk,
        "cache": storage.cache,
        "download": sources.download,
        "mirrors": partial(sources.mirrors, offline),
        "remote": partial(remote.remote, offline),
    }


def examine(checks: dict[str, Check]) -> Iterator[tuple[str, list[Finding]]]:
    """Yield the findings of each check, in order. They run in parallel, because most of them wait for I/O."""
    with ThreadPoolExecutor(len(checks)) as pool:
        yield from zip(checks, pool.map(findings, checks.values()), strict=True)


def findings(look: Check) -> list[Finding]:
    """Return the findings of a check. If it fails, for whatever reason, that is a finding too."""
    try:
        return list(look())
    except NotChecked as reason:
        return [Finding("note", str(reason))]
    except StageError as error:
        return [Finding("wrong", str(error))]
    except ImportError as error:
        return [Finding("wrong", f"could not be checked: {_one_line(error)}", environment.install())]
    except Exception as error:
        if os.environ.get("STAGES_DEBUG", "") not in ("", "0"):
            traceback.print_exc()
        found = f"could not be checked: {type(error).__name__}: {_one_line(error)}; for more"
        return [Finding("wrong", found, "STAGES_DEBUG=1 python -m tools.doctor")]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
