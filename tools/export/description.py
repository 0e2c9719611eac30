"""What an export says about itself: signature.json and README.md."""

import string
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.common.confidence import Confidence
from stages.common.records import ModelRecord
from stages.evaluation.card import RESIZE
from tools.export.formats import FORMATS
from tools.export.network import INPUT, OUTPUT
from tools.tables import table

SCHEMA_VERSION = 1
README = Path(__file__).with_name("readme.md")
HEADER = (
    "file",
    "MB",
    "largest difference",
    "other decisions",
    "accuracy",
    "McNemar p",
    "ms for one",
    "images/s",
    "at batch",
)


def signature(record: ModelRecord, confidence: Confidence, commit: str | None) -> dict[str, Any]:
    """Return the content of signature.json: how to call the exported files, and what they were made from."""
    return {
        "schema_version": SCHEMA_VERSION,
        "input": {
            "name": INPUT,
            "dtype": "uint8",
            "shape": ["N", *record.shape],
            "layout": "NHWC",
            "channels": color_mode(record.shape[2]),
        },
        "output": {"name": OUTPUT, "dtype": "float32", "shape": ["N", len(record.classes)]},
        "confidence": {"temperature": confidence.temperature, "threshold": confidence.threshold},
        "classes": record.classes,
        "decoding": {
            **record.decoding.model_dump(),
            "orientation": "upright by EXIF",
            "filter": "Pillow's bicubic, antialiased",
            "transparency": "white",
        },
        "scaling": "in the graph, as is the temperature",
        "model_sha256": record.sha256,
        "dataset": record.dataset.model_dump(),
        "commit": commit,
    }


def readme(name: str, formats: Sequence[str], report: Mapping[str, Any], record: ModelRecord) -> str:
    """Return README.md with the code for each of the formats; `report` is the content of export.json."""
    head, *sections = README.read_text(encoding="utf-8").split("\n## ")
    titles = {FORMATS[each].section for each in formats}
    kept = [section for section in sections if section.partition("\n")[0] in titles]
    height, width, channels = record.shape
    resized = RESIZE[record.decoding.resize].format(size=(width, height))
    return string.Template("\n## ".join([head, *kept])).substitute(
        name=name,
        count=len(record.classes),
        names=", ".join(record.classes),
        images=f"{report['test_images']:,}",
        table=files_table(report, markdown=True),
        height=height,
        width=width,
        channels=channels,
        resized=resized,
        mode=color_mode(channels),
        litert=next((FORMATS[each].file for each in formats if FORMATS[each].section == "LiteRT"), ""),
    )


def files_table(report: Mapping[str, Any], markdown: bool) -> str:
    """Return the table of the files in `report`, the content of export.json."""
    rows = [
        (
            name,
            f"{file['bytes'] / 1e6:.2f}",
            f"{file['largest_difference']:.1g}",
            f"{file['decisions']:,}" + (f" + {file['ties']:,} ties" if file["ties"] else ""),
            f"{file['accuracy']:.4f}",
            f"{file['p_value']:.2g}",
            f"{file['milliseconds']:.2f}",
            f"{file['images_per_second']:,.0f}",
            f"{file['batch']}",
        )
        for name, file in report["files"].items()
    ]
    return table(HEADER, rows, markdown)


def color_mode(channels: int) -> str:
    """Return Pillow's name for images of so many channels."""
    return "L" if channels == 1 else "RGB"


def commit(folder: Path, revision: str | None = None) -> str | None:
    """Return the commit of the checkout, with -dirty when tracked files differ from it, or that of a `revision`.

    None without git, or for the name of a DVC experiment.
    """
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    if revision is not None:
        command = ["git", "rev-parse", "--verify", f"{revision}^{{commit}}"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
