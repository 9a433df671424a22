"""A YAML file that people edit: read, or refused in a sentence that names it."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

from rootstock.system.errors import ParamsError

DEEPEST = 50


def read(path: Path, hint: str = "") -> Any:  # noqa: ANN401
    """Read a file of plain values: YAML 1.2, as DVC reads it; no tag makes anything else of them.

    Args:
        path: of the file.
        hint: what to do where it is not there.

    Raises:
        ParamsError: it cannot be read, or is not YAML.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ParamsError(f"{path}: not found.{hint and ' '}{hint}") from None
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read: {error.strerror}.") from None
    return parse(content, str(path))


def _is_too_deep(content: bytes) -> bool:
    """Whether values stand in values deeper than anybody writes them: the composer, in C, would end the process."""
    depth = 0
    for event in YAML(typ="safe").parse(content):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > DEEPEST:
            return True
    return False


def parse(content: bytes, name: str) -> Any:  # noqa: ANN401
    """Read the text of such a file; `name` is what errors call it.

    Raises:
        ParamsError: it is not YAML.
    """
    try:
        if _is_too_deep(content):
            raise ParamsError(f"{name}: not valid YAML: values in values, more than {DEEPEST} deep")
        return YAML(typ="safe").load(content)
    except YAMLError as error:
        raise ParamsError(f"{name}: not valid YAML: {error}") from None
    except ParamsError:
        raise
    except Exception as error:  # what looks like a number or a date and is none: whatever its parser raises
        first = next(iter(str(error).splitlines()), type(error).__name__).partition(";")[0]
        raise ParamsError(f"{name}: not valid YAML: a value cannot be read ({first})") from None
