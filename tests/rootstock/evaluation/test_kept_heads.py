"""An evaluation that was stopped fits only those heads that it has not fitted yet, and ends with the same bytes."""

import dataclasses
import shutil

import pytest

from rootstock.config.params import Evaluate, Head, Params
from rootstock.evaluation import kept_heads
from rootstock.evaluation.evaluate import Kept
from rootstock.training import head, kept_passes, logistic
from tests.evaluations import run

PARAMS = Params(evaluate=Evaluate(explain=False, repeats=1), head=Head(l2=(1.0, 10.0)))
AT_ONCE = 2 * len(PARAMS.head.l2)  # fits that two threads may be at


class Killed(BaseException):
    """As a kill: nothing handles it."""


@pytest.fixture
def fitted(monkeypatch):
    """Counts the fits that are done; an evaluation is killed in the one after `most`."""
    fits, minimise = {"done": 0, "most": 10**9}, logistic._minimise
    monkeypatch.setattr(kept_heads, "LEAST_S", 0.0)

    def counted(*given):
        if fits["done"] >= fits["most"]:
            raise Killed
        found = minimise(*given)
        fits["done"] += 1
        return found

    monkeypatch.setattr(logistic, "_minimise", counted)
    return fits


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    return run(inputs, tmp_path_factory.mktemp("whole"), PARAMS)


def opened(root, inputs, params=PARAMS) -> kept_heads.KeptHeads:
    return kept_heads.opened(root, inputs, params)


def assert_same(again, whole) -> None:
    assert again.files(again.model) == whole.files(whole.model)
    different = {name for name, data in again.files(again.report).items() if whole.files(whole.report)[name] != data}
    assert different <= {"timings.json", "report.html"}  # they tell seconds


@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
def test_a_head_that_was_fitted_before_a_kill_is_not_fitted_again(inputs, whole, fitted, tmp_path, share, caplog):
    caplog.set_level("INFO")
    run(inputs, tmp_path / "counted", PARAMS)
    needed, fitted["done"] = fitted["done"], 0
    fitted["most"] = round(share * needed)
    with pytest.raises(Killed):
        run(inputs, tmp_path / "first", PARAMS, kept=Kept(heads=opened(tmp_path / "kept", inputs)))
    before, fitted["done"], fitted["most"] = fitted["done"], 0, 10**9
    again = run(inputs, tmp_path / "again", PARAMS, kept=Kept(heads=opened(tmp_path / "kept", inputs)))
    assert "evaluate: resuming an interrupted run" in caplog.text
    assert fitted["done"] <= needed - before + AT_ONCE < needed + AT_ONCE
    assert_same(again, whole)


def test_passes_of_a_long_fit_are_kept_until_it_is_done(inputs, whole, fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_passes, "EVERY_S", 0.0)
    fitted["most"] = 20
    with pytest.raises(Killed):
        run(inputs, tmp_path / "first", PARAMS, kept=Kept(heads=opened(tmp_path / "kept", inputs)))
    assert list(opened(tmp_path / "kept", inputs).folder.glob("*/*/*.safetensors"))
    fitted["most"] = 10**9
    heads = opened(tmp_path / "kept", inputs)
    assert_same(run(inputs, tmp_path / "again", PARAMS, kept=Kept(heads=heads)), whole)
    assert not [path for path in heads.folder.iterdir() if path.is_dir()]


def test_what_another_evaluation_kept_is_removed(inputs, tmp_path):
    other = dataclasses.replace(inputs, head=tmp_path / "head")
    shutil.copytree(inputs.head, other.head)
    with (other.head / head.DESCRIPTION).open("a") as file:
        file.write(" ")
    root = tmp_path / "kept"
    folders = []
    for given, params in ((inputs, PARAMS), (other, PARAMS), (other, PARAMS.model_copy(update={"seed": 7}))):
        folder = opened(root, given, params).folder
        folder.mkdir(parents=True)
        folders.append(folder)
    assert len(set(folders)) == 3 and list(root.iterdir()) == folders[2:]


def test_heads_stay_when_a_parameter_changes_that_they_do_not_depend_on(inputs, tmp_path):
    more = PARAMS.model_copy(update={"evaluate": Evaluate(explain=True, repeats=5)})
    assert opened(tmp_path / "kept", inputs, more) == opened(tmp_path / "kept", inputs)


@pytest.mark.usefixtures("fitted")
def test_a_damaged_file_is_a_warning_and_its_head_is_fitted_again(inputs, whole, tmp_path, caplog):
    heads = opened(tmp_path / "kept", inputs)
    run(inputs, tmp_path / "first", PARAMS, kept=Kept(heads=heads))
    damaged = heads.folder / "fold-1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert_same(run(inputs, tmp_path / "again", PARAMS, kept=Kept(heads=heads)), whole)
    assert f"{damaged} is damaged: computed again" in caplog.text


def test_what_is_fitted_in_less_than_a_second_leaves_no_file(inputs, tmp_path):
    heads = opened(tmp_path / "kept", inputs)
    run(inputs, tmp_path / "first", PARAMS, kept=Kept(heads=heads))
    assert not list((tmp_path / "kept").rglob("*.*"))
