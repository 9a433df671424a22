"""List the runs of this workspace and what became of them: experiments of DVC and the history of champions as one."""

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from rootstock.evaluation import figures
from rootstock.model import history
from rootstock.model.history import Row
from rootstock.system.errors import DamagedError, RootstockError
from rootstock.system.files import read_json
from rootstock.system.phrases import listed
from tasks.bridge import champion, experiments, git, lock_file
from tasks.bridge.experiments import KeptRun
from tasks.bridge.lock_file import LOCK, Stages
from tasks.bridge.workspace import REPORT

HEADING = ("run", "champion", "when", "validation %", "test %", "data (images)")
LONG_AGO = datetime.min.replace(tzinfo=UTC)  # decisions of earlier versions have no time
SHORT = 7  # hexadecimal digits of a data version
TRIED = (history.REJECTED, history.UNDECIDED)
NAMED = 4  # changed parameters that a line names
NO_ANSWER = "-"
Accuracy = dict[str, float]


@dataclass(frozen=True)
class Run:
    """A run, a decision about a champion, or both.

    Args:
        name: of the flow run and its experiment; "" if unknown.
        champion: what became of it: the version (v2), rejected, undecided, rolled back; "" for a run by hand.
        at: when it ended; None if unknown.
        validation: accuracy with its 95 % interval on the validation images.
        test: the same on the test images.
        data: the version of the dataset, as dvc.lock has it; "" if unknown.
        images: in that dataset.
        why: the reason of a decision, or what was changed since the run before.
    """

    name: str
    champion: str
    at: datetime | None
    validation: Accuracy | None
    test: Accuracy | None
    data: str
    images: int | None
    why: str


def list_runs(last: int | None = None) -> list[Run]:
    """List runs in the order in which they ended, the latest last.

    Args:
        last: how many; None: all.
    """
    rows = _with_locks(champion.decisions())
    now = rows[-1].version if rows else None
    pairs = sorted(_pair(rows, experiments.list_kept()), key=lambda pair: _time(*pair) or LONG_AGO)
    start = 0 if last is None else max(len(pairs) - last, 0)
    before = _recorded(*pairs[start - 1]) if start else {}
    runs = []
    for row, kept in pairs[start:]:
        recorded = _recorded(row, kept)
        runs.append(_describe(row, kept, recorded, before, now))
        before = recorded or before
    return runs


def _pair(rows: Sequence[Row], kept: Sequence[KeptRun]) -> Iterator[tuple[Row | None, KeptRun | None]]:
    """Yield each decision with the experiment of its run, if there is one, and then the other experiments."""
    left = {run.name: run for run in kept}
    named = {row.run for row in rows}
    names = [row.run if row.run in left else "" for row in rows]
    nameless = [run for run in kept if run.name not in named]
    for place, name in _pair_nameless(rows, names, nameless) if nameless else ():
        names[place] = name
    yield from ((row, left.pop(name, None)) for row, name in zip(rows, names, strict=True))
    yield from ((None, run) for run in left.values())


def _pair_nameless(rows: Sequence[Row], names: Sequence[str], kept: Sequence[KeptRun]) -> Iterator[tuple[int, str]]:
    """Yield places of rows, to which earlier versions wrote no name, with the names of their experiments.

    A champion's is that with its dvc.lock. Of a challenger that did not become champion nothing but the number of its
    images is known: it is paired if a single experiment is left with as many.

    Args:
        rows: of the history.
        names: of the experiments of rows; "" if unknown.
        kept: the experiments that no row names.
    """
    locks = dict(zip([run.name for run in kept], git.blobs([run.revision for run in kept], LOCK), strict=True))
    without = [(place, row) for place, row in enumerate(rows) if not names[place]]
    for place, row in without:
        if row.decision in (history.FIRST, history.PROMOTED):
            lock = git.blob_of(row.lock)
            if name := next((name for name, blob in locks.items() if blob == lock), ""):
                del locks[name]
                yield place, name
    tried = [
        (place, row.images)
        for place, row in without
        if row.decision in TRIED and not row.run and row.comparison != "[]"  # else nothing was trained
    ]
    if not tried:
        return
    counts = {run.name: _images(lock_file.data_version(_recorded(None, run))) for run in kept if run.name in locks}
    for place, images in tried:
        same = [name for name, count in counts.items() if count == images]
        if len(same) == 1 and [count for _, count in tried].count(images) == 1:
            yield place, same[0]


