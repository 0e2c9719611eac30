"""Checks Python, the packages against the lock, and that TensorFlow works on this processor."""

import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tools.doctor.finding import Finding, listed

LOCK = Path("requirements.txt")
PROJECT = Path("pyproject.toml")
SECONDS = 60  # time limit for loading TensorFlow, even from a cold disk


def install() -> str:
    """Return the command that installs the lock into this environment."""
    python = Path(sys.executable)
    shown = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    return f"{shlex.quote(str(shown))} -m pip install --require-hashes -r {LOCK}"


def python_version() -> Iterator[Finding]:
    """Check the Python version against pyproject.toml."""
    from packaging.specifiers import SpecifierSet

    asked = re.search(r'^requires-python = "(.*?)"', PROJECT.read_text(encoding="utf-8"), re.MULTILINE)
    found = f"Python {platform.python_version()}, {PROJECT} requires {asked[1] if asked else 'any'}"
    if asked and platform.python_version() not in SpecifierSet(asked[1], prereleases=True):
        yield Finding("wrong", found, "rm -rf .venv && make setup PYTHON=python3.12")
    else:
        yield Finding("ok", found)


def packages() -> Iterator[Finding]:
    """Check the installed packages against the lines of requirements.txt for this platform."""
    from packaging.requirements import Requirement

    lines = [line for line in LOCK.read_text(encoding="utf-8").splitlines() if line and line[0] not in " #"]
    pinned = [Requirement(line.rstrip("\\ ")) for line in lines]
    here = [pin for pin in pinned if pin.marker is None or pin.marker.evaluate()]
    missing, other = [], []
    for pin in here:
        try:
            installed = version(pin.name)
        except PackageNotFoundError:
            missing.append(f"{pin.name}{pin.specifier}")
            continue
        if not pin.specifier.contains(installed, prereleases=True):
            other.append(f"{pin.name} {installed} instead of {str(pin.specifier).removeprefix('==')}")
    if other:
        yield Finding(
            "wrong", f"{len(other)} packages do not have the version in {LOCK}: {listed(other)}", install()
        )
    if missing:
        yield Finding(
            "wrong", f"{len(missing)} packages of {LOCK} are not installed: {listed(missing)}", install()
        )
    if not other and not missing:
        yield Finding("ok", f"all {len(here)} packages of {LOCK} for this platform are installed")


def tensorflow() -> Iterator[Finding]:
    """Load TensorFlow as a stage does, in a separate process: on an unsuitable processor it crashes."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tools.doctor.computing"],
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield Finding("wrong", f"TensorFlow did not load within {SECONDS} s", install())
        return
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        why = " (this CPU does not have an instruction set that TensorFlow needs)" if name == "SIGILL" else ""
        yield Finding("wrong", f"TensorFlow does not load: ended by {name}{why}", install())
    elif done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        # A mistake in params.yaml is reported by the stage's own message, with its remedy.
        own = lines[-1].startswith("computing: ")
        yield Finding(
            "wrong", lines[-1] if own else f"TensorFlow does not load: {lines[-1]}", "" if own else install()
        )
    else:
        probe = json.loads(done.stdout.splitlines()[-1])
        gpus = f", {probe['gpus']} GPUs" if probe["gpus"] else ""
        sets = " ".join(probe["has"]) or "not reported by this system"
        yield Finding(
            "ok", f"TensorFlow {probe['version']} loads; oneDNN uses {probe['uses']}; this CPU has: {sets}{gpus}"
        )
