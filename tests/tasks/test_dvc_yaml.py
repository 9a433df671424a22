"""dvc.yaml is the map of the project: it agrees with the code and with the flow."""

import ast

import networkx
import pytest
from ruamel.yaml import YAML

from rootstock.config.params import Extract, Finetune
from tests.imports import ORDER, ROOT, imported_by
from tests.workspace import make_workspace

STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]


def outs(stage: str) -> set[str]:
    entries = [out for kind in ("outs", "metrics", "plots") for out in STAGES[stage].get(kind, [])]
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


@pytest.mark.parametrize("stage", STAGES)
def test_the_code_dependencies_of_a_stage_are_its_module_and_the_packages_that_it_imports(stage):
    """Not tasks/bridge: it decides when and where a stage runs, and nothing of what the stage makes."""
    module = ROOT / "tasks" / f"{stage}.py"
    imported = {path.relative_to(ROOT) for path in imported_by(module, but_in=ROOT / "tasks" / "bridge")}
    packages = {f"rootstock/{path.parts[1]}" for path in imported}
    listed = [dep for dep in STAGES[stage]["deps"] if not dep.startswith("data/")]
    wanted = [f"rootstock/{package}" for package in ORDER if f"rootstock/{package}" in packages]
    assert listed == [*wanted, f"tasks/{stage}.py"]


def test_dvc_yaml_is_short():
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) < 130


@pytest.mark.parametrize("git", [True, False], ids=["git", "no git"])
@pytest.mark.parametrize("folder", ["data/inbox/garden/moss", ".rootstock/kept", ".venv/lib"])
def test_no_stage_is_looked_for_where_strangers_or_other_programs_write(git, folder, tmp_path, prefect_home):
    workspace = make_workspace(tmp_path / "workspace", prefect_home, git=git)
    workspace.run("python", "-m", "tasks.bridge.versions")
    there = workspace.root / folder
    there.mkdir(parents=True)
    for name in ("dvc.yaml", "photos.dvc"):
        (there / name).write_text("stages: [")
    assert "ingest" in workspace.run("dvc", "status").stdout


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_of_a_stage_runs_its_module(stage):
    assert STAGES[stage]["cmd"] == f"python -m tasks.{stage}"


def test_the_edges_of_the_flow_are_those_of_dvc_yaml():
    producer = {out: stage for stage in STAGES for out in outs(stage)}
    by_files = networkx.DiGraph()
    by_files.add_nodes_from(STAGES)
    for stage in STAGES:
        read = (out for out in producer for dep in STAGES[stage]["deps"] if f"{dep}/".startswith(f"{out}/"))
        by_files.add_edges_from((producer[out], stage) for out in read)
    assert set(networkx.transitive_reduction(by_files).edges) == flow_edges()


def flow_edges() -> set[tuple[str, str]]:
    """Read `x = submit(stage, params, wait_for=[y, z])` off the flow."""
    tree = ast.parse((ROOT / "flows" / "pipeline.py").read_text())
    chain = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "chain")
    stage_of, edges = {}, set()
    for line in chain.body:
        call = getattr(line, "value", None)
        if isinstance(line, ast.Assign) and isinstance(call, ast.Call) and ast.unparse(call.func) == "submit":
            stage = ast.unparse(call.args[0])
            stage_of[ast.unparse(line.targets[0])] = stage
            waits = [keyword.value for keyword in call.keywords if keyword.arg == "wait_for"]
            edges |= {(stage_of[element.id], stage) for wait in waits for element in wait.elts}
    assert set(stage_of.values()) == set(STAGES)
    return edges


def test_every_setting_of_fine_tuning_makes_it_stale_except_those_of_where_it_runs():
    recipe = [f"finetune.{key}" for key in Finetune().recipe()]
    assert {"where", "if_no_worker", "processes", "checkpoint_minutes"} == set(Finetune.model_fields) - set(
        Finetune().recipe()
    )
    for stage in ("fine_tune", "evaluate"):
        assert [param for param in STAGES[stage]["params"] if param.startswith("finetune")] == recipe


def test_every_setting_of_extraction_makes_it_stale_except_batch_size_and_those_of_where_it_runs():
    recipe = [f"extract.{key}" for key in Extract().recipe()]
    assert {"batch_size", "runner", "workers", "cluster", "store"} == set(Extract.model_fields) - set(
        Extract().recipe()
    )
    for stage in ("extract", "train_head", "evaluate"):
        assert [param for param in STAGES[stage]["params"] if param.startswith("extract")] == recipe


def test_every_section_of_the_parameters_that_results_depend_on_reaches_a_stage():
    watched = {param.split(".")[0] for stage in STAGES.values() for param in stage["params"]}
    assert watched | {"retrain", "compare", "export", "cache", "track"} == set(
        YAML(typ="safe").load(ROOT / "params.yaml")
    )


def test_every_output_is_kept_out_of_git():
    ignored = {
        f"{folder}{line}"
        for folder in ("data", "data/report")
        for line in (ROOT / folder / ".gitignore").read_text().split()
    }
    of_this_machine = {"data/inbox", "data/report/to_label.*", "data/compare", "data/history.parquet", "data/export"}
    assert {out for stage in STAGES for out in outs(stage)} == ignored - of_this_machine
