"""Merge the values given to a run into params.yaml, without ever losing an edit of a person.

Given values replace those of params.yaml when the run starts, key by key. DVC records what params.yaml holds, so a
run's values have to be written there; if the run does not complete, they are undone. Git keeps what was committed and
an experiment what was run, but any other edit exists nowhere else, while given values stay with the flow run and can be
given again. So such an edit wins: a run that was given another value for that key is refused at once, naming the key.
Everything else gives way to the run, and the log says what changed.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prefect.runtime import deployment

from rootstock.config import merging, params_file
from rootstock.config.merging import Values
from rootstock.config.params import Params
from rootstock.system import roots, yaml_file
from rootstock.system.errors import ParamsError
from rootstock.system.files import write
from rootstock.system.roots import Roots
from tasks.bridge import allowed_addresses, dvc_repository, experiments, lock_file, workspace
from tasks.bridge.workspace import PARAMS

WRITTEN = workspace.LOCAL / "params.written.json"  # values that flows wrote, which Prefect keeps
BEFORE = workspace.LOCAL / "params.before.yaml"  # params.yaml before the last of them
UNDER_WAY = workspace.LOCAL / "params.run.json"  # what to restore if the current run does not complete
THE_RUN = "the parameters of this run"
Report = Callable[[str], None]


@contextmanager
def writing(report: Report) -> Iterator[None]:
    """Hold the workspace for this run alone, with a params.yaml that holds no values of a killed run.

    Args:
        report: called with a sentence for each wait and each file restored.

    Raises:
        RootstockError: the workspace cannot be written to.
    """
    with dvc_repository.locked(report):
        if restore(unless=experiments.committed(PARAMS)):
            report(f"{PARAMS}: undid the values of the last run, which was killed")
        yield


@contextmanager
def merged(given: Values, report: Report) -> Iterator[Params]:
    """Yield params.yaml merged with the given values, without writing them: nothing records them.

    Raises:
        ParamsError: params.yaml or a value is invalid, or an address is not allowed.
    """
    there = workspace.read_params()
    params = merge(there, given, report)
    with roots.restricted_to(roots_of_runs() if _sources_were_given(there, params) else None):
        yield params


@contextmanager
def within_roots(places: Mapping[str, str]) -> Iterator[None]:
    """Restrict a run of a deployment to the roots of this machine; a command reads and writes what its user may.

    Args:
        places: addresses that the run was given, by name.

    Raises:
        ParamsError: an address is under none of the roots.
    """
    if not deployment.id:
        yield
        return
    allowed = roots_of_runs()
    allowed_addresses.check_places(places, allowed)
    with roots.restricted_to(allowed):
        yield


@contextmanager
def in_params_file(given: Values, report: Report) -> Iterator[Params]:
    """Write the given values into params.yaml, and undo that if the run fails, is cancelled, or is killed.

    Raises:
        ParamsError: as `merged`; or a key has an edit, neither committed nor run, that differs from the given value.
    """
    there = workspace.read_params()
    with merged(given, report) as params:
        changed = {key: (old, new) for key, old, new in _differences(there, params)}
        if edited := _unsaved_edits(changed):
            raise ParamsError("\n".join(_refusal(key, *changed[key]) for key in edited))
        if not changed:
            yield params
            return
        _write(params, changed)
        for change in changes(there, params):
            report(f"{PARAMS}: {change}")
        try:
            yield params
        except BaseException:
            if restore(unless=experiments.committed(PARAMS)):
                report(f"{PARAMS}: undid the values of this run, which did not complete")
            raise
        UNDER_WAY.unlink()


def merge(there: Params, given: Values, report: Report) -> Params:
    """Merge the given values over params.yaml, and check the result.

    Raises:
        ParamsError: a value is invalid, or an address is not allowed.
    """
    base = there.model_dump(mode="json")
    for key, value in merging.ignored(base, given).items():
        report(f"{key}: null was given and ignored, {_format(value)} of {PARAMS} stays; to clear it, edit the file")
    params = params_file.validate(merging.merged(base, given), THE_RUN)
    allowed_addresses.check(params, there, roots_of_runs)
    return params


def received(values: Values) -> Params:
    """Check the parameters that a pipeline on another machine has handed over.

    Raises:
        ParamsError: a value is invalid, or an address is not allowed.
    """
    params = params_file.validate(values, THE_RUN)
    allowed_addresses.check(params, Params(), roots_of_runs)
    return params


def restore(unless: bytes | None = None) -> bool:
    """Restore params.yaml as it was before the current run, or before a killed one.

    Args:
        unless: leave the file if this is its content: a promotion has committed it.

    Returns:
        Whether it was restored; a file that was edited since stays.
    """
    if not UNDER_WAY.exists():
        return False
    try:
        note = json.loads(UNDER_WAY.read_text())
        now = PARAMS.read_bytes() if PARAMS.exists() else None
        ours = now == note["after"].encode() and now != unless
        if ours:
            write(PARAMS, note["before"].encode(errors="surrogateescape"))
            write(WRITTEN, json.dumps(note["written"]))
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ):  # damaged; BEFORE has the content
        ours = False
    UNDER_WAY.unlink(missing_ok=True)
    return ours


def edits(params: Params, sections_of: Callable[[], set[str]]) -> list[str]:
    """Describe the values of params.yaml that differ from those of a run, in the sections that are then asked for."""
    differences = _differences(params, params_file.load(PARAMS))
    sections = sections_of() if differences else set()
    return [_describe_change(*one) for one in differences if one[0].partition(".")[0] in sections]


def changes(one: Params, other: Params) -> list[str]:
    """Describe the values that differ, old and new."""
    return [_describe_change(*found) for found in _differences(one, other)]


def _describe_change(key: str, old: object, new: object) -> str:
    return f"{key} was {_format(old)}, is {_format(new)}"


def _write(params: Params, changed: dict[str, tuple[Any, Any]]) -> None:
    """Write a run's values into params.yaml, after a note of what to restore."""
    before, after = PARAMS.read_bytes(), params_file.render(PARAMS, params)
    write(BEFORE, before)
    note = {"before": before.decode(errors="surrogateescape"), "after": after, "written": _written()}
    write(UNDER_WAY, json.dumps(note))
    write(PARAMS, after)
    write(WRITTEN, json.dumps(_written() | {key: new for key, (_, new) in changed.items()}))


