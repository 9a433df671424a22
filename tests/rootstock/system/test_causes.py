"""Errors caused by a user, a file, a disk, a network or a process are one sentence; bugs keep their traceback."""

import errno
import json
import os
import resource
import sqlite3
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rootstock.system import causes
from rootstock.system.errors import RootstockError
from rootstock.system.files import replacing


def of_system(code: int, *paths: object) -> OSError:
    """Return the OSError that Python raises for an error code."""
    return OSError(code, os.strerror(code), *paths)


def raised(call, *kinds: type[BaseException]) -> BaseException:
    """Return the error that a call raises."""
    with pytest.raises(kinds or Exception) as caught:
        call()
    return caught.value


SYSTEM = [
    (errno.ENOSPC, "The disk is full"),
    (errno.EDQUOT, "The disk is full"),
    (errno.EROFS, "on a read-only disk"),
    (errno.EACCES, "This user may not"),
    (errno.EPERM, "This user may not"),
    (errno.EMFILE, "Too many open files"),
    (errno.ENFILE, "Too many open files"),
    (errno.EISDIR, "a folder where a file is expected"),
    (errno.ENOTDIR, "a file where a folder is expected"),
    (errno.ENOENT, "It is missing"),
    (errno.EFBIG, "exceeds the file size limit"),
    (errno.EIO, "The disk reports an error"),
    (errno.ENOMEM, "Out of memory"),
    (errno.ELOOP, "a symlink that points to itself"),
    (errno.ENAMETOOLONG, "File name too long"),
]


@pytest.mark.parametrize(("code", "words"), SYSTEM)
def test_an_error_of_the_operating_system_is_described_with_the_file_and_a_remedy(code, words):
    sentence = causes.describe(of_system(code, "data/head/head.json"))
    assert words in sentence
    assert code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM) or "data/head/head.json" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("code", sorted(errno.errorcode))
def test_every_error_code_of_the_operating_system_is_described_in_a_sentence_with_or_without_a_file(code):
    for error in (of_system(code), of_system(code, "photo.jpg"), of_system(code, "from", None, "to")):
        assert causes.describe(error).endswith((".", ")"))


def test_a_copy_without_disk_space_names_its_destination():
    assert "to.tar" in causes.describe(of_system(errno.ENOSPC, "from.tar", None, "to.tar"))


def small_limit(call) -> BaseException:
    """Call in a process of which no file may be larger than 4 kB, as on a full disk; returns what it raised."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        return raised(call)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_described_for_every_library_that_writes_files(tmp_path):
    import pandas as pd

    large = np.arange(50_000.0)

    def database() -> None:
        with sqlite3.connect(tmp_path / "scan.sqlite") as db:
            db.execute("create table t (b)")
            db.execute("insert into t values (zeroblob(100000))")
            db.commit()

    writers = {
        "bytes": lambda path: path.write_bytes(bytes(10**6)),
        "weights": lambda path: save_file({"a": torch.from_numpy(large)}, path),
        "checkpoint": lambda path: torch.save({"a": torch.from_numpy(large)}, path),
        "table": lambda path: pd.DataFrame({"a": large}).to_parquet(path),
    }
    for name, writes in writers.items():

        def write(name: str = name, writes=writes) -> None:
            with replacing(tmp_path / name) as temporary:
                writes(temporary)

        assert causes.describe(small_limit(write)), name
    assert "SQLite" in causes.describe(small_limit(database))


def test_a_damaged_file_is_described_for_every_library_that_reads_files(tmp_path):
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"\0" * 1000)
    readers = [
        lambda: load_file(damaged),
        lambda: json.loads(damaged.read_bytes()),
        lambda: zipfile.ZipFile(damaged),
        lambda: sqlite3.connect(damaged).execute("select * from t"),
    ]
    for read in readers:
        assert causes.describe(raised(read))


@pytest.mark.parametrize("ask", [lambda: torch.empty(10**15), lambda: np.zeros(10**15), lambda: bytearray(2**62)])
def test_an_out_of_memory_error_is_described(ask):
    assert "Out of memory" in causes.describe(raised(ask))


def test_no_description_contains_a_password_or_signature():
    text = "https://user:secret@store/photos?X-Amz-Signature=secret is away"
    for error in (ConnectionError(text), of_system(errno.ECONNREFUSED, text), TimeoutError(text)):
        assert "secret" not in (causes.describe(error) or "")


def test_a_bug_keeps_its_traceback():
    for kind in (ValueError, KeyError, TypeError, AttributeError, RuntimeError, AssertionError):
        error = kind("x")
        assert causes.describe(error) is None
        with pytest.raises(type(error)), causes.described():
            raise error


def test_a_described_error_keeps_its_cause():
    with pytest.raises(RootstockError, match="The disk is full") as caught, causes.described():
        raise of_system(errno.ENOSPC, "x")
    assert caught.value.__cause__.errno == errno.ENOSPC


ENTRY_POINT = "from rootstock.system.entry_points import entry_point\nwith entry_point('extract'):\n    "


@pytest.mark.parametrize(
    ("line", "status", "says"),
    [
        ("open('/nowhere/x')", 1, "extract: /nowhere/x: No such file or directory. It is missing"),
        ("raise KeyboardInterrupt", 130, "extract: stopped"),
        ("raise MemoryError", 1, "extract: Out of memory"),
        ("raise ValueError('ours')", 1, "Traceback"),
    ],
)
def test_a_failing_command_prints_one_line_and_a_bug_its_traceback(line, status, says):
    done = subprocess.run([sys.executable, "-c", ENTRY_POINT + line], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert says in done.stderr
    assert says == "Traceback" or len(done.stderr.splitlines()) == 1


def test_a_closed_pipe_is_not_an_error():
    prints = ENTRY_POINT + "for i in range(100000): print(i)"
    command = f'"{sys.executable}" -c "{prints}" | head -1'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0\n", "")
