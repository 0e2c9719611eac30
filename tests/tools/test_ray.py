"""tools/sweep.py: what it refuses, and a sweep on a real Ray cluster of two nodes that share only the remotes."""

import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.common.failure import StageError
from tests.project import ROOT, Project, make_project
from tools import sweep


def test_choices_are_combined_as_in_dvc_and_named_by_their_content() -> None:
    trials = sweep.expand(["train.batch_size=32,64", "train.seed=range(0,2)", "model.dense=[16,8]"])
    assert sorted(trials.values()) == [
        [f"train.batch_size={size}", f"train.seed={seed}", "model.dense=[16,8]"]
        for size in (32, 64)
        for seed in (0, 1)
    ]
    other_order = sweep.expand(["model.dense=[16,8]", "train.seed=1,0", "train.batch_size=64,32"])
    assert trials.keys() == other_order.keys()


def test_invalid_choices_are_one_line() -> None:
    with pytest.raises(
        StageError, match=r"^-S train\.seed\[=: invalid; the syntax is -S train\.batch_size=32,64$"
    ):
        sweep.expand(["train.seed[="])


def run_sweep(project: Project, *choices: str) -> subprocess.CompletedProcess[str]:
    """Run the tool in the project."""
    with_tools = Project(project.folder, {**project.environment, "PYTHONPATH": str(ROOT)})
    settings = [part for choice in choices for part in ("-S", choice)]
    return with_tools.run(sys.executable, "-m", "tools.sweep", *settings, check=False)


@pytest.mark.slow
def test_commits_and_data_that_other_machines_cannot_get_are_refused(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", tmp_path / "home")
    refused = run_sweep(project, "train.seed=1,2")
    assert refused.returncode == 1
    assert refused.stderr == (
        "sweep: uncommitted or unpushed changes: the machines clone the last commit from origin; "
        "commit, git push, then run again\n"
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """Two nodes of one core, each with its own home and cache; yields the environment to reach them."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray, the extra `sweep`, is not installed: pip install 'ray==2.60.*'")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    access = {
        "RAY_ADDRESS": address,
        "RAY_AUTH_MODE": "token",  # otherwise anyone who reaches the port can run code here
        "RAY_AUTH_TOKEN": secrets.token_hex(),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # pytest's folders are too deep for the names of sockets
    head = ["--head", f"--port={address.partition(':')[2]}", "--include-dashboard=false", f"--temp-dir={folder}"]
    nodes = []
    try:
        for name, options in (("one", head), ("two", [f"--address={address}"])):
            with (folder / f"{name}.log").open("wb") as log:
                nodes.append(
                    subprocess.Popen(
                        [
                            sys.executable,
                            "-m",
                            "ray.scripts.scripts",
                            "start",
                            *options,
                            "--num-cpus=1",
                            "--block",
                        ],
                        env={**os.environ, **access, **own_places(folder / name)},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            deadline = time.monotonic() + 90
            while "Ray runtime started" not in (folder / f"{name}.log").read_text("utf-8"):
                assert nodes[-1].poll() is None and time.monotonic() < deadline
                time.sleep(0.5)
        yield {**access, "folder": str(folder)}
    finally:
        for node in reversed(nodes):
            node.terminate()
            try:
                node.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def own_places(home: Path) -> dict[str, str]:
    """Return an environment that keeps the files of one machine in `home`."""
    home.mkdir()
    return {"HOME": str(home), "DATASET_CACHE": str(home / "cache"), "DVC_SITE_CACHE_DIR": str(home / "site")}


@pytest.mark.slow
def test_two_nodes_share_a_sweep_and_a_second_one_runs_only_what_is_missing(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    made = make_project(tmp_path / "project", tmp_path / "home")
    project = Project(made.folder, {**made.environment, **cluster})
    (project.folder / ".gitignore").write_text("/logs/\n/checkpoints/\n.lock\n", encoding="utf-8")
    project.run("dvc", "remote", "add", "--default", "team", str(tmp_path / "store"))
    project.repro()
    project.commit("The first run")
    project.run("git", "init", "--quiet", "--bare", str(tmp_path / "origin.git"))
    project.run("git", "remote", "add", "origin", str(tmp_path / "origin.git"))
    project.run("git", "push", "--quiet", "origin", "main")
    project.run("dvc", "push")

    too_many = run_sweep(project, "train.batch_size=64", "runtime.threads=2")
    assert too_many.stderr == "sweep: no machine has enough cores for runtime.threads; add: -S runtime.threads=1\n"

    first = run_sweep(project, "train.batch_size=64", "train.momentum=0,5", "runtime.threads=1")
    assert first.returncode == 1
    assert re.search(r"train\.momentum=0 runtime\.threads=1: done on \S+\n", first.stdout), (
        first.stdout + first.stderr
    )
    assert re.search(r": failed on \S+: .*: train: params\.yaml:\d+: train\.momentum: ", first.stdout)
    assert first.stderr == "sweep: 1 of 2 experiments failed (see the lines above)\n"

    second = run_sweep(project, "train.batch_size=64,128", "train.momentum=0", "runtime.threads=1")
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.startswith("2 experiments, 1 already in origin\n")
    _, commit = project.json("dvc", "exp", "show", "--json")
    metrics = [row["revs"][0]["data"]["metrics"]["metrics/train.json"]["data"] for row in commit["experiments"]]
    assert metrics[0] != metrics[1]

    # A stage that ran is in its node's run cache: data came from the remote.
    ran = [path.read_text("utf-8") for path in Path(cluster["folder"]).glob("*/cache/dvc/runs/*/*/*")]
    assert sum("stages.train" in run for run in ran) == 2
    assert not any("stages.download" in run or "stages.preprocess" in run for run in ran)
    name = commit["experiments"][0]["name"]
    project.run("dvc", "exp", "pull", "origin", name)
    project.run("dvc", "exp", "apply", name)
    assert json.loads((project.folder / "metrics/train.json").read_bytes()) == metrics[0]
    assert (project.folder / "models" / "model.keras").exists()
