"""Write a recipe into params.yaml: `python -m tools.recipe fast`, or `tutorial` to go back.

A recipe is recipes/NAME.yaml. Its sections model, train and evaluate take the place of those in params.yaml,
comments and all; of runtime only the keys that it names are set. What else is chosen there stays. So the next
`dvc repro` or `dvc exp run` trains and evaluates anew, and neither downloads nor preprocesses.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from stages import failure
from stages.failure import StageError
from stages.outputs import replacing
from stages.params import read
from stages.runtime import has_bfloat16
from tools.check import check_params

RECIPES = Path("recipes")
WHOLE = ("model", "train", "evaluate")


def main(arguments: Sequence[str]) -> None:
    """Parse, write, check, tell."""
    options = _parse(arguments)
    recipe = RECIPES / f"{options.recipe}.yaml"
    if not recipe.is_file():
        known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
        raise StageError(f"{options.recipe}: no such recipe; there are: {known}")
    check_params(options.params)
    _check_recipe(recipe, read(options.params)["runtime"])
    changed = with_recipe(options.params.read_text(encoding="utf-8"), recipe.read_text(encoding="utf-8"))
    with replacing(options.params) as partial:
        partial.write_text(changed, encoding="utf-8")
        try:
            check_params(partial)
        except StageError as error:
            problem = str(error).replace(str(partial), f"{options.params} with it")
            raise StageError(f"{recipe}: nothing was changed, as {problem}") from None
    print(f"{options.params} has the recipe {options.recipe}; now: dvc repro")


def _check_recipe(path: Path, runtime: Mapping[str, Any]) -> None:
    recipe = read(path)
    absent, unknown = set(WHOLE) - recipe.keys(), recipe.keys() - {*WHOLE, "runtime"}
    unknown |= {f"runtime.{key}" for key in (recipe.get("runtime") or {}).keys() - runtime.keys()}
    for names, problem in ((absent, "not in it"), (unknown, "not a recipe's")):
        if names:
            raise StageError(
                f"{path}: {', '.join(sorted(names))}: {problem}; a recipe has {', '.join(WHOLE)}, each whole, and "
                "keys of runtime"
            )


def with_recipe(params: str, recipe: str) -> str:
    """Return the text of params.yaml, `params`, with the choices of the text `recipe` in it."""
    for section in WHOLE:
        start, end = _section(params, section)
        params = params[:start] + recipe[slice(*_section(recipe, section))] + params[end:]
    for key, value in (yaml.safe_load(recipe).get("runtime") or {}).items():
        if value == "bfloat16" and not has_bfloat16():
            value = "float32"
            print(
                "this CPU does not compute in bfloat16: float32, which takes half as long again", file=sys.stderr
            )
        start, end = _value(params, "runtime", key)
        params = f"{params[:start]}{value}{params[end:]}"
    return params


def _section(text: str, name: str) -> tuple[int, int]:
    """Where a section of a YAML text stands: from its name to its last line that is not blank or at the margin."""
    found = re.search(rf"^{name}:.*\n(?:(?:[ \t].*)?\n)*", text, flags=re.MULTILINE)
    assert found  # `check_params` has seen it
    return found.start(), found.start() + len(found[0].rstrip()) + 1


def _value(text: str, section: str, key: str) -> tuple[int, int]:
    """Where the value of one of its keys stands."""
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
