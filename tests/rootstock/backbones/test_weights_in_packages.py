"""Weights that an installed package ships are found by its name; nothing else is, and no code of it runs."""

import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from rootstock.backbones import backbones, weights
from rootstock.config.params import Backbone
from rootstock.system.errors import WeightsError
from tests.slow import slow
from tests.squeezenet import NAME, prepared, same


def test_weights_of_an_installed_package_are_found_by_its_name(state, expected, tmp_path, monkeypatch):
    package = tmp_path / "squeezed"
    package.mkdir()
    (package / "__init__.py").touch()
    save_file(state, package / "weights.safetensors")
    info = tmp_path / "squeezed-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: squeezed\nVersion: 2.1\n")
    (info / "top_level.txt").write_text("squeezed\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert same(prepared("package:squeezed/*.safetensors", tmp_path / "out"), expected)
    assert backbones.describe(tmp_path / "out")["origin"].startswith("package squeezed 2.1")
    with pytest.raises(WeightsError, match=r"expected exactly one matching file in the package, found none"):
        weights.find(Backbone(name=NAME, weights="package:squeezed/*.pth"), 0, 32)
    with pytest.raises(WeightsError, match=r"the package sqeezed is not installed; install the one"):
        weights.find(Backbone(name=NAME, weights="package:sqeezed/*.pth"), 0, 32)


HOSTILE = "open({marker!r}, 'w').close()\n"


@pytest.mark.parametrize("place", ["evil/*.pth", *slow("data.inbox.field.bee.evil/x", "evil", "installed_here/*.pth")])
def test_a_module_in_the_workspace_is_not_a_package_and_is_never_executed(place, state, tmp_path):
    folder = tmp_path / "data" / "inbox" / "field" / "bee"
    folder.mkdir(parents=True)
    marker = tmp_path / "ran"
    for module in (folder / "evil.py", tmp_path / "evil" / "__init__.py", tmp_path / "installed_here" / "__init__.py"):
        module.parent.mkdir(exist_ok=True)
        module.write_text(HOSTILE.format(marker=str(marker)))
        torch.save(state, module.parent / "weights.pth")
    info = tmp_path / "installed_here-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: installed_here\nVersion: 1\n")
    (info / "top_level.txt").write_text("installed_here\n")
    ask = (
        "import sys\nfrom rootstock.backbones import weights\nfrom rootstock.config import params\n"
        "try: weights.find(params.Backbone(name='squeezenet1_1', "
    )
    code = (
        f"{ask}weights='package:' + sys.argv[1]), 0, 32)\nexcept Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, place], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "WeightsError" in done.stdout and "is not installed" in done.stdout
    assert not marker.exists()


@pytest.mark.parametrize(
    "place",
    ["package:", "package:/x", "package:os/", "package:x/../../y", "package:x//y", "package:../x/y", "package:x y/z",
     "package:x/\0", "package:.x/y", "package:x./y"],
)  # fmt: skip
def test_a_malformed_path_in_a_package_is_refused_before_anything_runs(place):
    with pytest.raises(ValueError, match=r"expected package:<import name>/<file>|control character"):
        Backbone(name=NAME, weights=place)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("package:os", "the package os is not installed"),
        ("package:no_such.thing/x", "the package no_such.thing is not installed"),
        ("package:timm/nothing.pth", "expected exactly one matching file in the package, found none"),
        ("package:timm/models", "expected exactly one matching file in the package, found none"),  # a folder
        ("package:timm/*.py", "expected exactly one matching file in the package, found __init__.py, version.py"),
        ("package:timm/version.py", "not a weights-only file"),
        ("/tmp/" + 300 * "x", "cannot be read"),
        (".", "contains none of model.safetensors"),
    ],
)
def test_a_path_without_usable_weights_is_an_error_in_one_sentence(place, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=re.escape(said)):
        weights.find(Backbone(name=NAME, weights=place), 0, 32)


def test_a_link_out_of_a_package_into_the_workspace_is_not_followed(state, tmp_path, monkeypatch):
    (tmp_path / "site" / "linked").mkdir(parents=True)
    (tmp_path / "workspace").mkdir()
    torch.save(state, tmp_path / "workspace" / "w.pth")
    (tmp_path / "site" / "linked" / "w.pth").symlink_to(tmp_path / "workspace" / "w.pth")
    info = tmp_path / "site" / "linked-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: linked\nVersion: 1\n")
    (info / "RECORD").write_text("linked/w.pth,,\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path / "workspace")
    with pytest.raises(WeightsError, match="found none"):
        weights.find(Backbone(name=NAME, weights="package:linked/w.pth"), 0, 32)
