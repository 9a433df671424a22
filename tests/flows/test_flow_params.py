"""Values given to a run by the API: merged over params.yaml, restricted in addresses; no secret is stored anywhere."""

import sys
import zlib
from pathlib import Path
from urllib.error import HTTPError

import pytest

from rootstock.config.params_file import load
from tests.serving import worker
from tests.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_server")

SECRET = "hunter2-of-this-test"
ONE_OF_EACH = {
    "ingest": {"allow_shrink": True, "max_side": None},
    "backbone": {"image_size": None, "weights": "random"},
    "extract": {"workers": 3, "store": None},
    "head": {"max_iterations": 299},
    "finetune": {"if_no_worker": "here"},
    "evaluate": {"mistakes": 3},
}


@pytest.mark.slow
def test_values_given_by_the_api_change_only_the_given_keys(deployed, after_flow):
    path = after_flow.root / "params.yaml"
    before = load(path).model_dump()
    with worker(deployed, "cpu", after_flow):
        run = deployed.start(**ONE_OF_EACH)
        state = run.ended(240)
        assert state["name"] == "Completed", (state["message"], run.logs()[-20:])
        logs = run.logs()
        refused = deployed.start(ingest={"sources": [{"path": "/", "domain": "all"}]})
        said = refused.ended()["message"]
        nothing = deployed.start("retrain/cpu", retrain={"min_new": 21})
        assert nothing.ended()["name"] == "Nothing new"
    assert (
        "backbone.image_size: null was given and ignored, 32 of params.yaml stays; to clear it, edit the file" in logs
    )
    given = {
        name: {key: value for key, value in part.items() if value is not None} for name, part in ONE_OF_EACH.items()
    }
    given["retrain"] = {"min_new": 21}
    assert load(path).model_dump() == {
        name: {**part, **given.get(name, {})} if isinstance(part, dict) else part for name, part in before.items()
    }
    assert said.startswith("ingest.sources[0].path is '/', which this run was given and which lies under none of ")
    assert "ROOTSTOCK_ROOTS" in said


WITH_A_SECRET = (
    {"backbone": {"weights": f"http://u:{SECRET}@h/w.pth"}},
    {"ingest": {"sources": [{"path": f"simplecache::sftp://me:{SECRET}@127.0.0.1:9/x", "domain": "d"}]}},
    {"ingest": {"sources": [{"path": f"https://127.0.0.1:9/x?X-Amz-Signature={SECRET}", "domain": "d"}]}},
    {"extract": {"store": f"s3://k:{SECRET}@b"}},
    {"extract": {"cluster": f"tcp://u:{SECRET}@127.0.0.1:9"}},
)


@pytest.mark.slow
def test_an_address_with_a_secret_is_refused_before_a_run_exists_and_the_server_stores_nothing_of_it(
    deployed, prefect_home
):
    started = [("pipeline/cpu", given) for given in WITH_A_SECRET]
    for deployment, given in [*started, ("retrain/cpu", {"retrain": {"inbox": f"//u:{SECRET}@h/inbox"}})]:
        with pytest.raises(HTTPError):
            deployed.start(deployment, **given)
    assert holding(prefect_home, SECRET) == []


def holding(root: Path, secret: str) -> list[str]:
    """Every file below a folder that holds a text, git's objects unpacked."""
    found = []
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            if "objects" in path.parts and content[:1] == b"x":
                content = zlib.decompress(content)
            if secret.encode() in content:
                found.append(str(path.relative_to(root)))
    return found


@pytest.mark.slow
def test_no_secret_of_an_address_or_of_the_environment_is_stored_anywhere(workspace: Workspace, tmp_path):
    home = tmp_path / "prefect"
    secrets = {
        "AWS_SECRET_ACCESS_KEY": SECRET, "FSSPEC_SFTP_PASSWORD": SECRET, "HTTPS_PROXY": f"http://u:{SECRET}@127.0.0.1:9",
        "ROOTSTOCK_WEIGHTS_MIRROR": f"sfpt://u:{SECRET}@127.0.0.1/w?sig={SECRET}", "PREFECT_HOME": str(home),
    }  # fmt: skip
    said = workspace.run(sys.executable, "-m", "flows.pipeline", **secrets).stdout  # ends well
    for number, given in enumerate(({"backbone": {"name": "squeezenet1_1", "weights": "pretrained"}}, *WITH_A_SECRET)):
        workspace.set(**given)
        commands = [[sys.executable, "-m", "flows.pipeline"], ["dvc", "repro"]]
        failed = workspace.run(*commands[number % 2], check=False, **secrets)
        assert failed.returncode != 0
        said += failed.stdout + failed.stderr
        workspace.run("git", "checkout", "-q", "params.yaml")
    assert "cannot be loaded from sfpt://u@127.0.0.1" in said
    assert said.count("would be recorded with every run") == len(WITH_A_SECRET)
    assert SECRET not in said
    assert holding(workspace.root, SECRET) == holding(home, SECRET) == []
