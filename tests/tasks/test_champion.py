"""The champion: restored where its files are damaged, its history kept, and no delivery tried against it twice."""

import shutil
import sys
from contextlib import chdir
from pathlib import Path

import pytest

from rootstock.config.params import Retrain
from rootstock.ingest import inbox
from rootstock.model import history
from rootstock.model.history import Row
from rootstock.system.errors import RootstockError
from tasks.bridge import champion
from tests.images import put
from tests.slow import slow

pytestmark = pytest.mark.usefixtures("one_server")


DAMAGE = {
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another's": lambda path: path.write_bytes(b"another's"),
    "gone": lambda path: path.unlink(),
}
CHAMPIONS = ("data/model/model.json", "data/model/model.safetensors", "data/report/predictions.parquet")


def test_a_delivery_is_tried_again_when_the_criteria_change_unless_it_was_rolled_back(tmp_path):
    put(tmp_path / "data" / "inbox" / "shed" / "ants" / "1.png", 1)
    with chdir(tmp_path):
        delivery, settings = inbox.list_delivery("data/inbox", 0), Retrain()
        champion.remember_tried(champion.sign(delivery, settings))
        for changed, again in (
            ({}, False),
            ({"margin": 0.1}, True),
            ({"undecided": "ask"}, True),
            ({"git": "commit"}, False),
        ):
            assert champion.was_tried(delivery, Retrain(**changed)) is not again, changed
        champion.remember_tried(delivery.signature())  # as a rollback does, and as earlier versions wrote it
        assert champion.was_tried(delivery, Retrain(margin=0.1))
        champion.remember_tried(champion.sign(delivery, Retrain(undecided="ask"), unanswered=True))
        assert champion.was_tried(delivery, Retrain(undecided="ask"))
        assert not champion.was_tried(delivery, Retrain(undecided="ask"), can_ask=True)


def test_a_delivery_is_recognised_whatever_its_names_hold(tmp_path):
    for number, name in enumerate(("a\rb.png", "a\u2028b.png", "a\r\nb.png")):
        put(tmp_path / "data" / "inbox" / "shed" / "ants" / name, number)
    with chdir(tmp_path):
        delivery = inbox.list_delivery("data/inbox", 0)
        champion.remember_tried(champion.sign(delivery, Retrain()))
        assert champion.was_tried(delivery, Retrain())


@pytest.mark.parametrize(
    "command", [("dvc", "repro"), *slow((sys.executable, "-m", "flows.pipeline"))], ids=["repro", "flow"]
)
def test_a_history_in_the_models_folder_as_of_an_earlier_version_survives(flow_ran_in, tmp_path, command):
    workspace = flow_ran_in.copy(tmp_path / "workspace")
    rows = [Row(history.FIRST, 1, "The first one.", 45, lock="lock", params="seed: 0", model="a")]
    history.write(workspace.root / "data" / "model", rows)
    workspace.run(*command)  # evaluate replaces the folder
    assert not (workspace.root / "data" / "model" / "history.parquet").exists()
    assert history.read(workspace.root / "data", workspace.root / ".rootstock") == rows


def test_a_damaged_champion_is_restored_before_it_is_compared(flow_ran_in, tmp_path):
    workspace = flow_ran_in.copy(tmp_path / "workspace")
    kept = workspace.outputs()
    with chdir(workspace.root):
        assert champion.check_files() == []
        for name in CHAMPIONS:
            for damage in DAMAGE.values():
                damage(Path(name))
                [said] = champion.check_files()
                assert "was not what dvc.lock records; restored it from DVC" in said
                assert workspace.outputs() == kept
        shutil.rmtree(".dvc/cache")
        Path("data/model/model.json").unlink()
        with pytest.raises(RootstockError, match=r"data/model is not what dvc\.lock records.*dvc fetch"):
            champion.check_files()


@pytest.mark.slow  # half a minute, for a challenger to compete with
def test_a_champion_damaged_while_set_aside_is_an_error_that_names_the_remedy(contested, tmp_path):
    workspace = contested.copy(tmp_path / "workspace")
    with chdir(workspace.root):
        assert champion.check_files() == []
        aside = sorted(path for path in Path(".rootstock/champion").rglob("*") if path.is_file())
        for path in aside:
            content = path.read_bytes()
            for damage in DAMAGE.values():
                damage(path)
                if path.exists() or path.name != "sha256sums":
                    with pytest.raises(RootstockError, match=r"rollback --version 1` restores the champion") as said:
                        champion.check_files()
                    assert str(path) in str(said.value) or path.name == "sha256sums"
                path.write_bytes(content)
