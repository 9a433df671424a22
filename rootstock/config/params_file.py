"""params.yaml: read once, checked whole, and an error names the key, what it may be and the nearest spelling."""

from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML, ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarfloat import ScalarFloat

from rootstock.config.params import Params, Section
from rootstock.system import yaml_file
from rootstock.system.errors import ParamsError
from rootstock.system.files import write

EXPECTED = {  # by pydantic's names of errors, where its own words are not for the person who writes YAML
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_type": "a whole number",
    "string_too_short": "text",
    "string_type": "text (in quotes, if it looks like a number or a date)",
    "tuple_type": "a list",
}
SHOWN = 200  # characters of a value


def load(path: Path) -> Params:
    """Read and check a parameter file.

    Raises:
        ParamsError: the file is missing, is not YAML, or a key is unknown, missing, of the wrong type or impossible.
    """
    return checked(yaml_file.read(path, "Start Rootstock in the folder that holds it."), path.name)


def checked(raw: Any, where: str) -> Params:  # noqa: ANN401
    """Make parameters of plain values.

    Args:
        raw: sections by their names, as YAML or JSON have them.
        where: they are from, for the errors.

    Raises:
        ParamsError: a key is unknown, missing, of the wrong type or impossible.
    """
    try:
        return Params.model_validate({} if raw is None else raw)
    except ValidationError as error:
        raise ParamsError(explain(error, where)) from None
    except RecursionError:  # an anchor that holds itself
        raise ParamsError(f"{where}: values in values, without an end") from None


def check_whole(params: Params, where: str) -> None:
    """Check that parameters name what no default can: whose images these are to be.

    Raises:
        ParamsError: there is no source.
    """
    if not params.ingest.sources:
        expected = type(params.ingest).model_fields["sources"].description
        raise ParamsError(f"{where}: ingest.sources is missing; expected: {expected}")


def explain(error: ValidationError, where: str, section: tuple[str, ...] = ()) -> str:
    """Put what pydantic found into words: the key, what it is, what was expected, the nearest spelling.

    Args:
        error: of all parameters, or of a section of them.
        where: the file, say.
        section: the way to that section.
    """
    return "\n".join(_say(where, {**problem, "loc": (*section, *problem["loc"])}) for problem in _causes(error))


def save(path: Path, params: Params) -> None:
    """Write `params` to a parameter file, keeping the comments and the order of what is there."""
    write(path, text_with(path, params))


def text_with(path: Path, params: Params) -> str:
    """Return the text of a parameter file with `params` in it.

    Only what differs is changed: a key that is left to its default stays away, and DVC sees no change in it.
    """
    yaml = YAML()  # round trip: YAML 1.2, as DVC reads it
    yaml.Representer = _ExactFloats
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 10_000  # no line is broken that was not
    yaml.preserve_quotes = True
    document = yaml.load(path) if path.exists() else None
    before = load(path).model_dump(mode="json") if document else None
    document = _merge(document, before, params.model_dump(mode="json"))
    text = StringIO()
    yaml.dump(document, text)
    return text.getvalue()


class _ExactFloats(RoundTripRepresenter):
    """Writes a float in the style that it had, but for one of many digits, whose last one that would change."""

    def represent_scalar_float(self, data: ScalarFloat) -> ScalarNode:
        node: ScalarNode = super().represent_scalar_float(data)
        return node if float(node.value) == data else self.represent_float(float(data))


_ExactFloats.add_representer(ScalarFloat, _ExactFloats.represent_scalar_float)


def _merge(old: Any, before: Any, new: Any) -> Any:  # noqa: ANN401
    """Put into `old`, the document, what of `new` is not as `before`; the rest, and so its comments, is left alone."""
    if new == before:
        return old
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in new.items():
            if key not in before or value != before[key]:
                old[key] = _merge(old.get(key), before.get(key), value)
        for key in before.keys() - new.keys():  # of a mapping whose keys are a person's own
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
    """List what is wrong, but not that a list is too short only because its entries are wrong."""
    found = error.errors()
    inside = {problem["loc"][:depth] for problem in found for depth in range(len(problem["loc"]))}
    return [problem for problem in found if problem["type"] != "too_short" or problem["loc"] not in inside]


def _say(file: str, problem: ErrorDetails) -> str:
    """Put one of pydantic's findings into words: the key, what it is, what was expected, the nearest spelling."""
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
            allowed = [str(choice) for choice in get_args(section.model_fields[last].annotation)]
            few = len(allowed) <= 12
            expected = ", ".join(allowed) if few else f"one of {len(allowed)} names (see docs/backbones.md)"
            return f"{file}: {key} is {_shown(given)}; expected {expected}.{_nearest(str(given), allowed)}"
        case "value_error":
            said = problem["msg"].removeprefix("Value error, ")
            return f"{file}: {key} {said}" if said.startswith("is ") else f"{file}: {key}: {said}."
        case "too_short":
            least, found = problem["ctx"]["min_length"], problem["ctx"]["actual_length"]
            has = f"has {found} {'entry' if found == 1 else 'entries'}" if found else "is empty"
            return f"{file}: {key} {has}; expected at least {least} {'entry' if least == 1 else 'entries'}."
        case "model_type":
            expected = f"the keys {', '.join(_section_of((*location, '')).model_fields)}"
        case kind:
            said = problem["msg"].removeprefix("Input should be ")
            said = said.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
            expected = EXPECTED.get(kind) or said
    return f"{file}: {key} is {_shown(given)}; expected {expected}."


def _key(location: tuple[int | str, ...]) -> str:
    """Write a location as a person would: finetune.stages[1].unfreeze."""
    key = ""
    for part in location:
        if isinstance(part, int):
            key += f"[{part}]"
        elif part.isidentifier() or not key:  # leaves out pydantic's names for the branches of a union
            key += f".{part}" if key else str(part)
    return key


def _shown(given: object) -> str:
    """Show a value, but never all of a section: a source's address may hold what is nobody's business."""
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
        return "a number of thousands of digits"
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."


def _section_of(location: tuple[int | str, ...]) -> type[BaseModel]:
    """Find the section in which the last part of a location stands, or should."""
    section: type[BaseModel] = Params
    for part in location[:-1]:
        if isinstance(part, str) and part in section.model_fields:
            section = section_in(section.model_fields[part].annotation) or section
    return section


def section_in(annotation: Any) -> type[Section] | None:  # noqa: ANN401
    """Find the section that a field holds, alone or in a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_in(part))), None)


def _nearest(given: str, allowed: list[str]) -> str:
    near = get_close_matches(given.lower(), allowed, n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""
