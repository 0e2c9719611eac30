"""tools/verify, with real DVC and git: it reproduces untouched runs, and names what was tampered with."""

import csv
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
import yaml
from PIL import Image

from stages.common.failure import StageError
from stages.common.figures import parse_figures
from tests.project import ROOT, Project, environment_at
from tools.verify import __main__ as verify_command
from tools.verify import machine, verdict
from tools.verify.claims import Claim, claim_of_lock
from tools.verify.differences import digest
from tools.verify.judgement import Row, Tolerance, judge, load_rules, worst
from tools.verify.lock import NAME, Lock, changed_inputs, read_lock
from tools.verify.stale import stale

MODEL, TRAIN, EVALUATION = "models/model.keras", "metrics/train.csv", "metrics/evaluation.csv"
PATIENCE = 60  # seconds to wait until stopped processes are gone

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(first_run: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a committed run, whose cache is shared by all clones of its user."""
    folder = first_run.copy(tmp_path_factory.mktemp("project") / "project").folder
    environment = environment_at(tmp_path_factory.mktemp("home"))
    project = Project(folder, {**environment, "PYTHONPATH": str(ROOT)})
    cache = tmp_path_factory.mktemp("cache") / "shared"
    (folder / ".dvc" / "cache").rename(cache)
    project.run("dvc", "config", "--global", "cache.dir", str(cache))
    return project


@pytest.fixture(scope="module")
def rebuilt(project: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of the project's rebuild, kept by verify, and the JSON that it printed."""
    folder = tmp_path_factory.mktemp("kept")
    return folder, json.loads(run_verify(project, 0, "--json", "--folder", str(folder)).stdout)


@pytest.fixture
def environment(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment of the project's commands in this process."""
    for name, value in project.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def claim(project: Project, rebuilt: tuple[Path, dict[str, Any]], tmp_path: Path, environment: None) -> Claim:
    """The claim of the project, with a copy of its files to tamper with."""
    kept = shutil.copytree(rebuilt[0] / "committed", tmp_path / "committed")
    claimed = claim_of_lock(read_lock(kept / NAME), project.folder, kept)
    return replace(claimed, checkout=project.folder)


Judged = Callable[[Claim], dict[str, Row]]


@pytest.fixture
def exact(rebuilt: tuple[Path, dict[str, Any]]) -> Judged:
    """Compare the rebuild with a claim byte for byte; return the rows by path."""
    return _judged(rebuilt[0] / "rebuild", None)


@pytest.fixture
def tolerant(rebuilt: tuple[Path, dict[str, Any]]) -> Judged:
    """Compare the rebuild with a claim within tolerances.yaml; return the rows by path."""
    return _judged(rebuilt[0] / "rebuild", load_rules())


def _judged(folder: Path, rules: Any) -> Judged:
    lock = read_lock(folder / NAME)
    return lambda claim: {row.path: row for row in judge(claim, lock, folder, rules)}


def run_verify(project: Project, code: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run verify on the command line; fail unless its exit code is `code`."""
    done = project.run(sys.executable, "-m", "tools.verify", *arguments, check=False)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def copy(project: Project, folder: Path) -> Project:
    """Return a clone without data and cache, which is made seconds faster than a copy with them."""
    project.run("git", "clone", "--quiet", str(project.folder), str(folder))
    return Project(folder, project.environment)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def figures(path: Path) -> dict[str, Any]:
    return parse_figures(path.read_bytes(), path.name)


def edit_figures(path: Path, **values: Any) -> None:
    rows = {name: value for name, value in {**figures(path), **values}.items() if value != "gone"}
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("name", "value"), *rows.items()])


def edit_json(path: Path, **values: Any) -> None:
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps({k: v for k, v in {**content, **values}.items() if v != "gone"}), encoding="utf-8")


def claiming(claim: Claim, path: str, md5: str | None) -> Claim:
    """Return the claim with another hash of one output."""
    return replace(claim, outputs={**claim.outputs, path: replace(claim.outputs[path], md5=md5)})


def recorded(claim: Claim, path: str) -> Claim:
    """Return the claim with the current hash of the file in git, as if a run had made it."""
    return claiming(claim, path, digest(claim.committed / path))


def of_another_machine(claim: Claim) -> Claim:
    """Return the claim of a run with other arithmetic: all outputs that depend on it have other bytes."""
    edit_figures(claim.committed / TRAIN, model_sha256="1" * 64)
    claim = recorded(claim, TRAIN)
    for path in (MODEL, "metrics/history.csv", "metrics/reliability.csv", "data/predictions.csv"):
        (claim.committed / path).unlink(missing_ok=True)
        claim = claiming(claim, path, "0" * 32)
    return replace(claim, tracked=claim.tracked - {"metrics/history.csv", "metrics/reliability.csv"})


def differing(rows: Mapping[str, Row]) -> list[str]:
    return [path for path, row in rows.items() if row.result != "identical"]


# --- The whole: rebuilt on the command line


def test_an_untouched_revision_is_reproduced_byte_for_byte(rebuilt: tuple[Path, dict[str, Any]]) -> None:
    report = rebuilt[1]
    assert (report["mode"], report["why"]) == ("exact", "recorded on this kind of machine")
    assert [row["result"] for row in report["outputs"]] == ["identical"] * 21
    assert report["sentence"] == "Reproduced: all 21 outputs match byte for byte."
    assert report["reasons"] == report["notes"] == []


def test_every_stage_runs_although_a_shared_cache_has_its_outputs(
    project: Project, rebuilt: tuple[Path, dict[str, Any]]
) -> None:
    folder = rebuilt[0] / "rebuild"
    # What the stages write beside their outputs, and no cache has.
    assert (folder / "logs/train.json").is_file()
    assert (folder / "logs/evaluate.json").is_file()
    assert project.run("git", "status", "--porcelain").stdout == ""


def test_a_changed_seed_in_the_lock_is_caught_and_named(project: Project, tmp_path: Path) -> None:
    tampered = copy(project, tmp_path / "project")
    edit(tampered.folder / NAME, "        train:\n          seed: 0\n", "        train:\n          seed: 7\n")
    tampered.commit("Another seed")
    shown = run_verify(tampered, 1, "--stage", "train", "--md").stdout
    assert "| train | models/model.keras | differs |" in shown
    assert "train.seed is 7 in dvc.lock and 0 in params.yaml; the rebuild has that of dvc.lock" in shown
    assert "**Not reproduced: 5 of 5 outputs differ (first: metrics/history.csv).**" in shown
    assert "metrics/history.csv: loss in row 1 " in shown


def test_code_and_params_changed_after_the_run_are_caught_and_named(project: Project, tmp_path: Path) -> None:
    tampered = copy(project, tmp_path / "project")
    edit(tampered.folder / "stages/datasets/digits.py", "reshape(-1, 8, 8, 1)", "reshape(-1, 8, 8, 1) | 1")
    tampered.choose("dataset.name", "cifar10")  # the rebuild has the lock's, or it would need a network
    tampered.commit("Other pixels, and params that no run had")
    report = json.loads(run_verify(tampered, 1, "--stage", "download", "--json").stdout)
    assert [row["result"] for row in report["outputs"]] == ["differs"] * 3
    assert report["reasons"] == [
        "dataset.name is digits in dvc.lock and cifar10 in params.yaml; the rebuild has that of dvc.lock",
        "stages/datasets is not what dvc.lock names",
    ]


def test_a_pass_mentions_that_the_lock_has_other_params_than_the_commit(project: Project, tmp_path: Path) -> None:
    other = copy(project, tmp_path / "project")
    other.choose("dataset.name", "cifar10")
    other.commit("Params that no run had")
    report = json.loads(run_verify(other, 0, "--stage", "download", "--json").stdout)
    assert report["result"] == "identical"
    assert report["sentence"].endswith(" But dvc.lock does not belong to this commit's params or code: see above.")


def test_pictures_outside_git_are_taken_from_the_working_directory(project: Project, tmp_path: Path) -> None:
    person = copy(project, tmp_path / "project")
    for index in range(6):
        path = person.folder / "pictures" / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (40 * index, 0, 0)).save(path)
    person.choose("dataset.name", "folder")
    person.repro("download")
    person.commit("Pictures of my own")
    assert "pictures/cat/0.png" not in person.run("git", "ls-files").stdout
    run_verify(person, 0, "--stage", "download")


def test_pictures_at_an_absolute_path_are_taken_from_there(project: Project, tmp_path: Path) -> None:
    person = copy(project, tmp_path / "project")
    for index in range(6):
        path = tmp_path / "pictures" / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * index, 0, 0)).save(path)
    person.choose("dataset.name", "folder")
    person.choose("dataset.folder.path", str(tmp_path / "pictures"))
    person.repro("download")
    person.commit("Pictures elsewhere")
    run_verify(person, 0, "--stage", "download")


def test_two_rebuilds_of_a_nondeterministic_stage_differ(project: Project, tmp_path: Path) -> None:
    random = copy(project, tmp_path / "project")
    edit(
        random.folder / "stages/datasets/digits.py",
        "reshape(-1, 8, 8, 1)",
        "reshape(-1, 8, 8, 1) ^ np.uint8(drawn)",
    )
    edit(
        random.folder / "stages/datasets/digits.py",
        "    table =",
        "    drawn = __import__('os').urandom(1)[0] | 1\n    table =",
    )
    random.commit("Other pixels each time")
    report = json.loads(run_verify(random, 1, "--twice", "--stage", "download", "--json").stdout)
    assert (report["against"], report["result"]) == ("the first rebuild", "differs")
    details = {row["path"]: row["detail"] for row in report["outputs"]}
    assert re.match(
        r"array images \(1437, 8, 8, 1\): [\d,]+ of 91,968 values differ, by", details["data/raw/train.npz"]
    )


def test_a_failed_rebuild_shows_its_message_and_decides_nothing(project: Project, tmp_path: Path) -> None:
    broken = copy(project, tmp_path / "project")
    edit(
        broken.folder / "stages/datasets/digits.py",
        "def load(",
        "from stages.common.failure import StageError\nraise StageError\n\ndef load(",
    )
    broken.commit("A stage that fails")
    done = broken.run(sys.executable, "-m", "tools.verify", check=False)
    assert done.returncode == 2
    assert "StageError" in done.stderr
    assert done.stderr.endswith(
        "verify: the rebuild stopped in download (exit code 255); its own message is above\n"
    )
    assert done.stdout == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_verify_ends_at_once_and_leaves_nothing_behind(
    project: Project, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tools.verify"],
        cwd=project.folder,
        env={**project.environment, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line == "verify: [1/4] download\n")
        began = time.monotonic()
        while not _working_in(tmp_path):  # the stage, below DVC
            assert time.monotonic() < began + PATIENCE
            time.sleep(0.05)
        stopped = time.monotonic()
        process.send_signal(number)
        rest = process.stderr.read()
    assert time.monotonic() - stopped < 5
    assert process.returncode == code
    assert rest == ("verify: stopped by Ctrl-C\n" if number is signal.SIGINT else "")
    assert _working_in(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def _working_in(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter(["cwd", "cmdline"]):
        if str(process.info["cwd"] or "").startswith(str(folder)) and "stages.download" in process.info["cmdline"]:
            found.append(" ".join(process.info["cmdline"]))
    return found


def test_the_demo_is_compared_with_its_committed_hashes(project: Project, tmp_path: Path) -> None:
    demo = copy(project, tmp_path / "project")
    (demo.folder / "tools").mkdir()
    recorded = json.loads((ROOT / "tools/demo.json").read_bytes())
    recorded["outputs"]["data/raw/test.npz"] = "0" * 32
    (demo.folder / "tools/demo.json").write_text(json.dumps(recorded), encoding="utf-8")
    demo.choose("dataset.name", "cifar10")  # the rebuild has the demo's, whatever the commit's own
    demo.commit("Hashes of the demo, one of them changed")
    report = json.loads(run_verify(demo, 1, "--dataset", "digits", "--stage", "download", "--json").stdout)
    assert [row["result"] for row in report["outputs"]] == ["identical", "differs", "identical"]
    assert report["reasons"] == ["no environment is recorded: code, params or data"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-branch"], "no-such-branch: no commit of this repository"),
        ([""], "the revision is empty"),
        (["--dataset", "folder"], "--dataset folder: dvc.lock belongs to digits"),
        (["--dataset", "digits"], r"tools/demo\.json of .*: cannot be read"),
        (["--stage", "trian"], "--stage trian: no stage of dvc.yaml; name one of download"),
        (["--folder", "."], r"\.: not empty"),
        (["HEAD~1"], "dvc.lock of .*: no such file, so there is nothing to compare with"),
    ],
)
@pytest.mark.usefixtures("environment")
def test_an_undecidable_case_is_an_error_of_one_line(
    project: Project, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(project.folder)
    with pytest.raises(StageError, match=f"^{message}") as caught:
        verify_command.main(arguments)
    assert "\n" not in str(caught.value)


def test_a_bug_in_verify_is_not_reported_as_a_difference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(arguments: Any) -> None:
        raise OverflowError("a defect")

    monkeypatch.setattr(verify_command, "main", broken)
    assert verify_command.run() == 2
    assert capsys.readouterr().err.endswith("OverflowError: a defect\n")


def test_outside_a_checkout_git_s_message_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageError, match=r"git rev-parse failed \(fatal: not a git repository"):
        verify_command.main([])


def test_a_disk_that_is_too_small_is_reported_before_the_work(
    project: Project, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.folder)
    with pytest.raises(StageError, match=r"not enough disk space|git clone failed .*No space left"):
        verify_command.main(["--folder", str(small_disk / "kept")])


# --- Byte for byte: the rebuild held to claims that were tampered with


def test_the_untouched_claim_passes(claim: Claim, exact: Judged, tolerant: Judged) -> None:
    assert differing(exact(claim)) == differing(tolerant(claim)) == []


def test_a_changed_hash_of_raw_data_is_caught_with_tolerances_too(
    claim: Claim, exact: Judged, tolerant: Judged
) -> None:
    tampered = claiming(claim, "data/raw/train.npz", "0" * 32)
    for rows in (exact(tampered), tolerant(tampered)):
        assert differing(rows) == ["data/raw/train.npz"]
        assert rows["data/raw/train.npz"].result == "differs"
        assert rows["data/raw/train.npz"].detail.startswith(f"md5 {'0' * 32}, ")


def test_a_changed_pixel_is_named_by_its_array(project: Project, claim: Claim, exact: Judged) -> None:
    path = "data/raw/test.npz"
    with np.load(project.folder / path) as arrays:
        images, labels = arrays["images"].copy(), arrays["labels"]
    images[3, 2, 1, 0] ^= 7
    (claim.committed / path).parent.mkdir(parents=True)
    np.savez(claim.committed / path, images=images, labels=labels)
    rows = exact(recorded(claim, path))
    assert differing(rows) == [path]
    assert rows[path].detail.startswith("array images (360, 8, 8, 1): 1 of 23,040 values differ, by at most ")


def test_a_changed_weight_is_named_by_its_layer(
    project: Project, claim: Claim, exact: Judged, tmp_path: Path
) -> None:
    tampered = tmp_path / "model.keras"
    _change_a_weight(project.folder / MODEL, tampered)
    md5 = digest(tampered)
    cached = Path(project.run("dvc", "cache", "dir").stdout.strip()) / "files" / "md5" / md5[:2] / md5[2:]
    cached.parent.mkdir(exist_ok=True)
    tampered.rename(cached)
    rows = exact(claiming(claim, MODEL, md5))
    assert differing(rows) == [MODEL]
    assert rows[MODEL].detail == "weight layers/dense/vars/0 (128, 16): 1 of 2,048 values differ, by at most 0.25"


def _change_a_weight(source: Path, target: Path) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = io.BytesIO(old.read(name))
            if name == "model.weights.h5":
                with h5py.File(content, "r+") as file:
                    file["layers/dense/vars/0"][5, 5] += 0.25
            new.writestr(name, content.getvalue())


def test_a_changed_metric_in_git_is_caught_and_named(claim: Claim, exact: Judged, tolerant: Judged) -> None:
    true = figures(claim.committed / EVALUATION)["accuracy"]
    edit_figures(claim.committed / EVALUATION, accuracy=true + 0.01)  # within any tolerance, but of no run
    for rows in (exact(claim), tolerant(claim)):
        assert differing(rows) == [EVALUATION]
        assert rows[EVALUATION].result == "differs"
        assert rows[EVALUATION].detail.startswith("the file in git is not the one that its dvc.lock names; ")
        assert rows[EVALUATION].detail.endswith(f"accuracy {true + 0.01:.6g}, now {true:.6g} (-0.01)")


def test_a_changed_cell_of_a_table_is_named_by_column_and_row(claim: Claim, exact: Judged) -> None:
    path = "metrics/history.csv"
    edit(claim.committed / path, "\n1,", "\n1,9")
    rows = exact(recorded(claim, path))
    assert differing(rows) == [path]
    assert rows[path].detail.startswith("loss in row 1 9")


def test_a_changed_text_is_named_by_its_line(claim: Claim, project: Project, exact: Judged) -> None:
    path = "models/MODEL_CARD.md"
    lines = (project.folder / path).read_text(encoding="utf-8").splitlines(keepends=True)
    (claim.committed / path).parent.mkdir(parents=True)
    (claim.committed / path).write_text("".join([*lines[:4], "Best of all.\n", *lines[4:]]), encoding="utf-8")
    assert exact(recorded(claim, path))[path].detail.endswith(", in line 5")


@pytest.mark.parametrize("content", ["name,value\naccuracy,nan\n", "name,val", "", None])
def test_an_invalid_metric_in_git_decides_nothing(claim: Claim, exact: Judged, content: str | None) -> None:
    (claim.committed / EVALUATION).unlink()
    if content is not None:
        (claim.committed / EVALUATION).write_text(content, encoding="utf-8")
    rows = exact(claim)
    assert differing(rows) == [EVALUATION]
    assert rows[EVALUATION].result == "could not be compared"


def test_an_output_without_a_hash_in_the_lock_never_counts_as_reproduced(claim: Claim, exact: Judged) -> None:
    absent = replace(claim, outputs={path: out for path, out in claim.outputs.items() if path != MODEL})
    for tampered in (claiming(claim, MODEL, None), absent):
        rows = exact(tampered)
        assert differing(rows) == [MODEL]
        assert rows[MODEL].result == "could not be compared"


def test_an_output_missing_from_the_rebuild_differs(claim: Claim, exact: Judged) -> None:
    other = replace(claim.outputs[MODEL], path="models/second.keras")
    rows = exact(replace(claim, outputs={**claim.outputs, other.path: other}))
    assert {path: rows[path].result for path in differing(rows)} == {other.path: "differs"}


# --- With tolerances


def test_a_figure_within_its_tolerance_passes_and_one_outside_fails(claim: Claim, tolerant: Judged) -> None:
    true = figures(claim.committed / TRAIN)["val_loss"]
    for share, result in ((1.05, "within tolerance"), (1.5, "differs")):
        edit_figures(claim.committed / TRAIN, val_loss=true * share)
        row = tolerant(of_another_machine(claim))[TRAIN]
        assert row.result == result
        by, allowed = true - true * share, true * share / 10
        assert row.detail == f"val_loss {true * share:.6g}, now {true:.6g} ({by:+.3g}), {allowed:.3g} allowed"


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (1, "differs"),
        pytest.param(10**400, "differs", id="beyond what a float holds"),
        ("many", "differs"),
        (float("nan"), "could not be compared"),
        ("gone", "could not be compared"),
    ],
)
def test_a_figure_without_a_tolerance_must_be_equal(
    claim: Claim, tolerant: Judged, value: Any, result: str
) -> None:
    edit_figures(claim.committed / TRAIN, parameters=value)
    assert tolerant(recorded(claim, TRAIN))[TRAIN].result == result


def test_a_figure_must_be_identical_if_what_it_follows_from_is(claim: Claim, tolerant: Judged) -> None:
    true = figures(claim.committed / EVALUATION)["brier"]
    edit_figures(claim.committed / EVALUATION, brier=true * 1.02)
    row = tolerant(recorded(claim, EVALUATION))[EVALUATION]
    assert row.result == "differs"
    assert "; but " in row.detail
    assert row.detail.endswith(" is identical, so nothing else may differ")


def test_a_model_may_differ_only_if_figures_of_its_stage_were_compared(claim: Claim, tolerant: Judged) -> None:
    other = of_another_machine(claim)
    assert tolerant(other)[MODEL].result == "differs as expected"
    for path in (TRAIN, "metrics/train.json"):
        other = claiming(other, path, None)
    assert tolerant(other)[MODEL].result == "could not be compared"


def test_a_metric_that_contradicts_the_table_of_figures_is_caught(claim: Claim, tolerant: Judged) -> None:
    path = "metrics/evaluation.json"
    edit_json(claim.committed / path, accuracy=figures(claim.committed / EVALUATION)["accuracy"] + 0.01)
    row = tolerant(recorded(of_another_machine(claim), path))[path]
    assert row.result == "differs"
    assert row.detail.startswith("accuracy is ")


@pytest.mark.parametrize("figure", ["accuracy", "accuracy_low", "f1_macro", "kappa", "matthews"])
def test_a_figure_within_its_tolerance_must_follow_from_the_confusion_in_git(
    claim: Claim, tolerant: Judged, figure: str
) -> None:
    other = of_another_machine(claim)
    found = figures(claim.committed / EVALUATION)
    edit_figures(claim.committed / EVALUATION, model_sha256="1" * 64)
    assert tolerant(recorded(other, EVALUATION))[EVALUATION].result == "within tolerance"
    edit_figures(claim.committed / EVALUATION, **{figure: found[figure] + 0.02})
    row = tolerant(recorded(other, EVALUATION))[EVALUATION]
    assert row.result == "differs"
    assert row.detail.startswith(f"{figure} is ")
    assert row.detail.endswith(" by the counts of metrics/confusion.csv there")


def test_another_model_is_rejected_if_the_metrics_name_the_model_of_the_rebuild(
    claim: Claim, tolerant: Judged
) -> None:
    other = replace(claiming(claim, MODEL, "0" * 32), tracked=frozenset())
    other = claiming(other, "metrics/history.csv", "0" * 32)
    (claim.committed / "metrics/history.csv").unlink()
    edit_figures(claim.committed / TRAIN, val_loss=figures(claim.committed / TRAIN)["val_loss"] * 1.01)
    rows = tolerant(recorded(other, TRAIN))
    for path in (MODEL, TRAIN):
        assert rows[path].result == "differs"
        assert "; but metrics/train.csv names this very model, so nothing else may differ" in rows[path].detail


def test_a_false_accuracy_is_caught_despite_a_changed_environment(project: Project, tmp_path: Path) -> None:
    """The commit has a false figure, its hash and two invented ones in the lock, and another TensorFlow."""
    tampered = copy(project, tmp_path / "project")
    lock = yaml.safe_load((tampered.folder / NAME).read_bytes())
    found = figures(tampered.folder / EVALUATION)
    edit_figures(tampered.folder / EVALUATION, accuracy=found["accuracy"] + 0.025)
    md5s = {MODEL: "0" * 32, "data/predictions.csv": "1" * 32, EVALUATION: digest(tampered.folder / EVALUATION)}
    for stage in lock["stages"].values():
        for file in (*stage["deps"], *stage["outs"]):
            file["md5"] = md5s.get(file["path"], file["md5"])
    (tampered.folder / NAME).write_text(yaml.safe_dump(lock, sort_keys=False), encoding="utf-8")
    for stage in ("train", "evaluate"):
        path = tampered.folder / f"environment/{stage}.json"
        versions = json.loads(path.read_bytes())["versions"]
        edit_json(path, versions={**versions, "tensorflow": "2.20.0"})
    tampered.commit("A better accuracy")
    report = json.loads(run_verify(tampered, 1, "--json").stdout)
    results = {row["path"]: row["result"] for row in report["outputs"]}
    assert report["mode"] == "tolerance"
    assert [path for path, result in results.items() if result == "differs"] == [
        MODEL,
        "data/predictions.csv",
        EVALUATION,
    ]


def test_missing_recorded_figures_decide_nothing(claim: Claim, tolerant: Judged, tmp_path: Path) -> None:
    hashes_only = replace(claim, committed=tmp_path / "none", tracked=frozenset(), checkout=None)
    row = tolerant(claiming(hashes_only, TRAIN, "0" * 32))[TRAIN]
    assert row.result == "could not be compared"
    assert row.detail.endswith("and no copy of the recorded file is here")


@pytest.mark.parametrize("name", ["train", "evaluation"])
def test_every_measured_figure_has_a_tolerance(name: str) -> None:
    rules: Any = load_rules()[f"metrics/{name}.*"]
    found = figures(ROOT / f"metrics/{name}.csv")
    for figure, value in found.items():
        rule = next((rules[pattern] for pattern in rules if Path(figure).match(pattern)), None)
        if isinstance(value, float):
            assert rule is not None, figure
        else:
            assert not isinstance(rule, Tolerance), figure


@pytest.mark.parametrize(
    "content", ["a.json: all", "a.json: {loss: {absolute: -1}}", "a.json: {loss: {}}", "a.json: {loss: 0.1}"]
)
def test_invalid_tolerances_are_named_by_file_and_key(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tolerances.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(StageError, match=r"tolerances\.yaml: a\.json.*; write any, or \{absolute: 0\.02\}$"):
        load_rules(path)


def test_a_difference_outweighs_a_missing_comparison_and_no_comparison_is_no_pass() -> None:
    assert worst(["identical", "could not be compared", "differs", "within tolerance"]) == "differs"
    assert worst(["identical", "could not be compared", "differs as expected"]) == "could not be compared"
    assert worst([]) == "could not be compared"
    assert [verdict.CODES[worst([result])] for result in ("identical", "differs", "could not be compared")] == [
        0,
        1,
        2,
    ]


# --- The machine


def _environments(**values: Any) -> machine.Environments:
    native = {
        "cpu": "A",
        "cpu_flags": "avx2 fma avx512f",
        "cores": 2,
        "runtime.cpu_isa": "native",
        "runtime.threads": 2,
        "system": "Linux x86_64",
        "versions.tensorflow": "2.21.0",
    }
    return {"train": {**native, **{name.replace("__", "."): value for name, value in values.items()}}}


@pytest.mark.parametrize(
    ("recorded", "here", "expected"),
    [
        ({}, {}, []),
        ({}, {"cores": 8}, []),
        ({}, {"cpu": "B"}, ["cpu"]),
        ({}, {"cpu_flags": "avx2 fma"}, ["cpu_flags"]),
        ({}, {"versions__tensorflow": "2.22.0"}, ["versions.tensorflow"]),
        ({"runtime__cpu_isa": "avx2"}, {"runtime__cpu_isa": "avx2", "cpu": "B", "cpu_flags": "avx2 fma"}, []),
        ({"runtime__cpu_isa": "avx2"}, {"runtime__cpu_isa": "avx2", "cpu_flags": ""}, ["cpu_flags"]),
        ({}, {"system": "Darwin arm64"}, ["system"]),
    ],
)
def test_the_environment_shows_another_kind_of_machine(
    recorded: dict[str, Any], here: dict[str, Any], expected: list[str]
) -> None:
    found = machine.other_kind(_environments(**recorded), _environments(**here))
    assert [words.partition(":")[0] for words in found] == expected


@pytest.mark.parametrize("threads", [None, "two", 8])
def test_a_record_without_a_number_of_threads_is_not_portable(threads: Any) -> None:
    assert machine.portable_here(_environments(runtime__cpu_isa="avx2"))
    assert not machine.portable_here(_environments(runtime__cpu_isa="avx2", runtime__threads=threads))


def test_an_environment_of_another_model_is_reported_and_not_used(
    claim: Claim, project: Project, tmp_path: Path
) -> None:
    assert set(claim.environment) == {"train", "evaluate"}
    other = copy(project, tmp_path / "other")
    edit_json(other.folder / "environment/train.json", model_sha256="0" * 64)
    assert set(machine.read_environments(other.folder)) == {"evaluate"}
    assert machine.of_other_models(other.folder) == ["train"]


def test_the_likely_reason_names_what_differs_between_the_machines(claim: Claim, exact: Judged) -> None:
    here = {"train": {**claim.environment["train"], "cpu_flags": "avx2 fma"}}
    rows = list(exact(claiming(claim, MODEL, "0" * 32)).values())
    report = verdict.summarize("0" * 40, claim, rows, ("exact", "as asked"), here, [])
    assert report.reasons == [f"cpu_flags: {claim.environment['train']['cpu_flags']} recorded, avx2 fma here"]
    shown = "\n".join(verdict.paragraphs(report, markdown=False))
    assert "Not reproduced: 1 of 21 outputs differ (first: models/model.keras)." in shown
    assert "cpu_flags: " in shown


def test_another_dep_in_the_lock_is_named(rebuilt: tuple[Path, dict[str, Any]]) -> None:
    new = read_lock(rebuilt[0] / "rebuild" / NAME)
    old = Lock.model_validate(new.model_dump())
    next(dep for dep in old.stages["train"].deps if dep.path == "stages/training").md5 = "0" * 32
    old.stages["evaluate"].cmd = "true"
    assert [words for _, words in changed_inputs(old, new)] == [
        "stages/training is not what dvc.lock names",
        "the command of evaluate is not the one in dvc.lock",
    ]


# --- Without a rebuild


@pytest.fixture
def fresh(project: Project, tmp_path: Path, environment: None, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A fresh clone without data and cache."""
    clone = copy(project, tmp_path / "fresh")
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path))
    return Project(clone.folder, {**clone.environment, "DVC_GLOBAL_CONFIG_DIR": str(tmp_path)})


def test_a_lock_is_up_to_date_in_a_clone_without_data_which_is_not_changed(fresh: Project) -> None:
    assert not (fresh.folder / MODEL).exists()
    assert "up to date" in run_verify(fresh, 0, "--stale").stdout
    assert fresh.run("git", "status", "--porcelain").stdout == ""


def test_a_lock_is_up_to_date_in_a_symlinked_checkout(fresh: Project, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(fresh.folder)
    assert stale(tmp_path / "link", {}) == []


def test_a_lock_is_up_to_date_with_its_data_too(project: Project, environment: None) -> None:
    assert stale(project.folder, {}) == []


def test_changed_code_params_and_metrics_make_the_lock_stale(fresh: Project) -> None:
    fresh.touch("stages/evaluation/scoring.py")
    fresh.choose("train.learning_rate", 1e-4)
    edit_figures(fresh.folder / TRAIN, accuracy=1)
    report = json.loads(run_verify(fresh, 1, "--stale", "--json").stdout)
    assert {(found["stage"], found["reason"]) for found in report["findings"]} == {
        ("train", "train.learning_rate is 0.001 in dvc.lock and 0.0001 in params.yaml"),
        ("train", "metrics/train.csv: not the bytes that dvc.lock names"),
        ("evaluate", "stages/evaluation: changed since dvc.lock was written"),
    }


def test_choices_replace_those_of_params_yaml(fresh: Project) -> None:
    fresh.choose("train.learning_rate", 1e-4)
    shown = run_verify(fresh, 1, "--stale", "-S", "train.learning_rate=1e-3", "-S", "evaluate.top_k=2").stdout
    assert "learning_rate" not in shown
    assert "evaluate.top_k is 3 in dvc.lock and 2 in params.yaml" in shown
    with pytest.raises(StageError, match=r"^-S train\.rate: no key of params\.yaml"):
        stale(fresh.folder, {"train.rate": 1})


def test_a_new_dep_a_new_output_and_a_deleted_file_make_the_lock_stale(fresh: Project) -> None:
    path = fresh.folder / "dvc.yaml"
    pipeline = yaml.safe_load(path.read_bytes())
    pipeline["stages"]["download"]["outs"].append("data/raw/notes.txt")
    pipeline["stages"]["preprocess"]["deps"].append("data/raw/notes.txt")
    pipeline["stages"]["train"]["deps"].append("LICENSE")
    pipeline["stages"]["evaluate"]["params"].append("preprocess.seed")
    pipeline["stages"]["publish"] = {"cmd": "true", "deps": [MODEL]}
    path.write_text(yaml.safe_dump(pipeline), encoding="utf-8")
    (fresh.folder / "LICENSE").touch()
    shutil.rmtree(fresh.folder / "stages/evaluation")
    assert set(stale(fresh.folder, {})) == {
        ("download", "data/raw/notes.txt: an output of download, but not in dvc.lock"),
        ("preprocess", "data/raw/notes.txt: a dep of preprocess, but not in dvc.lock"),
        ("train", "LICENSE: a dep of train, but not in dvc.lock"),
        ("evaluate", "preprocess.seed of params.yaml: new since dvc.lock was written"),
        ("evaluate", "stages/evaluation: no such file, but dvc.lock names it"),
        ("publish", "dvc.lock has no stage publish"),
    }


def test_stages_and_outputs_removed_from_dvc_yaml_make_the_lock_stale(fresh: Project) -> None:
    path = fresh.folder / "dvc.yaml"
    pipeline = yaml.safe_load(path.read_bytes())
    del pipeline["stages"]["download"]
    pipeline["stages"]["preprocess"]["outs"].remove("data/processed/statistics.json")
    pipeline["stages"]["train"]["deps"].remove("stages/training")
    pipeline["stages"]["evaluate"]["params"].remove("evaluate")
    path.write_text(yaml.safe_dump(pipeline), encoding="utf-8")
    assert {
        ("download", "dvc.yaml has no stage download"),
        ("preprocess", "data/processed/statistics.json: an output of preprocess no longer"),
        ("train", "stages/training: a dep of train no longer"),
        ("evaluate", "evaluate of params.yaml: read by evaluate no longer"),
    } <= set(stale(fresh.folder, {}))


def test_a_frozen_stage_is_undecided_because_dvc_skips_it(fresh: Project) -> None:
    fresh.run("dvc", "freeze", "train")
    fresh.touch("stages/training/loop.py")
    assert "verify: train: frozen" in run_verify(fresh, 2, "--stale").stderr
    assert stale(fresh.folder, {}, "download") == []


def test_a_deleted_metric_is_not_mistaken_for_absent_data(fresh: Project) -> None:
    (fresh.folder / EVALUATION).unlink()
    assert stale(fresh.folder, {}) == [
        ("evaluate", f"{EVALUATION}: no such file, though git keeps it and dvc.lock names it")
    ]


def test_an_unknown_stage_is_not_up_to_date(fresh: Project) -> None:
    with pytest.raises(
        StageError, match=r"^--stage trian: no stage of dvc\.yaml or dvc\.lock; name one of download"
    ):
        stale(fresh.folder, {}, "trian")


def test_a_stage_that_ran_alone_makes_the_lock_stale_even_without_its_data(fresh: Project) -> None:
    lock = yaml.safe_load((fresh.folder / NAME).read_bytes())
    next(out for out in lock["stages"]["download"]["outs"] if out["path"] == "data/raw/train.npz")["md5"] = (
        "0" * 32
    )
    (fresh.folder / NAME).write_text(yaml.safe_dump(lock, sort_keys=False), encoding="utf-8")
    assert stale(fresh.folder, {}) == [
        (stage, f"data/raw/train.npz: {stage} read other bytes than download made, by dvc.lock")
        for stage in ("preprocess", "evaluate")
    ]


@pytest.mark.parametrize(
    "content", ["", "schema: '2.0'\nstages:\n  download:\n   cmd: [", "schema: '2.0'\n", "[]", None]
)
def test_an_incomplete_lock_decides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / NAME).write_text(content, encoding="utf-8")
    with pytest.raises(StageError, match=r"^dvc\.lock: (incomplete or damaged|no such file)"):
        verify_command.main(["--stale"])


def test_missing_pictures_leave_the_stage_undecided(fresh: Project) -> None:
    (fresh.folder / "pictures/cat.dvc").write_text("outs:\n- md5: 0.dir\n  path: cat\n", encoding="utf-8")
    with pytest.raises(StageError, match=r"^pictures/cat: missing, .*; run: dvc pull pictures/cat$"):
        stale(fresh.folder, {})
