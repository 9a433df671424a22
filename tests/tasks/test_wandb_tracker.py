"""Weights & Biases without a network: what it has written is read back. What needs an account is not tested."""

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tasks.bridge import tracking
from tests.workspace import SMALL, Workspace

if TYPE_CHECKING:
    from wandb.proto.wandb_internal_pb2 import Record

HEADER, RECORD, BLOCK = 7, 7, 32 * 2**10  # bytes of a LevelDB log: of the file's header, of a record's, of a block
WHOLE, LAST = 1, 4  # kinds of records that end an entry


def entries(path: Path) -> "list[Record]":
    """Read a file of Weights & Biases, a LevelDB log of messages."""
    from wandb.proto.wandb_internal_pb2 import Record  # takes seconds to import, which every other test would wait for

    data, at, entry, found = path.read_bytes(), HEADER, b"", []
    while at + RECORD <= len(data):
        if (left := BLOCK - at % BLOCK) < RECORD:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)  # after a checksum
        entry += data[at + RECORD : at + RECORD + size]
        at += RECORD + size
        if kind in (WHOLE, LAST):
            found.append(Record.FromString(entry))
            entry = b""
    return found


def values(items) -> dict[str, object]:
    return {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}


@pytest.fixture(scope="module")
def tracked(flow_ran_in, tmp_path_factory) -> "tuple[Workspace, list[Record], str, str]":
    """A workspace whose run was tracked offline, twice: what was written, and both sentences."""
    folder = tmp_path_factory.mktemp("wandb")
    workspace = flow_ran_in.copy(folder / "workspace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.root)
        patch.setenv("WANDB_MODE", "offline")
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            patch.setenv(name, str(folder / name.lower()))
        said = [tracking.track("wandb", "wise-goat", decision="promoted") for _ in range(2)]
    [written] = workspace.root.glob("wandb/offline-run-*/*.wandb")
    return workspace, entries(written), *said


def test_parameters_and_tags_are_the_config_of_a_run_with_the_same_name(tracked):
    [run] = [entry.run for entry in tracked[1] if entry.HasField("run")]
    assert (run.display_name, run.project) == ("wise-goat", "rootstock")
    config = values(run.config.update)
    assert config["backbone.image_size"] == 32 and config["finetune.stages"] == SMALL["finetune"]["stages"]
    assert config["decision"] == "promoted"
    assert config["rootstock.fingerprint"].startswith(run.run_id)


def test_each_epoch_is_a_step_and_final_figures_are_the_summary(tracked):
    workspace, written, *_ = tracked
    steps = [values(entry.history.item) for entry in written if entry.HasField("history")]
    assert [step["epoch"] for step in steps] == [1, 2]
    assert all({"finetune/train_loss", "finetune/val_loss", "finetune/val_accuracy"} <= step.keys() for step in steps)
    summary = {}
    for entry in written:
        if entry.HasField("summary"):
            summary |= values(entry.summary.update)
    test = json.loads((workspace.root / "data" / "report" / "test.json").read_text())
    assert summary["test/accuracy"] == test["accuracy"]["value"]


def test_report_and_model_are_artifacts(tracked):
    artifacts = {entry.artifact.type: entry.artifact for entry in tracked[1] if entry.HasField("artifact")}
    model = {content.path for content in artifacts["model"].manifest.contents}
    assert model == {path.name for path in (tracked[0].root / "data" / "model").iterdir()}
    assert {"report.html", "plots/history.csv", "dvc.lock"} <= {
        content.path for content in artifacts["report"].manifest.contents
    }


def test_a_run_is_tracked_once_and_the_sentence_says_how_to_upload_it(tracked):
    _, _, first, second = tracked
    assert first.startswith("Tracked in Weights & Biases: ") and first.endswith("offline: `wandb sync` uploads it.")
    assert second == "Weights & Biases has this run already."
