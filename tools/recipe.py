"""Write a recipe into params.yaml: `python -m tools.recipe fast`, or `tutorial` to go back.

A recipe is recipes/NAME.yaml. Its sections model, train and evaluate replace those in params.yaml, including
comments; of runtime only the keys in the recipe are set. Everything else stays, so the next `dvc repro` or
`dvc exp run` trains and evaluates again, but does not download or preprocess.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from stages.common import failure
from stages.common.failure import StageError
from stages.common.outputs import replacing
from stages.common.params import load, read
from stages.model.runtime import RuntimeParams, has_amx, has_bfloat16
from tools.check import check_params

RECIPES = Path("recipes")
WHOLE = ("model", "train", "evaluate")
CPUINFO = Path("/proc/cpuinfo")


def main(arguments: Sequence[str]) -> None:
    """Parse, check, write, print."""
    options = _parse(arguments)
    recipe = RECIPES / f"{options.recipe}.yaml"
    if not recipe.is_file():
        known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
        raise StageError(
            f"{options.recipe}: no such recipe; available: {known or 'none here; run this in the repository'}"
        )
    # The other sections are checked after the change, because the recipe may fix them.
    _check_recipe(recipe, load(options.params, "runtime", RuntimeParams))
    changed = with_recipe(options.params.read_text(encoding="utf-8"), recipe.read_text(encoding="utf-8"))
    with replacing(options.params) as partial:
        partial.write_text(changed, encoding="utf-8")
        try:
            check_params(partial)
        except StageError as error:
            problem = str(error).replace(str(partial), f"{options.params} with this recipe")
            raise StageError(f"{recipe}: nothing was changed: {problem}") from None
    print(f"{options.params}: recipe {options.recipe} applied. Next: dvc repro")


def _check_recipe(path: Path, runtime: RuntimeParams) -> None:
    recipe = read(path)
    absent, unknown = set(WHOLE) - recipe.keys(), recipe.keys() - {*WHOLE, "runtime"}
    unknown |= {f"runtime.{key}" for key in (recipe.get("runtime") or {}).keys() - runtime.model_dump().keys()}
    for names, problem in ((absent, "missing"), (unknown, "not allowed in a recipe")):
        if names:
            raise StageError(
                f"{path}: {', '.join(sorted(names))}: {problem}; a recipe has the whole sections "
                f"{', '.join(WHOLE)}, and keys of runtime"
            )


def with_recipe(params: str, recipe: str) -> str:
    """Return `params`, the text of params.yaml, with the values of `recipe`, the text of a recipe.

    Raises `StageError` if the sections of `params` do not start at the left margin.
    """
    params, recipe = (text if text.endswith("\n") else f"{text}\n" for text in (params, recipe))
    for section in WHOLE:
        start, end = _section(params, section)
        params = params[:start] + recipe[slice(*_section(recipe, section))] + params[end:]
    for key, value in (yaml.safe_load(recipe).get("runtime") or {}).items():
        if value == "bfloat16" and not is_bfloat16_faster():
            value = "float32"
            print("this CPU is not faster in bfloat16: using float32", file=sys.stderr)
        start, end = _value(params, "runtime", key)
        params = f"{params[:start]}{value}{params[end:]}"
    return params


def is_bfloat16_faster() -> bool:
    """Return whether this CPU trains faster in bfloat16 than in float32: one with AMX, or AMD's with AVX512-BF16.

    Intel's CPUs with AVX512-BF16 but without AMX, or whose virtual machine hides it, take 1.4 times as long in
    bfloat16, as docs/fast-recipe.md measures.
    """
    return has_amx() or (has_bfloat16() and "AuthenticAMD" in CPUINFO.read_text(encoding="utf-8"))


def _section(text: str, name: str) -> tuple[int, int]:
    """Return start and end of a section: from its name to the blank lines and comments before the next section."""
    root: Any = yaml.compose(text)
    keys = [key for key, _ in root.value]
    index = next((index for index, key in enumerate(keys) if key.value == name), None)
    if index is None or root.flow_style:
        raise StageError(f"section {name} not found at the left margin; restore params.yaml with git")
    start = keys[index].start_mark.index
    end = keys[index + 1].start_mark.index if index + 1 < len(keys) else len(text)
    return start, start + len(re.sub(r"\n(?:[ \t]*\n|#.*\n)*\Z", "\n", text[start:end]))


def _value(text: str, section: str, key: str) -> tuple[int, int]:
    """Return start and end of the value of `section.key`."""
    node: Any = yaml.compose(text)
    for name in (section, key):
        node = next(value for found, value in node.value if found.value == name)
    return node.start_mark.index, node.end_mark.index


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.recipe", description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", help="the name of a file in recipes/, without .yaml")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(failure.run("recipe", main))
