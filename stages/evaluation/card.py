"""The model card: Markdown, with the `model-index` metadata that model hubs read.

The metadata format: https://huggingface.co/docs/hub/model-cards, "Evaluation results".
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import yaml

from stages.common.records import Origin, Statistics

# The name of a metric on a hub, and its key in evaluation.csv.
METRICS = {"accuracy": "accuracy", "f1": "f1_macro", "precision": "precision_macro", "recall": "recall_macro"}

# The code that resizes `picture` as stages/common/pictures.py does; the offset of `pad` rounds down.
RESIZE = {
    "stretch": "picture.resize({size}, Image.Resampling.BICUBIC)",
    "crop": "ImageOps.fit(picture, {size}, Image.Resampling.BICUBIC)",
    "pad": "ImageOps.pad(picture, {size}, Image.Resampling.BICUBIC, centering=(0.4999, 0.4999))",
}

WEIGHTED = "The training loss of each class had a weight, see class_weights in model.json."

TEXT = """\
---
{header}---

# {title}

A convolutional network that classifies {height} x {width} pictures into {classes} classes: {names}.
Trained on {training:,} images and tested on {tested:,} other images of {dataset} ({edition}).{origin}

## Results on the test split

| figure | value |
|---|---|
{figures}

The 95 % confidence interval of the accuracy (Wilson) is {low} to {high}.

| class | precision | recall | F1 | images |
|---|---|---|---|---|
{per_class}

## Use

In a checkout of the project with this model:

- `python -m tools.predict PATH` classifies pictures and folders of pictures. It decodes, resizes and scales them
  as in training.
- `python -m tools.serve` does the same on a page in the browser and as an HTTP API.
- `python -m tools.export` makes files for LiteRT, ONNX Runtime and TensorFlow Serving. They scale pixels
  themselves, are checked on the test images, and come with code for each.

With Keras alone, decode and scale as in training:

    picture = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("{mode}")
    pixels = np.asarray({resized})
    images = {scaled}
    model = keras.saving.load_model("model.keras", compile=False)
    probabilities = model(images, training=False)

`images`: float32 (N, {height}, {width}, {channels}), pixels divided by 255{standardized}.
`probabilities`: float32 (N, {classes}), in the order of the classes above.

Other ways of reading a picture raise no error and cost accuracy. Measured with one model of this project on 327
photographs of five classes:

| photographs read | accuracy |
|---|---|
| as in training, by the code above | 0.5505 |
| with `keras.utils.load_img`, which takes the nearest pixel by default | 0.5015 |
| as phones store them, without `exif_transpose` | 0.2446 |

## How far to trust this

{trust}

## Provenance

| what | SHA-256 |
|---|---|
| the dataset | {dataset_sha256} |
| the model, model.keras | {model_sha256} |{origin_sha256}

For the params, code and versions, see params.yaml, dvc.lock and environment/ in the commit with these results.
"""


def model_card(
    evaluation: Mapping[str, Any],
    per_class: pd.DataFrame,
    statistics: Statistics,
    origin: Origin | None = None,
    weighted: bool = False,
) -> str:
    """Return the model card.

    evaluation: the figures of evaluation.csv; per_class: the table per_class.csv; origin: the weights that
    training began with, unless they were random; weighted: whether the training loss had class weights.
    """
    height, width, channels = statistics.splits["test"].shape
    figures = {name: value for name, value in sorted(evaluation.items()) if isinstance(value, float)}
    columns = ("precision", "recall", "f1")
    scaling = f", minus {statistics.mean}, over {statistics.std}, by channel"
    scaled = f"pixels.reshape(1, {height}, {width}, {channels}) / np.float32(255)"
    if statistics.scaling == "standardize":
        scaled = f"({scaled} - np.float32({statistics.mean})) / np.float32({statistics.std})"
    return TEXT.format(
        header=yaml.safe_dump(_header(evaluation), sort_keys=False, allow_unicode=True),
        title=f"A classifier of {evaluation['dataset']}",
        classes=len(statistics.classes),
        names=", ".join(statistics.classes),
        height=height,
        width=width,
        channels=channels,
        training=statistics.splits["train"].images,
        tested=evaluation["test_images"],
        dataset=evaluation["dataset"],
        edition=evaluation["dataset_edition"],
        figures="\n".join(f"| {name} | {value:.4f} |" for name, value in figures.items()),
        low=f"{evaluation['accuracy_low']:.4f}",
        high=f"{evaluation['accuracy_high']:.4f}",
        per_class="\n".join(
            f"| {row['class']} | {' | '.join(f'{row[name]:.4f}' for name in columns)} | {row['support']:,} |"
            for row in per_class.to_dict("records")
        ),
        mode="L" if channels == 1 else "RGB",
        resized=RESIZE[statistics.picture_rules.resize].format(size=(width, height)),
        scaled=scaled,
        standardized=scaling if statistics.scaling == "standardize" else "",
        trust="\n".join(f"- {sentence}" for sentence in _trust(evaluation)),
        dataset_sha256=evaluation["dataset_sha256"],
        model_sha256=evaluation["model_sha256"],
        origin=(f"\n{_origin(origin)}" if origin else "") + (f"\n{WEIGHTED}" if weighted else ""),
        origin_sha256=f"\n| the weights that training began with | {origin.sha256} |" if origin else "",
    )


def _trust(evaluation: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each figure that was computed."""
    sentences = [
        "Every picture is assigned one of these classes, even if it shows none of them.",
        "The results hold for pictures like those of the dataset, not for others.",
        f"The expected calibration error of the probabilities is {evaluation['calibration_error']:.4f}.",
    ]
    if "temperature" in evaluation:
        error, temperature = evaluation["calibrated"]["calibration_error"], evaluation["temperature"]
        sentences.append(
            f"With the temperature {temperature}, fitted on validation, the calibration error is {error:.4f}."
        )
    abstain = evaluation.get("abstain")
    if abstain and abstain["accuracy"] is not None:
        sentences.append(
            f"Where the largest probability is at least {abstain['threshold']:.4f}, which holds for "
            f"{abstain['coverage']:.1%} of the test images, the accuracy is {abstain['accuracy']:.4f}. Below "
            "that, treat a prediction as none of the classes."
        )
    if (found := evaluation.get("test_duplicates")) is not None:
        without = evaluation["accuracy_without_duplicates"]
        accuracy = "" if without is None else f" Without them the accuracy is {without:.4f}."
        sentences.append(f"{found:,} test images repeat a training image, exactly or nearly.{accuracy}")
    return sentences


def _origin(origin: Origin) -> str:
    if origin.epochs:
        return f"It continues the training of {origin.weights} after epoch {origin.epochs}."
    return f"Training began with the weights of {origin.weights}, not with random ones."


def _header(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    metrics = [{"type": kind, "value": round(evaluation[key], 4), "name": key} for kind, key in METRICS.items()]
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": evaluation["dataset"], "type": evaluation["dataset"], "split": "test"},
        "metrics": metrics,
    }
    return {
        "library_name": "keras",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "dvc"],
        "datasets": [evaluation["dataset"]],
        "metrics": list(METRICS),
        "model-index": [{"name": f"{evaluation['dataset']}-classifier", "results": [result]}],
    }
