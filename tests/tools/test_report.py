"""tools/report: the page of a real run on the digits, parsed and opened in Chromium."""

import base64
import dataclasses
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from stages.common.failure import StageError
from stages.evaluation import scoring
from tests.browsing import CONTRAST, visit
from tests.project import ROOT, Project
from tools.report import augmented, drawn, headline, markup, pictures, provenance, results, trust
from tools.report.page import render
from tools.report.results import Results

WIDTHS = [360, 768, 1280]
SCHEMES = ["light", "dark"]


def make_report(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.report", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def project(first_run: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a committed run on the digits."""
    return first_run.copy(tmp_path_factory.mktemp("report") / "project")


@pytest.fixture(scope="module")
def run(project: Project) -> Results:
    """The run of that project."""
    return results.read(project.folder)


@pytest.fixture(scope="module")
def address(project: Project) -> str:
    """The URL of its report."""
    made = make_report(project.folder)
    assert made.returncode == 0, made.stderr
    return (project.folder / "report" / "index.html").as_uri()


@pytest.fixture
def copy(project: Project, tmp_path: Path) -> Path:
    """A copy of the run's files outside git, for one test."""
    folder = tmp_path / "copy"
    shutil.copytree(project.folder, folder, ignore=shutil.ignore_patterns(".git", ".dvc"))
    return folder


@pytest.fixture(params=[(width, scheme) for width in WIDTHS for scheme in SCHEMES], ids=str)
def page(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Page]:
    """The report, opened at each screen width and color scheme."""
    with visit(browser, address, *request.param) as visited:
        yield visited.page


def with_predictions(run: Results, labels: list[int], probabilities: list[list[float]]) -> Results:
    """The run with other labels and probabilities."""
    padded = np.zeros((len(labels), len(run.classes)), dtype=np.float32)
    padded[:, : len(probabilities[0])] = probabilities
    return dataclasses.replace(run, labels=np.array(labels), probabilities=padded)


# The page as text.


def test_the_command_prints_the_path_of_the_page(project: Project) -> None:
    made = make_report(project.folder)
    assert re.fullmatch(r"\S+/report/index\.html: \d\.\d MB; open file:///\S+/report/index\.html\n", made.stdout)
    assert made.stderr == ""


def test_the_same_run_gives_the_same_page(run: Results) -> None:
    assert render(run) == render(run)


def test_without_augmentation_the_page_has_no_section_about_it(run: Results) -> None:
    assert "What the network sees" not in render(run)


@pytest.mark.usefixtures("started")
def test_with_augmentation_the_page_shows_the_effect_of_each_key_and_of_all_together(run: Results) -> None:
    keys = {"flip": "alternate", "shift": 1, "resized_crop": 0.5, "rotation": 20, "cutout": 3, "mixup": 0.4}
    chosen = {**run.chosen, "train": {**run.chosen["train"], **keys, "color_jitter": 0.4, "scales": [0.5, 1]}}
    section = augmented.grid(dataclasses.replace(run, chosen=chosen))
    rows = section.split('class="of-class"')[1:]
    names = [re.search("<h3>(.*)</h3>", row)[1] for row in rows]  # type: ignore[index]
    assert names[0] == "unchanged" and names[-1] == "together" and len(names) == 2 + 8
    pictures = [tuple(re.findall('src="([^"]*)"', row)) for row in rows]
    assert len(set(pictures)) == len(pictures)
    assert all(len(row) == 10 for row in pictures)


def test_the_page_loads_nothing_from_other_files(run: Results) -> None:
    page = render(run)
    loads = re.findall(r"""(?:src|href)="([^"]*)"|url\(([^)]*)\)|@import|<script|<link""", page)
    assert all((source or address).startswith(("data:", "#")) or not source + address for source, address in loads)
    assert "<script" not in page
    assert "@import" not in page


def test_ids_on_the_page_are_unique(run: Results) -> None:
    ids = re.findall(r' id="([^"]*)"', render(run))
    assert ids
    assert len(set(ids)) == len(ids)


def test_every_link_on_the_page_has_a_target(run: Results) -> None:
    page = render(run)
    assert set(re.findall(r'href="#([^"]*)"', page)) <= set(re.findall(r' id="([^"]*)"', page))


def test_the_commands_on_the_page_exist(run: Results) -> None:
    commands = re.findall(r"python -m ([\w.]*\w)", render(run))
    assert {"tools.predict", "tools.export"} <= set(commands)
    assert [name for name in commands if find_spec(name) is None] == []


def test_the_page_shows_the_figures_of_the_run(run: Results) -> None:
    page = render(run)
    assert f"<strong>{markup.percent(run.evaluation['accuracy'])}</strong>" in page
    for name in ("loss", "brier", "f1_macro", "kappa"):
        assert f">{run.evaluation[name]:.4f}<" in page
    assert f">{run.train['parameters']:,}<" in page
    for hash_ in (run.train["model_sha256"], run.statistics.dataset.sha256, run.outputs[0]["md5"]):
        assert hash_ in page


# Missing, damaged and mismatched files.


def test_without_a_run_the_error_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.report"]
    environment = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    made = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 1
    assert made.stderr == "report: metrics/train.csv: no such file; run: dvc repro\n"


@pytest.mark.parametrize(
    "name",
    [
        "metrics/evaluation.csv",
        "metrics/history.csv",
        "metrics/confusion.csv",
        "metrics/per_class.csv",
        "data/predictions.csv",
        "data/processed/statistics.json",
        "data/raw/test.npz",
        "models/model.keras",
        "dvc.lock",
    ],
)
def test_a_missing_file_is_named_with_the_command_that_makes_it(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(StageError, match=rf"{re.escape(name)}: no such file; run: dvc repro$"):
        results.read(copy)


@pytest.mark.parametrize("name", ["metrics/train.csv", "metrics/history.csv", "data/predictions.csv"])
def test_a_file_with_conflict_markers_is_named(copy: Path, name: str) -> None:
    path = copy / name
    path.write_text(f"<<<<<<< HEAD\n{path.read_text('utf-8')}=======\n,,,,,,,,,,,,\n>>>>>>> theirs\n", "utf-8")
    with pytest.raises(
        StageError,
        match=rf"{re.escape(name)}: not (what a stage writes|a table of figures) \(.*\); run: dvc repro$",
    ):
        results.read(copy)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics/train.csv", "name,val"),
        ("metrics/train.csv", "name,value\naccuracy,0.9\n"),
        ("metrics/evaluation.csv", ""),
        ("metrics/evaluation.csv", "name,value\naccuracy,0.9\n"),
        ("metrics/history.csv", "garbage\n\0"),
        ("metrics/history.csv", "epoch,loss,accuracy,val_loss,val_accuracy\n1,x,1,1,1\n"),
        ("metrics/history.csv", "epoch,loss,accuracy,val_loss,val_accuracy\n"),
        ("metrics/per_class.csv", ""),
        ("metrics/confusion.csv", "label,predicted\n1,1\n"),
        ("data/predictions.csv", "label,prediction\n1,1\n"),
    ],
)
def test_a_damaged_file_is_named_with_the_command_that_makes_it(copy: Path, name: str, content: str) -> None:
    (copy / name).write_text(content, "utf-8")
    with pytest.raises(StageError, match=rf"{re.escape(name)}: .*; run: dvc repro$"):
        results.read(copy)


