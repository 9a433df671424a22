"""Describes errors caused by a user, a file, a disk, a network or another process in one sentence.

Every entry point (a stage's command, a flow, a task of a flow) passes its errors through here. An error without a
description is a bug of this program and keeps its traceback.
"""

import errno
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rootstock.system.availability import DRIVERS
from rootstock.system.errors import RootstockError
from rootstock.system.redaction import redacted

Describe = Callable[[BaseException], str | None]
FULL = {errno.ENOSPC, errno.EDQUOT}
FORBIDDEN = {errno.EACCES, errno.EPERM}
NETWORK = {
    errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH,
    errno.ENETUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL, errno.EADDRINUSE,
}  # fmt: skip
DISK_IS_FULL = "Free some space and start again; finished work is kept."
FREE_MEMORY = "Close other programs, or reduce extract.batch_size, finetune.batch_size or backbone.image_size."
# By class name, so that no library is imported just to recognise its errors.
DAMAGED = {
    "json.decoder.JSONDecodeError", "safetensors._safetensors_rust.SafetensorError", "tarfile.TarError",
    "zipfile.BadZipFile", "zlib.error", "_lzma.LZMAError", "_pickle.UnpicklingError", "pyarrow.lib.ArrowInvalid",
}  # fmt: skip
KILLED = {"concurrent.futures.process.BrokenProcessPool", "subprocess.CalledProcessError"}


@contextmanager
def described(describe_error: Describe | None = None) -> Iterator[None]:
    """Re-raise errors that can be described as a RootstockError with the description.

    Args:
        describe_error: returns the description of an error, or None; default: `describe`.
    """
    try:
        yield
    except RootstockError:
        raise
    except Exception as error:
        if sentence := (describe_error or describe)(error):
            raise RootstockError(sentence) from error
        raise


def describe(error: BaseException) -> str | None:
    """Describe what caused an error and what to do; None if it can only be a bug of this program."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    libraries = {name.partition(".")[0] for name in names}
    match error:
        case RootstockError():
            return str(error)
        case MemoryError():
            return f"Out of memory ({first_line(error) or 'MemoryError'}). {FREE_MEMORY}"
        case RuntimeError() if system := system_error_of(error):
            return describe(system)
        case RuntimeError() if _is_out_of_memory(error):
            return f"Out of memory ({first_line(error)}). {FREE_MEMORY}"
        case OSError() if error.errno is not None:
            return _describe_os_error(error)
    if names & KILLED:
        return f"A child process ended unexpectedly: {first_line(error)}."
    if "sqlite3.Error" in names:
        return f"SQLite: {first_line(error)}. {_describe_sqlite(str(error))}"
    if libraries & DRIVERS or isinstance(error, OSError):
        return f"{type(error).__name__}: {first_line(error)}."
    if system := system_error_of(error):
        return describe(system)
    if names & DAMAGED:
        return f"A file is damaged or not in the expected format: {first_line(error)}."
    return None


def system_error_of(error: BaseException) -> OSError | None:
    """Recover the operating system's error from the message of a library that hides it."""
    text = str(error)
    if found := re.search(r"\(os error (\d+)\)", text):  # Rust's: safetensors, tokenizers
        return OSError(int(found[1]), text)
    if "inline_container.cc" in text or "PytorchStreamWriter" in text:  # torch.save
        return OSError(errno.ENOSPC, "a file could not be written completely")
    return None


def _describe_os_error(error: OSError) -> str:
    """Describe an error of the operating system: which file, why, and what to do."""
    named: str | bytes | None = error.filename2 or error.filename  # for a copy, the file that is written
    path = redacted(named.decode(errors="replace") if isinstance(named, bytes) else named) if named else None
    why = first_line(error.strerror or str(error)).strip()
    code = error.errno
    if code in FULL:
        where = Path(path).absolute() if path else f"{Path.cwd()} or {tempfile.gettempdir()}"
        return f"The disk is full: no space left on the disk of {where}. {DISK_IS_FULL}"
    if code == errno.EFBIG:
        return f"{path or 'A file'} exceeds the file size limit of the system or `ulimit -f`; raise it and start again."
    if code in (errno.EMFILE, errno.ENFILE):
        return f"Too many open files ({why}). Raise the limit: `ulimit -n 65536`, in the shell that starts this."
    if code in (errno.ENOMEM, errno.EAGAIN):
        return f"Out of memory ({why}). {FREE_MEMORY}"
    if code in NETWORK and path is None:
        return f"Network error: {why}."
    if path is None:
        return f"Operating system error: {why}."
    remedies = {
        errno.EROFS: "It is on a read-only disk; make it writable, or work in another folder.",
        errno.ENOENT: "It is missing; restore it, with `dvc checkout` if it is an output.",
        errno.EISDIR: "It is a folder where a file is expected; move it away, then run `dvc checkout`.",
        errno.ENOTDIR: "It or one of its parents is a file where a folder is expected; move it away.",
        errno.EEXIST: "Something else has that name; move it away.",
        errno.ELOOP: "It is a symlink that points to itself; remove it.",
        errno.EIO: "The disk reports an error; check the system log and restore the file from a copy.",
    }
    if code in FORBIDDEN:
        return f"{path}: {why}. This user may not access it; change its owner or mode (see `ls -ld`)."
    return f"{path}: {why}. {remedies.get(code or 0, 'Fix this and start again.')}"


def _describe_sqlite(text: str) -> str:
    if "full" in text:
        return f"The disk of {Path.cwd()} or {tempfile.gettempdir()} is full. {DISK_IS_FULL}"
    if "readonly" in text or "unable to open" in text:
        return "The folder of the database is missing or not writable for this user."
    if "locked" in text:
        return "Another process has locked the database; wait for it to end, or stop it."
    return "The database is damaged; remove it, and it will be rebuilt."


def _is_out_of_memory(error: RuntimeError) -> bool:
    text = str(error)
    kinds = ("out of memory", "can't allocate memory", "can't start new thread", "CUBLAS_STATUS_ALLOC_FAILED")
    return type(error).__name__ == "OutOfMemoryError" or any(kind in text for kind in kinds)


def first_line(error: object) -> str:
    """Return the first line of a message, with secrets redacted."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return redacted(line)[:500].rstrip(".")
