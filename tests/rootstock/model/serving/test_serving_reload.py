"""A server follows its model: a new one takes the old one's place at once, a damaged one never does."""

import json
import logging
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rootstock.model.model import describe
from rootstock.model.serving.reloading import Follower
from rootstock.model.serving.served import Found, in_folder
from rootstock.system.files import replacing_folder, sha256, write
from tests.served_model import Site, held, serving
from tests.serving import until


def another(source: Path, target: Path, label: str) -> None:
    """Write a model that always says one label."""
    described, arrays = describe(source), load_file(source / "model.safetensors")
    bias = next(name for name, array in arrays.items() if array.shape == (len(described["classes"]),))
    arrays[bias] = np.where(np.array(described["classes"]) == label, 1e4, 0).astype(np.float32)
    with replacing_folder(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        save_file(arrays, folder / "model.safetensors")
        described["digest"] = sha256(folder / "model.safetensors")
        (folder / "model.json").write_text(json.dumps(described))


@pytest.fixture
def folder(head_model, tmp_path) -> Path:
    another(head_model, tmp_path / "model", "rings")
    return tmp_path / "model"


def labels(site: Site, photos) -> tuple[str, set[str]]:
    answer = site.predict(photos[:3]).json()
    return answer["model"], {row["label"] for row in answer["images"]}


def test_a_new_model_answers_and_requests_under_way_finish_on_the_old_one(head_model, folder, photos, caplog):
    caplog.set_level(logging.INFO)
    with serving(folder) as site:
        before, said = labels(site, photos)
        assert said == {"rings"}
        with held(site) as holding:
            under_way = [*holding.occupy(photos), site.ask(photos[:2])]
            site.waits_for("rootstock_waiting_images", 2)
            another(head_model, folder, "stripes")
            until(lambda: site.running.follower.current.name != before, "another model", 20)
            new = site.running.follower.current
            holding.released.set()
            for answer in under_way:
                assert answer.result().json()["model"] == before
                assert {row["label"] for row in answer.result().json()["images"]} == {"rings"}
        site.running.follower.current = new
        after, said = labels(site, photos)
        assert after != before and said == {"stripes"}
        assert f"{after} takes the place of {before}." in caplog.messages
        assert site.metric("rootstock_model_changes_total") == 2
        assert site.metric(f'rootstock_model{{model="{after}"}}') == 1


def test_the_end_waits_for_a_model_that_is_being_loaded(head_model):
    looking, may_go_on = threading.Event(), threading.Event()

    def find() -> Found:
        if follower:  # not the first time
            looking.set()
            assert may_go_on.wait(20)
        return in_folder(head_model)

    follower: list[Follower] = []
    follower.append(Follower(find, 100))
    before = set(threading.enumerate())  # other servers of this session
    follower[0].follow(0.01)
    assert looking.wait(20)
    threading.Timer(0.3, may_go_on.set).start()
    follower[0].end(20)
    assert may_go_on.is_set() and "reload" not in {thread.name for thread in set(threading.enumerate()) - before}


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


DAMAGE = {
    "no folder": (shutil.rmtree, "holds no model; expected a folder such as data/model"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "cut weights": (cut, "model.safetensors is not the file that was written: its digest differs"),
    "no JSON": (lambda folder: (folder / "model.json").write_text("{"), "model.json is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_leaves_the_old_model_serving_until_it_is_whole(head_model, folder, photos, caplog, damage):
    hurt, why = DAMAGE[damage]
    with serving(folder) as site:
        before, _ = labels(site, photos)
        if damage != "no folder":
            described = json.loads((folder / "model.json").read_text())
            write(folder / "model.json", json.dumps({**described, "temperature": 2.0}))  # half of a new model
        hurt(folder)
        site.waits_for("rootstock_reload_failing", 1)
        assert labels(site, photos) == (before, {"rings"})

        def reasons() -> list[str]:
            return [message for message in caplog.messages if message.startswith(f"{before} stays: ")]

        until(lambda: any(why in reason for reason in reasons()), why, 20)  # it may have looked before all was done
        assert [why in reason for reason in reasons()].count(True) == 1
        assert len(reasons()) == len(set(reasons())), "said once, while it stays so"
        another(head_model, folder, "checks")
        site.waits_for("rootstock_reload_failing", 0)
        after, said = labels(site, photos)
        assert after != before and said == {"checks"}