def test_a_model_other_than_the_evaluated_one_is_refused(copy: Path) -> None:
    with (copy / "models" / "model.keras").open("ab") as file:
        file.write(b"x")
    with pytest.raises(StageError, match=r"train\.csv describes model \w{12}, but models/model\.keras is \w{12}"):
        results.read(copy)


def test_predictions_of_another_run_are_refused(copy: Path) -> None:
    path = copy / "data" / "predictions.csv"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join([lines[0], *reversed(lines[1:])]), "utf-8")
    with pytest.raises(StageError, match=r"predictions\.csv: 360 rows with accuracy 0\.\d{4} are not those of"):
        results.read(copy)


def test_missing_logs_are_mentioned(copy: Path) -> None:
    shutil.rmtree(copy / "logs")
    page = render(results.read(copy))
    assert "logs/train.json is not there" in page
    assert "logs/evaluate.json is not there" in page


def test_the_page_shows_the_machine_and_versions_in_the_logs(run: Results) -> None:
    assert run.train_log is not None
    shown = provenance.machine(run)
    for value in (run.train_log["cpu"], run.train_log["python"], *run.train_log["versions"].values()):
        assert markup.text(value) in shown
    assert "runtime.threads" in shown
    assert "not there" not in shown


@pytest.mark.parametrize(("seconds", "shown"), [(9.74, "9.7 s"), (60.0, "1 min 0 s"), (1843.3, "30 min 43 s")])
def test_a_duration_of_a_minute_or_more_is_in_minutes(run: Results, seconds: float, shown: str) -> None:
    log = {**(run.train_log or {}), "duration_seconds": seconds}
    assert f"<td>{shown}</td>" in provenance.machine(dataclasses.replace(run, train_log=log))


