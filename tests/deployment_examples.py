"""The files under docs/deployment/ and the page that explains them, as tests read them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

SAFE = YAML(typ="safe")
ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "deployment"
PAGE = ROOT / "docs" / "deployment.md"
FILES = sorted(path for path in EXAMPLES.rglob("*") if path.is_file())
POOLS = sorted(EXAMPLES.rglob("pool-*.json"))
COMPOSE = (EXAMPLES / "docker" / "compose.yaml").read_text()


def name_of(path: Path) -> str:
    return str(path.relative_to(EXAMPLES))


def tool(name: str) -> str:
    """Find a program beside this Python, on the path or where Debian keeps servers; without it, skip."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
    found = shutil.which(name, path=places)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def named(pattern: str, *paths: Path) -> set[str]:
    """Collect what a pattern's group finds in some files."""
    return {found for path in paths for found in re.findall(pattern, path.read_text(), re.MULTILINE)}


def configuration(pool: Path) -> dict[str, Any]:
    return json.loads(pool.read_text())["job_configuration"]
