"""Reads a YAML file that people edit; an error is one sentence that names the file."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

from rootstock.system.errors import ParamsError

DEEPEST = 50


def read(path: Path, hint: str = "") -> Any:  # noqa: ANN401
    """Read a file of plain values: YAML 1.2, as DVC reads it; tags cannot create other objects.

    Args:
        path: of the file.
        hint: what to do if it is missing.

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
    """Whether the nesting is deeper than anybody writes: the C composer would crash the process."""
    depth = 0
    for event in YAML(typ="safe").parse(content):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > DEEPEST:
            return True
    return False


def parse(content: bytes, name: str) -> Any:  # noqa: ANN401
    """Parse the content of such a file; `name` identifies it in errors.

    Raises:
        ParamsError: it is not YAML.
    """
    try:
        if _is_too_deep(content):
            raise ParamsError(f"{name}: not valid YAML: nested more than {DEEPEST} levels deep")
        return YAML(typ="safe").load(content)
    except YAMLError as error:
        raise ParamsError(f"{name}: not valid YAML: {error}") from None
    except ParamsError:
        raise
    except Exception as error:  # an invalid number or date: whatever its parser raises
        first = next(iter(str(error).splitlines()), type(error).__name__).partition(";")[0]
        raise ParamsError(f"{name}: not valid YAML: a value cannot be read ({first})") from None
