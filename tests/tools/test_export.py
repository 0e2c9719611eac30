"""tools/export: files for other runtimes that give the trained model's probabilities, or no files."""

import hashlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pandas as pd
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from stages.common import pictures, splits
from stages.common.confidence import Confidence
from stages.common.failure import StageError
from stages.common.records import DatasetRecord, ModelRecord
from stages.common.scaling import scale
from stages.model.inference import Predictor
from stages.model.networks import Block, FastParams, ModelParams, TutorialParams, build_model
from tests.project import ROOT, Project
from tools.export import __main__ as command
from tools.export import checks, litert, onnx_file, saved_model
from tools.export.checks import Checker
from tools.export.exporting import Trained, export
from tools.export.formats import FORMATS
from tools.export.network import INPUT, float32_twin, from_files, from_pixels

pytestmark = pytest.mark.usefixtures("started")

SHAPE = (12, 10, 3)
CLASSES = ["cat", "dog", "emu"]
NETWORKS: dict[str, ModelParams] = {
    "tutorial": TutorialParams(
        network="tutorial",
        blocks=[Block(filters=4, layers=1, pool=2, dropout=0.5)],
        kernel=3,
        padding="same",
        activation="relu",
        head="flatten",
        dense=[8],
        dropout=0.9,
    ),
    "fast": FastParams(network="fast", widths=[8], activation="silu", batch_norm_momentum=0.6, logit_scale=0.5),
}
TEMPERATURE = {"tutorial": 1.0, "fast": 1.7}
BY_CHANNEL = {"tutorial": None, "fast": ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])}


def pixels(count: int, shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def trained(name: str, folder: Path, **of_model: Any) -> Trained:
    """A network with random weights, as if the pipeline had trained it on random pixels."""
    keras.utils.set_random_seed(0)
    images = np.divide(pixels(60), np.float32(255), dtype=np.float32)
    model = build_model(NETWORKS[name], SHAPE, len(CLASSES), images)
    labels = np.arange(60, dtype=np.uint8) % len(CLASSES)
    splits.write(folder / "test.npz", pixels(60), labels)
    by_channel = BY_CHANNEL[name]
    record = ModelRecord(
        sha256="a" * 64,
        dataset=DatasetRecord(name="random", edition="random pixels", sha256="d" * 64),
        classes=CLASSES,
        decoding=pictures.Decoding(height=SHAPE[0], width=SHAPE[1], channels=SHAPE[2]),
        scaling="standardize" if by_channel else "unit",
        mean=by_channel[0] if by_channel else [0.0] * 3,
        std=by_channel[1] if by_channel else [1.0] * 3,
        epoch=1,
        parameters=model.count_params(),
    )
    split = splits.read(folder / "test.npz")
    confidence = Confidence(model_sha256="a" * 64, temperature=TEMPERATURE[name], threshold=0.5)
    return Trained(model, 1000, record, confidence, split, split, "c" * 40)


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Three calls for each speed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "SECONDS", 0)
        yield


