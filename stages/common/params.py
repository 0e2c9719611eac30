"""Loads and validates one section of params.yaml. A mistake is reported in one line with file, line and key.

DVC reads the same file with ruamel.yaml, as YAML 1.2: `1e-3` is a number and `yes` is text. So does this module.
"""

import difflib
import re
import typing
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML, MappingNode, SequenceNode
from ruamel.yaml.error import MarkedYAMLError, StringMark, YAMLError

from stages.common.failure import StageError

SECTIONS = ("dataset", "preprocess", "model", "train", "runtime", "evaluate")
UNKNOWN = ("extra_forbidden", "invalid_key")  # pydantic's names for keys that no field has, and that are not text

S = TypeVar("S", bound="Section")
Location = tuple[str | int, ...]


def _sha256(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError(f"it should be a SHA-256, 64 digits of 0-9 and a-f, found {text!r}")
    return text


SHA256 = Annotated[str, AfterValidator(_sha256)]
OptionalSHA256 = Annotated[str, AfterValidator(lambda text: text and _sha256(text))]  # or empty


class Section(BaseModel):
    """Base class of the sections of params.yaml. Each section is defined beside the code that it configures."""

    # strict: "32" is not 32, and true is not 1.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def load(path: Path, section: str, model: type[S]) -> S:
    """Return `section` of the YAML file at `path` as a validated, immutable `model`.

    Raises `StageError` with file, line, key and, for a misspelt name, the closest valid one: for a missing or
    invalid file, an unknown, missing or duplicate key, a wrong type, and a value out of range. Top-level names
    are checked against `SECTIONS`, so a misspelt section is not mistaken for a missing one.
    """
    values = read(path)
    for name in values:
        if name not in SECTIONS:
            close = _closest(str(name), SECTIONS)
            hint = f"did you mean '{close}'?" if close else f"known: {', '.join(SECTIONS)}"
            raise _error(path, (str(name),), f"unknown section; {hint}")
    if section not in values:
        raise StageError(f"{path}:1: the section '{section}' is missing; add it, or restore it with git")
    try:
        return model.model_validate(values[section] if values[section] is not None else {})
    except ValidationError as failure:
        # A misspelt key also leaves its correct spelling missing: report only the misspelt one.
        unknown = [error for error in failure.errors() if error["type"] in UNKNOWN]
        intended = {(*error["loc"][:-1], _closest_key(model, error["loc"])) for error in unknown}
        others = [error for error in failure.errors() if error not in unknown and error["loc"] not in intended]
        mistakes = [*unknown, *others]
        # Count positions in the file: one number that stands for height and width is wrong twice, but one mistake.
        root = _nodes(path)
        positions = {
            error["loc"] if error["type"] == "missing" else _mark(root, (section, *error["loc"])).index
            for error in mistakes
        }
        more = f" (and {len(positions) - 1} more like it)" if len(positions) > 1 else ""
        first = mistakes[0]
        raise _error(path, (section, *first["loc"]), _explain(model, first) + more) from None


def read(path: Path) -> dict[str, Any]:
    """Return the values of the whole file, not validated; raises `StageError` when it is not valid YAML."""
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{path}: no such file; run from the repository's root, or pass --params") from None
    except UnicodeDecodeError as error:
        raise StageError(f"{path}: not UTF-8 text at byte {error.start}; save it as UTF-8") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise StageError(f"{where}: not valid YAML: {error.problem}; correct that line") from None
    except (YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # The parser reports ill-formed values, such as `!!int x`, with whatever its conversion raises.
        raise StageError(f"{path}: not valid YAML: {error}; correct it") from None
    if not isinstance(values, dict):
        raise StageError(f"{path}:1: expected sections with keys: {', '.join(SECTIONS)}")
    return values


def _error(path: Path, location: Location, problem: str) -> StageError:
    line = _mark(_nodes(path), location).line + 1
    return StageError(f"{path}:{line}: {_dotted(location)}: {problem}")


def _nodes(path: Path) -> Any:
    """Return the file's syntax tree, which has the lines and columns that plain values lack."""
    return YAML(typ="safe", pure=True).compose(path.read_text(encoding="utf-8"))


def _mark(node: Any, location: Location) -> StringMark:
    """Return the position of the deepest node on the way to `location`: a mapping's key or a list's item."""
    mark = node.start_mark
    for step in location:
        if isinstance(node, MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == str(step)), None)
            if pair is None:
                break
            mark, node = pair[0].start_mark, pair[1]
        elif isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            mark = node.start_mark
        else:
            break
    return typing.cast("StringMark", mark)


def _explain(model: type[Section], error: Any) -> str:
    location: Location = error["loc"]
    if error["type"] in UNKNOWN:
        close = _closest_key(model, location)
        known = ", ".join(_fields(model, location[:-1]))
        return f"unknown key; did you mean '{close}'?" if close else f"unknown key; known: {known}"
    if error["type"] == "missing":
        return "this key is missing; add it, or restore it with git"
    if error["type"] == "model_type":
        return f"expected keys: {', '.join(_fields(model, location))}"
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
        close = _closest(error["input"], re.findall(r"'([^']*)'", str(error.get("ctx", {}).get("expected", ""))))
        if error["type"] == "literal_error" and close:
            hint = f"; did you mean '{close}'?"
        elif error["type"] in ("int_type", "float_type") and _is_number(error["input"]):
            hint = "; write it without quotes"
    return f"{expected}, found {found}{hint}"


def _fields(model: type[Section], location: Location) -> list[str]:
    """Return the keys that the section at `location` inside `model` can have."""
    annotation: Any = model
    for step in location:
        if isinstance(step, int):
            annotation = typing.get_args(annotation)[0]
        else:
            annotation = annotation.model_fields[step].annotation
    return [field.alias or name for name, field in annotation.model_fields.items()]


def _closest_key(model: type[Section], location: Location) -> str | None:
    """Return the valid key closest to the unknown one at `location`."""
    return _closest(str(location[-1]), _fields(model, location[:-1]))


def _closest(name: str, valid: typing.Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, valid, n=1, cutoff=0.5)), None)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _dotted(location: Location) -> str:
    """Return the key as `dvc exp run -S` spells it: train.learning_rate, model.blocks[0].filters."""
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text
