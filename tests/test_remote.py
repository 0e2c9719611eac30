"""A team's DVC remote: behind a real sshd on this machine's loopback, and as a shared folder.

Each person has a home, a cache and a clone of their own.
"""

import hashlib
import os
import pwd
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from tests.project import ROOT, STAGES, Project, make_project

SSHD = Path("/usr/sbin/sshd")
USER = pwd.getpwuid(os.geteuid()).pw_name
SSHD_CONFIG = """
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
Subsystem sftp internal-sftp
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin yes
"""
LARGE = 50_000_000  # bytes: a push of it takes long enough to be cut

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Server:
    """A running sshd, the key that it accepts, and the folder of the remote."""

    process: "subprocess.Popen[bytes]"
    port: int
    key: Path
    store: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start an sshd with its own port, host key, authorized key and configuration."""
    if not SSHD.exists():
        pytest.skip(f"{SSHD}, which serves the remote, is not installed; on Debian: apt install openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where root's sshd locks itself in; the service's start makes it
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "config").write_text(SSHD_CONFIG.format(port=port, folder=folder), encoding="utf-8")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "config")], stderr=log)
    try:
        _wait_for(lambda: process.poll() is not None or "Server listening" in (folder / "log").read_text())
        assert process.poll() is None, (folder / "log").read_text()
        login = ("ssh", "-F", os.devnull, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no")
        known = ("-o", f"UserKnownHostsFile={folder / 'known_hosts'}", "-i", str(folder / "key"))
        tried = subprocess.run(
            [*login, *known, "-p", str(port), f"{USER}@127.0.0.1", "-s", "sftp"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=30,
        )
        if tried.returncode:  # a locked account, as service users have
            pytest.skip(f"sshd does not let {USER} in: {(folder / 'log').read_text()}")
        yield Server(process, port, folder / "key", folder / "store")
    finally:
        for session in psutil.Process(process.pid).children(recursive=True):
            session.kill()
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def first(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The author's project: the branch `result` has a run, main has none, and everything is shared."""
    folder = tmp_path_factory.mktemp("first")
    project = make_project(folder / "project", folder / "home")
    project.run("dvc", "remote", "add", "--default", "team", f"ssh://127.0.0.1:{server.port}{server.store}")
    project.run("dvc", "remote", "modify", "team", "verify", "true")
    (project.folder / ".gitignore").write_text("/logs/\n.lock\n", encoding="utf-8")
    project.commit("A remote")
    let_in(project, server)
    project.run("git", "checkout", "--quiet", "-b", "result")
    project.choose("train.learning_rate", 0.01)
    assert project.repro() == STAGES
    project.commit("A higher learning rate")
    assert "12 files pushed" in project.run("dvc", "push").stdout
    project.run("git", "checkout", "--quiet", "main")
    assert not (project.folder / "dvc.lock").exists()
    with_tools = Project(project.folder, {**project.environment, "PYTHONPATH": str(ROOT)})
    assert with_tools.run(sys.executable, "-m", "tools.share").stdout.endswith("files pushed\n")
    return project


def let_in(project: Project, server: Server) -> None:
    """Set key and user, which differ per person, in .dvc/config.local."""
    own = f"['remote \"team\"']\n    keyfile = {server.key}\n    user = {USER}\n"
    (project.folder / ".dvc" / "config.local").write_text(own, encoding="utf-8")


def clone(project: Project, folder: Path, branch: str) -> Project:
    """Return a fresh clone on another machine: another home, no cache."""
    environment = {
        name: value.replace(str(project.folder.parent), str(folder)) if name != "PATH" else value
        for name, value in project.environment.items()
    }
    environment["HOME"] = str(folder / "home")
    other = Project(folder / "project", environment)
    folder.mkdir(exist_ok=True)
    Project(folder, environment).run("git", "clone", "--quiet", "--branch", branch, str(project.folder), "project")
    return other


def cached(project: Project, name: str) -> str:
    """Return the path of an output in a cache or a remote, by its MD5 in dvc.lock."""
    lock = yaml.safe_load(project.run("git", "show", "result:dvc.lock").stdout)
    md5 = next(out["md5"] for stage in lock["stages"].values() for out in stage["outs"] if out["path"] == name)
    return f"files/md5/{md5[:2]}/{md5[2:]}"


def test_a_clone_on_another_machine_pulls_and_runs_nothing(first: Project, server: Server, tmp_path: Path) -> None:
    other = clone(first, tmp_path, "result")
    let_in(other, server)
    assert "12 files fetched" in other.run("dvc", "pull").stdout
    assert other.repro() == []
    assert other.run("git", "status", "--porcelain").stdout == ""
    for name in ("models/model.keras", "data/predictions.csv"):
        assert (other.folder / name).read_bytes() == (first.folder / name).read_bytes()


def test_a_shared_run_that_no_commit_names_spares_a_colleague_the_training(
    first: Project, server: Server, tmp_path: Path
) -> None:
    other = clone(first, tmp_path, "main")
    let_in(other, server)
    other.choose("train.learning_rate", 0.01)
    assert other.repro("--pull") == []
    for name in ("metrics/train.json", "metrics/evaluation.json"):
        assert (other.folder / name).read_text() == first.run("git", "show", f"result:{name}").stdout


