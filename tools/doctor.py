"""Look at all that can be wrong with this checkout and say what mends it: `make doctor`.

Run as `python -m tools.doctor` from the repository's root; `--offline` leaves the network alone, `--json` is for
programs. A line for each finding: `ok`; `note`, to know of; `wrong`, with the command that mends it. Nothing is
changed, and nothing needs to be there yet. Exits with 0 when nothing is wrong, 1 otherwise.
"""

import argparse
import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

from stages import failure
from stages.failure import StageError
from tools.doctoring import environment, processes, remote, repository, sources, storage, unfinished
from tools.doctoring.finding import Finding, NotLookedAt

Look = Callable[[], Iterator[Finding]]


def main(arguments: Sequence[str]) -> None:
    """Look, print, exit."""
    options = _parse(arguments)
    if not Path("dvc.yaml").exists():
        raise StageError(
            f"{Path.cwd()}: there is no dvc.yaml; run from the repository's root, or: git checkout dvc.yaml"
        )
    found: list[tuple[str, Finding]] = []
    for name, told in examine(looks(options.offline)):
        found += [(name, finding) for finding in told]
        if not options.json:
            print("\n".join(_line(name, finding) for finding in told), flush=True)
    counts = Counter(finding.state for _, finding in found)
    if options.json:
        lines = [{"look": name, **asdict(finding)} for name, finding in found]
        print(json.dumps({"wrong": counts["wrong"], "findings": lines}, indent=2, ensure_ascii=False))
    else:
        print(f"\n{counts['wrong'] or 'nothing'} wrong, {counts['note']} to know of, {counts['ok']} ok")
    sys.exit(1 if counts["wrong"] else 0)


def looks(offline: bool) -> dict[str, Look]:
    """Return what is looked at, by name, in the order in which it is told."""
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


def examine(looks: dict[str, Look]) -> Iterator[tuple[str, list[Finding]]]:
    """Yield what each look finds, in order; they go on side by side, as most of them wait for something."""
    with ThreadPoolExecutor(len(looks)) as pool:
        yield from zip(looks, pool.map(findings, looks.values()), strict=True)


def findings(look: Look) -> list[Finding]:
    """Return what a look finds; that it fails is a finding too, whatever the reason: the others are told."""
    try:
        return list(look())
    except NotLookedAt as reason:
        return [Finding("note", str(reason))]
    except StageError as error:
        return [Finding("wrong", str(error))]
    except ImportError as error:
        return [Finding("wrong", f"could not be looked at: {_one_line(error)}", environment.install())]
    except Exception as error:
        if os.environ.get("STAGES_DEBUG", "") not in ("", "0"):
            traceback.print_exc()
        found = f"could not be looked at: {type(error).__name__}: {_one_line(error)}; for more"
        return [Finding("wrong", found, "STAGES_DEBUG=1 python -m tools.doctor")]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _line(name: str, finding: Finding) -> str:
    remedy = f"; run: {finding.remedy}" if finding.remedy else ""
    return f"{finding.state:5}  {name:11}  {finding.found}{remedy}"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.doctor", description=__doc__.partition("\n")[0])
    parser.add_argument("--offline", action="store_true", help="ask neither mirrors nor the remote")
    parser.add_argument("--json", action="store_true", help="print the findings for programs")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(failure.run("doctor", main))