def test_params_are_those_of_the_run_and_later_changes_are_named(copy: Path) -> None:
    path = copy / "params.yaml"
    path.write_text(path.read_text("utf-8").replace("batch_size: 32", "batch_size: 48"), "utf-8")
    run = results.read(copy)
    assert run.chosen["train"]["batch_size"] == 32
    assert run.changed == ["train.batch_size"]
    assert "changed since: train.batch_size." in provenance.changed(run)


def test_unchanged_params_are_not_mentioned(run: Results) -> None:
    assert run.changed == []
    assert provenance.changed(run) == ""


# The comparison with the last commit.


def test_a_committed_run_has_the_same_figures_as_the_last_commit(run: Results) -> None:
    assert run.committed == (run.train, run.evaluation)
    assert re.search(r"last commit is \w+ \(The first run\); it has the same figures\.", headline.comparison(run))
    assert ">none<" in headline.every(run)


def test_outside_git_there_is_no_comparison(copy: Path) -> None:
    run = results.read(copy)
    assert run.commit is None
    assert headline.comparison(run) == "There is no commit to compare with."
    assert "last commit" not in headline.tiles(run)


def test_a_commit_without_metrics_is_mentioned(run: Results) -> None:
    run = dataclasses.replace(run, committed=None)
    assert headline.comparison(run).endswith("has no metrics to compare with.")
    assert "last commit" not in headline.tiles(run)


def test_figures_on_other_data_are_not_compared(run: Results) -> None:
    other = {**run.evaluation, "dataset_sha256": "0" * 64, "dataset_edition": "other pictures"}
    run = dataclasses.replace(run, committed=(run.train, other))
    assert headline.comparison(run).endswith("has metrics of other data: other pictures.")
    assert headline.of_last_commit(run) == {}


def test_a_figure_that_is_new_since_the_last_commit_has_no_comparison(run: Results) -> None:
    older = {name: run.evaluation[name] for name in ("accuracy", "dataset_sha256")}
    run = dataclasses.replace(run, committed=({"loss": 0.5}, older))
    assert set(headline.of_last_commit(run)) == {"accuracy", "train.loss"}
    assert "last commit" in headline.every(run)


@pytest.mark.parametrize(
    ("name", "before", "change"),
    [
        ("accuracy", -0.25, "+0.2500, better"),
        ("accuracy", 0.25, "−0.2500, worse"),
        ("loss", -0.25, "+0.2500, worse"),
        ("calibration_error", 0.25, "−0.2500, better"),
    ],
)
def test_a_change_is_called_better_or_worse(run: Results, name: str, before: float, change: str) -> None:
    other = {**run.evaluation, name: run.evaluation[name] + before}
    assert f">{change}<" in headline.every(dataclasses.replace(run, committed=(run.train, other)))