def _with_locks(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, those of champions to which a rollback led with what restored them."""
    champions = history.versions(list(rows))
    return [
        replace(row, lock=champions[row.version].lock)
        if row.decision == history.ROLLED_BACK and row.version in champions
        else row
        for row in rows
    ]


def _time(row: Row | None, kept: KeptRun | None) -> datetime | None:
    if kept:  # a first champion is recorded when it is challenged
        return kept.at
    return datetime.fromisoformat(row.at) if row and row.at else None


def _recorded(row: Row | None, kept: KeptRun | None) -> Stages:
    """Return the stages of the run's dvc.lock; none if there is none."""
    try:
        lock = git.run("cat-file", "blob", f"{kept.revision}:{LOCK}") if kept else row.lock if row else ""
        return lock_file.stages_in(lock)
    except RootstockError:
        return {}


def _describe(row: Row | None, kept: KeptRun | None, recorded: Stages, before: Stages, now: int | None) -> Run:
    outputs = lock_file.outputs_of(recorded)
    validation, test = (
        history.read_accuracy(experiments.cached(outputs.get(str(REPORT / name), "")))
        for name in ("metrics.json", "test.json")
    )
    return Run(
        name=kept.name if kept else row.run if row else "",
        champion=_outcome(row, now),
        at=_time(row, kept),
        validation=(row.validation if row else None) or validation,
        test=(row.test if row else None) or test,
        data=lock_file.data_version(recorded)[:SHORT] or (row.data if row else ""),
        images=row.images if row else _images(lock_file.data_version(recorded)),
        why=row.reason if row else _changes(before, recorded),
    )


def _outcome(row: Row | None, now: int | None) -> str:
    if row is None:
        return ""
    if row.decision not in (history.FIRST, history.PROMOTED, history.ROLLED_BACK):
        return row.decision
    word = f"v{row.version} again" if row.decision == history.ROLLED_BACK else f"v{row.version}"
    return f"{word}, now" if row.version == now else word


def _images(dataset: str) -> int | None:
    """Return the number of images of a version of the dataset, if DVC's cache has it."""
    try:
        listed = json.loads(experiments.cached(f"{dataset}.dir").read_bytes())
        files = {file["relpath"]: file["md5"] for file in listed}
        return int(read_json(experiments.cached(files["summary.json"]))["images"])
    except (DamagedError, OSError, KeyError, TypeError, ValueError):
        return None


def _changes(before: Stages, recorded: Stages) -> str:
    """Describe which parameters differ from those of the run before."""
    old, new = lock_file.params_of(before), lock_file.params_of(recorded)
    if not old or not new:
        return ""
    changed = [f"{key} {old.get(key)} -> {value}" for key, value in new.items() if old.get(key) != value]
    return listed(changed, NAMED)


def format_runs(runs: Sequence[Run], width: int) -> str:
    """Format runs for a terminal: a line of figures each, and the reason below it."""
    rows = [HEADING, *(_cells(run) for run in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADING))]
    lines = ["  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip() for row in rows]
    indent = " " * (widths[0] + 2)
    shown = lines[:1]
    for run, line in zip(runs, lines[1:], strict=True):
        shown += [line, *textwrap.wrap(run.why, width, initial_indent=indent, subsequent_indent=indent)]
    return "\n".join(shown)


def _cells(run: Run) -> tuple[str, ...]:
    when = run.at.astimezone().strftime("%Y-%m-%d %H:%M") if run.at else NO_ANSWER
    images = f"({run.images:,})" if run.images is not None else ""
    data = " ".join(filter(None, [run.data, images])) or NO_ANSWER
    return (run.name or NO_ANSWER, run.champion, when, _percent(run.validation), _percent(run.test), data)


def _percent(accuracy: Accuracy | None) -> str:
    if not accuracy:
        return NO_ANSWER
    ends = figures.percents(accuracy)
    return f"{figures.percent(accuracy['value'])}{f' ({ends})' if ends else ''}".replace("%", "")
