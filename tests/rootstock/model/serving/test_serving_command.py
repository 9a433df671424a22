"""`python -m rootstock.model.serving`: a folder is served where neither Prefect nor DVC is installed, until SIGTERM."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from rootstock.model.serving import settings
from rootstock.system.errors import ParamsError, RootstockError
from tests.imports import ROOT
from tests.served_model import serving

# As where neither is installed: importing them fails.
ALONE = """
import runpy, sys
sys.modules.update(prefect=None, dvc=None, scmrepo=None, sqlalchemy=None)
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module("rootstock.model.serving", run_name="__main__", alter_sys=True)
"""
COMMAND = [sys.executable, "-I", "-c", ALONE, str(ROOT)]


@contextmanager
def served(*arguments: str, cwd: Path, **env: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """Start the command; yield the process, the address that it prints, and its lines, which grow."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        found = re.search(r" at (http://\S+)$", lines[0])
        assert found, (lines, process.stderr.read())
        yield process, found[1], lines
    finally:
        process.kill()
        process.communicate()


def test_a_folder_is_served_and_sigterm_ends_it_after_the_requests_under_way(head_model, photos, tmp_path):
    token = "0123456789abcdef"
    arguments = (str(head_model), "--port", "0", "--host", "0.0.0.0", "--top", "1")
    with served(*arguments, cwd=tmp_path, ROOTSTOCK_TOKEN=token) as (process, address, lines):
        assert re.match(r"Serving model@\w{12} \(3 classes, \d+ cores\) at http://0\.0\.0\.0:\d+$", lines[0])
        assert lines[1].endswith("/docs describes requests and responses; requests need the token\n")
        address = address.replace("0.0.0.0", "127.0.0.1")
        known = {"Authorization": f"Bearer {token}"}
        first = httpx.post(f"{address}/predict", files=[("images", photos[0])], headers=known)
        assert [len(row["top"]) for row in first.json()["images"]] == [1]
        assert httpx.post(f"{address}/predict", files=[("images", photos[0])]).status_code == 401

        head = (
            f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nContent-Type: image/png\r\n"
            f"Content-Length: {len(photos[0][1])}\r\nExpect: 100-continue\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=20) as upload:
            upload.sendall(head.encode())
            assert upload.recv(1000).startswith(b"HTTP/1.1 100 ")  # it is under way now, and the signal arrives in it
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            upload.sendall(photos[0][1])
            last = b"".join(iter(lambda: upload.recv(65536), b""))
        found = json.loads(last.partition(b"\r\n\r\n")[2])
        assert found["images"][0]["label"] == first.json()["images"][0]["label"]
        said, complained = process.communicate(timeout=20)
        assert (process.returncode, said) == (0, "Stopped; pending requests were completed\n")
        assert "Traceback" not in complained and token not in complained


def test_an_error_is_one_sentence_and_exit_status_1(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        used = str(other.getsockname()[1])
        done = subprocess.run(
            [*COMMAND, ".", "--port", used], cwd=tmp_path, env={}, capture_output=True, text=True, timeout=60
        )
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"serve: The server cannot listen on 127.0.0.1, port {used}: Address already in use.")


def test_a_folder_without_a_model_is_an_error_that_says_what_was_expected(tmp_path):
    with (
        pytest.raises(RootstockError, match=r"nowhere holds no model; expected a folder such as data/model, with a"),
        serving(tmp_path / "nowhere"),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "token", "said"),
    [
        (["--host", "0.0.0.0"], "", "--host 0.0.0.0 lets other machines in: set ROOTSTOCK_TOKEN, which they have to"),
        ([], "short", "ROOTSTOCK_TOKEN is shorter than 16 characters; `openssl rand -hex 16` makes one."),
        (["--top", "0"], "", "--top is 0; expected at least 1."),
        (["--max-images", "0"], "", "The limit images is 0; expected more than 0."),
        (["--answer-seconds", "nan"], "", "The limit answer_s is nan; expected more than 0."),
        (["--max-images", "200"], "", "The queue holds 128 images, and a request may have 200, which would never"),
        (["--max-mb", "300"], "", "All uploads together may take 256 MiB, and one 300; expected at least as much"),
        (["--port", "70000"], "", "--port is 70000; expected 0 to 65535."),
    ],
)  # fmt: skip
def test_options_that_fit_nothing_are_refused_by_name(monkeypatch, arguments, token, said):
    monkeypatch.setenv("ROOTSTOCK_TOKEN", token)
    with pytest.raises(ParamsError, match=re.escape(said)):
        settings.settings_of(settings.parser("test").parse_args(arguments))


def test_options_are_limits_in_the_units_that_they_name(monkeypatch):
    monkeypatch.delenv("ROOTSTOCK_TOKEN", raising=False)
    asked = settings.settings_of(settings.parser("test").parse_args([]))
    assert asked == settings.Settings() and asked.is_loopback
    arguments = ["--host", "::1", "--max-mb", "0.5", "--batch-ms", "7", "--queue", "99", "--without-token"]
    changed = settings.settings_of(settings.parser("test").parse_args(arguments))
    assert (changed.limits.body_bytes, changed.limits.queue) == (524288, 99)
    assert changed.limits.batch_wait_s == pytest.approx(0.007) and changed.is_loopback
    other = settings.settings_of(settings.parser("test").parse_args(["--host", "0.0.0.0", "--without-token"]))
    assert not other.is_loopback


def test_without_its_extra_a_server_says_what_to_install():
    code = "import sys; sys.modules['fastapi_offline'] = None; import rootstock.model.serving"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.startswith("A server needs FastAPI and what goes with it: pip install -c constraints.txt")
