"""Reading, validating and writing params.yaml; errors name the key, the allowed values and the nearest spelling."""

from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML, ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarfloat import ScalarFloat

from rootstock.config.ingest_params import Ingest
from rootstock.config.params import Params, Section
from rootstock.system import yaml_file
from rootstock.system.errors import ParamsError
from rootstock.system.files import write

EXPECTED = {  # by pydantic error type, where pydantic's own message does not suit someone who writes YAML
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_type": "a whole number",
    "string_too_short": "text",
    "string_type": "text (in quotes, if it looks like a number or a date)",
    "tuple_type": "a list",
}
FORMER_KEYS = {key: former for former, key in Ingest.former_keys.items()}  # no other section has any
SHOWN_CHARACTERS = 200  # of a value in a message


def load(path: Path) -> Params:
    """Read and check a parameter file.

    Raises:
        ParamsError: the file is missing or not YAML, or a key is unknown, missing, of the wrong type or out of range.
    """
    return validate(yaml_file.read(path, "Start Rootstock in the folder that contains it."), path.name)


def validate(raw: Any, where: str) -> Params:  # noqa: ANN401
    """Return the parameters that plain values describe.

    Args:
        raw: sections by name, as parsed from YAML or JSON.
        where: they come from, for error messages.

    Raises:
        ParamsError: a key is unknown, missing, of the wrong type or out of range.
    """
    try:
        return Params.model_validate({} if raw is None else raw)
    except ValidationError as error:
        raise ParamsError(explain(error, where)) from None
    except RecursionError:
        raise ParamsError(f"{where}: a YAML anchor contains itself; expected values with finite nesting") from None


def check_complete(params: Params, where: str) -> None:
    """Check that parameters name what has no default: at least one source of images.

    Raises:
        ParamsError: there is no source.
    """
    if not params.ingest.sources:
        expected = type(params.ingest).model_fields["sources"].description
        raise ParamsError(f"{where}: ingest.sources is missing; expected: {expected}")


def explain(error: ValidationError, where: str, section: tuple[str, ...] = ()) -> str:
    """Describe validation errors, one per line: key, value, what was expected, nearest spelling.

    Args:
        error: of all parameters, or of one section.
        where: the values come from, e.g. the file name.
        section: path of that section.
    """
    return "\n".join(_describe(where, {**problem, "loc": (*section, *problem["loc"])}) for problem in _causes(error))


def save(path: Path, params: Params) -> None:
    """Write `params` to a parameter file, keeping its comments and the order of its keys."""
    write(path, render(path, params))


def render(path: Path, params: Params) -> str:
    """Return the text of a parameter file updated to `params`.

    Only values that differ are changed: a key left to its default is not added, so DVC sees no change.
    """
    yaml = YAML()  # round trip: YAML 1.2, as DVC reads it
    yaml.Representer = _ExactFloats
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 10_000  # wraps no line
    yaml.preserve_quotes = True
    document = yaml.load(path) if path.exists() else None
    before = _values(load(path)) if document else None
    document = _merge(document, before, _values(params))
    text = StringIO()
    yaml.dump(document, text)
    return text.getvalue()


def _values(params: Params) -> dict[str, Any]:
    """Return what a file of these parameters says: all of them, but no empty list of sources, which `load` refuses."""
    without = None if params.ingest.sources else {"ingest": {"sources"}}
    return params.model_dump(mode="json", exclude=without)


class _ExactFloats(RoundTripRepresenter):
    """Writes a float in its original style, unless that would change its last digit."""

    def represent_scalar_float(self, data: ScalarFloat) -> ScalarNode:
        node: ScalarNode = super().represent_scalar_float(data)
        return node if float(node.value) == data else self.represent_float(float(data))


_ExactFloats.add_representer(ScalarFloat, _ExactFloats.represent_scalar_float)