def _sources_were_given(there: Params, params: Params) -> bool:
    """Whether the sources were given to this run or an earlier one, and never committed."""
    sources = _flat(params)["ingest.sources"]
    if params.ingest.sources != there.ingest.sources:
        return True
    committed = committed_params()
    return sources == _written().get("ingest.sources") and (
        committed is None or committed.ingest.sources != params.ingest.sources
    )


def roots_of_runs() -> Roots:
    """Return the roots that given addresses must be under."""
    return allowed_addresses.roots(committed_params() or workspace.read_params())


def committed_params() -> Params | None:
    """Read params.yaml of the last commit; None without git, or if the file is invalid."""
    content = experiments.committed(PARAMS)
    try:
        return None if content is None else params_file.validate(yaml_file.parse(content, str(PARAMS)), str(PARAMS))
    except ParamsError:
        return None


def _unsaved_edits(keys: dict[str, Any]) -> list[str]:
    """Return the keys whose value is kept nowhere but in the file."""
    if not keys or experiments.committed(PARAMS) is None or experiments.find(PARAMS):
        return []  # no git (BEFORE keeps a copy), or git has the file as it is
    committed = committed_params()
    base = _flat(committed) if committed else {}
    return [key for key, (old, _) in keys.items() if old not in (base.get(key), _written().get(key))]


def _written() -> dict[str, Any]:
    """Return the values that flows wrote; none if the note is damaged, so that every difference counts as an edit."""
    try:
        values = json.loads(WRITTEN.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _refusal(key: str, here: object, given: object) -> str:
    return (
        f"{PARAMS}: {key} was edited to {_format(here)} and not committed, and this run was given {_format(given)}. "
        f"The edit is the only copy, so it stays: run with {_format(here)}, commit the file "
        f"(`git commit {PARAMS}`), or undo the edit, and run again."
    )


def _differences(one: Params, other: Params) -> list[tuple[str, Any, Any]]:
    mine, theirs = _flat(one), _flat(other)
    return [(key, value, theirs[key]) for key, value in mine.items() if value != theirs[key]]


def _flat(params: Params) -> dict[str, Any]:
    """Return values by dotted key, e.g. {"finetune.batch_size": 32}; a list is one value."""
    return lock_file.flat(params.model_dump(mode="json"))


def _format(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
