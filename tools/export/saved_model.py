"""SavedModel in the layout of TensorFlow Serving: a folder a version."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf
from keras.export import ExportArchive

from stages.common.pictures import Decoding
from tools.export.checks import Run
from tools.export.network import INPUT, OUTPUT, Graph, from_files

PIXELS, FILES = "serving_default", "encoded"  # the signatures
FILES_INPUT = "files"


def write(folder: Path, graph: Graph, rules: Decoding, assets: Sequence[Path]) -> None:
    """Write the graph with two signatures: of pixels, uint8 (N, H, W, C), and of JPEG or PNG files, string (N,).

    The second one is left out when the `rules` crop or pad pictures, which it cannot do.
    assets: files to put into assets.extra, which TensorFlow reserves for what only people and their tools read.
    """
    shape = (rules.height, rules.width, rules.channels)
    archive = pixels_archive(graph, shape)
    if rules.resize == "stretch":
        files = [tf.TensorSpec((None,), tf.string, FILES_INPUT)]
        archive.add_endpoint(FILES, from_files(graph, shape), input_signature=files)
    archive.write_out(str(folder), verbose=False)
    (folder / "assets.extra").mkdir()
    for asset in assets:
        shutil.copy(asset, folder / "assets.extra")


def pixels_archive(graph: Graph, shape: Sequence[int]) -> ExportArchive:
    """Return the archive of a SavedModel with the signature of pixels."""
    archive = ExportArchive()
    # Not archive.track(network), with which Keras 3.15 writes every weight twice.
    archive.add_endpoint(PIXELS, graph, input_signature=[tf.TensorSpec((None, *shape), tf.uint8, INPUT)])
    return archive


def load(folder: Path) -> Run:
    """Return the folder's function from images, uint8 (N, H, W, C), to probabilities, float32 (N, classes)."""
    model = tf.saved_model.load(str(folder))
    return lambda images: model.signatures[PIXELS](**{INPUT: tf.constant(images)})[OUTPUT].numpy()
