"""The UI on a real PostgreSQL in place of SQLite."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import free_port, until
from tests.started_ui import started

PLACES = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), *map(Path, os.get_exec_path())]
BIN = next((folder for folder in PLACES if (folder / "initdb").exists()), None)
pytestmark = [pytest.mark.ui, pytest.mark.skipif(not BIN, reason="PostgreSQL is not installed")]


@pytest.fixture
def postgres() -> Iterator[str]:
    """A PostgreSQL server of its own on loopback; gives the address of a database."""
    folder, port = Path(tempfile.mkdtemp()), free_port()
    user = "nobody" if os.geteuid() == 0 else None  # it does not run as root
    if user:
        shutil.chown(folder, user)
    programs = {"cwd": folder, "user": user, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([f"{BIN}/initdb", "-D", f"{folder}/data", "-U", "rootstock", "-A", "trust"], check=True, **programs)
    command = [f"{BIN}/postgres", "-D", f"{folder}/data", "-h", "127.0.0.1", "-p", str(port), "-k", str(folder)]
    server = subprocess.Popen(command, **programs)
    try:
        ready = [f"{BIN}/pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        until(lambda: subprocess.run(ready, check=False, **programs).returncode == 0, "PostgreSQL")
        yield f"postgresql+asyncpg://rootstock@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder)


def test_a_run_from_the_ui_completes_on_postgresql(after_flow, postgres):
    with started(after_flow, PREFECT_SERVER_DATABASE_CONNECTION_URL=postgres) as ui:
        run = ui.api.start(head={"l2": [3.0]})
        assert run.ended()["name"] == "Completed"
        assert "verdict" in run.artifacts()
        assert set(run.stages().values()) == {"Cached", "Completed"}
    assert not list((after_flow.root / ".rootstock").rglob("*.db"))
