"""Run the pipeline on the embedded digits, offline, in the folder demo/: `make demo`.

The folder is a copy of the files that git does not ignore, in their current state, with `dataset.name: digits` and
the portable instruction set. So no tracked file changes, and your uncommitted changes take part. The folder keeps
its own DVC cache: a second demo runs only what changed.

At the end it compares the outputs with the hashes in tools/demo.json, which they match on x86-64 machines with the
params in that file. `--exact` fails if they do not match. `--record` updates the file after an intended change.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from stages.common import failure
from stages.common.failure import StageError
from stages.common.figures import flat
from stages.common.outputs import write_json
from stages.common.params import read
from tools.rwlock import remove_unreadable_rwlock

COPIED = ("stages", "pictures", "dvc.yaml", "params.yaml", ".dvc", ".dvcignore")
CHOICES = {"dataset.name": "digits", "runtime.cpu_isa": "avx2"}
FAST = {"model.widths": [32, 64]}  # the digits are too small for more
HASHES = Path(__file__).with_name("demo.json")


def main(arguments: Sequence[str]) -> None:
    """Copy, choose, run, show, compare."""
    options = _parse(arguments)
    folder = options.folder
    prepare(Path.cwd(), folder)
    choose(folder / "params.yaml", choices(folder / "params.yaml"))
    remove_unreadable_rwlock(folder)
    run(["dvc", "repro"], folder)
    print(flush=True)
    run(["dvc", "metrics", "show"], folder)
    found = output_hashes(folder)
    if options.record:
        write_json(HASHES, {"outputs": found, "params": flat(read(folder / "params.yaml"))})
    expected = json.loads(HASHES.read_bytes())["outputs"]
    differing = sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))
    if differing and options.exact:
        raise StageError(
            f"{', '.join(differing)}: not the hashes in {HASHES.name}; if this is intended, run with --record"
        )
    print(f"\n{_verdict(differing, len(expected))}")
    print(f"The results are in {folder}/. For CIFAR-10, run: make repro")


def output_hashes(folder: Path) -> dict[str, str]:
    """Return the MD5 of each output in dvc.lock, by path."""
    stages = yaml.safe_load((folder / "dvc.lock").read_bytes())["stages"].values()
    return {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}


def _verdict(differing: Sequence[str], outputs: int) -> str:
    if not differing:
        return f"All {outputs} outputs match the committed hashes."
    return (
        f"{len(differing)} of {outputs} outputs do not match the committed hashes (first: {differing[0]}). "
        "This is expected after a change of code or params, and on processors other than x86-64 with AVX2."
    )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("demo"))
    parser.add_argument("--exact", action="store_true", help="fail if an output does not match its committed hash")
    parser.add_argument("--record", action="store_true", help="update tools/demo.json with the hashes of this run")
    return parser.parse_args(arguments)


def prepare(source: Path, folder: Path) -> None:
    """Make `folder` a DVC project with the code and configuration of the checkout `source`."""
    copy_tracked(source, folder)
    # The folder may be inside a git checkout that ignores it, so DVC must not use git there.
    (folder / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n", encoding="utf-8")


def copy_tracked(source: Path, target: Path) -> None:
    """Copy code and configuration, but no outputs, from the checkout `source` to `target`."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *COPIED],
            cwd=source,
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise StageError(f"{source}: git cannot list its files ({error}); run in a git checkout") from None
    names = [name for name in listed.stdout.split("\0") if name and (source / name).exists()]
    shutil.rmtree(target / "stages", ignore_errors=True)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name)


def choices(params: Path) -> dict[str, Any]:
    """Return what the demo sets in this params file, by dotted key."""
    model = read(params).get("model")
    return CHOICES | FAST if isinstance(model, dict) and model.get("network") == "fast" else CHOICES


def choose(params: Path, choices: Mapping[str, Any]) -> None:
    """Set `choices`, by dotted key, in the params file; raises `KeyError` for a key that is not in the file."""
    values = read(params)
    for key, value in choices.items():
        *sections, last = key.split(".")
        target = values
        for section in sections:
            target = target[section]
        if last not in target:
            raise KeyError(f"{key} is not a key of {params}")
        target[last] = value
    params.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def run(command: Sequence[str], folder: Path) -> None:
    """Run a command of this environment in `folder`; raises `StageError` if it fails."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    if subprocess.run(command, cwd=folder, env=environment, check=False).returncode:
        raise StageError(f"'{' '.join(command)}' failed in {folder}/; its messages are above")


if __name__ == "__main__":
    sys.exit(failure.run("demo", main))
