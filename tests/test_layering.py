"""Dependencies point one way, flows -> tasks -> rootstock, and `rootstock/` imports neither Prefect nor DVC."""

import ast
import re
import subprocess
import sys

import networkx
import pytest

from tests.imports import ORDER, ROOT, every_import, imported_by, top_packages

MAY_IMPORT = {"flows": {"flows", "tasks", "rootstock"}, "tasks": {"tasks", "rootstock"}, "rootstock": {"rootstock"}}
MODULES = [path.relative_to(ROOT) for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_only_its_own_layer_and_those_below(module):
    ours = top_packages(ROOT / module) & MAY_IMPORT.keys()
    assert ours <= MAY_IMPORT[module.parts[0]]


def test_the_order_lists_every_package_and_each_says_what_it_is_for():
    packages = {path.parent for path in MODULES if len(path.parts) == 3 and path.parts[0] == "rootstock"}
    assert {package.name for package in packages} == set(ORDER)
    for package in packages:
        assert ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text()))


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_only_itself_and_those_before_it(package):
    allowed = ORDER[: ORDER.index(package) + 1]
    files = (path for path in MODULES if path.parts[:2] == ("rootstock", package))
    found = {(path.name, other.relative_to(ROOT).parts[1]) for path in files for other in every_import(ROOT / path)}
    assert not [(name, other) for name, other in found if other not in allowed]


def test_imports_form_no_cycle():
    graph = networkx.DiGraph((ROOT / path, other) for path in MODULES for other in every_import(ROOT / path))
    assert [[path.name for path in circle] for circle in networkx.simple_cycles(graph)] == []


def test_nothing_is_imported_by_a_name_in_a_string():
    assert [path for path in MODULES if re.search(r"import_module\(|__import__\(", (ROOT / path).read_text())] == []


@pytest.mark.parametrize("module", [path for path in MODULES if path.parts[0] == "rootstock"], ids=str)
def test_rootstock_imports_neither_prefect_nor_dvc(module):
    assert not top_packages(ROOT / module) & {"prefect", "dvc"}


@pytest.mark.parametrize("benchmark", ["gpu", "cores"])
def test_a_benchmark_for_other_machines_needs_neither_prefect_nor_dvc(benchmark):
    path = ROOT / "benchmarks" / f"{benchmark}.py"
    files = {path} | imported_by(path)
    assert {file.relative_to(ROOT).parts[0] for file in files} == {"benchmarks", "rootstock"}
    assert not set().union(*map(top_packages, files)) & {"prefect", "dvc", "flows", "tasks"}


def test_only_eight_modules_call_dvc():
    callers = [str(path) for path in MODULES if "dvc" in top_packages(ROOT / path)]
    assert callers == [
        f"tasks/bridge/{name}.py"
        for name in (
            "dvc_lock", "dvc_program", "dvc_remote", "dvc_repository", "experiments", "repair", "unused_versions",
            "versions",
        )
    ]  # fmt: skip


@pytest.mark.parametrize("stage", ["ingest", "backbone", "extract", "train_head", "fine_tune", "evaluate"])
def test_importing_a_stage_imports_neither_torch_nor_prefect_nor_dvc(stage):
    heavy = "{'torch', 'prefect', 'dvc', 'pandas', 'sklearn', 'matplotlib'}"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, tasks.{stage}; print(*({heavy} & sys.modules.keys()))"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == ""
