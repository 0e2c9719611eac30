import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages import preprocess
from stages.common import splits
from stages.common.failure import StageError
from stages.common.records import Source, Statistics, read_record, read_split
from stages.preprocess import PreprocessParams, choose_validation
from tests.project import ROOT

CLASSES = ["cat", "dog", "frog"]
PARAMS: dict[str, Any] = {
    "scaling": "unit",
    "validation_fraction": 0.2,
    "validation_split": "last",
    "seed": 0,
    "storage": "float32",
}
Raw = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def images_and_labels(count: int, seed: int = 0) -> Raw:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 4, 4, 2), dtype=np.uint8)
    images[..., 1] //= 3  # channels differ
    return images, rng.integers(0, len(CLASSES), count, dtype=np.uint8)


def write_raw(folder: Path, train: Raw, test: Raw, **changes: Any) -> Path:
    """Write what the download stage would; `changes` go to the record of the training split."""
    records = {}
    for name, (images, labels) in (("train", train), ("test", test)):
        records[name] = {
            "images": len(images),
            "shape": list(images.shape[1:]),
            "class_counts": np.bincount(labels, minlength=len(CLASSES)).tolist(),
            "official": len(images),
            "sha256": splits.write(folder / f"{name}.npz", images, labels),
        }
    records["train"] |= changes
    dataset = {"name": "pets", "sha256": "ab", "edition": "first"}
    source = {"schema_version": 1, "dataset": dataset, "classes": CLASSES, "splits": records}
    (folder / "source.json").write_text(json.dumps(source))
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_raw(tmp_path / "raw", images_and_labels(101), images_and_labels(20, seed=1))


def run(raw: Path, **params: Any) -> tuple[dict[str, splits.Split], dict[str, Any]]:
    out = raw.parent / "processed"
    preprocess.preprocess(raw, out, PreprocessParams(**PARAMS | params))
    statistics = json.loads((out / "statistics.json").read_text())
    read = {
        name: splits.read(out / f"{name}.npz", record["sha256"]) for name, record in statistics["splits"].items()
    }
    return read, statistics


def test_unit_scaling_is_numpys_own_division_bit_for_bit(tmp_path: Path) -> None:
    every_value = np.arange(256, dtype=np.uint8).reshape(8, 4, 4, 2)
    raw = write_raw(tmp_path / "raw", (every_value, np.zeros(8, np.uint8)), images_and_labels(9))
    processed, _ = run(raw, validation_fraction=0.5)
    found = np.concatenate([processed["train"].images, processed["validation"].images])
    np.testing.assert_array_equal(found, every_value.astype("float32") / 255, strict=True)


