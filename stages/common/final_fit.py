"""A final fit on all training images, `preprocess.validation_fraction: 0`: which params it rules out.

The split validation.npz then exists and is empty.
"""

from pathlib import Path

from stages.common import params
from stages.common.failure import StageError

# What needs validation images, and the value that turns it off.
OFF = {"train.early_stopping": 0, "evaluate.temperature": "none", "evaluate.abstain": 0}


def check_final_fit(path: Path) -> None:
    """Raise `StageError` if the params at `path` ask for something that only validation images can give.

    Each stage of a final fit calls this: preprocess, so that nobody waits for training first, and the later ones,
    because preprocess does not run again when only their own params have changed.
    """
    values = params.read(path)
    needed = []
    for key, off in OFF.items():
        section, _, name = key.partition(".")
        keys = values.get(section)
        if isinstance(keys, dict) and keys.get(name, off) != off:
            needed.append(key)
    if needed:
        raise StageError(
            f"{path}: {' and '.join(needed)} {'needs' if len(needed) == 1 else 'need'} validation images, but "
            f"preprocess.validation_fraction is 0; set {', '.join(f'{key}: {OFF[key]}' for key in needed)}, or a "
            "fraction above 0"
        )
