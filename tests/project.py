"""A copy of this project in a separate folder, as a clone would be, on the digits and small: for tests that
run real DVC and git.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.demo import choose, copy_tracked

ROOT = Path(__file__).parent.parent
STAGES = ["download", "preprocess", "train", "evaluate"]
SMALL = {
    "dataset.name": "digits",
    "model.blocks": [{"filters": 8, "layers": 1, "pool": 2, "dropout": 0.1}],
    "model.dense": [16],
    "train.epochs": 3,
}


@dataclass(frozen=True)
class Project:
    """A checkout at `folder` and the environment that its commands get."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder; with `check`, its failure is the test's."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if check and done.returncode:
            raise AssertionError(f"{command} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def repro(self, *arguments: str) -> list[str]:
        """Run `dvc repro` and return the names of the stages that it ran."""
        return re.findall(r"Running stage '(\w+)'", self.run("dvc", "repro", *arguments).stdout)

    def affected(self) -> list[str]:
        """Return the names of the stages of which `dvc status` says that a file or key has changed."""
        return sorted(self.json("dvc", "status", "--json"), key=STAGES.index)

    def json(self, *command: str) -> Any:
        """Run a command and return the JSON that it prints."""
        return json.loads(self.run(*command).stdout)

    def commit(self, message: str) -> None:
        """Commit all that git does not ignore."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)

    def choose(self, key: str, value: Any) -> None:
        """Set one dotted key of params.yaml."""
        choose(self.folder / "params.yaml", {key: value})

    def touch(self, name: str) -> None:
        """Add a comment to a file."""
        path = self.folder / name
        path.write_text(path.read_text(encoding="utf-8") + "\n# changed by a test\n", encoding="utf-8")

    def copy(self, folder: Path) -> "Project":
        """Return a second checkout with the same outputs and its own copy of the cache."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project(folder, self.environment)


# Runs a stage of a project in the test's process: the fixture `run_here`.
RunHere = Callable[[Project, str], "subprocess.CompletedProcess[str]"]


def make_project(folder: Path, home: Path) -> Project:
    """Lay the project out in `folder` and commit it; `home` takes what would be the user's."""
    project = Project(folder, environment_at(home))
    copy_tracked(ROOT, folder)
    choose(folder / "params.yaml", SMALL)
    project.run("git", "init", "--quiet", "--initial-branch=main")
    project.commit("Start")
    return project


def environment_at(home: Path) -> dict[str, str]:
    """Return the environment of commands whose user's folders are in `home`, and whose author is a person."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DVC_", "GIT_", "DATASET_", "STAGES_"))
    }
    environment.update(
        PYTHONDONTWRITEBYTECODE="1",
        DVC_SITE_CACHE_DIR=str(home / "dvc-site"),
        DVC_GLOBAL_CONFIG_DIR=str(home / "dvc-global"),
        DVC_SYSTEM_CONFIG_DIR=str(home / "dvc-system"),
        DVC_NO_ANALYTICS="1",
        DATASET_CACHE=str(home / "datasets"),
        GIT_CONFIG_GLOBAL=os.devnull,
        GIT_CONFIG_NOSYSTEM="1",
        GIT_AUTHOR_NAME="A person",
        GIT_AUTHOR_EMAIL="person@example.org",
        GIT_COMMITTER_NAME="A person",
        GIT_COMMITTER_EMAIL="person@example.org",
    )
    return environment