def test_standardized_training_images_have_mean_0_and_deviation_1_by_channel(raw: Path) -> None:
    processed, _ = run(raw, scaling="standardize")
    images = processed["train"].images.astype(np.float64)
    np.testing.assert_allclose(images.mean(axis=(0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(images.std(axis=(0, 1, 2)), 1, atol=1e-6)


def test_every_split_is_standardized_by_the_training_split(raw: Path) -> None:
    processed, statistics = run(raw, scaling="standardize")
    mean, std = (np.asarray(statistics[name], np.float32) for name in ("mean", "std"))
    images = {"validation": images_and_labels(101)[0][80:], "test": images_and_labels(20, seed=1)[0]}
    for name, pixels in images.items():
        expected = (pixels.astype(np.float32) / 255 - mean) / std
        np.testing.assert_array_equal(processed[name].images, expected, strict=True)


@pytest.mark.parametrize("scaling", ["unit", "standardize"])
def test_mean_and_deviation_are_exact(scaling: str, raw: Path) -> None:
    _, statistics = run(raw, scaling=scaling)
    for channel in range(2):
        pixels = [Fraction(int(value), 255) for value in images_and_labels(101)[0][:80, ..., channel].flat]
        mean = sum(pixels) / len(pixels)
        variance = sum((pixel - mean) ** 2 for pixel in pixels) / len(pixels)
        assert statistics["mean"][channel] == float(mean)
        assert math.isclose(statistics["std"][channel], math.sqrt(variance), rel_tol=1e-15)


@pytest.mark.parametrize("scaling", ["unit", "standardize"])
def test_images_stored_as_uint8_are_read_with_the_same_bytes(raw: Path, scaling: str) -> None:
    expected, _ = run(raw, scaling=scaling)
    stored, _ = run(raw, scaling=scaling, storage="uint8")
    folder = raw.parent / "processed"
    statistics = read_record(folder / "statistics.json", Statistics)
    order = np.array([3, 0, 7, 7])
    for name, split in expected.items():
        found = read_split(folder, name, statistics)
        assert stored[name].images.dtype == np.uint8
        assert found.images.dtype == np.float32
        assert np.asarray(found.images[:, :, ::-1]).tobytes() == split.images[:, :, ::-1].tobytes()
        for ours, theirs in zip(found.take(order), split.take(order), strict=True):
            np.testing.assert_array_equal(ours, theirs, strict=True)
        assert found.labels.tobytes() == split.labels.tobytes()


def test_labels_are_one_hot(raw: Path) -> None:
    processed, _ = run(raw)
    labels = images_and_labels(20, seed=1)[1]
    assert processed["test"].labels.shape == (20, 3)
    np.testing.assert_array_equal(processed["test"].labels.argmax(axis=1), labels)
    np.testing.assert_array_equal(np.sort(processed["test"].labels, axis=1), [[0, 0, 1]] * 20)


def test_statistics_describe_the_splits(raw: Path) -> None:
    processed, statistics = run(raw)
    assert statistics["schema_version"] == 1
    assert statistics["dataset"] == {"name": "pets", "sha256": "ab", "edition": "first"}
    assert statistics["classes"] == CLASSES
    assert statistics["scaling"] == "unit"
    assert {name: record["images"] for name, record in statistics["splits"].items()} == {
        "train": 80,
        "validation": 21,
        "test": 20,
    }
    for name, record in statistics["splits"].items():
        assert record["shape"] == [4, 4, 2]
        assert record["class_counts"] == processed[name].labels.sum(axis=0).tolist()


@pytest.mark.parametrize("storage", ["float32", "uint8"])
@pytest.mark.parametrize("validation_split", ["last", "stratified"])
def test_with_the_fraction_0_all_images_are_for_training(raw: Path, validation_split: str, storage: str) -> None:
    processed, statistics = run(raw, validation_fraction=0, validation_split=validation_split, storage=storage)
    labels = images_and_labels(101)[1]
    np.testing.assert_array_equal(processed["train"].labels.argmax(axis=1), labels)
    assert statistics["splits"]["validation"]["images"] == 0
    read = read_split(
        raw.parent / "processed", "validation", read_record(raw.parent / "processed/statistics.json", Statistics)
    )
    assert (read.images.shape, read.labels.shape) == ((0, 4, 4, 2), (0, 3))


def test_with_the_fraction_0_the_dataset_s_own_validation_images_are_for_training(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((raw / "source.json").read_text())
    (raw / "source.json").write_text(json.dumps(record | {"validation_images": 30}))
    assert run(raw)[1]["splits"]["train"]["images"] == 71
    assert run(raw, validation_fraction=0)[1]["splits"]["train"]["images"] == 101
    assert "the dataset's own 30 validation images are used for training" in capsys.readouterr().err


def test_the_last_images_are_held_out_in_file_order(raw: Path) -> None:
    processed, _ = run(raw)
    images = images_and_labels(101)[0].astype(np.float32) / 255
    np.testing.assert_array_equal(processed["train"].images, images[:80])
    np.testing.assert_array_equal(processed["validation"].images, images[80:])


@given(total=st.integers(2, 10**6), fraction=st.floats(0, 0.5, exclude_min=True))
def test_as_many_are_held_out_as_by_keras(total: int, fraction: float) -> None:
    split_at = math.floor(total * (1.0 - fraction))  # Keras 3, data_adapter_utils.train_validation_split
    params = PreprocessParams(**PARAMS | {"validation_fraction": fraction})
    if split_at == total:
        with pytest.raises(StageError, match=r"preprocess\.validation_fraction: .* and 0 for validation"):
            choose_validation(np.zeros(total, np.uint8), params)
    else:
        kept, held_out = choose_validation(np.zeros(total, np.uint8), params)
        assert (len(kept), len(held_out)) == (split_at, total - split_at)


@given(
    labels=st.lists(st.integers(0, 5), min_size=4, max_size=300),
    fraction=st.floats(0.3, 0.5),
    seed=st.integers(0, 2**70),
)
def test_a_stratified_split_keeps_the_share_of_each_class(labels: list[int], fraction: float, seed: int) -> None:
    stratified = {"validation_fraction": fraction, "validation_split": "stratified", "seed": seed}
    array = np.array(labels, np.uint8)
    kept, held_out = choose_validation(array, PreprocessParams(**PARAMS | stratified))
    assert len(kept) == math.floor(len(labels) * (1 - fraction))
    for indices in (kept, held_out):
        assert (np.diff(indices) > 0).all()
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    for label in set(labels):
        share = Fraction(labels.count(label) * len(held_out), len(labels))
        assert abs(int(np.count_nonzero(array[held_out] == label)) - share) < 1


def test_a_stratified_split_depends_on_the_seed_alone() -> None:
    labels = images_and_labels(400)[1]

    def held_out(seed: int) -> Any:
        params = PreprocessParams(**PARAMS | {"validation_split": "stratified", "seed": seed})
        return choose_validation(labels, params)[1].tolist()

    assert held_out(1) == held_out(1)
    assert held_out(1) != held_out(2)
    assert held_out(1) != held_out(0)


def test_a_stratified_split_is_the_same_with_every_version_of_numpy() -> None:
    params = PreprocessParams(**PARAMS | {"validation_split": "stratified", "seed": 7})
    assert choose_validation(np.arange(20, dtype=np.uint8) % 2, params)[1].tolist() == [3, 6, 11, 12]


@pytest.mark.parametrize("how", ["last", "stratified"])
def test_runs_of_images_that_belong_together_are_not_separated(how: str) -> None:
    labels = np.arange(100, dtype=np.uint8) % 2
    together = [(start, start + 7) for start in range(4, 93, 9)]
    kept, held_out = choose_validation(labels, PreprocessParams(**PARAMS | {"validation_split": how}), together)
    assert sorted([*kept, *held_out]) == list(range(100))
    assert 14 <= len(held_out) <= 26
    for start, stop in together:
        run = set(range(start, stop))
        assert run <= set(kept) or run <= set(held_out)


def test_a_stratified_split_takes_images_with_their_labels(raw: Path) -> None:
    processed, _ = run(raw, validation_split="stratified", seed=3)
    images, labels = images_and_labels(101)
    by_bytes = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    seen = []
    for name in ("train", "validation"):
        for image, label in zip(processed[name].images, processed[name].labels, strict=True):
            pixels = np.rint(image * 255).astype(np.uint8).tobytes()
            assert by_bytes[pixels] == label.argmax()
            seen.append(pixels)
    assert sorted(seen) == sorted(by_bytes)


@pytest.mark.parametrize(("official", "train", "validation"), [(101, 80, 21), (90, 80, 10), (50, 50, 0)])
def test_official_images_are_counted_from_the_first(
    official: int, train: int, validation: int, tmp_path: Path
) -> None:
    raw = write_raw(tmp_path / "raw", images_and_labels(101), images_and_labels(20), official=official)
    records = run(raw)[1]["splits"]
    found = {name: record["official"] for name, record in records.items()}
    assert found == {"train": train, "validation": validation, "test": 20}


def test_a_class_without_an_image_in_a_split_counts_zero(tmp_path: Path) -> None:
    images, _ = images_and_labels(10)
    labels = np.repeat(np.arange(2, dtype=np.uint8), 5)
    _, statistics = run(write_raw(tmp_path / "raw", (images, labels), (images, labels)))
    assert statistics["splits"]["validation"]["class_counts"] == [0, 2, 0]


@pytest.mark.parametrize("params", [{}, {"scaling": "standardize", "validation_split": "stratified"}])
def test_the_same_choices_give_the_same_bytes(params: dict[str, str], raw: Path) -> None:
    def contents() -> dict[str, bytes]:
        run(raw, **params)
        return {path.name: path.read_bytes() for path in (raw.parent / "processed").iterdir()}

    first = contents()
    assert sorted(first) == ["statistics.json", "test.npz", "train.npz", "validation.npz"]
    assert contents() == first


def _refused(raw: Path, match: str, **params: Any) -> None:
    with pytest.raises(StageError, match=match):
        run(raw, **params)
    assert not list(raw.parent.glob("processed/*"))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"images": 100},
            r"train\.npz: expected uint8 images \(100, 4, 4, 2\), found uint8 \(101, 4, 4, 2\)",
        ),
        ({"shape": [4, 4, 3]}, r"train\.npz: expected uint8 images \(101, 4, 4, 3\)"),
        ({"class_counts": [1, 2, 98]}, r"train\.npz: expected class counts \[1, 2, 98\]"),
        ({"sha256": "1234"}, r"train\.npz: checksum mismatch \(expected 1234…"),
        ({"images": "101"}, r"source\.json: splits\.train\.images: Input should be a valid integer"),
        ({"official": None}, r"source\.json: splits\.train\.official: Input should be a valid integer"),
    ],
)
def test_raw_data_that_source_json_does_not_describe_is_refused(
    changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    raw = write_raw(tmp_path / "raw", images_and_labels(101), images_and_labels(20), **changes)
    _refused(raw, rf"{problem}.*; dvc repro$")


def test_a_label_of_no_class_is_refused_with_its_place(tmp_path: Path) -> None:
    images, labels = images_and_labels(101)
    labels[77] = 3
    raw = write_raw(tmp_path / "raw", (images, labels), images_and_labels(20))
    _refused(raw, r"train\.npz: image 77 has the label 3, but there are only 3 classes\. .*dvc repro$")


def test_processed_images_are_not_taken_for_raw_ones(raw: Path) -> None:
    labels = np.eye(3, dtype=np.float32)[images_and_labels(101)[1]]
    digest = splits.write(raw / "train.npz", np.zeros((101, 4, 4, 2), np.float32), labels)
    source = json.loads((raw / "source.json").read_text())
    source["splits"]["train"]["sha256"] = digest
    (raw / "source.json").write_text(json.dumps(source))
    _refused(raw, r"train\.npz: expected uint8 images .*, found float32")


@pytest.mark.parametrize("name", ["source.json", "train.npz", "test.npz"])
def test_a_missing_input_names_the_command_that_makes_it(name: str, raw: Path) -> None:
    (raw / name).unlink()
    _refused(raw, rf"{name}: no such file; run: dvc repro")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(data=st.data())
def test_a_changed_source_json_is_harmless_or_an_error(data: st.DataObject, raw: Path) -> None:
    content = (raw / "source.json").read_bytes()
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    new = data.draw(st.sampled_from([b"", b"null", b"-1", b"1e99", b"[]", b"{}", b"\xff", b'"']))
    changed = raw / "changed.json"
    changed.write_bytes(content[:start] + new + content[end:])
    try:
        split = read_split(raw, "train", read_record(changed, Source))
    except StageError:
        return
    np.testing.assert_array_equal(split.images, images_and_labels(101)[0])


def test_splits_of_different_shapes_are_refused(tmp_path: Path) -> None:
    images, labels = images_and_labels(20)
    raw = write_raw(tmp_path / "raw", images_and_labels(101), (images[:, 1:], labels))
    _refused(raw, r"test\.npz: expected images \(4, 4, 2\), as in train\.npz, found \(3, 4, 2\)")


def test_a_constant_channel_cannot_be_standardized(tmp_path: Path) -> None:
    images, labels = images_and_labels(101)
    images[:80, ..., 1] = 7
    raw = write_raw(tmp_path / "raw", (images, labels), images_and_labels(20))
    for storage in ("float32", "uint8"):
        message = r"preprocess\.scaling: channel 1 is constant .*use: unit"
        _refused(raw, message, scaling="standardize", storage=storage)


def child(code: str, raw: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in a separate process, where `arguments` are those of the stage."""
    params = raw.parent / "params.yaml"
    params.write_text(json.dumps({"preprocess": PARAMS | {"validation_split": "stratified"}}))
    arguments = ["--params", str(params), "--raw", str(raw), "--out", str(raw.parent / "processed")]
    code = f"import sys; arguments = sys.argv[1:]; {code}"
    root = ROOT
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=root, capture_output=True, text=True, check=False
    )


def test_the_command_line_works_without_the_heavy_packages(raw: Path) -> None:
    heavy = {"tensorflow", "keras", "pandas", "sklearn", "dvc"}
    done = child(
        f"from stages import preprocess; preprocess.main(arguments); print({heavy} & {{*sys.modules}})", raw
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")
    assert (raw.parent / "processed" / "statistics.json").exists()


def contents(folder: Path) -> dict[str, bytes]:
    """The files in a folder but for the lock, in which each process leaves its number."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix}


def test_a_write_that_fails_leaves_the_old_outputs_and_one_line(raw: Path) -> None:
    run(raw)
    old = contents(raw.parent / "processed")
    # A limit on the size of a file: the system's refusal comes from the same place as a full disk's.
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
    code += "from stages import preprocess; from stages.common.failure import run; "
    code += "sys.exit(run('preprocess', preprocess.main))"
    done = child(code, raw)
    assert done.returncode == 1
    assert "train.npz: File too large; fix that" in done.stderr and done.stderr.count("\n") == 1
    assert contents(raw.parent / "processed") == old


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a process's own peak is read there")
def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        split = np.zeros((count, 32, 32, 3), np.uint8), np.zeros(count, np.uint8)
        raw = write_raw(tmp_path / str(count) / "raw", split, split)
        code = "from stages import preprocess; preprocess.main(arguments); "
        code += "print(open('/proc/self/status').read())"  # not getrusage, which starts at the parent's peak
        (line,) = (line for line in child(code, raw).stdout.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1])

    few, many = peak(1_000), peak(10_000)
    assert many - few < 10_000, "kB; one raw split alone is 27,000 more"
