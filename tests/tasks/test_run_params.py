"""Values given to a flow, and edits of params.yaml: which one wins, and what is never lost."""

import json
import sys
from contextlib import chdir

import pytest
from ruamel.yaml import YAML

from rootstock.config.params import UNRECORDED, Params
from rootstock.config.params_file import load
from rootstock.system.errors import RootstockError
from tasks.bridge import run_params, workspace as bridge_workspace
from tests.workspace import ROOT, Workspace

pytestmark = pytest.mark.usefixtures("one_server")

KILLED = """
import json, os, sys
from tasks.bridge import run_params

said = []
with run_params.writing(said.append), run_params.in_params_file(json.loads(sys.argv[1]), said.append):
    print(json.dumps(said), flush=True)
    os._exit(9)
"""


def give(workspace: Workspace, ending: str = "well", /, **values: object) -> list[str] | str:
    """Start a run with some values: what it logs, or the error that ends it."""
    asked: dict = {}
    for key, value in values.items():
        section, _, name = key.partition("__")
        if name:
            asked.setdefault(section, {})[name] = value
        else:
            asked[section] = value
    if ending == "killed":
        done = workspace.run("python", "-c", KILLED, json.dumps(asked), check=False)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)
    said: list[str] = []
    with chdir(workspace.root):
        try:
            with run_params.writing(said.append), run_params.in_params_file(asked, said.append) as params:
                assert bridge_workspace.read_params() == params
                if ending == "failed":
                    raise FailedError
                if ending == "edited":
                    file = bridge_workspace.PARAMS
                    file.write_text(file.read_text() + "# mine\n")
                    raise KeyboardInterrupt
        except (FailedError, KeyboardInterrupt):
            pass
        except RootstockError as error:
            return str(error)
    return said


class FailedError(RootstockError):
    """A stage failed."""


def test_a_run_may_be_given_where_it_is_tracked(workspace):
    assert give(workspace, track="wandb") == ['params.yaml: track was "none", is "wandb"']
    assert load(workspace.root / "params.yaml").track == "wandb"


def batch_size(workspace: Workspace) -> int:
    return load(workspace.root / "params.yaml").finetune.batch_size


def test_given_values_override_a_committed_file_and_the_log_says_what_changed(workspace):
    assert give(workspace, finetune__batch_size=16) == ["params.yaml: finetune.batch_size was 32, is 16"]
    assert batch_size(workspace) == 16


def test_a_run_whose_value_contradicts_an_uncommitted_edit_is_refused(workspace):
    workspace.set(finetune={"batch_size": 8})
    before = (workspace.root / "params.yaml").read_bytes()
    refused = give(workspace, finetune__batch_size=16, evaluate__mistakes=3)
    assert refused.startswith(
        "params.yaml: finetune.batch_size was edited to 8 and not committed, and this run was given 16."
    )
    assert (workspace.root / "params.yaml").read_bytes() == before


def test_an_uncommitted_edit_stays_where_the_run_agrees_with_it(workspace):
    workspace.set(finetune={"batch_size": 8})
    assert give(workspace, finetune__batch_size=8, evaluate__mistakes=3) == [
        "params.yaml: evaluate.mistakes was 10, is 3"
    ]
    assert batch_size(workspace) == 8


def test_a_committed_edit_is_overridden_by_given_values(workspace):
    workspace.set(finetune={"batch_size": 8})
    workspace.run("git", "commit", "-qam", "smaller batches")
    assert give(workspace, finetune__batch_size=16) == ["params.yaml: finetune.batch_size was 8, is 16"]


def test_values_of_another_run_are_overridden_but_an_edit_among_them_is_not(workspace):
    give(workspace, finetune__batch_size=16)
    assert give(workspace, finetune__batch_size=64) == ["params.yaml: finetune.batch_size was 16, is 64"]
    workspace.set(evaluate={"mistakes": 5})
    assert give(workspace, finetune__batch_size=16) == ["params.yaml: finetune.batch_size was 64, is 16"]
    assert "evaluate.mistakes was edited to 5" in give(workspace, evaluate__mistakes=6)


