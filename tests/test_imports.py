"""What is imported when: libraries that take seconds wait until something needs them."""

import subprocess
import sys
from pathlib import Path

import pytest


def imported(code: str) -> set[str]:
    """Run code in a Python of its own, and return the packages that it imported."""
    code += "; import sys; print(*{name.partition('.')[0] for name, module in sys.modules.items() if module})"
    root = Path(__file__).parents[1]
    return set(
        subprocess.run(
            [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
        ).stdout.split()
    )


@pytest.mark.parametrize(
    "module", ["rootstock.evaluation.evaluate", "rootstock.training.head", "rootstock.model.prediction"]
)
def test_what_decodes_no_image_does_not_import_torchvision(module):
    assert imported(f"import {module}") & {"torchvision", "timm"} == set()


def test_timm_is_imported_without_the_logger_that_it_would_import():
    code = "from importlib.util import find_spec; from rootstock.backbones.networks import import_timm; import_timm()"
    assert imported(f"{code}; assert find_spec('wandb')") & {"timm", "wandb"} == {"timm"}
