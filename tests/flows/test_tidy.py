"""`python -m flows.cache` on a real workspace: it lists, prunes and compacts, and dvc.lock stays up to date."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.flows.test_repro_and_flow import UP_TO_DATE
from tests.serving import worker
from tests.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_server")


def cache(workspace: Workspace, *arguments: str, check: bool = True):
    return workspace.run(sys.executable, "-m", "flows.cache", *arguments, check=check)


def keys(workspace: Workspace) -> set[str]:
    return {path.name for path in (workspace.root / "data/features").iterdir() if path.is_dir()}


def shards(workspace: Workspace) -> set[str]:
    return {path.stem for path in (workspace.root / "data/images").iterdir()}


def shelf(workspace: Workspace) -> set[Path]:
    """Push; returns what is on the remote."""
    folder = workspace.root.parent / "shelf"
    if not folder.exists():
        workspace.run("dvc", "remote", "add", "--default", "shelf", str(folder))
    workspace.run("dvc", "push")
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def twice(after_repro) -> tuple[Workspace, str]:
    """A workspace with features in both precisions, and the key of those that are not in use."""
    [old] = keys(after_repro)
    after_repro.set(extract={"dtype": "float16"})
    after_repro.repro()
    return after_repro, old


def test_the_cache_is_listed_without_loading_prefect_or_dvc(after_repro):
    kept, [key] = after_repro.outputs(), keys(after_repro)
    loaded = "import sys; from flows import cache; cache.main(); print({'prefect', 'dvc'} & set(sys.modules))"
    shown = after_repro.run(sys.executable, "-c", loaded).stdout
    [row] = [line for line in shown.splitlines() if key in line]
    for said in ("shufflenet_v2_x0_5", "penultimate", "float32", " 45 ", "today", "in use"):
        assert said in row
    assert "data/images: " in shown and "gone" not in shown
    assert shown.splitlines()[-1] == "set()"
    assert after_repro.outputs() == kept and after_repro.status() == UP_TO_DATE


@pytest.mark.slow  # a minute
def test_a_prune_makes_nothing_stale_and_pushes_only_the_new_list_of_files(twice):
    workspace, old = twice
    [used] = keys(workspace) - {old}
    before = shelf(workspace)
    refused = cache(workspace, "--key", used, check=False)
    assert refused.returncode == 1 and f"cache: {used} (shufflenet_v2_x0_5) is in use" in refused.stderr
    assert "Traceback" not in refused.stderr
    said = cache(workspace, "--backbone", "shufflenet_v2_x0_5", "--older-than", "0").stdout
    named, _, after = said.partition("1 pruned (")
    assert f"- features {old} of shufflenet_v2_x0_5, " in named and after and old not in after
    assert keys(workspace) == {used} and workspace.status() == UP_TO_DATE
    kept = workspace.outputs()
    assert "didn't change, skipping" in workspace.repro() and workspace.outputs() == kept
    assert len(shelf(workspace) - before) == 1  # the folder's new list of files
    assert "Nothing to prune" in cache(workspace, "--older-than", "0").stdout


@pytest.mark.slow  # a minute
def test_a_stage_that_was_stale_before_a_prune_stays_stale(after_repro):
    [used] = keys(after_repro)
    folder = after_repro.root / "data/features"
    shutil.copytree(folder / used, folder / ("0" * 12))
    next((folder / used).iterdir()).unlink()
    assert "1 pruned" in cache(after_repro, "--key", "0" * 12).stdout
    assert "extract" in after_repro.status()
    after_repro.run("dvc", "repro", "extract")
    assert keys(after_repro) == {used} and after_repro.status() == UP_TO_DATE


@pytest.mark.slow  # half a minute
def test_a_compaction_removes_the_old_bytes_and_nothing_is_extracted_again(after_repro):
    for photo in (after_repro.root / "photos").rglob("00*.png"):
        photo.unlink()
    after_repro.set(ingest={"allow_shrink": True})
    after_repro.run("dvc", "repro", "ingest")
    before, old = shelf(after_repro), shards(after_repro)
    assert "belong to 30 removed images\n--compact would free" in cache(after_repro).stdout
    said = cache(after_repro, "--compact", "0.4").stdout
    named, _, after = said.partition("1 shards compacted to 1: 15 images copied, 30 dropped")
    assert "of removed images, in 1 shards" in named and after and "removed images" not in after
    new = shards(after_repro)
    assert len(new) == 1 and not new & old
    status = after_repro.status()
    assert status["ingest"] == UP_TO_DATE["ingest"] and "data/features" not in str(status["extract"])
    kept = after_repro.outputs()
    after_repro.run("dvc", "repro", "ingest")
    assert after_repro.outputs() == kept
    assert "0 of 15 images extracted" in after_repro.run("dvc", "repro", "extract").stderr
    assert after_repro.outputs().keys() == kept.keys()
    sent = {path.read_bytes() for path in shelf(after_repro) - before if path.stat().st_size > 20_000}
    made = [path for folder in ("images", "features") for path in (after_repro.root / "data" / folder).rglob("0*")]
    assert sent == {path.read_bytes() for path in made} and len(made) == 2
    assert "nothing to compact" in cache(after_repro, "--compact").stdout


def test_a_mistake_on_the_command_line_is_a_one_line_error(after_repro):
    for arguments, said in (
        (
            ("--backbone", "resnet-18"),
            "cache: No features are cached for backbone 'resnet-18'; expected one of",
        ),
        (("--compact", "7"), "cache: compact is 7; expected a share above 0 and up to 1"),
    ):
        done = cache(after_repro, *arguments, check=False)
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_decoded_images_are_removed_alone_and_nothing_becomes_stale(after_repro):
    local, kept = after_repro.root / ".rootstock", after_repro.outputs()
    (local / "activations").mkdir()
    (local / "activations" / "0.values").write_bytes(bytes(71))
    [size] = re.findall(r"pixels: ([\d.]+ kB), decoded images", cache(after_repro).stdout)
    said = cache(after_repro, "--pixels").stdout
    assert f"{size} of decoded images removed" in said
    assert "pixels: 0 bytes" in said and "activations: 71 bytes" in said
    assert not (local / "pixels").exists() and (local / "activations" / "0.values").exists()
    assert after_repro.outputs() == kept and after_repro.status() == UP_TO_DATE


@pytest.mark.slow
def test_a_run_in_the_ui_shows_what_is_left_in_the_cache_as_an_artifact(deployed, after_flow):
    [key] = keys(after_flow)
    with worker(deployed, "cpu", after_flow):
        run = deployed.start("cache/cpu", older_than=30, compact=0.5)
        state = run.ended()
        assert state["type"] == "COMPLETED" and state["message"] == "Nothing to prune; nothing to compact"
        assert key in run.artifacts()["cache"]["data"] and run.stages() == {"tidy": "Completed"}
        assert deployed.start("cache/cpu").ended()["message"] == "Nothing removed"