@pytest.mark.slow
def test_values_that_an_experiment_has_kept_are_overridden(after_flow):
    after_flow.set(finetune={"batch_size": 8})
    after_flow.flow()
    assert give(after_flow, finetune__batch_size=16) == ["params.yaml: finetune.batch_size was 8, is 16"]


def test_a_copy_of_the_file_is_kept_before_it_is_overwritten(workspace):
    before = (workspace.root / "params.yaml").read_bytes()
    give(workspace, finetune__batch_size=16)
    assert (workspace.root / ".rootstock" / "params.before.yaml").read_bytes() == before


@pytest.mark.parametrize("ending", ["killed", "failed"])
def test_values_of_a_run_that_does_not_complete_are_undone(workspace, ending):
    path = workspace.root / "params.yaml"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + "# é\r\n".encode())  # byte for byte
    workspace.run("git", "commit", "-qam", "as another system writes it")
    before = path.read_bytes()
    said = give(workspace, ending, finetune__batch_size=16)
    assert said[0] == "params.yaml: finetune.batch_size was 32, is 16"
    if ending == "killed":
        assert batch_size(workspace) == 16
        assert "undid the values of the last run, which was killed" in give(workspace)[0]
    assert (workspace.root / "params.yaml").read_bytes() == before
    workspace.set(finetune={"batch_size": 16})  # by a person, now: no run's value any more
    assert "was edited to 16" in give(workspace, finetune__batch_size=8)


def test_edits_made_during_the_run_are_not_undone(workspace):
    give(workspace, "edited", finetune__batch_size=16)
    assert batch_size(workspace) == 16 and "# mine" in (workspace.root / "params.yaml").read_text()
    give(workspace, "killed", finetune__batch_size=8)
    workspace.set(evaluate={"mistakes": 3})
    assert give(workspace) == []
    assert batch_size(workspace) == 8


def test_a_null_changes_nothing_and_the_log_says_so(workspace):
    before = (workspace.root / "params.yaml").read_bytes()
    said = give(workspace, backbone={"image_size": None, "variant": None}, seed=None, head=None, finetune__where=None)
    assert [line.partition(":")[0] for line in said] == ["backbone.image_size", "seed", "head", "finetune.where"]
    assert "null was given and ignored, 32 of params.yaml stays" in said[0]
    assert (workspace.root / "params.yaml").read_bytes() == before


def test_values_sent_by_a_schedule_made_in_the_ui_change_nothing(workspace):
    workspace.set(ingest={"max_side": 512})
    workspace.run("git", "commit", "-qam", "smaller")
    before = (workspace.root / "params.yaml").read_bytes()
    give(
        workspace, ingest={"max_side": None}, backbone={"variant": None, "image_size": None, "crop_fraction": None},
        extract={"batch_size": None, "cluster": None, "store": None},
    )  # fmt: skip
    assert (workspace.root / "params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"finetune__batch_sise": 3}, "unknown key finetune.batch_sise"),
        ({"finetune__batch_sise": None}, "Did you mean batch_size?"),
        ({"fintune": {}}, "Did you mean finetune?"),
        ({"finetune__batch_size": "16"}, "finetune.batch_size is '16'; expected a whole number"),
        ({"finetune__batch_size": 1.5}, "finetune.batch_size is 1.5"),
        ({"finetune": [1]}, "finetune is a list; expected the keys"),
        ({"seed": {"a": 1}}, "seed is a mapping; expected a whole number"),
        ({"ingest__sources": []}, "ingest.sources is empty"),
        ({"ingest__sources": [{"path": "photos"}]}, "ingest.sources[0].domain is missing"),
        ({"ingest__split": {"val": 0.9}}, "val + test is 1.1"),
        ({"ingest__sources": [{"path": "http://u:SECRET@h/x", "domain": "d"}]}, "a password in a URL"),
    ],
)
def test_an_invalid_value_is_refused_by_name_and_changes_nothing(workspace, values, error):
    before = (workspace.root / "params.yaml").read_bytes()
    said = give(workspace, **values)
    assert said.startswith("the parameters of this run: ") and error in said
    assert "SECRET" not in said
    assert (workspace.root / "params.yaml").read_bytes() == before