def test_an_interval_is_the_recorded_one_or_wilson_s_and_a_mean_has_none(run: Results) -> None:
    found = headline.of_run(run)
    assert found["accuracy"].interval == (run.evaluation["accuracy_low"], run.evaluation["accuracy_high"])
    images = run.statistics.splits["validation"].images
    hits = round(run.train["val_accuracy"] * images)
    assert found["train.val_accuracy"].interval == scoring.wilson(hits, images)
    assert found["f1_macro"].interval is None


def test_a_figure_that_is_new_to_the_report_is_shown_last(run: Results) -> None:
    found = headline.figures(run.train, {**run.evaluation, "new_figure": 0.5}, 1)
    assert list(found)[-1] == "new_figure"
    assert found["new_figure"].name == "new figure"


def test_figures_of_test_time_augmentation_are_named_by_their_views(run: Results) -> None:
    found = headline.figures(run.train, {**run.evaluation, "views_6.top_3_accuracy": 0.5}, 1)
    assert found["views_6.top_3_accuracy"].name == "Top-3 accuracy, mean of 6 views"


def test_the_official_accuracy_is_shown_if_it_differs_from_the_test_accuracy(run: Results) -> None:
    assert run.evaluation["official_test_images"] == run.evaluation["test_images"]
    assert "official_accuracy" not in headline.of_run(run)
    partly = {**run.evaluation, "official_test_images": 100, "official_accuracy": 0.5}
    found = headline.of_run(dataclasses.replace(run, evaluation=partly))["official_accuracy"]
    assert found.interval == scoring.wilson(50, 100)
    never = {**run.evaluation, "official_test_images": 0, "official_accuracy": None}
    assert "official_accuracy" not in headline.of_run(dataclasses.replace(run, evaluation=never))


def test_bounds_counts_and_texts_are_not_figures(run: Results) -> None:
    found = headline.of_run(run)
    assert not {"accuracy_low", "accuracy_high", "test_images", "dataset"} & set(found)


def test_figures_that_are_0_are_noted_in_a_line_of_each_kind(run: Results) -> None:
    assert drawn.notes(with_predictions(run, list(range(10)), np.eye(10).tolist())) == ""
    many = drawn.notes(with_predictions(run, [0, 1], [[1.0, 0.0], [0.0, 1.0]]))
    assert many.count('class="note"') == 2


def test_a_thousand_classes_are_shown_by_their_worst(run: Results) -> None:
    classes = [f"class {number}" for number in range(1000)]
    labels = np.arange(1000)
    statistics = run.statistics.model_copy(update={"classes": classes})
    probabilities = np.roll(np.eye(1000, dtype=np.float32), 1, axis=0)
    table = scoring.per_class(labels, probabilities, classes)
    many = dataclasses.replace(
        run, statistics=statistics, labels=labels, probabilities=probabilities, per_class=table
    )
    matrix, bars = drawn.confusion(many), drawn.per_class(many)
    assert "Most frequent mistakes" in matrix and "<svg" not in matrix and len(matrix) < 10_000
    assert "F1 score of the 50 worst classes" in bars and len(bars) < 1_000_000


# Numbers, text and pictures.


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0.7555, "75.6 %"),
        (1.0, "100.0 %"),
        (0.99996, "> 99.9 %"),
        (0.0, "0.0 %"),
        (0.0001, "< 0.1 %"),
        (0.5, "50.0 %"),
    ],
)
def test_a_percentage_is_rounded_to_neither_0_nor_100(share: float, shown: str) -> None:
    assert markup.percent(share).replace(markup.SPACE, " ") == shown


def test_text_is_escaped_and_markup_is_not() -> None:
    assert markup.element("p", '<b>"&') == "<p>&lt;b&gt;&quot;&amp;</p>"
    assert markup.element("p", markup.element("b", "x")) == "<p><b>x</b></p>"
    assert markup.image("data:,", 'a "cat"') == '<img src="data:," alt="a &quot;cat&quot;">'


