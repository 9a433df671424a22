"""Values given to a flow, and the params.yaml of a person: who wins, and what is never lost.

What is given goes over params.yaml as it is when the run starts, key by key. DVC records what stands in params.yaml, so
a run's values have to stand there; where the run does not end well, they are put back. Git keeps what was committed, an
experiment what was run; an edit that is neither is the only copy of somebody's work, while given values stay with the
flow run and can be given again. So such an edit wins: a run that was given something else for that key is refused at
once, by name. Everything else gives way to the run, and the log says what changed.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rootstock.config import merging, params_file
from rootstock.config.merging import Values
from rootstock.config.params import Params
from rootstock.system import roots, yaml_file
from rootstock.system.errors import ParamsError
from rootstock.system.files import write
from rootstock.system.roots import Roots
from tasks.bridge import allowed_addresses, versions, workspace
from tasks.bridge.workspace import PARAMS

WRITTEN = workspace.LOCAL / "params.written.json"  # which values flows wrote: Prefect has them
BEFORE = workspace.LOCAL / "params.before.yaml"  # params.yaml as it was before the last of them
UNDER_WAY = workspace.LOCAL / "params.run.json"  # what to put back, should the run that is under way not end well
THE_RUN = "the parameters of this run"
Say = Callable[[str], None]


@contextmanager
def writing(say: Say) -> Iterator[None]:
    """Be the only run that writes in this workspace, in a params.yaml that holds no values of a run that was killed.

    Args:
        say: called with a sentence where the run has to wait, or something was put back.

    Raises:
        RootstockError: the workspace cannot be written to.
    """
    with versions.turn(say):
        if put_back(unless=versions.committed(PARAMS)):
            say(f"{PARAMS} is as it was before the last run, which was killed: that run's values were put back")
        yield


@contextmanager
def merged(given: Values, say: Say) -> Iterator[Params]:
    """Go by params.yaml and what a run was given, without writing it there: nothing records it.

    Raises:
        ParamsError: params.yaml or a value is at fault, or an address lies elsewhere than it may.
    """
    there = workspace.read_params()
    params = over(there, given, say)
    with roots.restricted_to(_roots() if _sources_were_given(there, params) else None):
        yield params


@contextmanager
def in_params_file(given: Values, say: Say) -> Iterator[Params]:
    """Have params.yaml hold what a run was given, and put it back where the run fails, is cancelled, or is killed.

    Raises:
        ParamsError: as `merged`; or a key was edited, and neither committed nor run, to something else than what is
            given.
    """
    there = workspace.read_params()
    with merged(given, say) as params:
        changed = {key: (old, new) for key, old, new in _differences(there, params)}
        if edited := _only_copies(changed):
            raise ParamsError("\n".join(_refusal(key, *changed[key]) for key in edited))
        if not changed:
            yield params
            return
        _write(params, changed)
        for change in changes(there, params):
            say(f"{PARAMS}: {change}")
        try:
            yield params
        except BaseException:
            if put_back(unless=versions.committed(PARAMS)):
                say(f"{PARAMS} is as it was before this run, which did not end well")
            raise
        UNDER_WAY.unlink()


def over(there: Params, given: Values, say: Say) -> Params:
    """Merge what a run was given over params.yaml, and check it.

    Raises:
        ParamsError: a value is at fault, or an address lies elsewhere than it may.
    """
    base = there.model_dump(mode="json")
    for key, value in merging.ignored(base, given).items():
        say(f"{key}: null given, {PARAMS}'s {_say(value)} stays; to have it empty, empty it there")
    params = params_file.validate(merging.merged(base, given), THE_RUN)
    allowed_addresses.check(params, there, _roots)
    return params


def handed(values: Values) -> Params:
    """Read what another machine's pipeline has handed over; its sources and the like are nothing to this one.

    Raises:
        ParamsError: a value is at fault, or an address lies elsewhere than it may.
    """
    params = params_file.validate(values, THE_RUN)
    allowed_addresses.check(params, Params(), _roots)
    return params


def put_back(unless: bytes | None = None) -> bool:
    """Make params.yaml what it was before a run that is under way, or was when it was killed.

    Args:
        unless: it is just this: a promotion has committed it.

    Returns:
        Whether there was something to put back; what a person has changed since stays.
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
    except (ValueError, KeyError, TypeError, AttributeError):  # damaged: params.before.yaml has what it would put back
        ours = False
    UNDER_WAY.unlink(missing_ok=True)
    return ours


def edits(params: Params, sections: set[str]) -> list[str]:
    """Say which values of some sections of params.yaml are no longer those that a run has."""
    there = params_file.load(PARAMS)
    return [change for change in changes(params, there) if change.partition(" ")[0].partition(".")[0] in sections]


def changes(one: Params, other: Params) -> list[str]:
    """Say which values differ, old and new."""
    return [f"{key} was {_say(old)}, is {_say(new)}" for key, old, new in _differences(one, other)]


def _write(params: Params, changed: dict[str, tuple[Any, Any]]) -> None:
    """Write a run's values into params.yaml, and before that, what is to be put back."""
    before, after = PARAMS.read_bytes(), params_file.render(PARAMS, params)
    write(BEFORE, before)
    note = {"before": before.decode(errors="surrogateescape"), "after": after, "written": _written()}
    write(UNDER_WAY, json.dumps(note))
    write(PARAMS, after)
    write(WRITTEN, json.dumps(_written() | {key: new for key, (_, new) in changed.items()}))


def _sources_were_given(there: Params, params: Params) -> bool:
    """Whether a run's sources come from elsewhere: they were given to it, or to an earlier one, and never committed."""
    sources = _flat(params)["ingest.sources"]
    if params.ingest.sources != there.ingest.sources:
        return True
    committed = committed_params()
    return sources == _written().get("ingest.sources") and (
        committed is None or committed.ingest.sources != params.ingest.sources
    )


def _roots() -> Roots:
    """List under which roots an address that is given has to lie."""
    return allowed_addresses.roots(committed_params() or workspace.read_params())


def committed_params() -> Params | None:
    """Read params.yaml as the last commit has it; nothing where there is no git, or it is an older version's."""
    content = versions.committed(PARAMS)
    try:
        return None if content is None else params_file.validate(yaml_file.parse(content, str(PARAMS)), str(PARAMS))
    except ParamsError:
        return None


def _only_copies(keys: dict[str, Any]) -> list[str]:
    """List those of the keys whose value in the file nobody else has."""
    if not keys or versions.committed(PARAMS) is None or versions.is_kept(PARAMS):
        return []  # there is no git to commit to (but BEFORE), or git has the whole file
    committed = committed_params()
    base = _flat(committed) if committed else {}
    return [key for key, (old, _) in keys.items() if old not in (base.get(key), _written().get(key))]


def _written() -> dict[str, Any]:
    """Recall which values flows wrote; of a damaged note none, so that all that git does not have is an edit."""
    try:
        values = json.loads(WRITTEN.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


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
