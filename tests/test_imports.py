"""Libraries that take seconds to import wait until something needs them."""

import json
import subprocess
import sys

import pytest

from tests.imports import ROOT

CODE = """
import json, sys
from importlib.util import find_spec

seconds = {"torchvision", "timm", "wandb"}
import rootstock.evaluation.evaluate, rootstock.model.prediction, rootstock.training.head
before = seconds & set(sys.modules)
from rootstock.backbones.networks import import_timm

import_timm()
assert find_spec("wandb"), "whoever wants it gets it"
print(json.dumps([sorted(before), sorted(seconds & set(sys.modules))]))
"""


@pytest.fixture(scope="module")
def imported() -> tuple[list[str], list[str]]:
    """What is imported by modules that decode no image, and with timm then."""
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True)
    before, then = json.loads(done.stdout)
    return before, then


def test_what_decodes_no_image_imports_neither_torchvision_nor_timm(imported):
    assert imported[0] == []


def test_timm_is_imported_without_the_logger_that_it_would_import(imported):
    assert imported[1] == ["timm", "torchvision"]