def test_a_class_name_with_markup_is_shown_as_text(run: Results) -> None:
    names = ["<img src=x>", *run.classes[1:]]
    renamed = {"0": names[0]}
    run = dataclasses.replace(
        run,
        statistics=run.statistics.model_copy(update={"classes": names}),
        confusion=run.confusion.replace(renamed),
        per_class=run.per_class.replace(renamed),
    )
    page = render(run)
    assert "<img src=x>" not in page
    assert "&lt;img src=x&gt;" in page


def test_probabilities_are_read_as_they_were_scored(run: Results) -> None:
    score = scoring.score(run.labels, run.probabilities)
    assert score["calibration_error"] == run.evaluation["calibration_error"]
    assert score["loss"] == run.evaluation["loss"]


def test_the_filters_are_the_weights_that_keras_loads(run: Results, project: Project, started: None) -> None:
    import keras

    model = keras.saving.load_model(project.folder / "models" / "model.keras", compile=False)
    kernel = next(layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)).kernel
    assert run.filters is not None
    assert run.filters.shape == (3, 3, 1, 8)
    np.testing.assert_array_equal(run.filters, keras.ops.convert_to_numpy(kernel))


def test_a_network_without_convolutions_shows_no_filters(run: Results) -> None:
    assert "no convolution" in pictures.filters(dataclasses.replace(run, filters=None))


def test_a_weight_of_zero_is_mid_grey_and_all_filters_have_one_scale() -> None:
    weights = np.array([[[[0.0, 0.1]]], [[[-0.2, 0.2]]]], dtype=np.float32)
    first, second = pictures.filter_images(weights)
    assert first.ravel().tolist() == [128, 0]
    assert second.ravel().tolist() == [191, 255]


