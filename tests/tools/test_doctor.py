"""tools/doctor: each test causes a problem, finds it, and fixes it with the command that the doctor names."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from stages.common.failure import StageError
from stages.common.fetch import Patience, fetch
from stages.datasets.cifar10 import ARCHIVE, OFFICIAL
from tests.project import ROOT, Project, environment_at
from tests.servers import Answer, Server, refusing_url
from tools.doctor import __main__ as doctor_command
from tools.doctor import environment, processes, remote, repository, sources, storage, unfinished
from tools.doctor.checks import Check, all_checks, examine, findings
from tools.doctor.finding import Finding

PATIENCE = 120  # seconds for a process to get where a test wants it
BODY = b"an archive" * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()
Orphaned = tuple[Project, int, list[Finding]]
NAMES = list(all_checks(offline=True))

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def finished(first_run: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A healthy checkout: with tools, after a run that was committed and pushed to a remote."""
    folder = first_run.copy(tmp_path_factory.mktemp("finished") / "project").folder
    project = Project(folder, environment_at(tmp_path_factory.mktemp("home")))
    shutil.copytree(ROOT / "tools", project.folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.txt", "pyproject.toml", ".gitignore"):
        shutil.copy2(ROOT / name, project.folder)
    edit(project.folder / ".dvc/config", r"\[core\]", "[core]\n    remote = team")
    with (project.folder / ".dvc/config").open("a", encoding="utf-8") as config:
        config.write(f"['remote \"team\"']\n    url = {tmp_path_factory.mktemp('remote')}\n    verify = true\n")
    project.commit("A remote")
    project.run("dvc", "push")
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of it, as the current directory of this process."""
    return enter(finished.copy(tmp_path / "project"), monkeypatch)


@pytest.fixture
def cifar10(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty download cache of a checkout that needs the archive BODY, without network."""
    project.choose("dataset.name", "cifar10")
    project.choose("dataset.cifar10.sha256", SHA256)
    monkeypatch.setenv("DATASET_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("HTTPS_PROXY", refusing_url())
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "datasets"


def enter(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in set(os.environ) - set(project.environment):
        monkeypatch.delenv(name)
    for name, value in project.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(project.folder)
    return project


def wrong(check: Check) -> Finding:
    """Return the only wrong finding of a check."""
    (found,) = [finding for finding in findings(check) if finding.state == "wrong"]
    return found


def states(check: Check) -> list[str]:
    return [finding.state for finding in findings(check)]


def mend(finding: Finding) -> None:
    subprocess.run(finding.remedy, shell=True, check=True, capture_output=True)


def snapshot(*folders: Path) -> dict[str, Any]:
    """Return names, modes, times and content of all files in the folders."""
    found: dict[str, Any] = {}
    for path in (path for folder in folders for path in (folder, *folder.rglob("*"))):
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_ino, content)
    return found


# The whole report.


def test_a_healthy_checkout_is_ok_in_every_line_and_is_not_changed(finished: Project) -> None:
    everything = (finished.folder, Path(finished.environment["DATASET_CACHE"]).parent, remote_folder(finished))
    before = snapshot(*everything)
    done = finished.run(sys.executable, "-m", "tools.doctor")
    assert snapshot(*everything) == before
    *lines, empty, last = done.stdout.splitlines()
    assert [re.sub(r"^ok +(\S+( \S+)?)  .*", r"\1", line) for line in lines] == NAMES, done.stdout
    assert (empty, last) == ("", f"nothing wrong, 0 to note, {len(NAMES)} ok")
    assert re.search(r"oneDNN uses \S+.*; this CPU has: ", done.stdout)


def test_nothing_is_wrong_with_a_fresh_clone(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished.run("git", "clone", "--quiet", str(finished.folder), str(tmp_path / "clone"))
    enter(Project(tmp_path / "clone", finished.environment), monkeypatch)
    before = snapshot(tmp_path)
    checks = {name: check for name, check in all_checks(offline=False).items() if name != "tensorflow"}
    found = {name: [finding.state for finding in findings] for name, findings in examine(checks)}
    assert found == {name: ["note"] if name == "cache" else ["ok"] for name in checks}
    assert snapshot(tmp_path) == before


def test_before_the_first_run_there_are_notes_only(project: Project) -> None:
    (project.folder / "dvc.lock").unlink()
    checks = {name: check for name, check in all_checks(offline=True).items() if name != "tensorflow"}
    found = dict(examine(checks))
    assert "wrong" not in {finding.state for findings in found.values() for finding in findings}
    assert found["disk"] == [Finding("note", "not yet: there is no dvc.lock, so no run is recorded")]


def test_without_any_package_every_check_is_reported_without_a_traceback(project: Project, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    done = project.run(str(tmp_path / "venv/bin/python"), "-m", "tools.doctor", "--json", check=False)
    assert done.returncode == 1
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert list(dict.fromkeys(line["check"] for line in report["findings"])) == NAMES
    assert report["wrong"] == [line["state"] for line in report["findings"]].count("wrong")
    by_check = {line["check"]: line for line in report["findings"]}
    assert by_check["packages"]["found"] == "could not be checked: No module named 'packaging'"
    assert by_check["packages"]["remedy"].endswith("-m pip install --require-hashes -r requirements.txt")
    assert "No module named" in by_check["tensorflow"]["found"]
    assert by_check["git"]["state"] == "ok"
    assert all("\n" not in line["found"] for line in report["findings"])


def test_a_wrong_finding_is_one_line_and_an_exit_code(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Iterator[Finding]:
        raise ValueError("of two\nlines")
        yield

    monkeypatch.setattr(doctor_command, "all_checks", lambda offline: {"git": repository.git, "cache": broken})
    with pytest.raises(SystemExit, match="1"):
        doctor_command.main([])
    assert capsys.readouterr().out.splitlines() == [
        "ok     git          all that git tracks is committed",
        "wrong  cache        could not be checked: ValueError: of two lines; for more; "
        "run: STAGES_DEBUG=1 python -m tools.doctor",
        "",
        "1 wrong, 0 to note, 1 ok",
    ]


def test_outside_a_checkout_the_error_says_where_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageError, match=r"no dvc\.yaml; run from the repository's root"):
        doctor_command.main([])


# The environment.


def test_an_unsupported_python_is_wrong(project: Project) -> None:
    edit(project.folder / "pyproject.toml", r'requires-python = ".*"', 'requires-python = ">=3.99"')
    assert wrong(environment.python_version).found.endswith("pyproject.toml requires >=3.99")


def test_a_wrong_version_and_a_missing_package_are_wrong(project: Project) -> None:
    edit(project.folder / "requirements.txt", r"(?m)^numpy==\S+", "numpy==0.0.1")
    with (project.folder / "requirements.txt").open("a", encoding="utf-8") as file:
        file.write("no-such-package==1\nnot-for-us==1 ; sys_platform == 'win32'\n")
    other, missing = findings(environment.packages)
    assert re.fullmatch(r"1 packages do not have the version .*: numpy [\d.]+ instead of 0\.0\.1", other.found)
    assert missing.found == "1 packages of requirements.txt are not installed: no-such-package==1"
    assert (other.state, missing.state) == ("wrong", "wrong")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ImportError('libcudart.so.12: cannot open')", "ImportError: libcudart.so.12: cannot open"),
        ("import os; os.kill(os.getpid(), 4)", "ended by SIGILL (this CPU does not have an instruction set"),
    ],
)
def test_a_tensorflow_that_does_not_load_is_one_line(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tensorflow.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    found = wrong(environment.tensorflow)
    assert f"TensorFlow does not load: {message}" in found.found
    assert "\n" not in found.found


# What git has.


def test_a_mistake_in_params_yaml_is_reported_once(project: Project) -> None:
    project.choose("train.epochs", 0)
    project.choose("dataset.name", "mnist")
    assert wrong(repository.params).found.startswith("params.yaml:")
    assert states(sources.download) == states(lambda: sources.mirrors(False)) == states(storage.disk) == ["note"]


def test_a_truncated_lock_is_reported_once_and_git_fixes_it(project: Project) -> None:
    lock = project.folder / "dvc.lock"
    lock.write_bytes(lock.read_bytes()[:200])
    assert "dvc.lock: incomplete" in wrong(repository.lock).found
    assert states(repository.git) == ["ok"]  # and does not say to commit it
    assert states(storage.cache) == states(storage.disk) == states(lambda: remote.remote(False)) == ["note"]
    command = "git checkout dvc.lock"
    assert command in wrong(repository.lock).found
    project.run(*command.split())
    assert states(repository.lock) == ["ok"]


def test_a_truncated_lock_that_dvc_still_accepts_is_a_note(project: Project) -> None:
    lock = project.folder / "dvc.lock"
    text = lock.read_text(encoding="utf-8")
    lock.write_text(text[: text.index("    - path: models/model.keras")], encoding="utf-8")
    (found,) = findings(repository.lock)
    assert (found.state, found.remedy) == ("note", "git checkout dvc.lock")
    assert "models/model.keras" in found.found
    assert states(repository.git) == ["ok"]  # and does not say to commit it
    lock.write_text("schema: '2.0'\nstages:\n  download:\n    cmd: python\n", encoding="utf-8")
    assert states(storage.disk) == states(storage.cache) == ["note"]


@pytest.mark.parametrize("end", ["  download:", "  download:\n    cmd: x\n    outs:\n    - path: x\n      md5: 7"])
def test_a_truncated_lock_that_is_still_yaml_is_wrong(project: Project, end: str) -> None:
    (project.folder / "dvc.lock").write_text(f"schema: '2.0'\nstages:\n{end}", encoding="utf-8")
    assert "failed" in project.run("dvc", "status", check=False).stderr
    assert "dvc.lock: incomplete" in wrong(repository.lock).found


def test_outputs_that_a_run_has_deleted_must_not_be_committed(project: Project) -> None:
    (project.folder / "metrics/train.json").unlink()
    (found,) = findings(repository.git)
    assert (found.state, found.remedy) == ("note", "dvc repro")
    assert "metrics/train.json are gone until it has" in found.found


def test_uncommitted_changes_are_a_note(project: Project) -> None:
    project.touch("stages/model/networks.py")
    edit(project.folder / "dvc.lock", "epochs: 1", "epochs: 2")
    results, others = findings(repository.git)
    assert results.found == "the results of the last run are not committed: dvc.lock"
    assert others.found == "changed and not committed: stages/model/networks.py"
    assert (results.state, others.state) == ("note", "note")


def test_a_deleted_record_of_the_machine_is_restored_by_git(project: Project) -> None:
    (project.folder / "environment/train.json").unlink()
    (found,) = findings(repository.git)
    assert (found.state, found.remedy) == ("note", "git checkout environment/train.json")
    mend(found)
    assert states(repository.git) == ["ok"]


@pytest.mark.parametrize("name", ["params.yaml", "stages/model/networks.py"])
def test_a_deleted_file_is_restored_by_git_and_its_deletion_not_committed(project: Project, name: str) -> None:
    (project.folder / name).unlink()
    assert [finding.remedy for finding in findings(repository.git)] == [f"git checkout {name}"]
    mend(findings(repository.git)[0])
    assert states(repository.git) == ["ok"]


@pytest.mark.parametrize("size", [420, 1000, 1300, 1640, 1800, 2100, 3000])
def test_a_truncated_dvc_yaml_is_reported_once_and_git_fixes_it(project: Project, size: int) -> None:
    path = project.folder / "dvc.yaml"
    path.write_bytes(path.read_bytes()[:size])
    checks = {name: check for name, check in all_checks(offline=False).items() if name != "tensorflow"}
    found = [finding for findings in dict(examine(checks)).values() for finding in findings]
    assert [finding.remedy for finding in found if finding.state == "wrong"] == ["git checkout dvc.yaml"]
    assert states(repository.git) == ["ok"]  # and does not say to commit it
    mend(wrong(repository.pipeline))
    assert states(repository.pipeline) == ["ok"]


def test_a_stage_that_a_commit_removed_from_dvc_yaml_is_a_note(project: Project) -> None:
    pipeline = yaml.safe_load((project.folder / "dvc.yaml").read_bytes())
    del pipeline["stages"]["evaluate"]
    (project.folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline), encoding="utf-8")
    project.commit("No evaluation")
    assert states(repository.pipeline) == ["note"]


@pytest.mark.parametrize("content", ["[cor", "[core]\nremot = team\n"])
def test_a_broken_dvc_config_is_reported_once_and_git_fixes_it(project: Project, content: str) -> None:
    (project.folder / ".dvc/config").write_text(content, encoding="utf-8")
    assert "config" in project.run("dvc", "status", check=False).stderr
    checks = {name: check for name, check in all_checks(offline=False).items() if name != "tensorflow"}
    found = [finding for findings in dict(examine(checks)).values() for finding in findings]
    assert [finding.remedy for finding in found if finding.state == "wrong"] == ["git checkout .dvc/config"]
    assert states(repository.git) == ["ok"]  # and does not say to commit it
    mend(wrong(repository.config))
    assert states(repository.config) == ["ok"]


def test_a_cache_with_a_non_ascii_path_is_a_note_with_a_remedy_for_queues(project: Project) -> None:
    local = f"[cache]\n    dir = {project.folder.parent / 'prüfung'}\n"  # dvc config cannot write this path either
    (project.folder / ".dvc/config.local").write_text(local, encoding="utf-8")
    note, _ = findings(repository.config)
    assert note.state == "note"
    assert "prüfung: DVC's cache has non-ASCII letters in its path" in note.found
    assert note.found.endswith("dvc config --local cache.dir FOLDER")


def test_a_broken_local_config_is_named_and_moved_away(project: Project) -> None:
    (project.folder / ".dvc/config.local").write_text("[cor", encoding="utf-8")
    found = wrong(repository.config)
    assert found.found.startswith(".dvc/config.local is broken (")
    mend(found)
    assert states(repository.config) == ["ok"]


@pytest.mark.parametrize("command", ["rebase", "cherry-pick"])
def test_the_remedy_for_an_unfinished_rebase_aborts_it(project: Project, command: str) -> None:
    project.run("git", "checkout", "--quiet", "-b", "other")
    for branch, epochs in (("other", 4), ("main", 5)):
        project.run("git", "checkout", "--quiet", branch)
        project.choose("train.epochs", epochs)
        project.commit(branch)
    project.run("git", command, "other", check=False)
    found = wrong(repository.git)
    assert found.found.startswith(f"a {command} is not done: params.yaml;")
    mend(found)
    assert states(repository.git) == ["ok"]


def test_the_remedy_for_a_stash_conflict_resets_it(project: Project) -> None:
    project.choose("train.epochs", 4)
    project.run("git", "stash")
    project.choose("train.epochs", 5)
    project.commit("Five")
    project.run("git", "stash", "pop", check=False)
    mend(wrong(repository.git))
    assert states(repository.git) == ["ok"]


def test_an_unfinished_merge_is_wrong(project: Project) -> None:
    project.run("git", "checkout", "--quiet", "-b", "other")
    for branch, epochs in (("other", 4), ("main", 5)):
        project.run("git", "checkout", "--quiet", branch)
        project.choose("train.epochs", epochs)
        project.commit(branch)
    project.run("git", "merge", "other", check=False)
    found = wrong(repository.git)
    assert found.found.startswith("a merge is not done: params.yaml;")
    mend(found)
    assert states(repository.git) == ["ok"]


def test_a_shallow_clone_is_a_note(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shallow = tmp_path / "shallow"
    project.run("git", "clone", "--quiet", "--depth=1", f"file://{project.folder}", str(shallow))
    enter(Project(shallow, project.environment), monkeypatch)
    (found,) = findings(repository.git)
    assert (found.state, found.remedy) == ("note", "git fetch --unshallow")
    mend(found)
    assert states(repository.git) == ["ok"]


def test_a_missing_git_repository_is_wrong_unless_dvc_is_configured_for_it(project: Project) -> None:
    shutil.rmtree(project.folder / ".git")
    found = wrong(repository.git)
    assert "not a git repository" in found.found
    (project.folder / ".dvc/config.local").write_text("[core]\nno_scm = true\n", encoding="utf-8")
    assert states(repository.git) == ["note"]
    (project.folder / ".dvc/config.local").unlink()
    mend(replace(found, remedy=f"{found.remedy} --quiet --message Start"))
    assert states(repository.git) == ["ok"]


def test_a_repository_of_another_user_is_named_with_the_git_setting_to_trust_it(project: Project) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give a folder to another user")
    for path in (project.folder, project.folder / ".git"):
        os.chown(path, 12345, 12345)
    found = wrong(repository.git)
    assert "dubious ownership" in found.found
    assert found.remedy == f"git config --global --add safe.directory {project.folder}"


# Locks and processes.

HOLD = """
import os, sys
from dvc.lock import make_lock
lock = make_lock(".dvc/tmp/lock", tmp_dir=".dvc/tmp", hardlink_lock={hardlink})
lock.lock()
print("held", flush=True)
{then}
"""


def test_dvc_s_lock_is_a_note_that_names_the_process(project: Project) -> None:
    code = HOLD.format(hardlink=False, then="sys.stdin.read()")
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        (found,) = findings(processes.dvc_locks)
        holder.communicate()
    assert found.state == "note"
    assert f"held by process {holder.pid}" in found.found
    assert states(processes.dvc_locks) == ["ok"]


def test_a_stale_hard_link_lock_is_wrong(project: Project) -> None:
    (project.folder / ".dvc/tmp/lock").unlink()
    (project.folder / ".dvc/config.local").write_text("[core]\nhardlink_lock = true\n", encoding="utf-8")
    subprocess.run([sys.executable, "-c", HOLD.format(hardlink=True, then="os._exit(9)")], capture_output=True)
    mend(wrong(processes.dvc_locks))
    assert states(processes.dvc_locks) == ["ok"]
    project.run("dvc", "commit", "train")


def test_a_truncated_rwlock_is_wrong_and_dvc_refuses_it(project: Project) -> None:
    (project.folder / ".dvc/tmp/rwlock").write_text('{"write": {"/a"', encoding="utf-8")
    assert "JSON structure is corrupted" in project.run("dvc", "repro", check=False).stderr
    mend(wrong(processes.dvc_locks))
    assert states(processes.dvc_locks) == ["ok"]


@pytest.fixture(scope="module")
def orphaned(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orphaned]:
    """A checkout whose dvc was killed during train, the suspended process, and the findings before the kill."""
    project = finished.copy(tmp_path_factory.mktemp("orphaned") / "project")
    project.choose("train.epochs", 10_000)
    project.choose("train.checkpoint_minutes", 1e-9)
    with subprocess.Popen(
        ["dvc", "repro", "train"],
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as dvc:
        try:
            wait_until(lambda: any((project.folder / "checkpoints").glob("*-000002-*.npz")))
            with pytest.MonkeyPatch.context() as monkeypatch:
                enter(project, monkeypatch)
                alive = findings(processes.running_stages)
            pid = int((project.folder / "models/.lock").read_text(encoding="utf-8"))
            dvc.kill()
            os.kill(pid, signal.SIGSTOP)
            dvc.wait()
            yield project, pid, alive
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(dvc.pid, signal.SIGKILL)


def test_a_stage_of_a_running_dvc_is_a_note(orphaned: Orphaned) -> None:
    _, pid, alive = orphaned
    assert alive == [Finding("note", f"models/: train is running, process {pid}")]


def test_the_rwlock_entry_of_a_killed_dvc_is_a_note_and_wrong_once_its_pid_is_reused(
    orphaned: Orphaned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = enter(orphaned[0].copy(tmp_path / "project"), monkeypatch)
    (found,) = findings(processes.dvc_locks)
    assert found.state == "note"
    dead = re.search(r"dvc repro train`, process (\d+), was killed", found.found)
    assert dead
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            edit(project.folder / ".dvc/tmp/rwlock", f'"pid": {dead[1]}', f'"pid": {other.pid}')
            found = wrong(processes.dvc_locks)
        finally:
            other.kill()
    assert "another program has its process ID now" in found.found
    mend(found)
    assert states(processes.dvc_locks) == ["ok"]


def test_a_checkpoint_is_reported_with_its_position_and_a_damaged_one_is_wrong(
    orphaned: Orphaned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = enter(orphaned[0].copy(tmp_path / "project"), monkeypatch)
    before, last = sorted((project.folder / "checkpoints").glob("*.npz"))
    (found,) = findings(unfinished.checkpoints)
    epoch, step = map(int, last.stem.split("-")[1:])
    assert found.state == "note"
    assert found.found.startswith(f"checkpoints/{last.name}, 0 min old")
    assert f"after epoch {epoch}, step {step}: a run ended early; the next dvc repro continues from" in found.found
    os.truncate(last, last.stat().st_size - 1)
    damaged = wrong(unfinished.checkpoints)
    assert damaged.found.startswith(f"checkpoints/{last.name} is damaged")
    mend(damaged)
    (found,) = findings(unfinished.checkpoints)
    assert before.name in found.found


def test_the_rwlock_entry_of_a_zombie_is_wrong(
    orphaned: Orphaned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = enter(orphaned[0].copy(tmp_path / "project"), monkeypatch)
    dead = re.search(r"process (\d+), was killed", findings(processes.dvc_locks)[0].found)
    assert dead
    with subprocess.Popen(["true"]) as zombie:
        wait_until(lambda: Path(f"/proc/{zombie.pid}/cmdline").read_bytes() == b"")
        edit(project.folder / ".dvc/tmp/rwlock", f'"pid": {dead[1]}', f'"pid": {zombie.pid}')
        found = wrong(processes.dvc_locks)
    assert "(a zombie)" in found.found
    mend(found)
    assert states(processes.dvc_locks) == ["ok"]


def test_temporary_files_of_a_killed_dvc_are_a_note_and_never_committed(project: Project) -> None:
    left = [
        project.folder / folder / ".tiDczSFE0BAUVtFqZBvN-_.tmp" for folder in ("data/raw", "models", "metrics")
    ]
    for path in left:
        path.write_bytes(b"half")
    (found,) = findings(unfinished.leftovers)
    assert found.state == "note"
    assert found.found.startswith("data/raw/.tiDczSFE0BAUVtFqZBvN-_.tmp, models/")
    assert project.run("git", "status", "--porcelain").stdout == ""
    mend(found)
    assert not any(path.exists() for path in left)
    assert states(unfinished.leftovers) == ["ok"]


def test_a_stage_whose_dvc_was_killed_is_wrong_and_the_remedy_ends_it(
    orphaned: Orphaned, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, pid, _ = orphaned
    enter(project, monkeypatch)
    found = wrong(processes.running_stages)
    assert found.found.startswith(f"models/: train is running, process {pid}, although its dvc has ended")
    assert findings(unfinished.checkpoints)[-1].found.endswith(": of the training that is running")
    os.kill(pid, signal.SIGCONT)
    mend(found)
    wait_until(lambda: states(processes.running_stages) == ["ok"])


def test_a_stage_started_by_hand_is_a_note(project: Project) -> None:
    code = (
        "import sys; from pathlib import Path; from stages.common.exclusive import exclusive\n"
        "with exclusive(Path('metrics')): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        found = findings(processes.running_stages)
        holder.communicate()
    assert found == [Finding("note", f"metrics/: evaluate is running, process {holder.pid}")]


# The disk and the cache.


def test_a_disk_too_small_for_the_next_run_is_wrong(project: Project, small_disk: Path) -> None:
    set_cache(project, f"dir = {small_disk}")
    assert states(storage.disk) == ["ok", "wrong"]
    found = wrong(storage.disk).found
    assert found.startswith(f"{small_disk}: a full run needs up to ")
    assert found.endswith("; make room")
    (small_disk / "full").write_bytes(bytes(40_000))
    assert "0.0 MB are free" in wrong(storage.disk).found


def test_a_cache_with_hard_links_needs_less_space_than_one_with_copies(project: Project) -> None:
    def needed() -> float:
        (found,) = findings(storage.disk)
        size = re.search(r"up to ([\d.,]+) MB", found.found)
        assert size
        return float(size[1])

    shutil.rmtree(project.folder / "data/processed")
    copies = needed()
    set_cache(project, "type = hardlink,copy")
    assert needed() < copies


@pytest.mark.parametrize("where", ["cache", "cache and workspace"])
def test_an_object_with_a_changed_byte_is_wrong_and_restored(project: Project, where: str) -> None:
    path = object_of(project, "data/raw/test.npz")
    content = path.read_bytes()
    change_a_byte(path)
    if where != "cache":
        change_a_byte(project.folder / "data/raw/test.npz")
    found = wrong(storage.cache)
    name = path.relative_to(project.folder)
    assert f"{name}, the object of data/raw/test.npz, does not match its hash" in found.found
    assert ("dvc repro" in found.remedy) == (where != "cache")
    mend(replace(found, remedy=f"{found.remedy} download") if where != "cache" else found)  # evaluate is left out
    assert states(storage.cache) == ["ok"]
    assert path.read_bytes() == content == (project.folder / "data/raw/test.npz").read_bytes()


def test_a_missing_object_is_a_note(project: Project) -> None:
    object_of(project, "models/model.keras").unlink()
    (found,) = findings(storage.cache)
    assert (found.state, found.remedy) == ("note", "dvc pull")
    assert found.found == "1 of the 21 outputs of dvc.lock are not in .dvc/cache: models/model.keras"
    mend(found)
    assert states(storage.cache) == ["ok"]


def test_an_empty_cache_is_filled_by_a_pull_or_without_a_remote_by_a_run(project: Project) -> None:
    shutil.rmtree(project.folder / ".dvc/cache")
    (found,) = findings(storage.cache)
    assert (found.state, found.remedy) == ("note", "dvc pull")
    edit(project.folder / ".dvc/config", r"(?m)^    remote = .*\n", "")
    assert findings(storage.cache)[0].remedy == "dvc repro"
    project.run("git", "checkout", "--quiet", ".dvc/config")
    mend(found)
    (found,) = findings(storage.cache)
    assert found.found.startswith(".dvc/cache: all 12 outputs of dvc.lock, without some that git keeps, ")


def test_a_changed_output_is_a_note(project: Project) -> None:
    path = project.folder / "data/processed/test.npz"
    content = path.read_bytes()
    change_a_byte(path)
    note, ok = findings(storage.cache)
    assert (note.state, note.remedy) == ("note", "dvc checkout --force data/processed/test.npz")
    assert note.found == "data/processed/test.npz does not match dvc.lock; to restore it"
    assert ok.state == "ok"
    mend(note)
    assert states(storage.cache) == ["ok"]
    assert path.read_bytes() == content


def test_a_changed_byte_in_a_folder_of_outputs_is_found(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = enter(Project(tmp_path, finished.environment), monkeypatch)
    stage = {"cmd": "mkdir folder && echo 1 >folder/one && echo 2 >folder/two", "outs": ["folder"]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"make": stage}}), encoding="utf-8")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\nno_scm = true\n", encoding="utf-8")
    project.repro()
    assert states(storage.cache) == ["ok"]
    md5 = hashlib.md5(b"2\n").hexdigest()
    change_a_byte(tmp_path / ".dvc/cache/files/md5" / md5[:2] / md5[2:])
    found = wrong(storage.cache)
    assert "the object of folder/two, does not match its hash" in found.found
    mend(found)
    assert states(storage.cache) == ["ok"]


# The archive, and where it can be had.


def test_a_partial_and_then_a_complete_archive_are_reported(cifar10: Path) -> None:
    assert [finding.found for finding in findings(sources.download)] == [
        f"not yet: {cifar10 / ARCHIVE} has not been downloaded"
    ]
    once = Patience(rounds=1, pause=0.01)
    with Server(Answer(BODY, cut=5_000), Answer(status=404)) as server, pytest.raises(StageError):
        fetch([server.url], SHA256, cifar10 / ARCHIVE, patience=once)
    (found,) = findings(sources.download)
    assert found.state == "note"
    assert "0.0 MB of 170 MB are here; the next dvc repro continues from there" in found.found
    with Server(Answer(BODY)) as server:
        fetch([server.url], SHA256, cifar10 / ARCHIVE, patience=once)
    assert states(sources.download) == ["ok"]


def test_a_wrong_archive_and_parts_of_another_are_notes(cifar10: Path) -> None:
    cifar10.mkdir()
    (cifar10 / ARCHIVE).write_bytes(b"other")
    (cifar10 / f"{ARCHIVE}.0123456789abcdef.partial").write_bytes(b"other")
    whole, part = findings(sources.download)
    assert "does not match the SHA-256 in params.yaml; the next download fetches it again" in whole.found
    assert "started for another SHA-256" in part.found
    mend(part)
    assert findings(sources.download) == [whole]


def test_a_running_download_is_a_note(cifar10: Path) -> None:
    cifar10.mkdir()
    with FileLock(cifar10 / f"{ARCHIVE}.lock"):
        found = findings(sources.download)[0]
    assert found == Finding("note", f"{cifar10 / ARCHIVE}: being downloaded by another process")


def mirrors() -> Iterator[Finding]:
    return sources.mirrors(offline=False)


def test_one_mirror_that_answers_is_enough(cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(Answer(BODY)) as server:
        monkeypatch.setenv("DATASET_SOURCES", f"/no/such/copy {server.url.replace('//', '//me:secret@')}")
        found = findings(mirrors)
        host = server.url.split("/")[2]
    assert found == [
        Finding("ok", f"the archive is available from {host}"),
        Finding("note", "DATASET_SOURCES: /no/such/copy is not a file here"),
    ]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(status=503), "answers 503"),
        (Answer(b"<html>", kind="text/html"), "answers with an HTML page"),
        (Answer(hang_up=True), "cannot be reached"),
        (None, "cannot be reached (Connection refused)"),
    ],
)
def test_it_is_wrong_when_no_mirror_has_the_archive(
    cifar10: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer | None, message: str
) -> None:
    with Server(answer or Answer()) as server:
        monkeypatch.setenv("DATASET_SOURCES", server.url if answer else refusing_url())
        found = wrong(mirrors)
    assert message in found.found
    assert "www.cs.toronto.edu cannot be reached (Connection refused)" in found.found
    assert found.remedy.startswith("DATASET_SOURCES=")


def test_an_unusable_source_is_reported_as_by_the_download(cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASET_SOURCES", "ftp://host/archive")
    assert "ftp://host/archive is no path, and none of file://, http:// and https://" in wrong(mirrors).found


def test_a_mirror_with_a_file_of_another_size_does_not_have_the_archive(
    project: Project, cifar10: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.choose("dataset.cifar10.sha256", OFFICIAL)
    with Server(Answer(BODY)) as server:
        monkeypatch.setenv("DATASET_SOURCES", server.url)
        assert "has 10,000 bytes, expected 170,052,171" in wrong(mirrors).found


def test_a_silent_mirror_does_not_block_the_doctor(cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SILENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("DATASET_SOURCES", f"http://127.0.0.1:{silent.getsockname()[1]}/archive")
        began = time.monotonic()
        assert "gives no answer" in wrong(mirrors).found
    assert time.monotonic() - began < sources.SECONDS


def test_no_mirror_is_asked_when_the_archive_is_cached_or_offline(
    cifar10: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(Answer(BODY)) as server:
        monkeypatch.setenv("DATASET_SOURCES", server.url)
        assert states(lambda: sources.mirrors(offline=True)) == ["note"]
        cifar10.mkdir()
        (cifar10 / ARCHIVE).write_bytes(BODY)
        assert states(mirrors) == ["ok"]
        assert server.requests == []


def test_missing_mirrors_are_a_note_when_the_outputs_of_download_exist(project: Project, cifar10: Path) -> None:
    lock = yaml.safe_load((project.folder / "dvc.lock").read_bytes())
    dataset = lock["stages"]["download"]["params"]["params.yaml"]["dataset"]
    dataset["name"], dataset["cifar10"]["sha256"] = "cifar10", SHA256
    (project.folder / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    assert states(mirrors) == ["note"]
    shutil.rmtree(project.folder / "data/raw")
    assert states(mirrors) == ["note"]  # DVC's cache has them
    shutil.rmtree(project.folder / ".dvc/cache")
    assert states(mirrors) == ["wrong"]


# The remote.


def ask_remote() -> Iterator[Finding]:
    return remote.remote(offline=False)


def remote_folder(project: Project) -> Path:
    config = (project.folder / ".dvc/config").read_text(encoding="utf-8")
    return Path(re.findall(r"url = (.*)", config)[0])


def set_remote(project: Project, url: str | Path) -> None:
    edit(project.folder / ".dvc/config", r"(?m)^    url = .*", f"    url = {url}")


def test_an_output_missing_from_the_remote_is_wrong_and_a_push_fixes_it(project: Project, tmp_path: Path) -> None:
    shutil.copytree(remote_folder(project), tmp_path / "remote")
    set_remote(project, tmp_path / "remote")
    next((tmp_path / "remote/files/md5").glob("*/*")).unlink()
    found = wrong(ask_remote)
    assert re.fullmatch(r"1 outputs of dvc\.lock are not in team: \S+", found.found)
    mend(found)
    assert states(ask_remote) == ["ok"]


@pytest.mark.parametrize("mode", [0o444, 0o644])  # as pushed; as a copy by hand leaves it
def test_an_object_cut_short_in_the_remote_is_wrong_and_nothing_there_is_changed(
    project: Project, tmp_path: Path, mode: int
) -> None:
    shutil.copytree(remote_folder(project), tmp_path / "remote")
    set_remote(project, tmp_path / "remote")
    path = object_of(project, "models/model.keras", tmp_path / "remote")
    content = path.read_bytes()
    path.chmod(0o644)
    os.truncate(path, 100)
    path.chmod(mode)
    before = snapshot(tmp_path / "remote", project.folder)
    found = wrong(ask_remote)
    assert snapshot(tmp_path / "remote", project.folder) == before
    assert found.found.startswith(f"models/model.keras has 100 bytes in team, and {len(content):,} by dvc.lock;")
    mend(found)
    assert states(ask_remote) == ["ok"]
    assert path.read_bytes() == content


def test_a_remote_without_verification_is_a_note(project: Project) -> None:
    edit(project.folder / ".dvc/config", r"(?m)^    verify = .*\n", "")
    ok, note = findings(ask_remote)
    assert (ok.state, note.state, note.remedy) == ("ok", "note", "dvc remote modify team verify true")
    mend(note)
    assert states(ask_remote) == ["ok"]


def test_an_output_missing_from_cache_and_remote_is_made_before_it_is_pushed(
    project: Project, tmp_path: Path
) -> None:
    set_remote(project, tmp_path / "remote")
    assert wrong(ask_remote).remedy == "dvc push"
    shutil.rmtree(project.folder / ".dvc/cache")
    assert wrong(ask_remote).remedy == "dvc repro && dvc push"


def test_each_file_of_a_picture_folder_is_looked_up_in_the_remote(project: Project, tmp_path: Path) -> None:
    shutil.copytree(remote_folder(project), tmp_path / "remote")
    set_remote(project, tmp_path / "remote")
    (project.folder / "pictures/cat").mkdir()
    for name in "ab":
        (project.folder / f"pictures/cat/{name}").write_text(name, encoding="utf-8")
    project.run("dvc", "add", "pictures/cat")
    assert "pictures/cat" in wrong(ask_remote).found
    project.run("dvc", "push")
    assert states(ask_remote) == ["ok"]
    md5 = hashlib.md5(b"b").hexdigest()
    (tmp_path / "remote/files/md5" / md5[:2] / md5[2:]).unlink()
    assert wrong(ask_remote).found == "1 outputs of dvc.lock are not in team: pictures/cat/b"


def test_an_empty_remote_may_be_an_unmounted_shared_folder(project: Project, tmp_path: Path) -> None:
    set_remote(project, "../../gone")  # relative to .dvc
    found = wrong(ask_remote).found
    assert (
        found
        == f"team has no output of dvc.lock: can it be reached ({tmp_path / 'gone'}), was nothing pushed yet?"
    )
    assert not (tmp_path / "gone").exists()


def test_a_silent_remote_does_not_block_the_doctor(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        set_remote(project, f"http://127.0.0.1:{silent.getsockname()[1]}/team")
        assert wrong(ask_remote).found.startswith("team gave no answer in 2 s")


def test_a_remote_with_an_unsupported_scheme_is_wrong(project: Project) -> None:
    set_remote(project, "gdrive://folder/team")
    assert re.match(r"team cannot be read: .*gdrive", wrong(ask_remote).found)


def test_a_missing_remote_is_a_note_and_an_unconfigured_one_is_wrong(project: Project) -> None:
    config = project.folder / ".dvc/config"
    edit(config, r"remote = team", "remote = other")
    mend(wrong(ask_remote))
    assert states(lambda: remote.remote(offline=True)) == ["note"]
    edit(config, r"(?m)^    remote = .*\n", "")
    (found,) = findings(ask_remote)
    assert (found.state, found.remedy) == ("note", "dvc remote default team")
    edit(config, r"(?s)\['remote.*", "")
    (found,) = findings(ask_remote)
    assert (found.state, found.remedy) == ("note", "dvc remote add --default NAME URL")


def object_of(project: Project, path: str, store: Path = Path(".dvc/cache")) -> Path:
    """Return the path of an output's object, by dvc.lock, in the cache or in another store."""
    stages = yaml.safe_load((project.folder / "dvc.lock").read_bytes())["stages"].values()
    md5 = next(str(out["md5"]) for stage in stages for out in stage["outs"] if out["path"] == path)
    return project.folder / store / "files/md5" / md5[:2] / md5[2:]


def edit(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text(encoding="utf-8"))
    assert count
    path.write_text(text, encoding="utf-8")


def set_cache(project: Project, line: str) -> None:
    (project.folder / ".dvc/config.local").write_text(f"[cache]\n{line}\n", encoding="utf-8")


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)
    path.chmod(0o444)  # as DVC leaves it, and trusts it


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)