def test_a_whole_number_is_accepted_for_a_float_and_nested_sections_are_merged_key_by_key(workspace):
    said = give(workspace, ingest={"split": {"val": 0.3}}, finetune__label_smoothing=0)
    assert said == [
        "params.yaml: ingest.split.val was 0.2, is 0.3",
        "params.yaml: finetune.label_smoothing was 0.1, is 0.0",
    ]


def test_a_file_without_a_source_is_refused(workspace):
    path = workspace.root / "params.yaml"
    document = YAML(typ="safe").load(path)
    del document["ingest"]["sources"]
    path.write_text(json.dumps(document))
    for command in (["dvc", "repro"], ["python", "-m", "flows.pipeline"]):
        done = workspace.run(*command, check=False)
        assert done.returncode != 0
        assert "params.yaml: ingest.sources is missing; expected: Image sources to ingest." in done.stderr


def test_sections_that_no_output_depends_on_may_be_missing(tmp_path):
    written = YAML().load(ROOT / "params.yaml")
    YAML().dump({name: written[name] for name in written if name not in UNRECORDED}, tmp_path / "params.yaml")
    with chdir(tmp_path):
        params = bridge_workspace.read_params()
    assert all(getattr(params, name) == getattr(Params(), name) for name in UNRECORDED)


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (
            (
                "evaluate:",
                "views: 1",
                "mistakes:",
                "label_issues:",
                "learning_curve:",
                "explain:",
                "repeats:",
                "probabilities:",
            ),
            "evaluate is missing, and DVC records it",
        ),
        (("augment:",), 'finetune.augment is missing, and DVC records it; its default is "none"'),
        (
            ("averaging:", "interpolation:", "soup:", "ema:"),
            'finetune.averaging is missing, and DVC records it; its default is {"interpolation": 0, "soup": 0, "ema"',
        ),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["dvc", "repro"], id="repro"),
        pytest.param(["python", "-m", "flows.pipeline"], id="flow", marks=pytest.mark.slow),
    ],
)
def test_a_file_without_a_key_that_dvc_records_is_refused_by_name(workspace, lines, error, command):
    path = workspace.root / "params.yaml"
    kept = [line for line in path.read_text().splitlines() if not line.strip().startswith(lines)]
    path.write_text("\n".join(kept) + "\n")
    done = workspace.run(*command, check=False)
    assert done.returncode != 0
    assert f"params.yaml: {error}" in done.stderr


def test_a_section_that_only_a_flow_reads_may_be_missing(tmp_path, monkeypatch):
    document = YAML(typ="safe").load(ROOT / "params.yaml")
    del document["export"]
    (tmp_path / "params.yaml").write_text(json.dumps(document))
    monkeypatch.chdir(tmp_path)
    assert bridge_workspace.read_params().export.max_loss == 0.01


CANCELLED = """
import json, uuid
from tasks.bridge import run_params, termination, workspace
workspace.holds_lock = lambda: True
termination._report_state = lambda run: None
run_params.UNDER_WAY.parent.mkdir(exist_ok=True)
now = workspace.PARAMS.read_text()
run_params.UNDER_WAY.write_text(json.dumps({"before": "seed: 0\\n", "after": now, "written": {}}))
termination._end_process(uuid.uuid4())
"""


@pytest.mark.parametrize("committed", [True, False])
def test_a_run_that_is_cancelled_leaves_the_parameters_that_a_promotion_has_committed(workspace, committed):
    if not committed:
        workspace.set(head={"l2": [7.0]})
    now = (workspace.root / "params.yaml").read_text()
    workspace.run(sys.executable, "-c", CANCELLED, check=False)
    assert (workspace.root / "params.yaml").read_text() == (now if committed else "seed: 0\n")
