"""Load one section of params.yaml and validate it; every mistake is one line with file, line and key.

PyYAML reads YAML 1.1, where `1e-3` is a string and `yes` is true; DVC, which tracks the same file, reads
YAML 1.2. The loader here follows YAML 1.2's core schema for numbers and booleans, so that both see the same.
"""

import difflib
import re
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from stages.common.failure import StageError

SECTIONS = ("dataset", "preprocess", "model", "train", "runtime", "evaluate")

S = TypeVar("S", bound="Section")
Location = tuple[str | int, ...]


class Section(BaseModel):
    """A section of params.yaml; its class stands beside the code that it configures."""

    # strict: "32" is not 32, and true is not 1. NaN and infinity are never a choice.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def load(path: Path, section: str, model: type[S]) -> S:
    """Return `section` of the YAML file at `path` as a validated, immutable `model`.

    Raises `StageError` with file, line, key and the nearest valid name, when the file is missing or not
    YAML, when a key is unknown, misspelt, missing or given twice, and when a value has the wrong type or is
    out of range. Top-level names are checked against `SECTIONS`, so that a misspelt section is not taken
    for an absent one.
    """
    root, values = _read(path)
    for name in values:
        if name not in SECTIONS:
            close = _nearest(name, SECTIONS)
            hint = f"did you mean '{close}'?" if close else f"known: {', '.join(SECTIONS)}"
            raise _error(path, root, (name,), f"unknown section; {hint}")
    if section not in values:
        raise StageError(f"{path}:1: the section '{section}' is missing; add it, or restore it with git")
    try:
        return model.model_validate(values[section] if values[section] is not None else {})
    except ValidationError as failure:
        # A misspelt key is also a missing one: what was written wrongly explains more than what is absent.
        unknown = [error for error in failure.errors() if error["type"] == "extra_forbidden"]
        meant = {(*error["loc"][:-1], _meant(model, error["loc"])) for error in unknown}
        others = [error for error in failure.errors() if error not in unknown and error["loc"] not in meant]
        mistakes = [*unknown, *others]
        # By place: of a value that stands for several, such as one number for height and width, each is wrong.
        places = {
            mistake["loc"] if mistake["type"] == "missing" else _mark(root, (section, *mistake["loc"])).index
            for mistake in mistakes
        }
        more = f" (and {len(places) - 1} more like it)" if len(places) > 1 else ""
        first = mistakes[0]
        raise _error(path, root, (section, *first["loc"]), _explain(model, first) + more) from None


def read(path: Path) -> dict[str, Any]:
    """Return the values of the whole file, unvalidated; raises `StageError` when it is not sound YAML."""
    return _read(path)[1]


def _read(path: Path) -> tuple[yaml.MappingNode, dict[str, Any]]:
    """Parse the file into values, and into nodes, which keep the line and column that plain values lose."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
        if not isinstance(root, yaml.MappingNode):
            raise StageError(f"{path}:1: sections with keys are expected: {', '.join(SECTIONS)}")
        _refuse_odd_keys(path, root, (), ())
        return root, _Loader("").construct_document(root)
    except FileNotFoundError:
        raise StageError(
            f"{path}: no such file; run from the repository's root or name it with --params"
        ) from None
    except UnicodeDecodeError as error:
        raise StageError(f"{path}: not UTF-8 text at byte {error.start}; save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise StageError(f"{where}: not valid YAML: {error.problem}; correct that line") from None
    except (yaml.YAMLError, ValueError) as error:
        raise StageError(f"{path}: not valid YAML: {error}; correct it") from None


def _refuse_odd_keys(path: Path, node: yaml.Node, location: Location, ancestors: tuple[yaml.Node, ...]) -> None:
    """A key given twice would silently win over the first; a key that is not text cannot be a name."""
    if any(node is ancestor for ancestor in ancestors):
        raise StageError(f"{path}:{node.start_mark.line + 1}: {_dotted(location)}: an alias of what it stands in")
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _refuse_odd_keys(path, item, (*location, index), (*ancestors, node))
    if not isinstance(node, yaml.MappingNode):
        return
    first: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag != "tag:yaml.org,2002:str":
            raise StageError(f"{path}:{line}: {_dotted(location) or 'the file'}: a key must be a plain name")
        name = _dotted((*location, key.value))
        if key.value in first:
            raise StageError(f"{path}:{line}: {name}: given twice, first in line {first[key.value]}; keep one")
        first[key.value] = line
        _refuse_odd_keys(path, value, (*location, key.value), (*ancestors, node))


def _error(path: Path, root: yaml.Node, location: Location, problem: str) -> StageError:
    line = _mark(root, location).line + 1
    return StageError(f"{path}:{line}: {_dotted(location)}: {problem}")


def _mark(node: yaml.Node, location: Location) -> yaml.Mark:
    """The place of the deepest node that `location` reaches: its key in a mapping, its item in a list."""
    mark = node.start_mark
    for part in location:
        if isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == part), None)
            if pair is None:
                break
            mark, node = pair[0].start_mark, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            mark = node.start_mark
        else:
            break
    return mark


def _explain(model: type[Section], error: Any) -> str:
    location: Location = error["loc"]
    if error["type"] == "extra_forbidden":
        close = _meant(model, location)
        known = ", ".join(_fields(model, location[:-1]))
        return f"unknown key; did you mean '{close}'?" if close else f"unknown key; known: {known}"
    if error["type"] == "missing":
        return "this key is missing; add it, or restore it with git"
    if error["type"] == "model_type":
        return f"keys are expected here: {', '.join(_fields(model, location))}"
    expected = re.sub("^(Input|String|List) should", "it should", error["msg"].removeprefix("Value error, "))
    if error["type"] == "value_error":
        return str(expected)
    found = "nothing" if error["input"] is None else repr(error["input"])
    hint = ""
    if error["type"] == "bool_type":
        hint = "; write true or false"
    elif error["type"] == "int_type" and isinstance(error["input"], float) and error["input"].is_integer():
        hint = f"; write {error['input']:.0f}"
    elif isinstance(error["input"], str):
        close = _nearest(error["input"], re.findall(r"'([^']*)'", str(error.get("ctx", {}).get("expected", ""))))
        if error["type"] == "literal_error" and close:
            hint = f"; did you mean '{close}'?"
        elif error["type"] in ("int_type", "float_type") and _number(error["input"]):
            hint = "; write it without quotes"
    return f"{expected}, found {found}{hint}"


def _fields(model: type[Section], location: Location) -> list[str]:
    """The names that the section at `location` inside `model` may have."""
    annotation: Any = model
    for part in location:
        if isinstance(part, int):
            annotation = typing.get_args(annotation)[0]
        else:
            annotation = annotation.model_fields[part].annotation
    return list(annotation.model_fields)


def _meant(model: type[Section], location: Location) -> str | None:
    """The valid key nearest to the unknown one at `location`."""
    return _nearest(str(location[-1]), _fields(model, location[:-1]))


def _nearest(name: str, valid: typing.Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, valid, n=1, cutoff=0.5)), None)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _dotted(location: Location) -> str:
    """The name as `dvc exp run -S` takes it: train.learning_rate, model.blocks[0].filters."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's booleans, integers and floats (its core schema, section 10.3.2)."""


_IMPLICIT = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
}
_Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _IMPLICIT.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})$"), list(_first))
# PyYAML's own constructor reads 010 as octal; YAML 1.2 reads it as ten, and octal as 0o10.
_Loader.add_constructor(
    "tag:yaml.org,2002:int",
    lambda loader, node: int(node.value, 0 if node.value[:2] in ("0o", "0x") else 10),
)
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: _float(node.value))


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
