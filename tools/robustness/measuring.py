"""Measures the model on corrupted images and on images of other kinds, one batch at a time; resumes."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from stages.common.failure import StageError
from stages.common.outputs import write_json
from stages.common.pictures import Decoding
from stages.common.records import ModelRecord
from stages.common.scaling import scale
from stages.common.splits import Split
from stages.datasets import digits
from stages.model.inference import Predictor
from tools.predict import sources
from tools.robustness import corruptions
from tools.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt

STEP = 500  # images at a time; it takes part in the seeds
NOISE = 2000  # images
Pixels = NDArray[np.uint8]
Logits = Callable[[Pixels], NDArray[np.float32]]


def logits_of(model: keras.Model, record: ModelRecord) -> Logits:
    """Return the function from images, uint8 (N, H, W, C), to logits, float32 (N, classes); `model` changes."""
    last = model.layers[-1]
    if isinstance(last, keras.layers.Softmax):
        model = keras.Model(model.inputs, last.input)
    else:  # a dense layer with its softmax
        last.activation = keras.activations.linear
    predict = Predictor(model)
    return lambda images: predict(next(scale([images], record.by_channel)))


def corrupted_accuracy(
    logits: Logits, test: Split, path: Path, identity: str, seed: int
) -> dict[str, list[float]]:
    """Return the accuracy under each corruption at each severity, and on the images as they are, "none".

    Each result is written to `path` at once. Results of an earlier, interrupted run with the same `identity` of
    model and data, seed and code are used again.
    """
    code = hashlib.sha256(Path(corruptions.__file__).read_bytes()).hexdigest()
    run = {"identity": identity, "seed": seed, "code": code}
    done = _resumed(path, run)
    cells = [("none", 0), *((name, severity) for name in CORRUPTIONS for severity in SEVERITIES)]
    with tqdm(total=len(cells) * len(test.labels), unit=" images", disable=None, leave=False) as bar:
        for name, severity in cells:
            if len(done.setdefault(name, [])) < max(severity, 1):
                right = 0
                for number, (images, labels) in enumerate(_batches(test)):
                    shown = corrupt(images, name, severity, (seed, number)) if severity else images
                    right += int((logits(shown).argmax(axis=1) == labels).sum())
                    bar.update(len(images))
                done[name].append(right / len(test.labels))
                write_json(path, {"run": run, "accuracy": done})
            else:
                bar.update(len(test.labels))
    return done


def scores(logits: Logits, batches: Iterator[Pixels], temperature: float) -> NDArray[np.float64]:
    """Return float64 (N, 2): how much each image looks like the model's data, by two rules; more is more alike.

    The maximum of the probabilities (Hendrycks and Gimpel 2017, arXiv 1610.02136), and minus the energy, the
    log-sum-exp of the logits (Liu et al. 2020, arXiv 2010.03759).
    """
    from scipy.special import logsumexp

    parts = []
    for images in batches:
        values = logits(images).astype(np.float64) / temperature
        total = logsumexp(values, axis=1)
        parts.append(np.stack([np.exp(values.max(axis=1) - total), total], axis=1))
    if not parts:
        raise StageError("no image to compare with; name a folder of pictures")
    return np.concatenate(parts)


def auroc(own: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float]:
    """Return how often an image of its own scores higher than one of the others, by each rule of `scores`."""
    from sklearn.metrics import roc_auc_score

    truth = np.repeat([1, 0], [len(own), len(other)])
    by_probability, by_energy = (
        float(roc_auc_score(truth, np.concatenate([own[:, rule], other[:, rule]]))) for rule in (0, 1)
    )
    return by_probability, by_energy


def own_batches(test: Split) -> Iterator[Pixels]:
    """Yield the images of the test split."""
    return (images for images, _ in _batches(test))


def noise(rules: Decoding, seed: int) -> Iterator[Pixels]:
    """Yield images of uniformly random pixels."""
    generator = np.random.default_rng(seed)
    for _ in range(NOISE // STEP):
        yield generator.integers(0, 256, (STEP, rules.height, rules.width, rules.channels), dtype=np.uint8)


def digit_pictures(rules: Decoding) -> Iterator[Pixels]:
    """Yield the embedded test digits at the network's size."""
    from PIL import Image

    pictures = (Image.fromarray(image[:, :, 0]) for image in digits.load().test.images)
    size = (rules.width, rules.height)
    resized = [np.asarray(each.resize(size, Image.Resampling.BICUBIC)) for each in pictures]
    yield np.repeat(np.stack(resized)[..., np.newaxis], rules.channels, axis=3)


def given_pictures(paths: Sequence[str], rules: Decoding, problems: list[str]) -> Iterator[Pixels]:
    """Yield the pictures at `paths`; those that cannot be read are added to `problems`."""
    for _, images, unreadable in sources.batches(paths, rules):
        problems += [f"{name} {problem}" for name, problem in unreadable]
        if len(images):
            yield images


def _batches(test: Split) -> Iterator[tuple[Pixels, NDArray[Any]]]:
    for start in range(0, len(test.labels), STEP):
        yield test.take(np.arange(start, min(start + STEP, len(test.labels))))  # its pages do not stay in memory


def _resumed(path: Path, run: dict[str, Any]) -> dict[str, list[float]]:
    try:
        content = json.loads(path.read_bytes())
        return dict(content["accuracy"]) if content["run"] == run else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