@pytest.fixture(scope="module", params=NETWORKS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
    """An export in every format."""
    folder = tmp_path_factory.mktemp(request.param)
    run = trained(request.param, folder)
    export(run, folder / "exported", list(FORMATS), max_drop=1, threads=2)
    return run, folder / "exported"


def runs(folder: Path) -> dict[str, checks.Run]:
    return {
        "litert": litert.load(folder / "model.tflite", 2),
        "onnx": onnx_file.load(folder / "model.onnx", 2),
        "savedmodel": saved_model.load(folder / "saved_model" / "1"),
    }


def test_every_float32_file_gives_the_models_probabilities_for_any_number_of_images(
    exported: tuple[Trained, Path],
) -> None:
    run, folder = exported
    name = "fast" if run.record.scaling == "standardize" else "tutorial"
    scaled = np.concatenate(list(scale([run.test.images], BY_CHANNEL[name])))
    expected = Predictor(run.model, TEMPERATURE[name])(scaled)
    for form, load in runs(folder).items():
        for count in (1, 7, 60):
            found = load(np.array(run.test.images[:count]))
            np.testing.assert_allclose(found, expected[:count], rtol=0, atol=1e-5, err_msg=form)


def test_no_file_runs_in_training_mode(exported: tuple[Trained, Path]) -> None:
    # A Resizing layer before the network would turn dropout on in what is exported, and not in `predict`.
    _, folder = exported
    model = tf.saved_model.load(str(folder / "saved_model" / "1"))
    operations = {
        node.op
        for name in (saved_model.PIXELS, saved_model.FILES)
        for function in [model.signatures[name].graph.as_graph_def()]
        for nodes in (function.node, *(each.node_def for each in function.library.function))
        for node in nodes
    }
    assert "Conv2D" in operations
    assert not [name for name in operations if "Random" in name]
    assert not [node.op_type for node in onnx.load(folder / "model.onnx").graph.node if "Random" in node.op_type]
    image = png(pixels(1)[0])
    once, again = (model.signatures[saved_model.FILES](files=tf.constant([image])) for _ in range(2))
    np.testing.assert_array_equal(once["probabilities"], again["probabilities"])


def test_the_input_is_raw_pixels_with_a_free_batch_axis(exported: tuple[Trained, Path]) -> None:
    _, folder = exported
    (images,) = onnx.load(folder / "model.onnx").graph.input
    tensor = images.type.tensor_type
    assert (images.name, tensor.elem_type) == (INPUT, onnx.TensorProto.UINT8)
    assert [each.dim_param or each.dim_value for each in tensor.shape.dim] == ["N", *SHAPE]
    for file in folder.glob("*.tflite"):
        with pytest.warns(UserWarning, match="ai_edge_litert"):
            interpreter = tf.lite.Interpreter(str(file))
        (details,) = interpreter.get_input_details()
        assert (details["dtype"], details["shape_signature"].tolist()) == (np.uint8, [-1, *SHAPE])
        assert interpreter.get_signature_list() == {
            "serving_default": {"inputs": [INPUT], "outputs": ["probabilities"]}
        }


def test_neither_onnx_nor_litert_resizes_or_needs_other_operators(exported: tuple[Trained, Path]) -> None:
    _, folder = exported
    graph = onnx.load(folder / "model.onnx").graph
    assert not [node for node in graph.node if node.op_type == "Resize" or node.domain]
    for file in folder.glob("*.tflite"):
        content = file.read_bytes()
        assert b"Flex" not in content
        with pytest.warns(UserWarning, match="ai_edge_litert"):
            interpreter = tf.lite.Interpreter(model_content=content)
        operators = {operator["op_name"] for operator in interpreter._get_ops_details()}
        assert "CONV_2D" in operators
        assert not [name for name in operators if "RESIZE" in name]


def test_onnx_divides_by_255(exported: tuple[Trained, Path]) -> None:
    _, folder = exported
    first, second = onnx.load(folder / "model.onnx").graph.node[:2]
    assert (first.op_type, second.op_type) == ("Cast", "Div")


@pytest.mark.parametrize("by_channel", BY_CHANNEL.values(), ids=["unit", "standardize"])
def test_the_graph_scales_pixels_to_the_very_bits_of_preprocess(by_channel: Any) -> None:
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    graph = tf.function(from_pixels(lambda images, training: images, by_channel))
    (expected,) = scale([every], by_channel)
    np.testing.assert_array_equal(graph(tf.constant(every))["probabilities"], expected)


def test_the_same_model_gives_the_same_bytes_again(exported: tuple[Trained, Path], tmp_path: Path) -> None:
    run, folder = exported
    export(run, tmp_path / "again", ["onnx", "litert"], max_drop=1, threads=2)
    for name in ("model.tflite", "model.onnx", "signature.json", "labels.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_renaming_leaves_the_output_of_onnx_as_it_was(exported: tuple[Trained, Path], tmp_path: Path) -> None:
    import tf2onnx

    run, folder = exported
    name = "fast" if run.record.scaling == "standardize" else "tutorial"
    graph = from_pixels(float32_twin(run.model), BY_CHANNEL[name], TEMPERATURE[name])
    spec = [tf.TensorSpec((None, *SHAPE), tf.uint8, INPUT)]
    tf2onnx.convert.from_function(tf.function(graph), spec, opset=18, output_path=str(tmp_path / "raw.onnx"))
    images = np.array(run.test.images)
    before, after = (onnx_file.load(path, 2)(images) for path in (tmp_path / "raw.onnx", folder / "model.onnx"))
    np.testing.assert_array_equal(before, after)


def test_the_signature_is_inside_each_file_too(exported: tuple[Trained, Path]) -> None:
    _, folder = exported
    text = (folder / "signature.json").read_text(encoding="utf-8")
    signature = json.loads(text)
    assert signature["input"]["shape"] == ["N", *SHAPE]
    assert signature["confidence"]["threshold"] == 0.5
    assert (signature["classes"], signature["commit"]) == (CLASSES, "c" * 40)
    assert (signature["model_sha256"], signature["dataset"]["sha256"]) == ("a" * 64, "d" * 64)
    assert (folder / "labels.txt").read_text(encoding="utf-8").splitlines() == CLASSES
    assert {each.key: each.value for each in onnx.load(folder / "model.onnx").metadata_props} == {
        "signature.json": text
    }
    assert (folder / "saved_model" / "1" / "assets.extra" / "signature.json").read_text(encoding="utf-8") == text
    for file in folder.glob("*.tflite"):
        assert text.encode() in file.read_bytes()


def test_export_json_has_each_file_and_its_hash(exported: tuple[Trained, Path]) -> None:
    _, folder = exported
    report = json.loads((folder / "export.json").read_bytes())
    assert list(report["files"]) == sorted(["models/model.keras", *(form.file for form in FORMATS.values())])
    assert report["test_images"] == 60
    for name in ("model.tflite", "model.onnx", "model-int8.tflite"):
        content = (folder / name).read_bytes()
        assert report["files"][name]["bytes"] == len(content)
        assert report["files"][name]["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_each_code_of_the_readme_gives_the_models_answer(
    exported: tuple[Trained, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = exported
    monkeypatch.chdir(folder)
    Path("picture.png").write_bytes(png(np.array(run.test.images[5])))
    (expected,) = litert.load(folder / "model.tflite", 1)(np.array(run.test.images[5:6]))
    blocks = re.findall(r"```python\n(.*?)```", Path("README.md").read_text("utf-8"), flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, {})
        name, probability = capsys.readouterr().out.split()
        assert name == CLASSES[expected.argmax()]
        assert float(probability) == pytest.approx(expected.max(), abs=1e-5)


def test_a_bfloat16_model_becomes_float32_files(tmp_path: Path) -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        run = trained("tutorial", tmp_path)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {layer.compute_dtype for layer in run.model.layers} == {"bfloat16", "float32"}
    assert {layer.compute_dtype for layer in float32_twin(run.model).layers} == {"float32"}
    report = export(run, tmp_path / "exported", ["litert", "onnx"], max_drop=1, threads=2)
    files = report["files"]
    assert 0 < files["models/model.keras in float32"]["largest_difference"] < 0.05
    assert files["model.tflite"]["largest_difference"] <= 1e-5
    assert files["model.onnx"]["largest_difference"] <= 1e-5


def png(image: NDArray[np.uint8], kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, kind, **options)
    return file.getvalue()


def real_pictures() -> Iterator[NDArray[np.uint8]]:
    """Twenty pictures of 200 to 380 pixels a side, cut from the two photographs that scikit-learn comes with."""
    for photograph in load_sample_images().images:
        for number in range(10):
            size = 200 + 20 * number
            yield photograph[number * 4 :, number * 20 :][: size - 10, :size]


@pytest.mark.parametrize(("kind", "limit"), [("PNG", 0.3), ("JPEG", 0.3)])
def test_encoded_pictures_come_within_a_grey_level_of_the_pipelines_pixels(kind: str, limit: float) -> None:
    files = [png(picture, kind) for picture in real_pictures()]
    graph = from_files(lambda images: {"images": images}, (32, 32, 3))
    found = graph(tf.constant(files))["images"].numpy().astype(int)
    rules = pictures.Decoding(height=32, width=32, channels=3)
    expected = np.stack([pictures.decode(io.BytesIO(file), rules) for file in files])
    assert len(files) == 20
    assert np.abs(found - expected).mean() < limit


def sure(labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.eye(3, dtype=np.float32)[labels] * np.float32(0.8) + np.float32(0.05)


@pytest.fixture
def checker() -> Checker:
    return Checker(pixels(100), np.arange(100, dtype=np.uint8) % 3, max_drop=0.01)


def answers(probabilities: NDArray[np.float32]) -> checks.Run:
    return lambda images: np.resize(probabilities, (len(images), 3))


def test_a_float32_file_that_differs_by_more_than_rounding_is_refused(checker: Checker) -> None:
    expected = sure(checker.labels)
    assert checker.check("file", answers(expected + np.float32(9e-6)), expected, exact=True).decisions == 0
    with pytest.raises(StageError, match=r"^file: its probabilities on the test images differ by up to 2e-05"):
        checker.check("file", answers(expected + np.float32(2e-5)), expected, exact=True)


def test_another_decision_is_refused_unless_the_models_own_two_best_classes_tie(checker: Checker) -> None:
    expected = sure(checker.labels)
    expected[0] = [0.4, 0.4 - 4e-6, 0.2]
    other = expected.copy()
    other[0, :2] = expected[0, 1::-1]
    with pytest.raises(StageError, match=r"and 1 decisions differ \(limit 0\)"):
        checker.check("file", answers(other), expected, exact=True)
    expected[0, 1] = 0.4 - 1e-7
    result = checker.check("file", answers(other), expected, exact=True)
    assert (result.decisions, result.ties) == (0, 1)


def test_lower_precision_may_lose_as_much_accuracy_as_allowed(checker: Checker) -> None:
    expected = sure(checker.labels)
    worse = expected.copy()
    worse[0] = expected[1]
    result = checker.check("file", answers(worse), expected, exact=False)
    assert (result.accuracy, result.gained, result.lost, result.p_value) == (0.99, 0, 1, 1)
    worse[1] = expected[0]
    with pytest.raises(StageError, match=r"is 0\.9800, 0\.0200 below the model's \(limit 0\.01, .* p = 0\.5"):
        checker.check("file", answers(worse), expected, exact=False)


@pytest.mark.parametrize("exact", [True, False])
def test_nan_never_passes(checker: Checker, exact: bool) -> None:
    expected = sure(checker.labels)
    with pytest.raises(StageError, match="nothing was exported"):
        checker.check("file", answers(expected * np.float32(np.nan)), expected, exact)


def test_a_failed_check_leaves_the_export_before_it(tmp_path: Path) -> None:
    run = trained("tutorial", tmp_path)
    folder = tmp_path / "exports" / "name"
    export(run, folder, ["litert"], max_drop=1, threads=2)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    run.model.get_layer("probabilities").set_weights([np.full((8, 3), np.nan), np.zeros(3)])
    with pytest.raises(StageError, match="nothing was exported"):
        export(run, folder, ["litert"], max_drop=1, threads=2)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_that_is_no_export_is_left_alone(tmp_path: Path) -> None:
    run = trained("tutorial", tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(StageError, match=r"mine: exists and is not an export, .*; choose another --name"):
        export(run, tmp_path / "mine", ["litert"], max_drop=1, threads=2)
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["coreml"], r"^coreml: unknown format; use: litert, litert-float16, litert-int8, onnx, savedmodel$"),
        (["--name", "a/b"], r"^--name a/b: use letters, digits"),
        (["--max-drop", "nan"], r"^--max-drop nan: it should be between 0 and 1$"),
        ([], r"models/model\.json: no such file; run: dvc repro$"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((Path(__file__).parents[2] / "params.yaml").read_bytes())
    with pytest.raises(StageError, match=message):
        command.main(arguments)
    assert not (tmp_path / "exports").exists()


@pytest.fixture(scope="module")
def project(first_run: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished run on the digits with an export in every format."""
    project = first_run.copy(tmp_path_factory.mktemp("export") / "project")
    run_export(project, *FORMATS, "--max-drop", "0.05")  # in integers, the small network loses more
    return project


def run_export(project: Project, *arguments: str, **environment: str) -> str:
    """Run the command as a person does, from the checkout; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.export", "--folder", str(project.folder), *arguments],
        cwd=ROOT,
        env={**project.environment, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.slow
def test_a_person_gets_the_pipelines_predictions_with_the_code_of_the_readme(project: Project) -> None:
    folder = project.folder / "exports" / "digits"
    images = splits.read(project.folder / "data" / "raw" / "test.npz").images
    (folder / "picture.png").write_bytes(png(np.array(images[5])))
    row = pd.read_csv(project.folder / "data" / "predictions.csv", dtype={"prediction": str}).iloc[5]
    text = (folder / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3
    code = "import warnings\nwarnings.simplefilter('ignore')\n" + "".join(blocks)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        name, probability = line.split()
        assert name == row["prediction"]
        assert float(probability) == pytest.approx(row[f"probability_{name}"], abs=1e-5)
    assert done.stdout.count("\n") == 3


def test_neither_git_nor_dvc_sees_an_export() -> None:
    for tool in ("git", "dvc"):
        command = [str(Path(sys.executable).parent / "dvc") if tool == "dvc" else "git", "check-ignore"]
        done = subprocess.run([*command, "exports/any/model.tflite"], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, tool


@pytest.mark.slow
def test_another_process_exports_the_same_bytes(project: Project) -> None:
    table = run_export(project, "onnx", "litert", "--name", "again", PYTHONHASHSEED="7")
    assert "model.tflite" in table
    for name in ("model.onnx", "model.tflite", "signature.json"):
        again, first = (project.folder / "exports" / each / name for each in ("again", "digits"))
        assert again.read_bytes() == first.read_bytes()


@pytest.mark.slow
def test_the_model_of_another_revision_is_exported(first_run: Project, tmp_path: Path) -> None:
    project = first_run.copy(tmp_path / "project")
    run_export(project, "litert")
    before = (project.folder / "exports/digits/model.tflite").read_bytes()
    (project.folder / "models/model.keras").unlink()
    run_export(project, "litert", "--model", "HEAD", "--name", "earlier")
    assert (project.folder / "exports/earlier/model.tflite").read_bytes() == before
    signature = json.loads((project.folder / "exports/earlier/signature.json").read_bytes())
    assert signature["commit"] == project.run("git", "rev-parse", "HEAD").stdout.strip()
    source = json.loads((project.folder / "data/raw/source.json").read_bytes())
    source["dataset"]["sha256"] = "0" * 64
    (project.folder / "data/raw/source.json").chmod(0o644)
    (project.folder / "data/raw/source.json").write_text(json.dumps(source))
    with pytest.raises(StageError, match=r"data/raw: not the data .*; run: git checkout HEAD, then dvc repro$"):
        command.main(["litert", "--folder", str(project.folder), "--model", "HEAD"])
