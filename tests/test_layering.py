"""Dependencies point one way, flows -> tasks -> rootstock, and the work knows neither Prefect nor DVC."""

import subprocess
import sys

import pytest

from tests.imports import ROOT, top_packages

MAY_IMPORT = {"flows": {"flows", "tasks", "rootstock"}, "tasks": {"tasks", "rootstock"}, "rootstock": {"rootstock"}}
MODULES = [path.relative_to(ROOT) for package in MAY_IMPORT for path in sorted((ROOT / package).glob("*.py"))]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_only_its_own_layer_and_those_below(module):
    ours = top_packages(ROOT / module) & MAY_IMPORT.keys()
    assert ours <= MAY_IMPORT[module.parts[0]]


@pytest.mark.parametrize("module", [path for path in MODULES if path.parts[0] == "rootstock"], ids=str)
def test_the_work_imports_neither_prefect_nor_dvc(module):
    assert not top_packages(ROOT / module) & {"prefect", "dvc"}


def test_only_four_modules_call_dvc():
    callers = [str(path) for path in MODULES if "dvc" in top_packages(ROOT / path)]
    assert callers == ["tasks/dvc_door.py", "tasks/mending.py", "tasks/remote.py", "tasks/versions.py"]


@pytest.mark.parametrize("stage", ["ingest", "backbone", "extract", "train_head", "fine_tune", "evaluate"])
def test_importing_a_stage_costs_neither_torch_nor_prefect_nor_dvc(stage):
    heavy = "{'torch', 'prefect', 'dvc', 'pandas', 'sklearn', 'matplotlib'}"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, tasks.{stage}; print(*({heavy} & sys.modules.keys()))"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == ""
