"""Turns what a person, a file, a disk, a network or another process can bring about into one sentence.

The doors (a stage's command, a flow, a task of a flow) let everything through this one place. What no sentence is known
for is a mistake of this program, and keeps its stack.
"""

import errno
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rootstock.system.errors import RootstockError
from rootstock.system.redaction import redacted

Say = Callable[[BaseException], str | None]
FULL = {errno.ENOSPC, errno.EDQUOT}
FORBIDDEN = {errno.EACCES, errno.EPERM}
NETWORK = {
    errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH,
    errno.ENETUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL, errno.EADDRINUSE,
}  # fmt: skip
DISK_IS_FULL = "Free some, and start again: what was finished is kept."
FREE_MEMORY = (
    "Close other programs, or ask for less at once: a smaller extract.batch_size, finetune.batch_size or "
    "backbone.image_size."
)
# By the names of classes, for a library that was not needed is not imported to know its errors.
DAMAGED = {
    "json.decoder.JSONDecodeError", "safetensors._safetensors_rust.SafetensorError", "tarfile.TarError",
    "zipfile.BadZipFile", "zlib.error", "_lzma.LZMAError", "_pickle.UnpicklingError", "pyarrow.lib.ArrowInvalid",
}  # fmt: skip
KILLED = {"concurrent.futures.process.BrokenProcessPool", "subprocess.CalledProcessError"}
NETWORK_LIBRARIES = {
    "adlfs", "aiohttp", "asyncssh", "azure", "botocore", "gcsfs", "google", "httpcore", "httpx", "paramiko", "requests",
    "s3fs", "urllib3", "webdav4",
}  # fmt: skip


@contextmanager
def in_words(known: Say | None = None) -> Iterator[None]:
    """Raise what a sentence is known for as a RootstockError with that sentence.

    Args:
        known: knows the sentences; those of `say` where it is left out.
    """
    try:
        yield
    except RootstockError:
        raise
    except Exception as error:
        if sentence := (known or say)(error):
            raise RootstockError(sentence) from error
        raise


def say(error: BaseException) -> str | None:
    """Say what brought an error about, and what to do; nothing where it can only be a mistake of this program."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    libraries = {name.partition(".")[0] for name in names}
    match error:
        case RootstockError():
            return str(error)
        case MemoryError():
            return f"There is not enough memory ({first_line(error) or 'MemoryError'}). {FREE_MEMORY}"
        case RuntimeError() if system := system_error_of(error):
            return say(system)
        case RuntimeError() if _is_out_of_memory(error):
            return f"There is not enough memory ({first_line(error)}). {FREE_MEMORY}"
        case OSError() if error.errno is not None:
            return _of_system(error)
    if names & KILLED:
        return f"A process that this one had started has ended: {first_line(error)}."
    if "sqlite3.Error" in names:
        return f"SQLite: {first_line(error)}. {_of_sqlite(str(error))}"
    if libraries & NETWORK_LIBRARIES or isinstance(error, OSError):
        return f"{type(error).__name__}: {first_line(error)}."
    if system := system_error_of(error):
        return say(system)
    if names & DAMAGED:
        return f"A file is damaged, or is not what its name says: {first_line(error)}."
    return None


def system_error_of(error: BaseException) -> OSError | None:
    """Read what the system said off the words of a library that does not pass it on."""
    text = str(error)
    if found := re.search(r"\(os error (\d+)\)", text):  # Rust's: safetensors, tokenizers
        return OSError(int(found[1]), text)
    if "inline_container.cc" in text or "PytorchStreamWriter" in text:  # torch.save
        return OSError(errno.ENOSPC, "a file could not be written to its end")
    return None


def _of_system(error: OSError) -> str:
    """Say what the system did not do: which file, why, and what helps."""
    named: str | bytes | None = error.filename2 or error.filename  # of a copy, the one that is written to
    path = redacted(named.decode(errors="replace") if isinstance(named, bytes) else named) if named else None
    why = first_line(error.strerror or str(error)).strip()
    code = error.errno
    if code in FULL:
        where = Path(path).absolute() if path else f"{Path.cwd()} or of {tempfile.gettempdir()}"
        return f"The disk is full: no space is left on that of {where}. {DISK_IS_FULL}"
    if code == errno.EFBIG:
        return f"{path or 'A file'} would be larger than this system or `ulimit -f` allows. {DISK_IS_FULL}"
    if code in (errno.EMFILE, errno.ENFILE):
        return f"Too many files are open ({why}). Allow more: `ulimit -n 65536`, in the shell that starts this."
    if code in (errno.ENOMEM, errno.EAGAIN):
        return f"There is not enough memory ({why}). {FREE_MEMORY}"
    if code in NETWORK and path is None:
        return f"The network does not answer: {why}."
    if path is None:
        return f"The system refuses: {why}."
    remedies = {
        errno.EROFS: "It is on a disk that can only be read; make that writable, or work in another folder.",
        errno.ENOENT: "It is not there; bring it back, by `dvc checkout` if it is an output.",
        errno.EISDIR: "It is a folder where a file is expected; move it away, then `dvc checkout`.",
        errno.ENOTDIR: "It, or what is above it, is a file where a folder is expected; move it away.",
        errno.EEXIST: "There is something else under that name; move it away.",
        errno.ELOOP: "It is a link that leads to itself; remove it.",
        errno.EIO: "The disk fails; look at the system's log, and restore the file from a copy.",
    }
    if code in FORBIDDEN:
        return f"{path}: {why}. This user may not read or write it; change its owner or mode (`ls -ld` shows them)."
    return f"{path}: {why}. {remedies.get(code or 0, 'See to it, and start again.')}"


def _of_sqlite(text: str) -> str:
    if "full" in text:
        return f"The disk of {Path.cwd()} or of {tempfile.gettempdir()} is full. {DISK_IS_FULL}"
    if "readonly" in text or "unable to open" in text:
        return "The folder of the database cannot be written to by this user, or is not there."
    if "locked" in text:
        return "Another process holds the database; wait for it to end, or stop it."
    return "The database is damaged: remove it, it is made anew."


def _is_out_of_memory(error: RuntimeError) -> bool:
    text = str(error)
    kinds = ("out of memory", "can't allocate memory", "can't start new thread", "CUBLAS_STATUS_ALLOC_FAILED")
    return type(error).__name__ == "OutOfMemoryError" or any(kind in text for kind in kinds)


def first_line(error: object) -> str:
    """Give the first line of a message, without what an address in it may hold of secrets."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return redacted(line)[:500].rstrip(".")
