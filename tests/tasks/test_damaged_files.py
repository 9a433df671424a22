"""If a file that a stage reads is damaged, the stage names it in one sentence, or recreates it."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir
from importlib import import_module
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rootstock.system import causes
from rootstock.system.errors import RootstockError
from tasks.bridge import workspace
from tests.workspace import Workspace, make_workspace

QUICK = {
    "ingest": {"shard_mb": 0.05},
    "backbone": {"name": "lenet5"},
    "extract": {"engine": "eager"},
    "head": {"l2": [1.0]},
    "finetune": {"stages": [{"unfreeze": "all", "epochs": 1, "lr": 0.001}]},
    "evaluate": {"mistakes": 10},
}


def run(stage: str) -> None:
    """Run a stage in this process, with errors as a command shows them."""
    with causes.described():
        params = workspace.read_params()
        getattr(import_module(f"tasks.{stage}"), stage)(params)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Workspace:
    """A tiny workspace in which every stage has run; nothing writes to it."""
    made = make_workspace(
        tmp_path_factory.mktemp("damaged") / "workspace", tmp_path_factory.mktemp("prefect"), git=False
    )
    made.set(**QUICK)
    with chdir(made.root):
        for stage in ("ingest", "backbone", "extract", "train_head", "fine_tune", "evaluate"):
            run(stage)
    return made


@pytest.fixture
def copied(finished, tmp_path) -> Iterator[Path]:
    """A copy, as the working folder."""
    with chdir(finished.copy(tmp_path / "workspace").root):
        yield Path()


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def another_type(path: Path) -> None:
    """Put a file of the same kind that holds something else."""
    if path.suffix == ".json":
        path.write_text("[1, 2]")
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"something": ["else"]}), path)
    else:
        path.write_bytes(b"something else")


def without_a_key(path: Path) -> None:
    """Leave the first key, or the first column, out."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        del content[next(iter(content))]
        path.write_text(json.dumps(content))
    elif path.suffix == ".parquet":
        table = pq.read_table(path)
        pq.write_table(table.drop_columns(table.column_names[:1]), path)
    else:
        half(path)


DAMAGE: list[Callable[[Path], None]] = [half, empty, zeros, folder, another_type, without_a_key]
READ = {
    "ingest": [
        "data/images/*.tar",
        "data/dataset/manifest.parquet/*",
        "data/dataset/ledger.parquet/*",
        "data/dataset/rejected.parquet",
    ],
    "extract": ["data/backbone/backbone.json", "data/backbone/weights.safetensors"],
    "train_head": [
        "data/dataset/manifest.parquet/*",
        "data/backbone/backbone.json",
        "data/features/*/*.parquet",
    ],
    "fine_tune": [
        "data/dataset/manifest.parquet/*",
        "data/backbone/backbone.json",
        "data/backbone/weights.safetensors",
        "data/head/head.json",
        "data/head/head.safetensors",
        "data/images/*.tar",
    ],
    "evaluate": [
        "data/dataset/manifest.parquet/*",
        "data/dataset/summary.json",
        "data/backbone/backbone.json",
        "data/backbone/weights.safetensors",
        "data/features/*/*.parquet",
        "data/head/head.json",
        "data/head/head.safetensors",
        "data/finetuned/model.safetensors",
        "data/finetuned/history.parquet",
        "data/finetuned/finetuned.json",
        "data/images/*.tar",
    ],
}
CASES = [(stage, what, damage) for stage, files in READ.items() for what in files for damage in DAMAGE]


@pytest.mark.parametrize(("stage", "what", "damage"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_a_stage_names_a_damaged_file_and_how_to_restore_it(copied, stage, what, damage):
    path = sorted(copied.glob(what))[0]
    damage(path)
    if stage == "ingest":  # an ingest that finds nothing new reads less
        draw_one(copied)
    with pytest.raises(RootstockError) as caught:
        run(stage)
    said = str(caught.value)
    assert str(path) in said or path.parent.name in said, said
    assert "dvc checkout" in said or "extract again" in said, said
    assert "\n" not in said and len(said) < 600


def draw_one(root: Path) -> None:
    """Let a new photo arrive."""
    from tests.workspace import draw_photo

    draw_photo(root / "photos" / "moss" / "new.png", "moss", 4711)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda value: value.__name__)
def test_damaged_features_are_computed_again(copied, finished, damage):
    path = sorted(copied.glob("data/features/*/*.parquet"))[0]
    damage(path)
    if path.is_dir():
        path.rmdir()
    run("extract")
    assert path.read_bytes() == (finished.root / path).read_bytes()


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda value: value.__name__)
def test_a_damaged_checkpoint_does_not_prevent_training(copied, finished, damage, caplog):
    workspace.CHECKPOINT.write_bytes(b"PK" + bytes(1000))
    damage(workspace.CHECKPOINT)
    if workspace.CHECKPOINT.is_dir():
        return  # the next checkpoint could not be written: a sentence, as of any folder where a file belongs
    run("fine_tune")
    assert "fine-tuning starts from the beginning" in caplog.text
    name = "data/finetuned/model.safetensors"
    assert (copied / name).read_bytes() == (finished.root / name).read_bytes()


@pytest.mark.parametrize("name", ["data/images", "data/features", "data/head", ".rootstock"])
def test_a_folder_of_outputs_may_be_a_link_to_another_disk(copied, tmp_path, name):
    shutil.move(copied / name, tmp_path / "disk")
    (copied / name).symlink_to(tmp_path / "disk")
    workspace.CHECKPOINT.unlink(missing_ok=True)
    for stage in ("ingest", "extract", "train_head"):
        run(stage)
    assert (copied / name).is_symlink()


@pytest.mark.parametrize("name", ["data", "data/report"])
def test_a_linked_folder_that_git_and_dvc_would_not_follow_is_refused_before_any_work(copied, tmp_path, name):
    shutil.move(copied / name, tmp_path / "disk")
    (copied / name).symlink_to(tmp_path / "disk")
    refused = pytest.raises(RootstockError, match=f"^{name} is a link to .*data/images.*may be links to another disk")
    with refused, workspace.writing():
        pass