@pytest.mark.parametrize("shape", [(8, 8, 1), (5, 7, 3)])
def test_a_picture_on_the_page_has_the_pixels_of_the_dataset(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    content = pictures.data_uri(pixels).removeprefix("data:image/png;base64,")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    np.testing.assert_array_equal(shown.reshape(shape), pixels)


def test_a_large_picture_is_scaled_down_with_its_aspect_ratio() -> None:
    content = pictures.data_uri(np.zeros((300, 600, 3), np.uint8)).removeprefix("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (96, 48)


def test_the_most_confident_mistakes_come_first(run: Results) -> None:
    run = with_predictions(run, [0, 0, 0, 1], [[0.4, 0.6], [0.1, 0.9], [0.9, 0.1], [0.8, 0.2]])
    shown = re.findall(r'alt="([^"]*)"', pictures.mistakes(run).replace(markup.SPACE, " "))
    assert shown == ["true 0, predicted 1, 90.0 %", "true 1, predicted 0, 80.0 %", "true 0, predicted 1, 60.0 %"]
    assert len(re.findall("<img", pictures.mistakes(run, most=2))) == 2


def test_the_least_confident_correct_predictions_come_first_with_the_second_class(run: Results) -> None:
    run = with_predictions(run, [0, 0, 0], [[0.7, 0.3], [0.55, 0.45], [0.1, 0.9]])
    shown = pictures.hits(run).replace(markup.SPACE, " ")
    assert re.findall(r'alt="([^"]*)"', shown) == ["true 0, predicted 0, 55.0 %", "true 0, predicted 0, 70.0 %"]
    assert re.findall("then [^<]*", shown) == ["then 1, 45.0 %", "then 1, 30.0 %"]


def test_a_run_without_mistakes_says_so(run: Results) -> None:
    assert "There are none." in pictures.mistakes(with_predictions(run, [0], [[1.0, 0.0]]))


# In a browser.


def test_the_page_opens_without_errors_or_requests(browser: Browser, address: str) -> None:
    with visit(browser, address, 1280, "light") as (page, messages, requests):
        page.wait_for_load_state("networkidle")
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [address]


def test_every_chart_is_drawn(page: Page) -> None:
    drawn: list[dict[str, Any]] = page.evaluate("""
        () => [...document.querySelectorAll("figure")].map(figure => {
            const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect();
            const marks = [...svg.querySelectorAll(".role-mark > *")].filter(mark => {
                const box = mark.getBoundingClientRect();
                return box.width + box.height > 0;
            });
            return {name: figure.id, width: box.width, height: box.height, marks: marks.length,
                    label: svg.getAttribute("aria-label"), role: svg.getAttribute("role")};
        })
    """)
    names = ["intervals", "curve-accuracy", "curve-loss", "confusion", "per-class", "reliability"]
    assert [chart["name"] for chart in drawn] == names
    for chart in drawn:
        assert chart["width"] > 200, chart
        assert chart["height"] > 100, chart
        assert chart["marks"] >= 4, chart
        assert chart["role"] == "img", chart
        assert len(chart["label"]) > 20, chart


def test_the_page_fits_the_width_of_the_screen(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_wide_content_scrolls_in_its_own_frame(page: Page) -> None:
    beyond = page.evaluate("""
        () => [...document.querySelectorAll("body *")].filter(one =>
            one.getBoundingClientRect().right > innerWidth + 1 && !one.closest(".scroll, .chart, details")
        ).map(one => one.outerHTML.slice(0, 80))
    """)
    assert beyond == []


def test_every_picture_is_visible_and_has_alternative_text(page: Page) -> None:
    images = page.evaluate("""
        () => [...document.images].map(image => ({
            alt: image.alt.trim(), natural: image.naturalWidth * image.naturalHeight,
            shown: Math.min(image.width, image.height)}))
    """)
    assert len(images) > 100
    for image in images:
        assert image["alt"]
        assert image["natural"] > 0
        assert image["shown"] >= 20


def test_text_has_enough_contrast(page: Page) -> None:
    faint = page.evaluate(CONTRAST)
    assert faint["measured"] > 400
    assert faint["below"] == []


def test_the_color_scheme_sets_the_background(page: Page, request: pytest.FixtureRequest) -> None:
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    level = sum(int(number) for number in re.findall(r"\d+", background)[:3]) / 3
    assert level < 40 if "dark" in request.node.callspec.id else level > 240


def test_the_numbers_of_a_chart_open_with_the_keyboard(page: Page) -> None:
    for details in page.query_selector_all("details"):
        summary, table = details.query_selector("summary"), details.query_selector("table")
        assert summary is not None
        assert table is not None
        assert not table.is_visible()
        summary.focus()
        page.keyboard.press("Enter")
        assert table.is_visible()
        assert len(table.query_selector_all("tbody tr")) >= 1


def test_the_section_on_trust_has_a_sentence_for_each_computed_figure(run: Results) -> None:
    figures = run.evaluation | {
        "test_duplicates": 6,
        "accuracy_without_duplicates": 0.5,
        "temperature": 1.25,
        "uncalibrated.calibration_error": 0.08,
        "calibrated.calibration_error": 0.02,
        "abstain.threshold": 0.75,
        "abstain.coverage": 0.6,
        "abstain.accuracy": 0.9,
    }
    accuracy = {"none": [0.9], "fog": [0.2, 0.4], "JPEG": [0.8, 0.6]}
    labels = {"suspicious_test": 3, "audited_test": 360}
    full = dataclasses.replace(run, evaluation=figures, robustness=accuracy, labels_audit=labels)
    section = trust.section(full).replace(markup.SPACE, " ")
    for sentence in (
        "6 of 360 test images repeat a training image, exactly or nearly. Without them the accuracy is 50.0 %.",
        "3 of 360 test labels are suspicious",
        "A temperature of 1.25, fitted on validation, makes that 2.0 %. The predictions do not use it",
        "The model answers on 60.0 % of the test images",
        "90.0 % of these answers are right; the target, on validation, was 95.0 %.",
        "the accuracy is 50.0 % on average over 2 corruptions. The worst is fog: 30.0 %.",
    ):
        assert sentence in section
    bare = {name: value for name, value in run.evaluation.items() if "." not in name and name != "temperature"}
    bare.pop("test_duplicates", None)
    section = trust.section(dataclasses.replace(run, evaluation=bare, robustness=None, labels_audit=None))
    assert section.count("<li>") == 3
    assert "Accuracy on corrupted pictures was not measured." in section
