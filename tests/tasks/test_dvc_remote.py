"""Unversioned files on the DVC remote: upload, download and removal under a key, in a folder and on S3."""

import json

import pytest

from tests.workspace import Workspace

ROUND = """
import json, sys
from pathlib import Path
from tasks.bridge import dvc_remote
there = [dvc_remote.get_file("key", Path("back"))]
for text in ("one", "two"):
    Path("file").write_text(text)
    dvc_remote.put_file(Path("file"), "key")
    there += [dvc_remote.get_file("key", Path("back")), Path("back").read_text()]
dvc_remote.drop_file("key")
dvc_remote.drop_file("key")
print(json.dumps([*there, dvc_remote.get_file("key", Path("other")), Path("other").exists()]))
"""


@pytest.fixture(params=["folder", "s3"])
def shelf(request, tmp_path) -> tuple[list[str], dict[str, str]]:
    """DVC's commands that set a remote up, and the environment that opens it."""
    if request.param == "folder":
        return [f"add --default shelf {tmp_path}/shelf"], {}
    s3 = request.getfixturevalue("s3")
    return [
        f"add --default shelf s3://{s3.bucket}/{tmp_path.name}",
        f"modify shelf endpointurl {s3.url}",
    ], s3.credentials


def test_a_file_is_read_as_last_written_and_is_gone_after_its_removal(workspace: Workspace, shelf):
    commands, credentials = shelf
    for command in commands:
        workspace.run("dvc", "remote", *command.split())
    done = workspace.run("python", "-c", ROUND, **credentials)
    assert json.loads(done.stdout) == [False, True, "one", True, "two", False, False]
