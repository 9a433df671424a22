"""Write commits, tags and refs to git without touching a person's work.

Trees and commits are built in a separate index and put in place by one ref update, so working tree, index and stash
stay the same throughout. No hooks run and nothing is signed: these commits are made by a program.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from rootstock.system.errors import RootstockError
from rootstock.system.files import TEMPORARY
from tasks.bridge.workspace import LOCAL

WRITING = "git-*.json"  # notes on lock files of git that a process of ours may leave if killed
LOCK_WAIT_S = 30.0  # for another git program, which holds a lock briefly, or while an editor is open
SECONDS_TO_LOCK = 60.0  # a lock created later than this after our note is not ours
# Set by hooks and wrappers; they would redirect us to another repository.
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY",
             "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE")  # fmt: skip
UNDER_WAY = {"MERGE_HEAD": "merge", "CHERRY_PICK_HEAD": "cherry-pick", "REVERT_HEAD": "revert",
             "rebase-merge": "rebase", "rebase-apply": "rebase"}  # fmt: skip
STASH, EXECUTING = "refs/exps/stash", "refs/exps/exec"  # refs of DVC while it runs or saves an experiment
NAMELESS = "Git user name and email must be configured"


class GitError(RootstockError):
    """A git command failed."""


def run(*arguments: str, index: Path | None = None, hooks: bool = False, given: str = "") -> str:
    """Run git in the workspace; it reads what is `given` as its standard input.

    Raises:
        GitError: it fails.
    """
    settings = ["core.fsmonitor=false", "core.splitIndex=false", "user.useConfigOnly=true"]
    settings += [f"safe.directory={Path.cwd()}"]  # its code runs here anyway, and DVC does not check either
    settings += [] if hooks else [f"core.hooksPath={os.devnull}"]
    env = {key: value for key, value in os.environ.items() if key not in ELSEWHERE}
    env |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
    env |= {"GIT_INDEX_FILE": str(index)} if index else {}
    command = ["git", *(part for setting in settings for part in ("-c", setting)), *arguments]
    try:
        done = subprocess.run(command, env=env, input=given, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise GitError("git is not installed") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        nameless = "auto-detection is disabled" in said or "empty ident" in said
        raise GitError(NAMELESS if nameless else f"git {arguments[0]}: {said}")
    return done.stdout.rstrip("\n")


def head() -> str:
    """Return the id of the last commit."""
    return run("rev-parse", "--verify", "HEAD^{commit}")


def blobs(revisions: Sequence[str], path: Path) -> list[str | None]:
    """Return the id of a file's content in each revision; None where there is no such file."""
    given = "".join(f"{revision}:{path.as_posix()}\n" for revision in revisions)
    found = run("cat-file", "--batch-check=%(objectname)", given=given).splitlines()
    return [None if line.endswith(" missing") else line for line in found]


def blob_of(text: str) -> str:
    """Return the id that a file with this content has, unless a filter changes it."""
    return run("hash-object", "--stdin", given=text)


def commit_of_working_tree(parent: str, message: str, also: Iterable[Path]) -> str:
    """Create a commit of every tracked file in the working tree and some others, on no branch.

    Args:
        parent: the commit that is checked out; a person may commit meanwhile.
        message: commit message.
        also: further files, which may be untracked or ignored.
    """
    with _own_index() as index:
        staged = Path(run("rev-parse", "--git-path", "index"))
        if staged.exists():  # a copy has the stat data, so only changed files are read
            shutil.copyfile(staged, index)
        else:
            run("read-tree", parent, index=index)
        run("add", "--update", "--", ":/", index=index)
        there = [str(path) for path in also if path.is_file()]
        if there:
            run("add", "--force", "--", *there, index=index)
        return _commit(run("write-tree", index=index), parent, message)


def commit(paths: Iterable[Path], message: str) -> str:
    """Commit only these files, not what else is staged; return the last commit if they are unchanged.

    Raises:
        GitError: a merge or rebase is in progress, another git program is running, or user name and email are missing.
    """
    heal()
    names = [str(path) for path in paths]
    for name, what in UNDER_WAY.items():
        if Path(run("rev-parse", "--git-path", name)).exists():
            raise GitError(f"a {what} is in progress; finish it first")
    last = head()
    with _own_index() as index:
        run("read-tree", last, index=index)
        run("add", "--force", "--", *names, index=index)
        tree = run("write-tree", index=index)
    if tree == run("rev-parse", f"{last}^{{tree}}"):
        return last
    made = _commit(tree, last, message)
    # Index first: after a kill in between, the files are staged, and committed the next time.
    with _locking("index", "HEAD", *_branch()):
        run("update-index", "--add", "--", *names)
        run("update-ref", "-m", message.splitlines()[0], "HEAD", made, last)
    return made


