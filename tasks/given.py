"""Values given to a flow, and the params.yaml of a person: who wins, and what is never lost.

DVC records what stands in params.yaml, so a run's values have to stand there. Git keeps what was committed, an
experiment what was run; an edit that is neither is the only copy of somebody's work, while given values stay with the
flow run and can be given again. So such an edit wins: a run that was given something else for that key is refused at
once, by name. Everything else gives way to the run, and the log says what changed.
"""

import json
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from rootstock import params_file
from rootstock.errors import ParamsError
from rootstock.files import write
from rootstock.params import Params
from tasks import versions, workspace
from tasks.workspace import PARAMS

WRITTEN = workspace.LOCAL / "params.written.json"  # which values flows wrote: Prefect has them
BEFORE = workspace.LOCAL / "params.before.yaml"  # params.yaml as it was before the last of them


def put_into_params_file(given: Params) -> list[str]:
    """Make params.yaml hold the values of a run; says which changed, old and new.

    Raises:
        ParamsError: the file is at fault, or was edited, and neither committed nor run, where `given` differs.
    """
    there = workspace.read_params()
    changed = {key: (old, new) for key, old, new in _differences(there, given)}
    if not changed:
        return []
    if edited := _only_copies(changed):
        raise ParamsError("\n".join(_refusal(key, *changed[key]) for key in edited))
    write(BEFORE, PARAMS.read_bytes())
    params_file.save(PARAMS, given)
    write(WRITTEN, json.dumps(_written() | {key: new for key, (_, new) in changed.items()}))
    return changes(there, given)


def changes(one: Params, other: Params) -> list[str]:
    """Say which values differ, old and new."""
    return [f"{key} was {_say(old)}, is {_say(new)}" for key, old, new in _differences(one, other)]


def _only_copies(keys: dict[str, Any]) -> list[str]:
    """List those of the keys whose value in the file nobody else has."""
    committed = versions.committed(PARAMS)
    if committed is None or versions.is_kept(PARAMS):
        return []  # there is no git to commit to (but BEFORE), or git has the whole file
    try:
        base = _flat(Params.model_validate(YAML(typ="safe").load(committed)))
    except ValidationError:  # an older version's
        base = {}
    return [key for key, (old, _) in keys.items() if old not in (base.get(key), _written().get(key))]


def _written() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(WRITTEN.read_text()) if WRITTEN.exists() else {}
    return values


def _refusal(key: str, here: object, given: object) -> str:
    return (
        f"{PARAMS}: {key} was edited to {_say(here)} and not committed, and this run was given {_say(given)}. "
        f"The edit is the only copy of it, so it stays: run with {_say(here)}, or commit the file "
        f"(`git commit {PARAMS}`) or undo the edit, and run again."
    )


def _differences(one: Params, other: Params) -> list[tuple[str, Any, Any]]:
    mine, theirs = _flat(one), _flat(other)
    return [(key, value, theirs[key]) for key, value in mine.items() if value != theirs[key]]


def _flat(params: Params) -> dict[str, Any]:
    """Give values by their keys as errors write them: {"finetune.batch_size": 32}; a list is one value."""
    flat: dict[str, Any] = {}

    def walk(value: object, key: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, f"{key}.{name}" if key else name)
        else:
            flat[key] = value

    walk(params.model_dump(mode="json"), "")
    return flat


def _say(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