def _merge(old: Any, before: Any, new: Any) -> Any:  # noqa: ANN401
    """Update the document `old` where `new` differs from `before`; the rest keeps its comments."""
    if new == before:
        return old
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in new.items():
            if key not in before or value != before[key]:
                old[key] = _merge(old.get(key), before.get(key), value)
                old.pop(FORMER_KEYS.get(key), None)  # or the value under the former name would win
        for key in before.keys() - new.keys():  # of a mapping with free keys
            old.pop(key, None)
        return old
    if isinstance(old, list) and isinstance(new, list) and new:
        while len(old) > len(new):
            old.pop()
        for index in range(len(old)):
            old[index] = _merge(old[index], before[index], new[index])
        old.extend(new[len(old) :])
        return old
    return new


def _causes(error: ValidationError) -> list[ErrorDetails]:
    """Return the errors, without 'too short' for a list whose entries are themselves invalid."""
    found = error.errors()
    inside = {problem["loc"][:depth] for problem in found for depth in range(len(problem["loc"]))}
    return [problem for problem in found if problem["type"] != "too_short" or problem["loc"] not in inside]


def _describe(file: str, problem: ErrorDetails) -> str:
    """Describe one pydantic error: key, value, what was expected, nearest spelling."""
    location, given = problem["loc"], problem["input"]
    section, last = _section_of(location), str(location[-1]) if location else ""
    key = _key(location) or "the file"
    match problem["type"]:
        case "extra_forbidden" | "invalid_key":
            known = list(section.model_fields)
            key = ".".join(filter(None, (_key(location[:-1]), last)))
            return f"{file}: unknown key {key}; expected one of {', '.join(known)}.{_nearest(last, known)}"
        case "missing":
            return f"{file}: {key} is missing; expected: {section.model_fields[last].description}"
        case "literal_error":
            allowed = _choices(section.model_fields[last].annotation)
            few = len(allowed) <= 12
            expected = ", ".join(allowed) if few else f"one of {len(allowed)} names (see docs/backbones.md)"
            return f"{file}: {key} is {_shown(given)}; expected {expected}.{_nearest(str(given), allowed)}"
        case "value_error":
            message = problem["msg"].removeprefix("Value error, ")
            return f"{file}: {key} {message}" if message.startswith("is ") else f"{file}: {key}: {message}."
        case "too_short":
            least, found = problem["ctx"]["min_length"], problem["ctx"]["actual_length"]
            has = f"has {found} {'entry' if found == 1 else 'entries'}" if found else "is empty"
            return f"{file}: {key} {has}; expected at least {least} {'entry' if least == 1 else 'entries'}."
        case "model_type":
            expected = f"the keys {', '.join(_section_of((*location, '')).model_fields)}"
        case kind:
            message = problem["msg"].removeprefix("Input should be ")
            message = message.replace("greater than or equal to", "at least")
            expected = EXPECTED.get(kind) or message.replace("less than or equal to", "at most")
    return f"{file}: {key} is {_shown(given)}; expected {expected}."


def _choices(annotation: Any) -> list[str]:  # noqa: ANN401
    """Return the values of a Literal, also of an optional one."""
    choices = get_args(annotation)
    if get_origin(annotation) is not Literal:
        choices = tuple(choice for part in choices for choice in get_args(part))
    return [str(choice) for choice in choices]


def _key(location: tuple[int | str, ...]) -> str:
    """Format a location as in finetune.stages[1].unfreeze."""
    key = ""
    for part in location:
        if isinstance(part, int):
            key += f"[{part}]"
        elif part.isidentifier() or not key:  # skips pydantic's names for the branches of a union
            key += f".{part}" if key else str(part)
    return key


def _shown(given: object) -> str:
    """Format a value, but never a whole section: a source's address may contain a secret."""
    match given:
        case None:
            return "empty"
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case bool():
            return str(given).lower()
    try:
        shown = repr(given)
    except ValueError:  # more digits than Python writes
        return "a number with thousands of digits"
    return shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}..."


def _section_of(location: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the section that contains, or should contain, the last part of a location."""
    section: type[BaseModel] = Params
    for part in location[:-1]:
        if isinstance(part, str) and part in section.model_fields:
            section = section_in(section.model_fields[part].annotation) or section
    return section


def section_in(annotation: Any) -> type[Section] | None:  # noqa: ANN401
    """Return the section type of a field, alone or in a tuple; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_in(part))), None)


def _nearest(given: str, allowed: list[str]) -> str:
    near = get_close_matches(given.lower(), allowed, n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""
