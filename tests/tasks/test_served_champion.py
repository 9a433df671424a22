"""Which model of a workspace is served: the champion, by its version, and never a challenger."""

import shutil
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import pytest

from rootstock.model import history
from rootstock.model.history import Row
from rootstock.system import files
from rootstock.system.errors import DamagedError, RootstockError
from tasks.bridge import champion, served_champion
from tasks.bridge.champion import ASIDE
from tasks.bridge.workspace import HISTORY, LOCAL, MODEL

ROW = Row(history.FIRST, 1, "The first champion.", 45, lock="lock", params="seed: 0")


@pytest.fixture(autouse=True)
def workspace(tmp_path) -> Iterator[None]:
    with chdir(tmp_path):
        write_model("first")
        yield


def write_model(weights: str) -> str:
    """Write a model as evaluate does; returns its digest."""
    with files.replacing_folder(MODEL) as folder:
        (folder / "model.safetensors").write_text(weights)
        (folder / "model.json").write_text(f'{{"digest": "{weights}"}}')
    return champion.digest_of_model()


def write_history(*rows: Row) -> None:
    for folder in (LOCAL, HISTORY.parent):
        history.write(folder, list(rows))


def promoted(version: int, model: str) -> Row:
    return replace(ROW, decision=history.PROMOTED, version=version, model=model)


def set_aside(*rows: Row) -> None:
    with files.replacing_folder(ASIDE) as folder:
        shutil.copytree(MODEL, folder / MODEL.name)
        history.write(folder, list(rows))


def test_without_a_history_the_model_of_the_workspace_is_served_by_its_digest():
    found = served_champion.find()
    assert found.folder == MODEL and found.name.startswith("model@") and len(found.name) == len("model@") + 12
    assert served_champion.find() == found
    write_model("second")
    other = served_champion.find()
    assert other.digest != found.digest and other.name != found.name


def test_a_champion_is_served_by_its_version_and_becoming_one_changes_no_digest():
    before = served_champion.find()
    first = replace(ROW, model=champion.digest_of_model())
    write_history(first)
    found = served_champion.find()
    assert (found.name, found.digest) == ("champion@v1", before.digest)
    write_history(
        first, promoted(2, write_model("second")), replace(ROW, decision=history.REJECTED, version=2, lock="")
    )
    assert served_champion.find().name == "champion@v2"
    write_model("first")
    write_history(first, promoted(2, "second"), replace(ROW, decision=history.ROLLED_BACK, version=1, lock=""))
    assert served_champion.find() == replace(served_champion.find(), name="champion@v1", digest=before.digest)


def test_while_a_challenger_is_trained_the_champion_set_aside_is_served():
    first = replace(ROW, model=champion.digest_of_model())
    write_history(first)
    champions = served_champion.find()
    set_aside(first)
    write_model("challenger")  # or half of it, or none
    for _ in range(2):
        found = served_champion.find()
        assert (found.folder, found.name, found.digest) == (ASIDE / "model", "champion@v1", champions.digest)
        shutil.rmtree(MODEL, ignore_errors=True)
    second = promoted(2, write_model("challenger"))
    write_history(first, second)  # a promotion is recorded first; it is complete when the champion aside is gone
    assert served_champion.find().name == "champion@v1"
    champion.remove_aside()
    found = served_champion.find()
    assert (found.folder, found.name, found.digest) == (MODEL, "champion@v2", second.model)


def test_a_model_that_nobody_decided_on_is_not_served():
    write_history(replace(ROW, model=champion.digest_of_model()))
    write_model("of a run without a challenge")
    with pytest.raises(RootstockError) as error:
        served_champion.find()
    assert str(error.value) == (
        "data/model holds a model that is none of the champions in data/history.parquet: a run without a challenge "
        "trained it, or an experiment was applied. `python -m flows.rollback --version 1` brings the champion back; "
        "`python -m flows.serve --model data/model` serves it as it is."
    )


def test_a_workspace_without_a_model_or_with_a_damaged_history_says_so():
    shutil.rmtree(MODEL)
    with pytest.raises(RootstockError, match="data/model holds no model; expected"):
        served_champion.find()
    write_model("first")
    Path("data/history.parquet").write_bytes(b"PAR1")
    with pytest.raises(DamagedError, match=r"data/history\.parquet is damaged"):
        served_champion.find()
    set_aside()
    with pytest.raises(RootstockError, match="champion does not say which champion it holds"):
        served_champion.find()
