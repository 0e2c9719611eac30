"""stages/download.py: the choice of a dataset, the ways on when there is none, and what it writes."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from stages.common import fetch
from stages.common.failure import StageError
from stages.common.records import Source, read_record, read_split
from tests.project import ROOT, Project, make_project

ARCHIVE = ROOT.parent / "shared" / "data" / "cifar-10-binary-rebuilt.tar.gz"
ARCHIVE_SHA256 = "091ccb00bab3d8e65f19af4000b6727cce51a80fd9a14cf01a68429f09f430e1"
COMMAND = (sys.executable, "-m", "stages.download")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project", tmp_path / "home")


def test_the_written_splits_are_what_source_json_says(project: Project) -> None:
    project.run(*COMMAND)
    source = read_record(project.folder / "data/raw/source.json", Source)
    train, test = (read_split(project.folder / "data/raw", name, source) for name in ("train", "test"))
    assert (len(train.images), len(test.images)) == (1437, 360)
    assert source.dataset.name == "digits"


def test_a_second_download_writes_the_same_bytes(project: Project) -> None:
    project.run(*COMMAND)
    first = {path.name: path.read_bytes() for path in (project.folder / "data/raw").glob("*.*z")}
    project.run(*COMMAND)
    assert first == {path.name: path.read_bytes() for path in (project.folder / "data/raw").glob("*.*z")}
    assert len(first) == 2


def test_without_network_and_copy_one_line_names_the_ways_on(project: Project) -> None:
    project.choose("dataset.name", "cifar10")
    # Proxies that refuse every connection: no network, wherever this test runs.
    refused = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {**project.environment, **refused}
    failed = Project(project.folder, environment).run(*COMMAND, check=False)
    assert failed.returncode == 1
    assert "DATASET_SOURCES" in failed.stderr.splitlines()[-1]
    assert "make demo" in failed.stderr.splitlines()[-1]
    assert "Traceback" not in failed.stderr
    assert not any((project.folder / "data/raw").glob("*.npz"))


def test_the_sources_are_quoted_as_in_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASET_SOURCES", "'/a copy/x.tar.gz' http://host/y.tar.gz")
    assert fetch.sources_from_environment("DATASET_SOURCES") == ["/a copy/x.tar.gz", "http://host/y.tar.gz"]


def test_a_quote_that_is_not_closed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASET_SOURCES", "'/a copy/x.tar.gz")
    with pytest.raises(StageError, match="DATASET_SOURCES: No closing quotation; quote a path"):
        fetch.sources_from_environment("DATASET_SOURCES")


def test_a_misspelt_dataset_is_named_with_its_line(project: Project) -> None:
    project.choose("dataset.name", "cifar-10")
    failed = project.run(*COMMAND, check=False)
    assert failed.returncode == 1
    assert "params.yaml:2: dataset.name:" in failed.stderr
    assert "did you mean 'cifar10'?" in failed.stderr


def test_the_cache_folder_is_the_one_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASET_CACHE", "/somewhere/else")
    assert fetch.cache_folder() == Path("/somewhere/else")


def test_full_disk_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    from stages.common.outputs import require_space

    with pytest.raises(StageError, match=r"not enough disk space"):
        require_space(tmp_path, free * 2)


@pytest.mark.skipif(not ARCHIVE.exists(), reason=f"needs a CIFAR-10 archive at {ARCHIVE.relative_to(ROOT.parent)}")
def test_cifar10_comes_from_a_local_archive(project: Project) -> None:
    project.choose("dataset.name", "cifar10")
    project.choose("dataset.cifar10.sha256", ARCHIVE_SHA256)
    Project(project.folder, {**project.environment, "DATASET_SOURCES": str(ARCHIVE)}).run(*COMMAND)
    source = json.loads((project.folder / "data/raw/source.json").read_text("utf-8"))
    assert source["splits"]["train"]["class_counts"] == [5000] * 10
    assert (source["splits"]["train"]["official"], source["splits"]["test"]["official"]) == (50_000, 1_000)
    images = np.load(project.folder / "data/raw/train.npz")["images"]
    assert images.shape == (50_000, 32, 32, 3)
    # The first picture of the training set, a frog: its first pixel, and the mean of all pixels.
    assert images[0, 0, 0].tolist() == [59, 62, 63]
    assert images.mean() == pytest.approx(120.707, abs=0.001)