def set_ref(ref: str, revision: str) -> None:
    """Point a ref of ours to a revision."""
    with _locking(ref):
        run("update-ref", ref, revision)


def tag(name: str, revision: str, message: str) -> None:
    """Tag a revision."""
    with _locking(f"refs/tags/{name}"):
        run("tag", "--annotate", "--no-sign", "--message", message, name, revision)


def has_tag(name: str) -> bool:
    """Whether a tag exists."""
    return bool(run("for-each-ref", f"refs/tags/{name}"))


def is_on_remote(remote: str, tag: str) -> bool:
    """Ask a remote whether it has a tag, with its commit on the current branch.

    Raises:
        GitError: the remote does not answer.
    """
    branches = _branch()
    names = run("ls-remote", remote, f"refs/tags/{tag}", *branches).splitlines()
    there = {name: revision for revision, name in (line.split("\t") for line in names)}
    if f"refs/tags/{tag}" not in there:
        return False
    tagged = run("rev-parse", f"refs/tags/{tag}^{{commit}}")
    if not branches or not _is_ancestor(tagged, "HEAD"):  # a tagged experiment is on no branch
        return True
    tip = there.get(branches[0])
    return tip is not None and (_is_ancestor(tagged, tip) or _is_ancestor(tagged, _fetched(remote, branches[0])))


def _is_ancestor(one: str, other: str) -> bool:
    try:
        run("merge-base", "--is-ancestor", one, other)
    except GitError:
        return False
    return True


def _fetched(remote: str, branch: str) -> str:
    """Fetch the commits of a branch without updating any ref."""
    run("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", remote, branch)
    return run("ls-remote", remote, branch).split("\t")[0]


def heal() -> list[str]:
    """Remove lock files that killed processes of ours left in git; return a sentence for each."""
    removed = []
    for note in LOCAL.glob(WRITING):
        try:
            written = json.loads(note.read_bytes())
            if _is_alive(written["pid"], written["started"]):
                continue
            left = [Path(path) for path in written["locks"] if _came_after(Path(path), note)]
        except (ValueError, KeyError, TypeError):  # killed while writing the note, before any lock
            left = []
        for path in left:
            path.unlink(missing_ok=True)
            removed.append(f"{path}: removed; a run was killed while it wrote to git.")
        note.unlink(missing_ok=True)
    return removed


def left_by_dvc() -> str | None:
    """Describe how to recover from a killed `dvc exp` command, which had moved edits aside, if there is one."""
    try:
        found = run("for-each-ref", "--format=%(refname)", STASH, f"{EXECUTING}/EXEC_BASELINE").split()
    except GitError:  # no repository
        return None
    if not found:
        return None
    edits = f"your edits may be in {STASH} (`git stash apply {STASH}`), " if STASH in found else ""
    gone = " && ".join(f"git update-ref -d {ref}" for ref in found)
    return (
        f"A `dvc exp` command was killed here: {edits}HEAD may be detached (`git switch -`); then `{gone}` "
        "ends this message."
    )


def _commit(tree: str, parent: str, message: str) -> str:
    return run("commit-tree", tree, "-p", parent, "-m", message)


def _branch() -> list[str]:
    """Return the ref of the current branch; empty for a detached HEAD."""
    try:
        return [run("symbolic-ref", "--quiet", "HEAD")]
    except GitError:
        return []


@contextmanager
def _own_index() -> Iterator[Path]:
    """Yield the path of a temporary index."""
    LOCAL.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=LOCAL, prefix="index.", suffix=TEMPORARY) as folder:
        yield Path(folder).resolve() / "index"


@contextmanager
def _locking(*names: str) -> Iterator[None]:
    """Wait for other git programs, and note which lock files the block creates, so that `heal` can recognise ours."""
    heal()
    locks = [Path(run("rev-parse", "--git-path", f"{name}.lock")).resolve() for name in names]
    _wait_for(locks)
    LOCAL.mkdir(exist_ok=True)
    note = LOCAL / WRITING.replace("*", str(os.getpid()))
    started = psutil.Process().create_time()
    note.write_text(json.dumps({"pid": os.getpid(), "started": started, "locks": [str(path) for path in locks]}))
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def _wait_for(locks: list[Path]) -> None:
    patience = time.monotonic() + LOCK_WAIT_S
    while there := [path for path in locks if path.exists()]:
        if time.monotonic() > patience:
            raise GitError(
                f"{there[0]} has existed for {LOCK_WAIT_S:.0f} s: another git program is running; if none is, "
                "one was killed, and the file can be removed"
            )
        time.sleep(0.2)


def _is_alive(pid: int, started: float) -> bool:
    """Whether a process is alive and not another one with a reused id."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < 1
    except psutil.NoSuchProcess:
        return False


def _came_after(lock: Path, note: Path) -> bool:
    return lock.exists() and -1 < lock.stat().st_mtime - note.stat().st_mtime < SECONDS_TO_LOCK
