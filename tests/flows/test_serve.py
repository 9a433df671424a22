"""`python -m flows.serve`: the champion of a workspace by HTTP, and the next one after a retraining."""

import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.retraining import champions, deliver, retrain
from tests.serving import process, until
from tests.workspace import Workspace


@contextmanager
def serving(workspace: Workspace, log: Path) -> Iterator[str]:
    """Serve the workspace's champion; yields the address."""
    command = [sys.executable, "-m", "flows.serve", "--port", "0"]
    with process(command, workspace.env, workspace.root, log) as running:

        def address() -> str | None:
            assert running.poll() is None, log.read_text()
            found = re.search(r"^Serving .* at (http://\S+)$", log.read_text(), re.MULTILINE)
            return found and found[1]

        yield until(address, "a server", 60)
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0, log.read_text()


def ask(address: str, workspace: Workspace) -> tuple[str, str]:
    """Upload a photo; returns the model that answers, and the label."""
    photo = (workspace.root / "photos" / "moss" / "000.png").read_bytes()
    answer = httpx.post(f"{address}/predict", files=[("images", photo)], timeout=60).json()
    return answer["model"], answer["images"][0]["label"]


def test_the_model_of_a_workspace_without_champions_is_served(flow_ran_in, tmp_path):
    with serving(flow_ran_in, tmp_path / "log") as address:
        model, label = ask(address, flow_ran_in)
    assert model.startswith("model@") and label in ("lemon", "moss", "plum")
    assert "Stopped; pending requests were completed" in (tmp_path / "log").read_text()


@pytest.mark.usefixtures("one_server")
@pytest.mark.slow
def test_a_promoted_challenger_answers_and_one_that_is_being_trained_never_does(before, server, tmp_path):
    with serving(before, tmp_path / "log") as address:
        names, ended = [ask(address, before)[0]], threading.Event()

        def watch() -> None:
            while not ended.wait(0.1):
                names.append(ask(address, before)[0])

        watching = threading.Thread(target=watch)
        watching.start()
        deliver(before, "shed", 20)
        said = retrain(before, **server.env)
        until(lambda: names[-1] == "champion@v2", "the new champion", 30)
        ended.set()
        watching.join()
    assert said.startswith("Promoted: ")
    assert [row.version for row in champions(before)] == [1, 2]
    assert list(dict.fromkeys(names)) == [names[0], "champion@v1", "champion@v2"], set(names)
    assert names[0].startswith("model@")
