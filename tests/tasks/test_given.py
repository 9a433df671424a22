"""Values given to a flow and a params.yaml that a person has edited: who wins, and what is never lost."""

import json

import pytest

from rootstock.params_file import load
from tests.workspace import Workspace

GIVE = """
import json, sys
from rootstock.errors import ParamsError
from rootstock.params import Params
from tasks import given, versions, workspace
params = json.loads(workspace.read_params().model_dump_json())
for key, value in json.loads(sys.argv[1]).items():
    section, name = key.split(".")
    params[section][name] = value
try:
    print(json.dumps(given.put_into_params_file(Params.model_validate_json(json.dumps(params)))))
except ParamsError as error:
    print(json.dumps(str(error)))
"""


def give(workspace: Workspace, **values: object) -> list[str] | str:
    """Start a run with some values: the changes it logs, or the error that ends it."""
    asked = json.dumps({key.replace("__", "."): value for key, value in values.items()})
    return json.loads(workspace.run("python", "-c", GIVE, asked).stdout)


def batch_size(workspace: Workspace) -> int:
    return load(workspace.root / "params.yaml").finetune.batch_size


def test_over_a_committed_file_given_values_win_and_the_log_says_what_changed(workspace):
    assert give(workspace, finetune__batch_size=16) == ["finetune.batch_size was 32, is 16"]
    assert batch_size(workspace) == 16


def test_an_edit_that_nobody_committed_wins_over_another_value_and_the_run_is_refused(workspace):
    workspace.set(finetune={"batch_size": 8})
    before = (workspace.root / "params.yaml").read_bytes()
    refused = give(workspace, finetune__batch_size=16, evaluate__mistakes=3)
    assert refused.startswith(
        "params.yaml: finetune.batch_size was edited to 8 and not committed, and this run was given 16."
    )
    assert (workspace.root / "params.yaml").read_bytes() == before


def test_an_edit_stays_where_the_run_agrees_with_it(workspace):
    workspace.set(finetune={"batch_size": 8})
    assert give(workspace, finetune__batch_size=8, evaluate__mistakes=3) == ["evaluate.mistakes was 24, is 3"]
    assert batch_size(workspace) == 8


def test_once_committed_it_gives_way(workspace):
    workspace.set(finetune={"batch_size": 8})
    workspace.run("git", "commit", "-qam", "smaller batches")
    assert give(workspace, finetune__batch_size=16) == ["finetune.batch_size was 8, is 16"]


def test_another_runs_values_give_way_but_an_edit_among_them_does_not(workspace):
    give(workspace, finetune__batch_size=16)
    assert give(workspace, finetune__batch_size=64) == ["finetune.batch_size was 16, is 64"]
    workspace.set(evaluate={"mistakes": 5})
    assert give(workspace, finetune__batch_size=16) == ["finetune.batch_size was 64, is 16"]
    assert "evaluate.mistakes was edited to 5" in give(workspace, evaluate__mistakes=6)


def test_what_an_experiment_keeps_gives_way(after_flow):
    after_flow.set(finetune={"batch_size": 8})
    after_flow.flow()
    assert give(after_flow, finetune__batch_size=16) == ["finetune.batch_size was 8, is 16"]


def test_the_file_as_it_was_is_kept_beside(workspace):
    before = (workspace.root / "params.yaml").read_bytes()
    give(workspace, finetune__batch_size=16)
    assert (workspace.root / ".rootstock" / "params.before.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (("evaluate:", "resamples:", "mistakes:"), "evaluate is missing, and DVC records it"),
        (("augment:",), "finetune.augment is missing, and DVC records it; its default is 'none'"),
    ],
)
@pytest.mark.parametrize("door", [["dvc", "repro"], ["python", "-m", "flows.pipeline"]], ids=["repro", "flow"])
def test_a_file_that_lacks_what_dvc_records_is_refused_by_name(workspace, lines, error, door):
    path = workspace.root / "params.yaml"
    kept = [line for line in path.read_text().splitlines() if not line.strip().startswith(lines)]
    path.write_text("\n".join(kept) + "\n")
    done = workspace.run(*door, check=False)
    assert done.returncode != 0
    assert f"params.yaml: {error}" in done.stderr
