"""Which files of the project a module imports, by reading it: at its top and inside its functions, directly or not.

A template that a module names counts as imported: it decides the output as any code does.
"""

import ast
import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("flows", "tasks", "rootstock", "benchmarks")
# Of rootstock/: each imports from itself and those before it.
ORDER = (
    "system", "config", "dataset", "images", "ingest", "backbones", "features", "training", "model", "evaluation",
)  # fmt: skip


def imported_by(path: Path, but_in: Path | None = None) -> set[Path]:
    """Follow the imports of a file through the project; imports for type checkers alone do not count.

    Args:
        path: the file.
        but_in: a folder whose files are left out, with what only they import.
    """
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        imported = {found for found in direct_imports(waiting.pop()) if not (but_in and but_in in found.parents)}
        for found in imported - seen - {path}:
            seen.add(found)
            waiting.append(found)
    return seen


def every_import(path: Path) -> set[Path]:
    """Which files of the project a module imports itself, those for type checkers among them."""
    return _imports(ast.walk(ast.parse(path.read_text())), path)


def direct_imports(path: Path) -> set[Path]:
    """Which files of the project a module imports itself when it runs."""
    if path.suffix != ".py":
        return {path.with_name(name) for name in re.findall(r'{% include "([^"]+)" %}', path.read_text())}
    return _imports(_run_time_nodes(ast.parse(path.read_text())), path)


def _imports(nodes: Iterable[ast.AST], path: Path) -> set[Path]:
    found: set[Path] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {file for alias in node.names if (file := _file(alias.name))}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = [_file(f"{node.module}.{alias.name}") for alias in node.names]
            found |= {file for file in [_file(node.module), *below] if file}
        elif isinstance(node, ast.Constant) and str(node.value).endswith(".j2"):
            found.add(path.with_name(str(node.value)))
    return found


def top_packages(path: Path) -> set[str]:
    """Name the packages, ours and others', that a file imports itself."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def _run_time_nodes(tree: ast.AST):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _run_time_nodes(node)


def _file(module: str) -> Path | None:
    if module.split(".")[0] not in PACKAGES:
        return None
    path = ROOT / f"{module.replace('.', '/')}.py"
    return path if path.exists() else None