def test_a_clone_without_data_has_nothing_to_share_and_says_so(
    first: Project, server: Server, tmp_path: Path
) -> None:
    other = clone(first, tmp_path, "result")
    let_in(other, server)
    with_tools = Project(other.folder, {**other.environment, "PYTHONPATH": str(ROOT)})
    refused = with_tools.run(sys.executable, "-m", "tools.share", check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("share: 12 of the 12 outputs to push are missing from DVC's cache: data/raw/")
    assert refused.stderr.count("\n") == 1
    assert refused.stdout == ""
    other.run("dvc", "pull")
    assert with_tools.run(sys.executable, "-m", "tools.share").stdout.endswith(" files pushed\n")


@pytest.mark.parametrize("victim", ["push", "server"])
def test_an_interrupted_push_fails_the_pull_and_is_completed_by_the_next_push(
    first: Project, server: Server, tmp_path: Path, victim: str
) -> None:
    sender = clone(first, tmp_path / "sender", "main")
    let_in(sender, server)
    large = sender.folder / "large.bin"
    with large.open("wb") as file:
        file.write(os.urandom(LARGE))
    sender.run("dvc", "add", "large.bin")
    sender.commit("A large file")
    before = set(server.store.rglob("*.tmp"))
    process = subprocess.Popen(
        ("dvc", "push"), cwd=sender.folder, env=sender.environment, stderr=subprocess.PIPE, text=True
    )
    _wait_for(lambda: any(path.stat().st_size > 0 for path in set(server.store.rglob("*.tmp")) - before))
    for each in [process] if victim == "push" else psutil.Process(server.process.pid).children(recursive=True):
        each.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in errors

    receiver = clone(sender, tmp_path / "receiver", "main")
    let_in(receiver, server)
    failed = receiver.run("dvc", "pull", check=False)
    assert failed.returncode != 0
    assert "Checkout failed for following targets:" in failed.stderr
    assert "large.bin" in failed.stderr
    assert not (receiver.folder / "large.bin").exists()

    assert "1 file pushed" in sender.run("dvc", "push").stdout
    receiver.run("dvc", "pull", "large.bin")
    with (receiver.folder / "large.bin").open("rb") as file:
        received = hashlib.file_digest(file, "sha256").digest()
    assert received == hashlib.sha256(large.read_bytes()).digest()


def test_a_truncated_object_in_the_remote_is_refused_and_deleting_it_there_fixes_it(
    first: Project, server: Server, tmp_path: Path
) -> None:
    """A full disk can leave one. Without `verify` DVC accepts it and reports success."""
    stored = server.store / cached(first, "models/model.keras")
    good = stored.read_bytes()
    stored.chmod(0o644)
    stored.write_bytes(good[: len(good) // 2])
    other = clone(first, tmp_path, "result")
    let_in(other, server)
    refused = other.run("dvc", "pull", check=False)
    assert refused.returncode != 0
    assert "models/model.keras" in refused.stderr
    assert not (other.folder / "models/model.keras").exists()

    stored.unlink()
    first.run("git", "checkout", "--quiet", "result")
    first.run("dvc", "push")
    first.run("git", "checkout", "--quiet", "main")
    other.run("dvc", "pull")
    assert (other.folder / "models/model.keras").read_bytes() == good
    assert other.repro() == []


def test_the_doctor_names_a_truncated_object_behind_ssh(first: Project, server: Server, tmp_path: Path) -> None:
    other = clone(first, tmp_path, "result")
    let_in(other, server)
    with_tools = Project(other.folder, {**other.environment, "PYTHONPATH": str(ROOT)})
    look = "from tools.doctor.remote import remote; print(*(each.found for each in remote(offline=False)))"
    assert with_tools.run(sys.executable, "-c", look).stdout == "team has every output of dvc.lock, in full size\n"
    stored = server.store / cached(first, "data/predictions.csv")
    good = stored.read_bytes()
    stored.chmod(0o644)
    stored.write_bytes(good[:7])
    assert with_tools.run(sys.executable, "-c", look).stdout == (
        f"data/predictions.csv has 7 bytes in team, and {len(good):,} by dvc.lock; remove {stored} there, "
        "and where it is whole\n"
    )
    stored.write_bytes(good)


def test_a_shared_folder_works_as_a_remote(first: Project, tmp_path: Path) -> None:
    store = tmp_path / "shared folder"
    sender = first.copy(tmp_path / "sender")
    sender.run("git", "checkout", "--quiet", "result")
    sender.run("dvc", "remote", "add", "--default", "folder", str(store))
    sender.commit("A shared folder")
    sender.run("dvc", "push")
    other = clone(sender, tmp_path / "other", "result")
    stored = store / cached(first, "data/predictions.csv")
    stored.rename(tmp_path / "away")
    assert "data/predictions.csv" in other.run("dvc", "pull", check=False).stderr
    (tmp_path / "away").rename(stored)
    other.run("dvc", "pull")
    assert other.repro() == []


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
